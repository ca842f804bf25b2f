"""From score tables to numbers over seeds: mean, deviation, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from cl_lora.evaluation.continual import MEASURES, FloatArray
from cl_lora.evaluation.scores import ScoreTable

FINAL = "final"
"""Name of the measure R[T, j], the score on one experience after the last."""

ALL_EXPERIENCES = -1
"""Stands in the column ``evaluated`` for a measure over all experiences."""


def per_seed(scores: ScoreTable, experiences: int | None = None) -> pd.DataFrame:
    """Return every measure of every arm, seed and metric.

    Args:
        scores: the run's scores.
        experiences: T of the stream; what occurs in the scores if not given.

    Returns:
        A tidy frame with the columns arm, metric, measure, evaluated, seed, value and
        higher_is_better. ``measure`` is ``final`` (then ``evaluated`` = j, the value is R[T, j])
        or a name in :data:`MEASURES` (then ``evaluated`` is -1). Undefined values are NaN.

    Raises:
        UserError: if the scores hold more than ``experiences`` experiences.
    """
    return pd.DataFrame(
        list(_per_seed(scores, scores.metrics, experiences)), columns=list(_Row._fields)
    )


class _Row(NamedTuple):
    arm: str
    metric: str
    measure: str
    evaluated: int
    seed: int
    value: float
    higher_is_better: bool


def _per_seed(
    scores: ScoreTable, metrics: Sequence[str], experiences: int | None
) -> Iterator[_Row]:
    for arm in scores.arms:
        for metric in metrics:
            for seed in scores.seeds:
                matrix = scores.matrix(seed, arm, metric, experiences)
                up = matrix.higher_is_better
                for j, value in enumerate(matrix.values[-1]):
                    yield _Row(arm, metric, FINAL, j, seed, float(value), up)
                for name, measure in MEASURES.items():
                    better = up if measure.higher_is_better is None else measure.higher_is_better
                    value = measure.compute(matrix)
                    yield _Row(arm, metric, name, ALL_EXPERIENCES, seed, value, better)


@dataclass(frozen=True)
class Estimate:
    """Mean and deviation of one measure over seeds.

    Attributes:
        mean: ``sum_s x_s / n``; NaN without seeds.
        deviation: ``sqrt(sum_s (x_s - mean)^2 / (n - 1))``, the sample deviation; NaN for n < 2.
        seeds: n, the number of seeds on which the measure is defined; the others are left out.
        higher_is_better: the measure's direction.
    """

    mean: float
    deviation: float
    seeds: int
    higher_is_better: bool


def estimate(values: Sequence[float], higher_is_better: bool = True) -> Estimate:
    """Return mean and sample deviation of the values that are not NaN.

    Example:
        >>> estimate([1.0, 3.0, float("nan")]).mean
        2.0
    """
    x = np.array([v for v in values if not math.isnan(v)], dtype=np.float64)
    mean = float(x.mean()) if len(x) else math.nan
    deviation = float(x.std(ddof=1)) if len(x) > 1 else math.nan
    return Estimate(mean, deviation, len(x), higher_is_better)


def estimates(
    scores: ScoreTable, metric: str, experiences: int | None = None
) -> dict[tuple[str, str, int], Estimate]:
    """Return what :func:`summary` says of one metric, by (arm, measure, evaluated).

    Raises:
        UserError: if the metric does not occur or the scores hold more than ``experiences``
            experiences.
    """
    scores.higher_is_better(metric)  # names the metrics there are, if not this one
    values: dict[tuple[str, str, int], list[float]] = {}
    directions: dict[tuple[str, str, int], bool] = {}
    for row in _per_seed(scores, (metric,), experiences):
        key = (row.arm, row.measure, row.evaluated)
        values.setdefault(key, []).append(row.value)
        directions[key] = row.higher_is_better
    return {key: estimate(x, directions[key]) for key, x in values.items()}


def summary(scores: ScoreTable, experiences: int | None = None) -> pd.DataFrame:
    """Return mean and deviation over seeds of every measure.

    The deviation is the sample deviation (divisor n - 1) and NaN with one seed. Seeds whose value
    is undefined are left out, and ``seeds`` says how many remain; see :class:`Estimate`.

    Args:
        scores: the run's scores.
        experiences: T of the stream; what occurs in the scores if not given.

    Returns:
        A frame with the columns arm, metric, measure, evaluated, mean, deviation, seeds and
        higher_is_better, arms in order of appearance; see :func:`per_seed`.

    Raises:
        UserError: if the scores hold more than ``experiences`` experiences.
    """
    of_metric = {m: estimates(scores, m, experiences) for m in scores.metrics}
    rows = [
        (arm, metric, measure, j, e.mean, e.deviation, e.seeds, e.higher_is_better)
        for arm in scores.arms
        for metric, found in of_metric.items()
        for (of_arm, measure, j), e in found.items()
        if of_arm == arm
    ]
    columns = ["arm", "metric", "measure", "evaluated", "mean", "deviation", "seeds"]
    return pd.DataFrame(rows, columns=[*columns, "higher_is_better"])


@dataclass(frozen=True)
class PairedDifference:
    """The mean of paired differences with its interval.

    Attributes:
        mean: mean difference, arm minus reference.
        low: lower end of the interval.
        high: upper end of the interval.
        pairs: number of pairs n.
    """

    mean: float
    low: float
    high: float
    pairs: int


def paired_difference(
    values: FloatArray | Sequence[float],
    reference: FloatArray | Sequence[float],
    confidence: float = 0.95,
) -> PairedDifference:
    """Return the mean of ``d_i = values_i - reference_i`` with Student's t interval.

    ``mean(d) +- t(n - 1, (1 + confidence) / 2) * deviation(d) / sqrt(n)`` (Student 1908). The
    interval takes the pairs as independent draws; pairs with an undefined side are left out.

    Args:
        values: (n,) numbers.
        reference: (n,) numbers, paired with them.
        confidence: coverage of the interval.

    Returns:
        The mean and its interval. With no pair all are NaN, with one pair the ends are NaN.

    Raises:
        ValueError: if the shapes differ or the confidence is not in (0, 1).

    Example:
        >>> paired_difference([2.0, 4.0], [1.0, 1.0]).mean
        2.0
    """
    a, b = np.asarray(values, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"Expected two vectors of one length but got {a.shape} and {b.shape}")
    if not 0 < confidence < 1:
        raise ValueError(f"Expected confidence in (0, 1) but got {confidence}")
    d = (a - b)[~np.isnan(a - b)]
    n = len(d)
    if n == 0:
        return PairedDifference(math.nan, math.nan, math.nan, 0)
    mean = float(d.mean())
    if n == 1:
        return PairedDifference(mean, math.nan, math.nan, 1)
    # Imported late: scipy.special costs a tenth of a second that most commands never need.
    from scipy.special import stdtrit  # type: ignore[import-untyped, unused-ignore]

    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * float(d.std(ddof=1)) / math.sqrt(n)
    return PairedDifference(mean, mean - half, mean + half, n)


def differences(
    scores: ScoreTable,
    reference: str,
    metric: str = "accuracy",
    confidence: float = 0.95,
    experiences: int | None = None,
) -> pd.DataFrame:
    """Return how far each arm's final score lies from that of ``reference``.

    Paired over seeds AND experiences: the n pairs are ``R_arm[T, j] - R_reference[T, j]`` for
    every seed and j. What makes an experience or a seed easy for both sides cancels. The interval
    covers the spread over these seeds and domains alike, so it is wide where an arm gains on one
    domain and loses on another; a claim about new domains needs more domains, not more seeds.

    Args:
        scores: the run's scores.
        reference: the arm to compare with.
        metric: which metric.
        confidence: coverage of the interval.
        experiences: T of the stream; what occurs in the scores if not given.

    Returns:
        A frame with the columns arm, metric, reference, difference, low, high, pairs and
        higher_is_better; see :func:`paired_difference`.

    Raises:
        UserError: if the reference or the metric does not occur.
    """

    def finals(arm: str) -> FloatArray:
        rows = [scores.matrix(s, arm, metric, experiences).values[-1] for s in scores.seeds]
        return np.concatenate(rows)

    up = scores.higher_is_better(metric)
    other = finals(reference)
    rows: list[tuple[str, str, str, float, float, float, int, bool]] = []
    for arm in scores.arms:
        d = paired_difference(finals(arm), other, confidence)
        rows.append((arm, metric, reference, d.mean, d.low, d.high, d.pairs, up))
    columns = ["arm", "metric", "reference", "difference", "low", "high", "pairs"]
    return pd.DataFrame(rows, columns=[*columns, "higher_is_better"])
