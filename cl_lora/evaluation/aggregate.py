"""From score tables to numbers over seeds: means, standard deviations, differences, intervals.

The unit is the seed. Scores of one seed on several experiences are no independent draws (they
share adapters, coefficients and head), so experiences are averaged first. Standard deviations and
intervals run over seeds: they speak for these experiences and not for others.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

import numpy as np

from cl_lora.evaluation.continual import MEASURES, FloatArray
from cl_lora.evaluation.scores import ScoreTable
from cl_lora.evaluation.shape import Shape

FINAL = "final"
"""Name of the measure R[S, j], the score on one experience at the last stage."""

ALL_EXPERIENCES = -1
"""Stands in the place of an experience for a measure over all of them."""

AVERAGE = "average"
"""Name of the measure that differences are taken of."""

Key: TypeAlias = tuple[str, str, int]
"""An arm, a measure and an experience."""

K = TypeVar("K", bound=Hashable)


def per_seed(
    scores: ScoreTable, metric: str, shape: Shape | None = None
) -> dict[Key, dict[int, float]]:
    """Return every measure of every arm and seed.

    Args:
        scores: the run's scores.
        metric: which metric.
        shape: what the stages are; what occurs in the scores if not given.

    Returns:
        (arm, measure, experience) -> seed -> value. The measure is ``final`` for each experience
        that the last stage evaluates, or a name in :data:`MEASURES` that exists for the shape, and
        then the experience is :data:`ALL_EXPERIENCES`. Undefined values are NaN.

    Raises:
        UserError: if the metric does not occur, or a score lies outside the shape.
    """
    scores.higher_is_better(metric)  # names the metrics there are, if not this one
    shape = shape or scores.shape()
    measures = {name: m for name, m in MEASURES.items() if m.exists(shape)}
    found: dict[Key, dict[int, float]] = {}
    for arm in scores.arms:
        for seed in scores.seeds:
            matrix = scores.matrix(seed, arm, metric, shape)
            for j in shape.final:
                found.setdefault((arm, FINAL, j), {})[seed] = float(matrix.values[-1, j])
            for name, measure in measures.items():
                key = (arm, name, ALL_EXPERIENCES)
                found.setdefault(key, {})[seed] = measure.compute(matrix)
    return found


@dataclass(frozen=True)
class Estimate:
    """Mean and standard deviation of one metric over seeds.

    Attributes:
        mean: ``sum_s x_s / n``; NaN without seeds.
        deviation: ``sqrt(sum_s (x_s - mean)^2 / (n - 1))``, the sample std; NaN for n < 2.
        seeds: n, the number of seeds on which the measure is defined; the others are left out.
        higher_is_better: the measure's direction.
    """

    mean: float
    deviation: float
    seeds: int
    higher_is_better: bool


def estimate(values: Sequence[float], higher_is_better: bool = True) -> Estimate:
    """Return mean and sample standard deviation of the values that are not NaN.

    Example:
        >>> estimate([1.0, 3.0, float("nan")]).mean
        2.0
    """
    x = np.array([v for v in values if not math.isnan(v)], dtype=np.float64)
    mean = float(x.mean()) if len(x) else math.nan
    deviation = float(x.std(ddof=1)) if len(x) > 1 else math.nan
    return Estimate(mean, deviation, len(x), higher_is_better)


def estimates(scores: ScoreTable, metric: str, shape: Shape | None = None) -> dict[Key, Estimate]:
    """Return mean and standard deviation over seeds of all that :func:`per_seed` gives.

    Raises:
        UserError: if the metric does not occur, or a score lies outside the shape.
    """
    up = scores.higher_is_better(metric)

    def direction(measure: str) -> bool:
        return MEASURES[measure].direction(up) if measure in MEASURES else up

    return {
        key: estimate(list(values.values()), direction(key[1]))
        for key, values in per_seed(scores, metric, shape).items()
    }


@dataclass(frozen=True)
class Difference:
    """How far one arm lies from another.

    Attributes:
        mean: the mean difference, arm minus reference.
        low: lower end of its interval; NaN where there is none.
        high: upper end of its interval; NaN where there is none.
        n: how many units the interval is over: seeds, or test samples.
        p: two-sided p value of the paired test; NaN where there is none.
        holm: the same, corrected for all arms compared with the reference; see :func:`holm`.
    """

    mean: float
    low: float
    high: float
    n: int
    p: float = math.nan
    holm: float = math.nan


def paired_difference(
    values: FloatArray | Sequence[float],
    reference: FloatArray | Sequence[float],
    confidence: float = 0.95,
) -> Difference:
    """Return the mean of ``d_i = values_i - reference_i`` with Student's t interval.

    ``mean(d) +- t(n - 1, (1 + confidence) / 2) * s(d) / sqrt(n)`` and the p value of
    ``mean(d) sqrt(n) / s(d)`` (Student 1908). The pairs must be independent draws, such as seeds;
    pairs with an undefined side are left out.

    Args:
        values: (n,) numbers.
        reference: (n,) numbers, paired with them.
        confidence: coverage of the interval.

    Returns:
        The mean, its interval and its p value. With no pair all are NaN, with one pair all but the
        mean. Where all differences are equal p is 0, and 1 where they are 0.

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
    if n < 2:
        return Difference(float(d.mean()) if n else math.nan, math.nan, math.nan, n)
    # Imported late: scipy.special costs a tenth of a second that most commands never need.
    from scipy.special import stdtr, stdtrit  # type: ignore[import-untyped, unused-ignore]

    mean, error = float(d.mean()), float(d.std(ddof=1)) / math.sqrt(n)
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * error
    # Without any spread the statistic is infinite, or 0 / 0 where the two are the same.
    p = 2 * float(stdtr(n - 1, -abs(mean) / error)) if error else float(mean == 0)
    return Difference(mean, mean - half, mean + half, n, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number (Holm 1979).

    With ``p_(1) <= ... <= p_(m)`` the k-th becomes ``max_{i<=k} min(1, (m - i + 1) p_(i))``. The
    chance that any true null hypothesis has one below alpha is then at most alpha, however the
    tests depend on one another. NaN stays NaN and is not counted.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    corrected = [math.nan] * len(p_values)
    largest = 0.0
    for k, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - k) * p))
        corrected[i] = largest
    return corrected


