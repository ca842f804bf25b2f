"""The numbers of a run that says how many parameters each way of serving all tasks needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cl_lora.evaluation.aggregate import Difference, averages, paired_difference
from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.multitask import CONTROL, is_multitask, own_metric
from cl_lora.run_folder.reader import RunFolder

PARAMETERS = "parameters"
"""The quantity of ``accounts.csv``: numbers that serve all tasks, the backbone once among them,
heads left out; and the entry of the backbone's record in ``stream.json`` that counts its own."""

CONFIDENCE = 0.95

SINGLES = ("single", "single_full")
"""The roles of rows that serve every task by a model of its own."""


def parameters_of(run: RunFolder) -> dict[str, float]:
    """Return how many numbers each arm and baseline needs to serve all tasks.

    Seeds need equally many; where a merge keeps more on one than on another, it is their mean. Rows
    of which nothing was recorded are left out.
    """
    rows = run.accounts[run.accounts["quantity"] == PARAMETERS]
    means = rows.groupby("arm")["value"].mean().to_dict()
    return {row: float(means[row]) for row in (*run.arms, *run.references) if row in means}


def has_budgets(run: RunFolder) -> bool:
    """Return whether a run says how many parameters its rows need to serve all tasks."""
    return bool((run.accounts["quantity"] == PARAMETERS).any())


def backbone_of(run: RunFolder) -> float:
    """Return how many numbers the backbone has; NaN where the run does not say."""
    return float(run.stream.backbone.get(PARAMETERS, math.nan))


def headline(run: RunFolder) -> Metric:
    """Return the metric that leads a report: the run's primary one, which is its first.

    Where budgets are compared and all tasks have one metric of their own, it is that: shares of
    single task only stand in for metrics that cannot be averaged.
    """
    first = next(iter(run.stream.metrics.values()))
    if not (is_multitask(run) and has_budgets(run)):
        return first
    own = {own_metric(run, j) for j in range(len(run.experiences))}
    (metric, *others) = own
    return first if others or metric.name not in run.scores.metrics else metric


def leading_metrics(run: RunFolder) -> tuple[Metric, ...]:
    """Return the metrics whose tables are printed: the first of every task, each once.

    Where :func:`headline` is another it stands for them all.
    """
    first = headline(run)
    of_tasks = {task.metrics[0].name: task.metrics[0] for task in run.stream.tasks}
    return tuple(of_tasks.values()) if first.name in of_tasks else (first,)


def singles(run: RunFolder) -> tuple[str, ...]:
    """Return the baselines that serve every task by a model of its own."""
    return tuple(row for row in run.references if run.roles.get(row) in SINGLES)


def choosable(run: RunFolder) -> tuple[str, ...]:
    """Return the arms that are a choice: neither baselines nor controls."""
    return tuple(a for a in run.arms if run.roles.get(a) != CONTROL)


@dataclass(frozen=True)
class Point:
    """What a row needs and what it reaches.

    Attributes:
        parameters: numbers that serve all tasks.
        mean: of the average over tasks, over seeds.
        low: lower end of Student's 95 % interval over seeds; NaN where there is none.
        high: upper end.
        seeds: how many seeds the mean is over.
    """

    parameters: float
    mean: float
    low: float
    high: float
    seeds: int


def points_of(run: RunFolder, metric: Metric) -> dict[str, Point]:
    """Return the point of every arm and baseline that has a size and a score.

    Args:
        run: a run for which :func:`has_budgets` holds.
        metric: averaged over the tasks within a seed; the seed is the unit of the interval.
    """
    found = over_seeds(run, metric)
    return {
        row: Point(size, found[row].mean, found[row].low, found[row].high, found[row].n)
        for row, size in parameters_of(run).items()
        if row in found and size > 0
    }


def over_seeds(run: RunFolder, metric: Metric) -> dict[str, Difference]:
    """Return what every row with scores has on average: the mean over seeds and its interval.

    Args:
        run: any run.
        metric: averaged over the experiences within a seed; the seed is the unit of the interval.
    """
    if metric.name not in run.scores.metrics:
        return {}
    found = averages(run.scores, metric.name, run.stream.shape(metric.name))
    values = {row: np.array(list(of.values()), dtype=np.float64) for row, of in found.items() if of}
    return {row: paired_difference(v, np.zeros_like(v), CONFIDENCE) for row, v in values.items()}


def front(points: Mapping[str, Point], higher_is_better: bool) -> list[str]:
    """Return the rows on the Pareto front, from the smallest to the largest.

    On it is what no other row matches in both numbers and beats in one. Of rows that are equal in
    both, all are on it.

    Example:
        >>> rows = {"a": (1, 0.5), "b": (2, 0.4), "c": (3, 0.9)}
        >>> found = {name: Point(size, mean, 0, 1, 3) for name, (size, mean) in rows.items()}
        >>> front(found, higher_is_better=True)
        ['a', 'c']
    """
    sign = 1.0 if higher_is_better else -1.0
    ordered = sorted(points, key=lambda row: (points[row].parameters, -sign * points[row].mean))
    kept: list[str] = []
    for row in ordered:
        p = points[row]
        last = points[kept[-1]] if kept else None
        equal = last is not None and (last.parameters, last.mean) == (p.parameters, p.mean)
        if last is None or equal or sign * p.mean > sign * last.mean:
            kept.append(row)
    return kept


def on_front(run: RunFolder, metric: Metric) -> list[str]:
    """Return the front of the arms and baselines of a run, controls left out.

    Only rows with as many seeds as the fullest one: a mean over fewer may lead by luck.
    """
    points = {row: p for row, p in points_of(run, metric).items() if run.roles.get(row) != CONTROL}
    most = max((p.seeds for p in points.values()), default=0)
    whole = {row: p for row, p in points.items() if p.seeds == most}
    return front(whole, metric.higher_is_better)


def best_within(
    points: Mapping[str, Point], arms: Sequence[str], limit: float, higher_is_better: bool
) -> str | None:
    """Return the best of ``arms`` that need at most ``limit`` numbers; the smallest of equal ones.

    Only arms with as many seeds as the fullest one are ranked.

    Returns:
        Its name; None where no arm is that small.
    """
    sign = 1.0 if higher_is_better else -1.0
    there = {a: points[a] for a in arms if a in points}
    most = max((p.seeds for p in there.values()), default=0)
    ranked = [a for a, p in there.items() if p.seeds == most and p.parameters <= limit]
    if not ranked:
        return None
    return max(ranked, key=lambda a: (sign * there[a].mean, -there[a].parameters))
