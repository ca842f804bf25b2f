"""What merging does to the tasks that are merged, and whether alike adapters hurt one another more.

``v`` are scores by each task's own metric, d its direction (+1 where higher is better, else -1).
The harm ``h[j, i] = mean_s d (v_merged(j with i) - v_single(j)) / |mean_s (v_single(j) -
v_trivial(j))|`` counts what a merge with i changes of task j in units of what training brought:
0 nothing, -1 all of it, and positive where the merge is better than the single task. Tasks of
unlike metrics can be averaged and ranked by it. After Kesim and Helli 2024, who compare pairs by
eye.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from cl_lora.evaluation.aggregate import paired_difference
from cl_lora.evaluation.continual import FloatArray
from cl_lora.evaluation.similarity import rank_correlation
from cl_lora.support.errors import UserError

BoolArray = NDArray[np.bool_]

COLLAPSED = 0.01
"""Share of the variance of its features below which an adapter has collapsed."""

EXACT = 5_040
"""So many relabellings are all tried (7!); of more, :data:`DRAWS` are drawn."""

DRAWS = 10_000


@dataclass(frozen=True, eq=False)
class SingleTasks:
    """What every task reaches by itself, of S seeds and n tasks.

    Attributes:
        single: (S, n) primary score by the own adapter and head.
        trivial: (S, n) that of the trivial predictor.
        higher_is_better: (n,) the direction of each task's metric.
        variance_share: (n,) share of the variance of the adapter's features, the smallest of the
            seeds; NaN where it was not measured.
    """

    single: FloatArray
    trivial: FloatArray
    higher_is_better: BoolArray
    variance_share: FloatArray

    @property
    def direction(self) -> FloatArray:
        """d (n,): 1 where higher is better, else -1."""
        return np.where(self.higher_is_better, 1.0, -1.0)

    @property
    def gained(self) -> FloatArray:
        """(n,) what training brought over the trivial predictor, mean over seeds; below 0: none."""
        gained: FloatArray = self.direction * (self.single - self.trivial).mean(axis=0)
        return gained

    @property
    def collapsed(self) -> BoolArray:
        """(n,) whether hardly anything of a task's features differs between inputs."""
        return np.nan_to_num(self.variance_share, nan=math.inf) < COLLAPSED

    @property
    def failed(self) -> BoolArray:
        """(n,) whether training a task failed on some seed: not above trivial, or collapsed.

        What a merge does to such a task, or it to others, says nothing about merging, and one seed
        of them is enough to spoil a mean.
        """
        return self.beaten | self.collapsed

    @property
    def beaten(self) -> BoolArray:
        """(n,) whether the trivial predictor is as good on some seed."""
        gained = self.direction * (self.single - self.trivial)
        return np.asarray((np.nan_to_num(gained, nan=math.inf) <= 0).any(axis=0))

    def change(self, values: FloatArray) -> FloatArray:
        """Return ``v - v_single``, in the unit of each task's metric.

        Args:
            values: (S, n) or (S, n, m) scores of the n tasks.
        """
        single = self.single.reshape(self.single.shape + (1,) * (values.ndim - 2))
        return values - single

    def harm(self, values: FloatArray) -> FloatArray:
        """Return the change in units of what training brought; below 0 is worse.

        ``d (v - v_single) / |mean_s (v_single - v_trivial)|``; NaN where training brought nothing.

        Args:
            values: (S, n) or (S, n, m) scores of the n tasks.

        Example:
            >>> yes, none = np.array([True]), np.array([np.nan])
            >>> tasks = SingleTasks(np.array([[0.75]]), np.array([[0.25]]), yes, none)
            >>> tasks.harm(np.array([[0.5]])).tolist()
            [[-0.5]]
        """
        unit = np.abs(self.gained)
        unit = np.where(unit > 0, unit, np.nan)
        scale = (self.direction / unit).reshape((1, -1) + (1,) * (values.ndim - 2))
        harm: FloatArray = self.change(values) * scale
        return harm


