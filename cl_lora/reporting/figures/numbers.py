"""The numbers behind the figures: the only place here that asks the table of scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from cl_lora.evaluation.aggregate import ALL_EXPERIENCES, Estimate, estimates
from cl_lora.evaluation.continual import FloatArray, ScoreMatrix
from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.budgets import headline
from cl_lora.run_folder.reader import RunFolder
from cl_lora.support.errors import unknown_name

Numbers = Mapping[tuple[str, str, int], Estimate]
"""(arm, measure, experience) -> mean and deviation over seeds."""


def metric_of(run: RunFolder, name: str | None = None) -> Metric:
    """Return the metric ``name`` of the run; the one that leads its report if not given.

    Raises:
        UserError: if the run has no such metric.
    """
    metrics = run.stream.metrics
    if name is None:
        return headline(run)
    if name not in metrics:
        raise unknown_name("metric", name, metrics)
    return metrics[name]


def scored_arms(run: RunFolder) -> tuple[str, ...]:
    """Return the arms, then the baselines, that have scores."""
    return tuple(a for a in (*run.arms, *run.references) if a in run.scores.arms)


def score_matrix(run: RunFolder, seed: int, arm: str, metric: Metric) -> ScoreMatrix:
    """Return the scores of one arm and seed: values (S, T), a row for each stage after training."""
    return run.scores.matrix(seed, arm, metric.name, run.stream.shape(metric.name))


def numbers_of(run: RunFolder, metric: Metric) -> Numbers:
    """Return mean and deviation over seeds of every measure of every arm."""
    return estimates(run.scores, metric.name, run.stream.shape(metric.name))


def seeds_of(run: RunFolder) -> tuple[int, ...]:
    """Return the run's seeds that have scores."""
    return tuple(s for s in run.seeds if s in run.scores.seeds)


def mean_matrix(run: RunFolder, arm: str, metric: Metric) -> FloatArray:
    """Return R (S, T) of ``arm``, mean over seeds; NaN where a seed has no score."""
    stacked = np.array([score_matrix(run, s, arm, metric).values for s in seeds_of(run)])
    mean: FloatArray = stacked.mean(axis=0)
    return mean


def stage_averages(run: RunFolder, values: FloatArray, metric: Metric) -> FloatArray:
    """Return for each stage s the mean of ``values[s, j]`` over the experiences that it is about.

    Where stages follow one another these are the experiences seen so far, those whose adapters
    are merged: ``mean_{j<=t} R[t, j]`` for a stream of one experience after another. Where they
    do not, they are all that the stage evaluates.

    Args:
        run: says what the stages are.
        values: R (S, T).
        metric: experiences whose task has another are left out.

    Returns:
        (S,) means; NaN for a stage with a missing score, or about no experience.
    """
    evaluated = run.stream.shape(metric.name).evaluated or ()
    means = []
    for row, stage, scored in zip(values, run.stream.trained_stages, evaluated, strict=True):
        about = [j for j in scored if j in stage.members or not run.stream.ordered]
        means.append(float(row[about].mean()) if about else math.nan)
    return np.array(means)


def averages_over_stages(run: RunFolder, arm: str, metric: Metric) -> tuple[FloatArray, FloatArray]:
    """Return mean and deviation over seeds of :func:`stage_averages`, (S,) each."""
    S = len(run.stream.trained_stages)
    if arm not in run.scores.arms:
        return np.full(S, np.nan), np.full(S, np.nan)
    curves = np.array(
        [
            stage_averages(run, score_matrix(run, s, arm, metric).values, metric)
            for s in seeds_of(run)
        ]
    )
    spread = curves.std(axis=0, ddof=1) if len(curves) > 1 else np.full(S, np.nan)
    return curves.mean(axis=0), spread


def by_average(numbers: Numbers, arms: Sequence[str]) -> list[str]:
    """Return those of ``arms`` that were scored, best average first, undefined last."""
    found = {a: numbers.get((a, "average", ALL_EXPERIENCES)) for a in arms}
    keys = {
        a: math.inf if math.isnan(e.mean) else (-e.mean if e.higher_is_better else e.mean)
        for a, e in found.items()
        if e is not None
    }
    return sorted(keys, key=lambda a: keys[a])
