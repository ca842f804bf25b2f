"""The numbers of an arm as TensorBoard's scalars: pure, from tables to (tag, step) -> value."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from cl_lora.evaluation.aggregate import estimate, paired_difference
from cl_lora.evaluation.continual import forgetting
from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.figures.numbers import score_matrix, seeds_of, stage_averages
from cl_lora.reporting.routing import routed_arms, routed_right, routing_matrix
from cl_lora.reporting.views import View
from cl_lora.run_folder.reader import RunFolder

Scalars: TypeAlias = dict[tuple[str, int], float]
"""(tag, step) -> value."""

BAND = "interval"
"""What the tags of :func:`band` begin with."""


def scored_metrics(run: RunFolder) -> list[Metric]:
    """Return the run's metrics that were scored, the primary one first."""
    return [m for name, m in run.stream.metrics.items() if name in run.scores.metrics]


def scalars_by_seed(views: Sequence[View], arm: str) -> dict[int, Scalars]:
    """Return the scalars of an arm for each seed of the run, of all its views together."""
    seeds = seeds_of(views[0].whole) if views else ()
    return {
        seed: {k: v for view in views for k, v in _of_seed(view, arm, seed).items()}
        for seed in seeds
    }


def mean_over_seeds(of_seed: Mapping[int, Scalars]) -> Scalars:
    """Return the mean of every scalar over the seeds that have it."""
    return {key: estimate(values).mean for key, values in _values(of_seed)}


def band(of_seed: Mapping[int, Scalars]) -> Scalars:
    """Return ``interval/<tag>/low`` and ``/high`` of averages and forgetting.

    Their ends are those of the 95 % interval over seeds (Student's t); without a second seed there
    is none.
    """
    found: Scalars = {}
    for (tag, step), values in _values(of_seed):
        if banded(tag):
            interval = paired_difference(values, [0.0] * len(values))
            found[f"{BAND}/{tag}/low", step] = interval.low
            found[f"{BAND}/{tag}/high", step] = interval.high
    return {key: value for key, value in found.items() if math.isfinite(value)}


def banded(tag: str) -> bool:
    """Return whether a scalar is one that sums an arm up, and so has an interval."""
    parts = tag.split("/")
    return parts[-1] == "average" or "forgetting" in parts


def coefficients_by_step(view: View, arm: str) -> Iterator[tuple[int, Any]]:
    """Yield (step, coefficients) of an arm whose layers or modules have their own."""
    rows = view.run.coefficients[view.run.coefficients["arm"] == arm]
    if rows["group"].nunique() > 1:
        for stage, values in rows.groupby("stage")["value"]:
            yield view.steps[int(str(stage))], values.to_numpy()


def _values(of_seed: Mapping[int, Scalars]) -> Iterator[tuple[tuple[str, int], list[float]]]:
    for key in dict.fromkeys(key for scalars in of_seed.values() for key in scalars):
        yield key, [scalars[key] for scalars in of_seed.values() if key in scalars]


def _of_seed(view: View, arm: str, seed: int) -> Scalars:
    run, steps = view.run, view.steps
    if seed not in run.scores.seeds:
        return {}
    scalars: Scalars = {}
    for metric in scored_metrics(run):
        matrix = score_matrix(run, seed, arm, metric)
        for j, name in enumerate(run.experiences):
            scalars[(f"{metric.name}/{name}", 0)] = float(matrix.baseline[j])
            for s, step in enumerate(steps):
                scalars[(f"{metric.name}/{name}", step)] = float(matrix.values[s, j])
        averages = stage_averages(run, matrix.values, metric)
        for s, step in enumerate(steps):
            scalars[(f"{metric.name}/average", step)] = float(averages[s])
            # Forgetting is a measure of time: one more experience with every stage.
            if run.stream.ordered and len(steps) == len(run.experiences):
                part = matrix.values[: s + 1, : s + 1]
                lost = forgetting(part, metric.higher_is_better)
                scalars[(f"forgetting/{metric.name}", step)] = lost
    for tag, every in view.coefficients.items():
        rows = every[(every["arm"] == arm) & (every["seed"] == seed)]
        for (stage, adapter), values in rows.groupby(["stage", "adapter"])["value"]:
            i = int(str(adapter))
            scalars[(f"{tag}/{i:02d}-{run.experiences[i]}", steps[int(str(stage))])] = float(
                values.mean()
            )
    for spent in (run.accounts, run.times):
        rows = spent[(spent["arm"] == arm) & (spent["seed"] == seed)]
        for (stage, quantity), values in rows.groupby(["stage", "quantity"])["value"]:
            scalars[(f"accounts/{quantity}", steps[int(str(stage))])] = float(values.mean())
    for s, step in enumerate(steps) if arm in routed_arms(run) else ():
        routes = routing_matrix(run, arm, s, seed)
        if routes is not None:
            scalars[("routing/right", step)] = routed_right(routes)
    return {
        (f"{view.prefix}{tag}", step): value
        for (tag, step), value in scalars.items()
        if math.isfinite(value)
    }