@dataclass(frozen=True, eq=False)
class Interference:
    """What merging two by two did, by one arm.

    Attributes:
        tasks: what every task reaches by itself.
        merged: (S, n, n) score of task j (rows) merged with i (columns); NaN on the diagonal, and
            where a pair was not merged.
    """

    tasks: SingleTasks
    merged: FloatArray

    @property
    def per_seed(self) -> FloatArray:
        """h (S, n, n) of every seed."""
        return self.tasks.harm(self.merged)

    @property
    def harm(self) -> FloatArray:
        """h (n, n): task j (rows) merged with i (columns), mean over seeds."""
        harm: FloatArray = self.per_seed.mean(axis=0)
        return harm

    @property
    def change(self) -> FloatArray:
        """(n, n) the same in the unit of each task's metric, not oriented."""
        change: FloatArray = self.tasks.change(self.merged).mean(axis=0)
        return change

    @property
    def healthy(self) -> FloatArray:
        """h (n, n) with the rows and columns of failed tasks left out (NaN)."""
        failed = self.tasks.failed
        return np.where(failed[:, None] | failed[None, :], np.nan, self.harm)

    @property
    def suffered(self) -> FloatArray:
        """(n,) mean harm that each task suffers from the others; NaN for a failed one."""
        return mean_of_known(self.healthy, axis=1)

    @property
    def done(self) -> FloatArray:
        """(n,) mean harm that each adapter does to the others; NaN for a failed one."""
        return mean_of_known(self.healthy, axis=0)


@dataclass(frozen=True)
class Relatedness:
    """How far the harm of pairs goes with a similarity of their adapters.

    Attributes:
        rho: Spearman's rank correlation over pairs of ``(h_ij + h_ji) / 2``, mean over seeds, with
            the similarity, mean over seeds. Below 0: the more alike, the worse. NaN where it is
            not defined.
        p: two-sided p value of the permutation test over adapters.
        relabellings: how many were tried.
        exact: whether these were all there are.
        adapters: how many adapters are in it.
        pairs: how many pairs.
        mean: mean over seeds of each seed's own correlation.
        low: lower end of its t interval; NaN with one seed.
        high: upper end.
        seeds: how many seeds have a correlation.
    """

    rho: float
    p: float
    relabellings: int
    exact: bool
    adapters: int
    pairs: int
    mean: float
    low: float
    high: float
    seeds: int


