"""Continual-learning measures: pure functions of the score matrix R.

``R`` is (S, T) float64; ``R[t, j]`` is the score on experience j at stage t (both from 0 in code,
from 1 in the formulas). Where stages follow one another in time, stage t is the one after training
experience t and S = T: only there measures of time exist. A missing entry is NaN. An entry that a
formula needs and that is missing makes the result NaN: nothing is averaged over what happens to be
there. ``b`` is (T,), the scores before any training.

Measures of change are oriented so that their sign never depends on the metric: with
``higher_is_better=False`` (RMSE, NME) R and b enter negated, so forgetting > 0 always means worse
and a transfer > 0 always means better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field

import numpy as np
from numpy.typing import NDArray

from cl_lora.evaluation.shape import Shape

FloatArray = NDArray[np.float64]

NAN = float("nan")


def average_accuracy(R: FloatArray, evaluated: Sequence[int] | None = None) -> float:
    """Return the mean score over all experiences at the last stage: ``mean_j R[S, j]``.

    Also known as final average accuracy, ACC (Lopez-Paz and Ranzato 2017) or A_T (Chaudhry et al.
    2018). Avalanche's StreamAccuracy is the mean over samples instead: the two agree where all
    experiences have equally many test samples.

    Args:
        R: (S, T) scores.
        evaluated: the experiences of the mean, those that the last stage scores; all, if not given.

    Returns:
        The mean, in the unit of R; NaN if one of these entries is missing, or there are none.

    Raises:
        ValueError: if R is no matrix with S >= 1 and T >= 1.

    Example:
        >>> average_accuracy(np.array([[0.9, 0.1], [0.7, 0.8]]))
        0.75
    """
    last = _matrix(R)[-1]
    chosen = last if evaluated is None else last[list(evaluated)]
    return float(chosen.mean()) if len(chosen) else NAN


def average_incremental_accuracy(R: FloatArray) -> float:
    """Return ``mean_t mean_{j<=t} R[t, j]``: the mean over time of the mean over what was seen.

    The class-incremental literature since iCaRL (Rebuffi et al. 2017) calls this 'average
    incremental accuracy', and some of it 'average accuracy': it is not :func:`average_accuracy`.

    Args:
        R: (T, T) scores; entries above the diagonal are not used.

    Returns:
        The mean, in the unit of R; NaN if an entry on or below the diagonal is missing.

    Raises:
        ValueError: if R is not square with T >= 1.

    Example:
        >>> average_incremental_accuracy(np.array([[0.9, 0.1], [0.7, 0.8]]))
        0.825
    """
    return float(seen_average(R).mean())


def seen_average(R: FloatArray) -> FloatArray:
    """Return for each t ``mean_{j<=t} R[t, j]``, the mean over the experiences seen so far.

    Args:
        R: (T, T) scores; entries above the diagonal are not used.

    Returns:
        (T,) means; NaN for a t with a missing entry.

    Raises:
        ValueError: if R is not square with T >= 1.

    Example:
        >>> seen_average(np.array([[0.5, 0.0], [0.5, 1.0]])).tolist()
        [0.5, 0.75]
    """
    R = _square(R)
    return np.array([R[t, : t + 1].mean() for t in range(len(R))])


def forgetting(R: FloatArray, higher_is_better: bool = True) -> float:
    """Return ``mean_{j<T} (max_{l<T} R[l, j] - R[T, j])``: best ever minus last.

    Chaudhry et al. 2018, 'Riemannian Walk'. The maximum runs over ALL l = 1..T-1, as in the paper,
    so a high score before experience j was trained counts as well. Where a stream does not
    score unseen experiences (l < j), the maximum runs over j <= l < T. Libraries differ:
    Avalanche's forgetting is ``R[j, j] - R[T, j]``, initial minus last, which is ``-BWT``;
    others clip at 0. Negative forgetting is improvement.

    Args:
        R: (T, T) scores.
        higher_is_better: False for an error, whose best value is the lowest.

    Returns:
        The mean loss in the unit of R, > 0 means worse; NaN if T = 1 (nothing can be forgotten) or
        an entry with l >= j that is needed is missing.

    Raises:
        ValueError: if R is not square with T >= 1.

    Example:
        >>> forgetting(np.array([[0.75, 0.0], [0.5, 0.9]]))
        0.25
    """
    lost = forgetting_by_experience(R, higher_is_better)
    return float(lost.mean()) if len(lost) else NAN


def forgetting_by_experience(R: FloatArray, higher_is_better: bool = True) -> FloatArray:
    """Return ``max_{l<T} R[l, j] - R[T, j]`` for every j < T, whose mean is :func:`forgetting`.

    Args:
        R: (T, T) scores; experiences of other metrics may be missing.
        higher_is_better: False for an error.

    Returns:
        (T - 1,) losses; NaN where an entry that is needed is missing.

    Raises:
        ValueError: if R is not square with T >= 1.

    Example:
        >>> forgetting_by_experience(np.array([[0.75, 0.0], [0.5, 0.9]])).tolist()
        [0.25]
    """
    R = _oriented(R, higher_is_better)
    if len(R) == 1:
        return np.empty(0)
    before = R[:-1, :-1]
    unseen = np.triu(np.ones_like(before, dtype=bool), k=1)
    # Unscored future experiences are left out of the maximum; other gaps stay NaN and show.
    best = np.where(unseen & np.isnan(before), -np.inf, before).max(axis=0)
    lost: FloatArray = best - R[-1, :-1]
    return lost


def backward_transfer(R: FloatArray, higher_is_better: bool = True) -> float:
    """Return ``BWT = mean_{j<T} (R[T, j] - R[j, j])``.

    Lopez-Paz and Ranzato 2017, 'Gradient Episodic Memory'. Avalanche's BWT is the same mean, and
    its forgetting the negative of it.

    Args:
        R: (T, T) scores; the diagonal and the last row are used.
        higher_is_better: False for an error.

    Returns:
        The mean gain in the unit of R, > 0 means that later training helped; NaN if T = 1 or an
        entry that is needed is missing.

    Raises:
        ValueError: if R is not square with T >= 1.

    Example:
        >>> backward_transfer(np.array([[0.75, 0.0], [0.5, 0.9]]))
        -0.25
    """
    gained = backward_transfer_by_experience(R, higher_is_better)
    return float(gained.mean()) if len(gained) else NAN


def backward_transfer_by_experience(R: FloatArray, higher_is_better: bool = True) -> FloatArray:
    """Return ``R[T, j] - R[j, j]`` for every j < T, whose mean is :func:`backward_transfer`.

    Args:
        R: (T, T) scores; experiences of other metrics may be missing.
        higher_is_better: False for an error.

    Returns:
        (T - 1,) gains; NaN where an entry that is needed is missing.

    Raises:
        ValueError: if R is not square with T >= 1.

    Example:
        >>> backward_transfer_by_experience(np.array([[0.75, 0.0], [0.5, 0.9]])).tolist()
        [-0.25]
    """
    R = _oriented(R, higher_is_better)
    gained: FloatArray = R[-1, :-1] - R.diagonal()[:-1]
    return gained


def forward_transfer(
    R: FloatArray, baseline: FloatArray | None, higher_is_better: bool = True
) -> float:
    """Return ``FWT = mean_{j>=2} (R[j-1, j] - b_j)``: the gain on an experience before its turn.

    Lopez-Paz and Ranzato 2017; b_j is the score of the untrained model on j. Avalanche's FWT is
    the same mean, with b measured by an evaluation before the first training.

    Args:
        R: (T, T) scores; the first superdiagonal is used.
        baseline: (T,) scores before any training, or None if there are none.
        higher_is_better: False for an error.

    Returns:
        The mean gain in the unit of R; NaN if T = 1 or an entry that is needed is missing.

    Raises:
        ValueError: if R is not square with T >= 1 or the baseline does not have T entries.

    Example:
        >>> forward_transfer(np.array([[0.9, 0.5], [0.7, 0.8]]), np.array([0.25, 0.25]))
        0.25
    """
    if baseline is None:
        _square(R)
        return NAN
    gained = forward_transfer_by_experience(R, baseline, higher_is_better)
    return float(gained.mean()) if len(gained) else NAN


def forward_transfer_by_experience(
    R: FloatArray, baseline: FloatArray, higher_is_better: bool = True
) -> FloatArray:
    """Return ``R[j-1, j] - b_j`` for every j >= 2, whose mean is :func:`forward_transfer`.

    Args:
        R: (T, T) scores; experiences of other metrics may be missing.
        baseline: (T,) scores before any training.
        higher_is_better: False for an error.

    Returns:
        (T - 1,) gains, that of the second experience first; NaN where an entry that is needed is
        missing.

    Raises:
        ValueError: if R is not square with T >= 1 or the baseline does not have T entries.

    Example:
        >>> R, b = np.array([[0.9, 0.5], [0.7, 0.8]]), np.array([0.25, 0.25])
        >>> forward_transfer_by_experience(R, b).tolist()
        [0.25]
    """
    R = _oriented(R, higher_is_better)
    if baseline.shape != (len(R),):
        raise ValueError(f"Expected a baseline of shape ({len(R)},) but got {baseline.shape}")
    b = baseline if higher_is_better else -baseline
    gained: FloatArray = R.diagonal(1) - b[1:]
    return gained


@dataclass(frozen=True, eq=False)
class ScoreMatrix:
    """The scores of one arm, seed and metric.

    Attributes:
        values: (S, T) float64, ``values[t, j]`` on j at stage t; NaN where missing.
        baseline: (T,) scores before any training; NaN where missing.
        metric: what was measured.
        higher_is_better: the metric's direction.
        shape: what the stages are; one stage after each experience, all evaluated, if not given.
    """

    values: FloatArray
    baseline: FloatArray
    metric: str = "accuracy"
    higher_is_better: bool = True
    given_shape: InitVar[Shape | None] = None
    shape: Shape = field(init=False)

    def __post_init__(self, given_shape: Shape | None) -> None:
        stages, experiences = _matrix(self.values).shape
        shape = given_shape or Shape(stages, experiences)
        if (shape.stages, shape.experiences) != (stages, experiences):
            raise ValueError(f"Expected R of {shape} but got {self.values.shape}")
        if self.baseline.shape != (experiences,):
            raise ValueError(
                f"Expected a baseline of shape ({experiences},) but got {self.baseline.shape}"
            )
        object.__setattr__(self, "shape", shape)


@dataclass(frozen=True)
class Measure:
    """One number computed from a score matrix, with all that a report says about it.

    Attributes:
        name: key in tables.
        title: heading.
        short: heading where room is scarce.
        compute: the function of the score matrix.
        higher_is_better: direction; None means the direction of the metric itself.
        formula: the definition, in ASCII.
        paper: where the definition comes from.
        ordered: whether it exists only where stages follow one another, one after each experience.
    """

    name: str
    title: str
    short: str
    compute: Callable[[ScoreMatrix], float]
    higher_is_better: bool | None
    formula: str
    paper: str
    ordered: bool = True

    def exists(self, shape: Shape) -> bool:
        """Return whether the measure means something for scores of this shape."""
        return shape.in_time or not self.ordered

    def direction(self, higher_is_better: bool) -> bool:
        """Return whether more of it is better, for a metric of the given direction."""
        return higher_is_better if self.higher_is_better is None else self.higher_is_better


MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure(
            "average",
            "Average",
            "Avg",
            lambda m: average_accuracy(m.values, m.shape.final),
            None,
            "mean_j R[T,j]",
            "Lopez-Paz and Ranzato 2017",
            ordered=False,
        ),
        Measure(
            "forgetting",
            "Forgetting",
            "Forget",
            lambda m: forgetting(m.values, m.higher_is_better),
            False,
            "mean_{j<T} (max_{l<T} R[l,j] - R[T,j])",
            "Chaudhry et al. 2018",
        ),
        Measure(
            "backward_transfer",
            "Backward transfer",
            "BWT",
            lambda m: backward_transfer(m.values, m.higher_is_better),
            True,
            "mean_{j<T} (R[T,j] - R[j,j])",
            "Lopez-Paz and Ranzato 2017",
        ),
        Measure(
            "forward_transfer",
            "Forward transfer",
            "FWT",
            lambda m: forward_transfer(m.values, m.baseline, m.higher_is_better),
            True,
            "mean_{j>=2} (R[j-1,j] - b_j)",
            "Lopez-Paz and Ranzato 2017",
        ),
        Measure(
            "average_incremental",
            "Average incremental",
            "Incr",
            lambda m: average_incremental_accuracy(m.values),
            None,
            "mean_t mean_{j<=t} R[t,j]",
            "Rebuffi et al. 2017",
        ),
    )
}
"""Every measure by name, in the order in which reports show them."""


def _matrix(R: FloatArray) -> FloatArray:
    R = np.asarray(R, dtype=np.float64)
    if R.ndim != 2 or not R.size:
        raise ValueError(f"Expected R of shape (S, T) with S, T >= 1 but got {R.shape}")
    return R


def _square(R: FloatArray) -> FloatArray:
    R = np.asarray(R, dtype=np.float64)
    if R.ndim != 2 or R.shape[0] != R.shape[1] or not len(R):
        raise ValueError(f"Expected R of shape (T, T) with T >= 1 but got {R.shape}")
    return R


def _oriented(R: FloatArray, higher_is_better: bool) -> FloatArray:
    R = _square(R)
    return R if higher_is_better else -R