def corrected(found: Mapping[K, Difference]) -> dict[K, Difference]:
    """Return the same differences with their Holm-corrected p values: one family of tests."""
    values = holm([d.p for d in found.values()])
    return {key: replace(d, holm=p) for (key, d), p in zip(found.items(), values, strict=True)}


def averages(
    scores: ScoreTable, metric: str, shape: Shape | None = None
) -> dict[str, dict[int, float]]:
    """Return the average at the last stage: arm -> seed -> value, NaN where undefined."""
    return {
        arm: values
        for (arm, measure, _), values in per_seed(scores, metric, shape).items()
        if measure == AVERAGE
    }


def differences_of(
    values: Mapping[K, Mapping[int, float]], reference: Mapping[int, float], confidence: float
) -> dict[K, Difference]:
    """Return how far several arms lie from one.

    A pair is a seed that both have: the averages over experiences of both arms. What makes a seed
    easy for both cancels. The interval covers other seeds on these experiences; a claim about
    other experiences needs more of them.

    Args:
        values: arm -> seed -> average, as of :func:`averages`.
        reference: seed -> average.
        confidence: coverage of the intervals.

    Returns:
        arm -> its difference, with p values corrected for the number of arms.
    """
    found = {}
    for key, of_seed in values.items():
        seeds = [s for s in of_seed if s in reference]
        pairs = [of_seed[s] for s in seeds], [reference[s] for s in seeds]
        found[key] = paired_difference(*pairs, confidence)
    return corrected(found)