def relatedness(
    harm: FloatArray, similarity: FloatArray, seed: int, left_out: Sequence[bool] | None = None
) -> Relatedness:
    """Return how far the harm of pairs goes with the similarity of their adapters.

    Args:
        harm: (S, n, n) harm of every seed, task by partner.
        similarity: (S, n, n) symmetric similarity of every seed.
        seed: of the draws, where not all relabellings are tried.
        left_out: (n,) adapters that are left out, such as failed ones; none, if not given.

    Returns:
        The correlation with its test and interval; NaN where fewer than 3 adapters are left, a
        pair is missing, or all pairs are equal.

    Raises:
        ValueError: if the shapes differ.
    """
    if harm.shape != similarity.shape or harm.ndim != 3 or harm.shape[1] != harm.shape[2]:
        raise ValueError(
            f"Expected two stacks of square matrices but got {harm.shape} and {similarity.shape}"
        )
    out = np.zeros(harm.shape[1], dtype=bool) if left_out is None else np.asarray(left_out)
    kept = np.flatnonzero(~out)
    n = len(kept)
    both = (harm + harm.transpose(0, 2, 1)) / 2
    a, b = (x[:, kept][:, :, kept] for x in (both, similarity))
    rho, p, tried, exact = permutation_test(a.mean(axis=0), b.mean(axis=0), seed)
    of_seeds = [_rho(x, y) for x, y in zip(a, b, strict=True)]
    found = [r for r in of_seeds if not math.isnan(r)]
    d = paired_difference(found, [0.0] * len(found))
    low, high = max(-1.0, d.low), min(1.0, d.high)  # max and min keep their first argument on NaN
    if math.isnan(d.low):
        low = high = math.nan
    return Relatedness(rho, p, tried, exact, n, n * (n - 1) // 2, d.mean, low, high, len(found))


def permutation_test(a: FloatArray, b: FloatArray, seed: int) -> tuple[float, float, int, bool]:
    """Test whether two symmetric matrices order their pairs alike, by relabelling one of them.

    Pairs share adapters, so they are no independent draws, and a plain p value over pairs is too
    small. Here the adapters of ``a`` change names, rows and columns together, and b stays:
    ``p`` is the share of relabellings with ``|rho|`` at least as large as that found (Mantel 1967).
    All n! are tried if they are at most 5,040, the given one among them; of more, 10,000 are drawn
    and the given one is added: ``p = (1 + #) / (1 + 10,000)``.

    Args:
        a: (n, n) symmetric; the diagonal is not looked at.
        b: (n, n) symmetric.
        seed: of the draws.

    Returns:
        Spearman's rho over pairs, p, the number of relabellings, and whether they were all. rho and
        p are NaN for n < 3, a missing pair, or pairs that are all equal.

    Example:
        >>> a = np.array([[0, 1, 2, 3], [1, 0, 4, 5], [2, 4, 0, 6], [3, 5, 6, 0.0]])
        >>> rho, p, tried, exact = permutation_test(a, a, seed=0)
        >>> round(rho, 6), tried, exact
        (1.0, 24, True)
    """
    n = len(a)
    rho = _rho(a, b)
    if math.isnan(rho):
        return math.nan, math.nan, 0, True
    rows, columns = np.triu_indices(n, 1)
    exact = math.factorial(n) <= EXACT
    if exact:
        names = np.array(list(permutations(range(n))))
    else:
        draw = np.random.default_rng(seed)
        names = draw.permuted(np.tile(np.arange(n), (DRAWS, 1)), axis=1)
    ranks = [_ranks(x[rows, columns]) for x in (a, b)]
    of_a = np.zeros((n, n))
    of_a[rows, columns] = of_a[columns, rows] = ranks[0] - ranks[0].mean()
    fixed = ranks[1] - ranks[1].mean()
    found = np.abs(of_a[names[:, rows], names[:, columns]] @ fixed)
    # Relabellings that give the same number may differ by rounding.
    as_large = int((found >= abs(float((ranks[0] - ranks[0].mean()) @ fixed)) - 1e-9).sum())
    p = as_large / len(names) if exact else (1 + as_large) / (1 + len(names))
    return rho, p, len(names), exact


def mean_of_known(values: FloatArray, axis: int) -> FloatArray:
    """Return the mean of what is not NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    mean: FloatArray = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean


def square(rows: Mapping[tuple[int, int, int], float], seeds: Sequence[int], n: int) -> FloatArray:
    """Return (S, n, n) from (seed, first, second) -> value, symmetric; NaN where nothing is."""
    found = np.full((len(seeds), n, n), np.nan)
    place = {seed: s for s, seed in enumerate(seeds)}
    for (seed, i, j), value in rows.items():
        if seed in place:
            found[place[seed], i, j] = found[place[seed], j, i] = value
    return found


def _rho(a: FloatArray, b: FloatArray) -> float:
    """Return the rank correlation over pairs; NaN where it is not defined."""
    if len(a) < 3:
        return math.nan
    above = np.triu_indices(len(a), 1)
    try:
        return rank_correlation(a[above], b[above])
    except UserError:  # a pair is missing, or all are equal
        return math.nan


def _ranks(values: FloatArray) -> FloatArray:
    from scipy.stats import rankdata  # type: ignore[import-untyped, unused-ignore]

    ranks: FloatArray = np.asarray(rankdata(values), dtype=np.float64)
    return ranks
