"""How alike features are (linear CKA), and how alike two matrices order their entries."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cl_lora.support.errors import UserError

FloatArray = NDArray[np.float64]


def linear_cka(x: ArrayLike, y: ArrayLike) -> float:
    """Return the linear centred kernel alignment of two sets of features of the same samples.

    ``CKA(X, Y) = |Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F)``, every column of X and Y centred.
    Kornblith et al. 2019; used on adapters by Asadi et al. 2024. It does not change when either
    set is rotated, reflected, shifted or scaled.

    Args:
        x: (N, d1) features of N samples.
        y: (N, d2) other features of the same samples, in the same order.

    Returns:
        A value in [0, 1] but for rounding; computed in float64.

    Raises:
        UserError: if a set is no matrix, the numbers of samples differ or are below 2, a feature
            is not finite, or all samples have the same features.

    Example:
        >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        >>> round(linear_cka(x, 3 * x[:, ::-1] + 1), 6)
        1.0
        >>> round(linear_cka(x, x[:, :1]), 6)
        0.790569
    """
    first, second = _features("first", x), _features("second", y)
    if len(first) != len(second):
        raise UserError(
            f"Expected features of the same samples but got {len(first)} and {len(second)} of "
            "them; compute both on one set of images"
        )
    # Of unit norm, so that features of any scale neither overflow nor vanish when squared.
    first, second = _centred(first), _centred(second)
    own = np.linalg.norm(first.T @ first) * np.linalg.norm(second.T @ second)
    return float(np.linalg.norm(second.T @ first) ** 2 / own)


def rank_correlation(a: ArrayLike, b: ArrayLike) -> float:
    """Return Spearman's rank correlation of the entries of two matrices; equal ones share a rank.

    ``rho = corr(rank(a), rank(b))`` over all entries; a tie gets the mean of the ranks it takes.
    Spearman 1904.

    Args:
        a: numbers of any shape, e.g. learned weights (layers, adapters).
        b: numbers of the same shape, e.g. CKA (layers, adapters).

    Returns:
        A value in [-1, 1].

    Raises:
        UserError: if the shapes differ, there are fewer than two entries, one is not finite, or
            all entries of a matrix are equal.

    Example:
        >>> round(rank_correlation([[1, 2], [2, 3]], [[10, 40], [40, 90]]), 6)
        1.0
    """
    # Imported late: scipy.stats costs half a second that most commands never need.
    from scipy.stats import spearmanr  # type: ignore[import-untyped, unused-ignore]

    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.size < 2:
        raise UserError(
            "Expected two matrices of one shape with at least two entries but got shapes "
            f"{first.shape} and {second.shape}; give them the same rows and columns"
        )
    for values in (first, second):
        if not np.isfinite(values).all() or np.ptp(values) == 0:
            raise UserError(
                "Expected finite entries that are not all equal, to rank them, but got values in "
                f"{values.min():g}..{values.max():g}; leave such a matrix out"
            )
    return float(spearmanr(first.ravel(), second.ravel()).statistic)


def _features(which: str, values: ArrayLike) -> FloatArray:
    features = np.asarray(values, dtype=np.float64)
    if features.ndim != 2 or len(features) < 2 or not features.shape[1]:
        raise UserError(
            f"Expected the {which} features as a matrix (N, d) of at least two samples but got "
            f"shape {features.shape}; pass one row for each sample"
        )
    if not np.isfinite(features).all():
        raise UserError(
            f"Expected finite features but the {which} ones hold NaN or infinity; check what "
            "they were computed from"
        )
    if not np.ptp(features, axis=0).any():
        raise UserError(
            f"Expected features that differ between samples but all {len(features)} rows of the "
            f"{which} ones are equal; their similarity is not defined"
        )
    return features


def _centred(features: FloatArray) -> FloatArray:
    small = features / np.abs(features).max()
    centred = small - small.mean(axis=0)
    unit: FloatArray = centred / np.linalg.norm(centred)
    return unit
