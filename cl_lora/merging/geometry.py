"""How large updates are and how alike; of low-rank ones no (d_out, d_in) matrix is ever made."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from cl_lora.adapters.entries import Entry, entry_delta, entry_shape
from cl_lora.adapters.factors import LoRAFactors, decompose
from cl_lora.support.errors import UserError

Entries = Mapping[str, Entry]
"""Name of a module -> its update."""

Factors = Mapping[str, LoRAFactors]
"""Name of a module -> the factors of its update."""

DIRECTIONS = 4
"""Singular directions that are compared, where nothing else is asked for."""

NEGLIGIBLE = 1e-7
"""Of the largest singular value: what is below counts as zero (factors are float32)."""


def inner(a: Entry, b: Entry) -> float:
    """Return ``<dW_a, dW_b>_F`` in float64: of factors ``s_a s_b sum((B_a^T B_b) * (A_a A_b^T))``.

    Args:
        a: one update of a parameter, such as a weight (d_out, d_in).
        b: another of the same parameter.

    Raises:
        UserError: if they are updates of weights of other shapes.
    """
    if entry_shape(a) != entry_shape(b):
        raise UserError(
            f"Expected two updates of one weight but got shapes {entry_shape(a)} and "
            f"{entry_shape(b)}; give adapters of one backbone"
        )
    if not (isinstance(a, LoRAFactors) and isinstance(b, LoRAFactors)):
        return float((entry_delta(a).double() * entry_delta(b).double()).sum())
    left, right = a.B.double().T @ b.B.double(), a.A.double() @ b.A.double().T
    return float(a.scaling * b.scaling * (left * right).sum())


def norm(entries: Entries) -> float:
    """Return the Frobenius norm of an adapter's update, over all modules together."""
    # Rounding may leave a square just below zero.
    return math.sqrt(max(0.0, sum(inner(e, e) for e in entries.values())))


def cosine(a: Entries, b: Entries) -> float:
    """Return the cosine of two adapters' updates, each taken as one long vector.

    ``sum_m <dW_a,m, dW_b,m>_F / (|dW_a|_F |dW_b|_F)``; a module that one of them does not adapt
    adds nothing to the numerator. It does not depend on the scale of either update.

    Returns:
        A value in [-1, 1].

    Raises:
        UserError: if an update is zero, or weights differ in shape.

    Example:
        >>> import torch
        >>> up = {"q": LoRAFactors(torch.ones(1, 2), torch.ones(3, 1))}
        >>> down = {"q": LoRAFactors(torch.ones(1, 2), torch.ones(3, 1), scaling=-2.0)}
        >>> round(cosine(up, down), 6)
        -1.0
    """
    first, second = _moving(a), _moving(b)
    product = sum(inner(a[m], b[m]) for m in a if m in b)
    return min(1.0, max(-1.0, product / (first * second)))


def subspace_overlap(a: Factors, b: Factors, k: int = DIRECTIONS) -> float:
    """Return how far the top singular subspaces of two adapters' updates coincide.

    ``mean_m (|U_a^T U_b|_F^2 + |V_a^T V_b|_F^2) / 2k``: the mean squared cosine of the principal
    angles of the left and of the right subspaces of the k largest singular values, mean over the
    modules that both adapt. k is at most the rank of either update of a module (of the matrix, not
    of its factors). Two random subspaces of R^d have k / d.

    Args:
        a: the factors of one adapter.
        b: those of another.
        k: how many directions.

    Returns:
        A value in [0, 1].

    Raises:
        UserError: if k is below 1, or there is no module that both change.
    """
    if k < 1:
        raise UserError(f"Expected to compare at least 1 singular direction but got {k}; raise it")
    found = []
    for module in a:
        if module not in b:
            continue
        (u_a, s_a, v_a), (u_b, s_b, v_b) = (
            singular_directions(a[module]),
            singular_directions(b[module]),
        )
        count = min(k, len(s_a), len(s_b))
        if count:
            left = (u_a[:, :count].T @ u_b[:, :count]).square().sum()
            right = (v_a[:, :count].T @ v_b[:, :count]).square().sum()
            found.append(float(left + right) / (2 * count))
    if not found:
        raise UserError(
            "Expected two adapters that change a module in common but there is none; give trained "
            "adapters of one backbone"
        )
    return min(1.0, sum(found) / len(found))


def stable_rank(factors: Factors) -> float:
    """Return ``mean_m |dW_m|_F^2 / |dW_m|_2^2``, over the modules that are changed.

    Between 1 and the rank: how many directions carry the update (Rudelson and Vershynin 2007).

    Raises:
        UserError: if the update is zero.
    """
    _moving(factors)
    values = [s for _, s, _ in map(singular_directions, factors.values()) if len(s)]
    return sum(float((s / s[0]).square().sum()) for s in values) / len(values)


def shares(factors: Factors) -> dict[str, float]:
    """Return which share of the squared norm lies in each projection, by its last name.

    Returns:
        Last part of the modules' names, e.g. ``k`` -> share of ``|dW|_F^2``; they sum to 1.

    Raises:
        UserError: if the update is zero.
    """
    whole, found = _moving(factors) ** 2, dict[str, float]()
    for module, f in factors.items():
        part = module.rpartition(".")[2]
        found[part] = found.get(part, 0.0) + inner(f, f) / whole
    return found


def _moving(entries: Entries) -> float:
    """Return the norm of an update that is not zero."""
    length = norm(entries)
    if length == 0:
        raise UserError(
            "Expected an adapter that changes the model but its update is zero; train it, or leave "
            "it out"
        )
    return length


def singular_directions(factors: LoRAFactors) -> tuple[Tensor, Tensor, Tensor]:
    """Return U (d_out, r), S (r,) descending and V (d_in, r) in float64; r: rank of the update."""
    u, s, vh = decompose(LoRAFactors(factors.A.double(), factors.B.double(), factors.scaling))
    rank = int((s > NEGLIGIBLE * s[0]).sum()) if len(s) else 0
    return u[:, :rank], s[:rank], vh[:rank].T
