"""Which metrics an experience is scored by: its kind's, subsets of it, its share of single task."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy.typing as npt

from cl_lora.benchmarks.core import Benchmark, Experience
from cl_lora.evaluation.metrics import RELATIVE, Metric
from cl_lora.tasks import Task


def primary(task: Task) -> Metric:
    """Return the metric that a task is judged by."""
    return task.kind.metrics[0]


def subsets_of(experience: Experience) -> dict[Metric, npt.NDArray[Any]]:
    """Return the primary metric on each named subset of the test samples.

    Returns:
        Metric -> bool (N,) over the test part; subsets without a test sample are left out.
    """
    metric = primary(experience.task)
    masks = {name: mask[experience.test] for name, mask in experience.subsets.items()}
    return {
        replace(metric, name=f"{metric.name}_{name}", title=f"{metric.title}, {name}"): mask
        for name, mask in masks.items()
        if mask.any()
    }


def reported(experience: Experience, relative: bool) -> tuple[Metric, ...]:
    """Return the metrics of an experience in the order of reports.

    Args:
        experience: what is scored.
        relative: whether the share of single task leads, because tasks have unlike metrics.
    """
    leading = (RELATIVE,) if relative else ()
    return (*leading, *experience.task.kind.metrics, *subsets_of(experience))


def metrics_of_task(benchmark: Benchmark, task: Task, relative: bool) -> tuple[Metric, ...]:
    """Return the metrics by which every experience of a task is scored."""
    each = [reported(e, relative) for e in benchmark.experiences if e.task == task]
    return tuple(metric for metric in each[0] if all(metric in found for found in each))
