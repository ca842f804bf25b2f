"""The largest entries of the difference to the base (Post-Pruning, PERU-FFT)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch import Tensor

from cl_lora.adapters import Entry, LoRAFactors, entry_delta
from cl_lora.merging.pruning import largest_mask, select_largest
from cl_lora.merging.registry import OptionSpec, choice, is_number
from cl_lora.merging.residuals.difference import Differences
from cl_lora.merging.residuals.parts import SparseDelta
from cl_lora.merging.residuals.registry import Residual, register_residual
from cl_lora.merging.residuals.residue import Residue


@register_residual
class Sparse(Residual):
    """The top m % of the entries of ``u_t = v_t - base`` by magnitude.

    Exactly ``k = floor(m / 100 * all)`` entries are kept, of the whole model or of each tensor;
    m is taken as the decimal number that it is written as, so that 29 % of 100 are 29. Among
    entries equal in magnitude those are kept that come first: in the order of the modules, and
    within one in that of its flattened tensor. The kept sets of a growing m are nested. Values are
    counted, one each; where they lie is not, as in the paper.

    With the pre-trained weights as the base this is Post-Pruning, with a merged model PERU-FFT.
    """

    name = "sparse"
    summary = "the top m % of the entries of the difference to the base, by magnitude"
    formula = "base + top(u_t, m %), u_t = v_t - base"
    paper = "Jiang et al. 2023, Post-Pruning (base: pre-trained) and PERU-FFT (base: merged)"
    options: ClassVar = {
        "m": OptionSpec(
            10,
            lambda v: is_number(v) and 0 < v <= 100,
            "a percentage in (0, 100]",
            "how many percent of the entries are kept",
        ),
        "scope": choice(
            "model", "tensor", help="the largest entries of the whole model, or of each tensor"
        ),
    }

    def take(
        self,
        own: Mapping[str, Entry],
        base: Mapping[str, Entry] | None,
        options: Mapping[str, Any],
    ) -> Residue:
        """Return the largest entries; one module's dense difference is in memory at a time."""
        differences = Differences(own, base or {})
        scopes: Mapping[str, Callable[[Differences, float], Residue]] = {
            "model": _of_model,
            "tensor": _of_each,
        }
        return scopes[options["scope"]](differences, options["m"])


def count_kept(m: float, total: int) -> int:
    """Return ``floor(m / 100 * total)`` for the decimal number that m is written as.

    >>> count_kept(29, 100), int(29 / 100 * 100)
    (29, 28)
    """
    return int(Fraction(str(m)) * total / 100)


def _of_model(differences: Differences, m: float) -> Residue:
    # Calls and no loop variables: these would keep the dense difference of one module beside the
    # next.
    dtypes = (_dtype(differences[module]) for module in differences)
    dtype = functools.reduce(torch.promote_types, dtypes)
    (threshold,), (ties,) = (
        found.tolist()
        for found in select_largest(
            lambda module: entry_delta(differences[module]).abs().to(dtype)[None],
            list(differences),
            n=1,
            dtype=dtype,
            kept=lambda total: count_kept(m, total),
        )
    )
    parts = {}
    for module in differences:
        parts[module], taken = _above(entry_delta(differences[module]), threshold, ties)
        ties -= taken
    return Residue(parts)


def _above(delta: Tensor, threshold: float, ties: int) -> tuple[SparseDelta, int]:
    """Return the entries above a magnitude and the first ``ties`` equal to it, and how many."""
    magnitudes = delta.abs().flatten()
    equal = (magnitudes == threshold).nonzero().flatten()[:ties]
    chosen = magnitudes > threshold
    chosen[equal] = True
    return _sparse(delta, chosen), len(equal)


def _of_each(differences: Differences, m: float) -> Residue:
    return Residue(
        {module: _largest(entry_delta(differences[module]), m) for module in differences}
    )


def _largest(delta: Tensor, m: float) -> SparseDelta:
    return _sparse(delta, largest_mask(delta, count_kept(m, delta.numel())).flatten())


def _dtype(entry: Entry) -> torch.dtype:
    if isinstance(entry, LoRAFactors):
        return torch.promote_types(entry.A.dtype, entry.B.dtype)
    return entry.dtype


def _sparse(delta: Tensor, chosen: Tensor) -> SparseDelta:
    """Return the entries of ``delta`` that the flat bool mask ``chosen`` names."""
    indices = chosen.nonzero().flatten()
    values = delta.flatten()[indices]
    small = delta.numel() <= torch.iinfo(torch.int32).max
    return SparseDelta(indices.int() if small else indices, values, tuple(delta.shape))
