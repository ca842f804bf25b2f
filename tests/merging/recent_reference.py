"""The merges of the last two years written again from their papers, on dense float64 arrays."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Dense = Mapping[str, Array]
"""Parameter -> one array (n, ...)."""

Method = Callable[..., dict[str, Array]]


def svd(matrix: Array) -> tuple[Array, Array, Array]:
    """The singular triples of values above zero."""
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    rank = int((s > 1e-7 * s[0]).sum()) if len(s) else 0
    return u[:, :rank], s[:rank], vh[:rank]


def weighted(deltas: Array, weights: Sequence[float]) -> Array:
    return np.asarray(np.tensordot(weights, deltas, axes=1))


def by_matrix(merge: Callable[..., Array], averaged: bool = True) -> Method:
    """A method of matrices; other parameters are averaged, or summed."""

    def method(deltas: Dense, weights: Sequence[float], **options: object) -> dict[str, Array]:
        share = 1 / len(weights) if averaged else 1.0
        return {
            m: merge(d, weights, **options) if d.ndim == 3 else share * weighted(d, weights)
            for m, d in deltas.items()
        }

    return method


def inverse_root(gram: Array) -> Array:
    """(G^+)^(1/2)"""
    values, vectors = np.linalg.eigh(gram)
    roots = np.array([v**-0.5 if v > 1e-12 * values[-1] else 0.0 for v in values])
    return np.asarray((vectors * roots) @ vectors.T)


def whitened(columns: Array) -> Array:
    """X (X^T X)^(-1/2): the nearest orthonormal columns."""
    return np.asarray(columns @ inverse_root(columns.T @ columns))


# Gargiulo et al. 2025 ----------------------------------------------------------------------------


def tsv_m(d: Array, weights: Sequence[float], most: int | None = None) -> Array:
    n = len(d)
    k = max(1, min(d.shape[1:]) // n) if most is None else most
    triples = [tuple(part for part in svd(update)) for update in d]
    left = whitened(np.hstack([u[:, :k] for u, _, _ in triples]))
    right = whitened(np.hstack([vh[:k].T for _, _, vh in triples]))
    values = np.hstack([w * s[:k] for w, (_, s, _) in zip(weights, triples, strict=True)])
    return np.asarray(left @ np.diag(values) @ right.T)


# Marczak et al. 2025 -----------------------------------------------------------------------------


def iso_c(d: Array, weights: Sequence[float]) -> Array:
    u, s, vh = svd(weighted(d, weights))
    return np.asarray(u @ np.diag(np.full(len(s), s.mean())) @ vh)


def iso_cts(d: Array, weights: Sequence[float], common: float = 0.8) -> Array:
    """Their algorithm: the common space is made so large that the rest divides by n."""
    n = len(d)
    u, s, vh = svd(weighted(d, weights))
    rest = round((len(s) - int(len(s) * common)) / n) * n
    if rest > len(s):
        rest = len(s) // n * n
    shared = len(s) - rest
    us, ss, vs = [u[:, :shared]], [s[:shared]], [vh[:shared].T]
    for w, update in zip(weights, d, strict=True):
        residue = w * update - u[:, :shared] @ u[:, :shared].T @ (w * update)
        left, values, right = svd(residue)
        us.append(left[:, : rest // n])
        ss.append(values[: rest // n])
        vs.append(right[: rest // n].T)
    spectrum = np.full(sum(map(len, ss)), np.hstack(ss).mean())
    return np.asarray(whitened(np.hstack(us)) @ np.diag(spectrum) @ whitened(np.hstack(vs)).T)


# Cheng et al. 2025 -------------------------------------------------------------------------------


def wudi(d: Array, weights: Sequence[float], pull: float = 1e-4) -> Array:
    """Least squares: (X - w_i dW_i) dW_i^T / |dW_i| = 0 for all i, and X is near the sum."""
    parts = [(w * t @ t.T, t.T) for w, t in zip(weights, d, strict=True)]
    norms = [np.linalg.norm(t) or 1.0 for t in d]
    root = np.sqrt(pull)
    columns = [of / size for (_, of), size in zip(parts, norms, strict=True)]
    targets = [to / size for (to, _), size in zip(parts, norms, strict=True)]
    K = np.hstack([*columns, root * np.eye(d.shape[2])])
    Y = np.hstack([*targets, root * weighted(d, weights)])
    return np.asarray(np.linalg.lstsq(K.T, Y.T, rcond=None)[0].T)


# Stoica et al. 2024 and Panariello et al. 2025 ---------------------------------------------------


def ties(d: Array, weights: Sequence[float], density: float = 0.2) -> Array:
    kept = np.zeros_like(d)
    for i, update in enumerate(d):
        order = np.argsort(-np.abs(update), axis=None, kind="stable")[: int(density * update.size)]
        kept[i].reshape(-1)[order] = np.ravel(update)[order]
    winner = np.where(kept.sum(0) >= 0, 1, -1)
    agree = (np.sign(kept) == winner).astype(float)
    return weighted(agree * kept, weights) / np.maximum(agree.sum(0), 1)


def knots(
    deltas: Dense,
    weights: Sequence[float],
    inner: Callable[[Array, Sequence[float]], Array] = ties,
) -> dict[str, Array]:
    made = {}
    for m, d in deltas.items():
        if d.ndim != 3:
            made[m] = inner(d, weights)
            continue
        u, s, vh = svd(np.hstack(list(d)))
        pieces = np.stack(np.hsplit(np.diag(s) @ vh, len(d)))
        made[m] = u @ inner(pieces, weights)
    return made


def core_space(
    d: Array,
    weights: Sequence[float],
    inner: Callable[[Array, Sequence[float]], Array] = tsv_m,
    factors: Sequence[tuple[Array, Array]] | None = None,
) -> Array:
    """The cores of B_i A_i; a dense update has the factors of its SVD."""
    if factors is None:
        factors = [(u * np.sqrt(s), np.sqrt(s)[:, None] * vh) for u, s, vh in map(svd, d)]
    left = np.linalg.svd(np.hstack([B for B, _ in factors]), full_matrices=False)[0]
    right = np.linalg.svd(np.vstack([A for _, A in factors]), full_matrices=False)[2]
    cores = np.stack([left.T @ update @ right.T for update in d])
    return np.asarray(left @ inner(cores, weights) @ right)


# Wang et al. 2024 --------------------------------------------------------------------------------


def lines(
    deltas: Dense, weights: Sequence[float], first: float | None = None, last: float = 1.0
) -> dict[str, Array]:
    first = 1 / len(weights) if first is None else first
    layers = {m: int(at[0]) for m in deltas if (at := re.findall(r"\d+", m))}
    top = max(layers.values(), default=0)
    depth = {m: (layers[m] / top if top else 1.0) if m in layers else 0.0 for m in deltas}
    return {
        m: (first + (last - first) * depth[m]) * weighted(d, weights) for m, d in deltas.items()
    }


# Tang et al. 2025 --------------------------------------------------------------------------------


def opcm(deltas: Dense, weights: Sequence[float], share: float = 0.5) -> dict[str, Array]:
    """Their recursion: after each task the merge is brought to the mean norm of the tasks so far.

    The coefficients weigh what is left of each task at the end.
    """

    def norm(arrays: Mapping[str, Array]) -> float:
        return float(np.sqrt(sum(np.square(a).sum() for a in arrays.values())))

    n = len(weights)
    merged = {m: np.asarray(d[0]) for m, d in deltas.items()}
    left = {m: [np.asarray(d[0])] for m, d in deltas.items()}
    norms, scale = [norm(merged)], 1.0
    for t in range(1, n):
        norms.append(norm({m: np.asarray(d[t]) for m, d in deltas.items()}))
        for m, d in deltas.items():
            cleaned = np.asarray(d[t])
            if d.ndim == 3:
                u, s, vh = svd(merged[m])
                inside = u.T @ d[t] @ vh.T
                outside = d[t] - u @ inside @ vh
                above = np.flatnonzero(np.cumsum(s) / s.sum() > share)
                split = int(above[0]) if len(above) else len(s)
                np.fill_diagonal(inside, 0)
                inside[:split, :split] = 0
                cleaned = outside + u @ inside @ vh
            left[m].append(cleaned)
            merged[m] = scale * merged[m] + cleaned
        size, mean = norm(merged), float(np.mean(norms))
        merged = {m: a * (mean / size) for m, a in merged.items()}
        scale = size / mean
    made = {m: weighted(np.stack(parts), weights) / scale for m, parts in left.items()}
    for m, parts in left.items():
        np.testing.assert_allclose(sum(parts) / scale, merged[m], atol=1e-9)
    return made


# Marczak et al. 2024 -----------------------------------------------------------------------------


def magmax(deltas: Dense, weights: Sequence[float]) -> dict[str, Array]:
    made = {}
    for m, d in deltas.items():
        result = np.zeros(d.shape[1:])
        for at in np.ndindex(*d.shape[1:]):
            winner = int(np.argmax([abs(d[(i, *at)]) for i in range(len(d))]))
            result[at] = weights[winner] * d[(winner, *at)]
        made[m] = result
    return made


def running_average(deltas: Dense, weights: Sequence[float]) -> dict[str, Array]:
    made = {}
    for m, d in deltas.items():
        mean = np.zeros(d.shape[1:])
        for t, (w, update) in enumerate(zip(weights, d, strict=True), start=1):
            mean = mean + (w * update - mean) / t
        made[m] = np.asarray(mean)
    return made


RECENT: dict[str, Method] = {
    "knots": knots,
    "core_space": by_matrix(core_space),
    "tsv_m": by_matrix(tsv_m),
    "iso_c": by_matrix(iso_c),
    "iso_cts": by_matrix(iso_cts),
    "wudi": by_matrix(wudi),
    "lines": lines,
    "opcm": opcm,
    "magmax": magmax,
    "running_average": running_average,
}
