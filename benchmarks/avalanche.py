"""Benchmarks as Avalanche streams; the only module here that imports Avalanche (seconds)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from avalanche.benchmarks import CLScenario, benchmark_from_datasets, with_task_labels
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute, as_classification_dataset
from torch import Tensor
from torch.utils.data import Dataset

from cl_lora.benchmarks.batches import Encode, target_tensor
from cl_lora.benchmarks.core import Benchmark, Experience
from cl_lora.benchmarks.draw import Shots
from cl_lora.benchmarks.splits import Indices
from cl_lora.support.errors import UserError

Part = tuple[Experience, Indices]


class IndexedSamples(Dataset[tuple[Tensor, Any]]):
    """Some samples of one or more experiences; an item is (model input, target).

    A target that is one whole number is given as an int, which collates to int64; any other one
    as a tensor of its kind's dtype.

    Attributes:
        targets: the targets, in order; Avalanche asks for this name.
        whole: whether targets are ints.
    """

    def __init__(self, parts: Sequence[Part], encode: Encode) -> None:
        self._experiences = [experience for experience, _ in parts]
        self._encode = encode
        sizes = [len(indices) for _, indices in parts]
        self._part_of = np.repeat(np.arange(len(parts)), sizes)
        self._indices = np.concatenate([indices for _, indices in parts])
        tensors = [target_tensor(experience, indices) for experience, indices in parts]
        self.whole = all(t.ndim == 1 and not t.is_floating_point() for t in tensors)
        self.targets: list[Any] = [
            target for t in tensors for target in (t.tolist() if self.whole else t.unbind())
        ]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, item: int) -> tuple[Tensor, Any]:
        experience = self._experiences[self._part_of[item]]
        return self._encode(experience.inputs[self._indices[item]]), self.targets[item]


def avalanche_benchmark(benchmark: Benchmark, encode: Encode) -> CLScenario:
    """Return the stream of a benchmark's experiences.

    With task labels, the place of the task among the benchmark's, where it has several tasks; where
    all experiences share one there are none, as Avalanche's metrics keep those of each label apart.

    Args:
        benchmark: what to stream.
        encode: what turns one sample into the model's input.
    """
    tasks = benchmark.tasks
    labels = [tasks.index(e.task) if len(tasks) > 1 else None for e in benchmark.experiences]
    pairs = list(zip(benchmark.experiences, labels, strict=True))
    streams = benchmark_from_datasets(
        train=[_dataset([(e, e.train)], encode, label) for e, label in pairs],
        test=[_dataset([(e, e.test)], encode, label) for e, label in pairs],
    )
    # Labels of samples are not enough: metrics go by those of experiences.
    return with_task_labels(streams) if len(tasks) > 1 else streams


def joint_benchmark(benchmark: Benchmark, encode: Encode) -> CLScenario:
    """Return the stream of joint training: one train experience with the data of all.

    The test stream still has an experience for each of the benchmark's.

    Args:
        benchmark: what to stream; its experiences share one task.
        encode: what turns one sample into the model's input.

    Raises:
        UserError: the experiences have different tasks.
    """
    tasks = benchmark.tasks
    if len(tasks) > 1:
        raise UserError(
            f"Expected the experiences of {benchmark.name!r} to share one task for joint training "
            f"but got {', '.join(repr(task.name) for task in tasks)}; leave joint training out"
        )
    return benchmark_from_datasets(
        train=[_dataset([(e, e.train) for e in benchmark.experiences], encode)],
        test=[_dataset([(e, e.test)], encode) for e in benchmark.experiences],
    )


def few_shot_streams(
    benchmark: Benchmark, supports: Mapping[Shots, Indices], encode: Encode
) -> CLScenario:
    """Return the four streams of few-shot composition, without task labels.

    ``upstream_train`` and ``upstream_test`` have an experience for each upstream experience,
    ``support`` one for each support set in the given order, and ``query`` one, the test part of
    the downstream experience. Their attributes end in ``_stream``, as ``query_stream``.

    Args:
        benchmark: a stream with one downstream experience.
        supports: for each K the indices of its support set, from ``draw_support``.
        encode: what turns one sample into the model's input.

    Raises:
        UserError: not exactly one experience is downstream, no support set is given, one is empty
            or holds samples outside the pool, or the query is empty.
    """
    if len(benchmark.downstream) != 1:
        raise UserError(
            f"Expected {benchmark.name!r} to have one downstream experience but it has "
            f"{len(benchmark.downstream)}; give benchmark.downstream=NAME"
        )
    upstream = [benchmark.experiences[i] for i in benchmark.upstream]
    downstream = benchmark.experiences[benchmark.downstream[0]]
    if not supports:
        raise UserError("Expected at least one support set but got none; give shots=[1,2,5]")
    for shots, indices in supports.items():
        if not len(indices) or not np.isin(indices, downstream.train).all():
            raise UserError(
                f"Expected the support of shots={shots} to hold train samples of "
                f"{downstream.name!r} only, at least one; draw it with draw_support"
            )
    if not len(downstream.test):
        raise UserError(f"Expected test samples in {downstream.name!r} but its query is empty")
    return benchmark_from_datasets(
        upstream_train=[_dataset([(e, e.train)], encode) for e in upstream],
        upstream_test=[_dataset([(e, e.test)], encode) for e in upstream],
        support=[_dataset([(downstream, indices)], encode) for indices in supports.values()],
        query=[_dataset([(downstream, downstream.test)], encode)],
    )


def _dataset(parts: Sequence[Part], encode: Encode, label: int | None = None) -> AvalancheDataset:
    samples = IndexedSamples(parts, encode)
    labels = [] if label is None else [_task_labels(len(samples), label)]
    if samples.whole and label is None:
        return as_classification_dataset(samples)
    return AvalancheDataset(
        [samples], data_attributes=[DataAttribute(samples.targets, "targets"), *labels]
    )


def _task_labels(count: int, label: int) -> DataAttribute:
    return DataAttribute([label] * count, "targets_task_labels", use_in_getitem=True)
