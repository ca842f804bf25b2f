"""Trimming by magnitude: per tensor as peft does, or over the whole adapter as TIES defines it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from cl_lora.merging.kernels import Pipeline, Sparsify, keep_all
from cl_lora.merging.registry import DENSITY, IN_DELTA, Kernel, choice, register
from cl_lora.merging.spaces import SPACES, Sources, Space, sites

TRIM = choice(
    "tensor",
    "global",
    help="keep the largest entries of each tensor (peft) or of the whole adapter (TIES paper)",
)

# Magnitudes are ordered as their bits: the integer type to read these as, and its 16-bit digits.
_DIGITS = {torch.float32: (torch.int32, 2), torch.float64: (torch.int64, 4)}
_BASE = 2**16

Place = TypeVar("Place")


def top_mask(tensor: Tensor, density: float) -> Tensor:
    """Return the bool mask of the ``int(density * numel)`` entries largest in magnitude.

    Among entries equal in magnitude the first ones are kept.
    """
    return largest_mask(tensor, int(density * tensor.numel()))


def largest_mask(tensor: Tensor, k: int) -> Tensor:
    """Return the bool mask of the ``k`` entries largest in magnitude.

    Among entries equal in magnitude the first ones are kept.
    """
    magnitudes = tensor.abs().flatten()
    if k == 0:
        return torch.zeros_like(tensor, dtype=torch.bool)
    threshold = _kth_largest(magnitudes, k)
    mask = magnitudes >= threshold
    surplus = int(mask.sum(dtype=torch.int32)) - k
    if surplus > 0:
        mask[(magnitudes == threshold).nonzero().flatten()[-surplus:]] = False
    return mask.view_as(tensor)


def _kth_largest(values: Tensor, k: int) -> float:
    if values.device.type == "cpu":
        # Ten times faster than topk, which dominates the whole merge otherwise.
        place = len(values) - k
        return float(np.partition(values.numpy(), place)[place])
    return float(values.topk(k, sorted=False).values.min())


def trim_tensor(space: Space, density: float) -> Sparsify:
    """Return the trim of each tensor of a stack to its largest entries."""

    def sparsify(stack: Tensor, module: str, side: str) -> Tensor:
        for tensor in stack:
            tensor.mul_(top_mask(tensor, density))
        return stack

    return keep_all if density >= 1 else sparsify


def trim_global(space: Space, density: float) -> Sparsify:
    """Return the trim of each adapter to its largest entries over all modules and sides.

    Entries equal in magnitude to the smallest one kept are kept too.
    """
    if density >= 1:
        return keep_all
    thresholds = global_thresholds(space, density)

    def sparsify(stack: Tensor, module: str, side: str) -> Tensor:
        for tensor, threshold in zip(stack, thresholds.to(stack), strict=True):
            tensor.mul_(tensor.abs() >= threshold)
        return stack

    return sparsify


def trimming(space: Space, options: Mapping[str, Any]) -> Sparsify:
    """Return the trim that the options ``trim`` and ``density`` describe."""
    scopes: Mapping[str, Callable[[Space, float], Sparsify]] = {
        "tensor": trim_tensor,
        "global": trim_global,
    }
    return scopes[options["trim"]](space, options["density"])


def global_thresholds(space: Space, density: float) -> Tensor:
    """Return for each adapter (n,) the magnitude of its k-th largest entry, k = int(density * all).

    Infinite where k is 0.
    """
    thresholds, _ = select_largest(
        lambda site: space.stack(*site).abs_(),
        list(sites(space)),
        n=space.sources.n,
        dtype=space.sources.dtype,
        kept=lambda total: int(density * total),
    )
    return thresholds


def select_largest(
    read: Callable[[Place], Tensor],
    places: Sequence[Place],
    *,
    n: int,
    dtype: torch.dtype,
    kept: Callable[[int], int],
) -> tuple[Tensor, Tensor]:
    """Find the k-th largest magnitude over all places, exactly and without sorting.

    A radix selection: counting 16 bits of the magnitudes at a time finds the value in two passes
    over the places (four for float64) with one of them in memory, where sorting would need all
    dense deltas of an adapter at once.

    Args:
        read: returns the magnitudes (n, ...) at a place, contiguous and of ``dtype``.
        places: where there are magnitudes, such as the modules of an adapter.
        n: how many selections are made side by side, such as one for each adapter.
        dtype: float32 or float64.
        kept: the number of all entries of one selection -> k.

    Returns:
        The k-th largest magnitudes (n,) of ``dtype``, infinite where k is 0; and int64 (n,), how
        many of the entries equal to it are among the k largest.
    """
    integer, digits = _DIGITS[dtype]
    prefix = torch.zeros(n, dtype=torch.int64)
    wanted = torch.zeros(n, dtype=torch.int64)
    for digit in reversed(range(digits)):
        counts = torch.zeros(n, _BASE, dtype=torch.int64)
        for place in places:
            # A call, so that no loop variable keeps the magnitudes of one place beside the next.
            counts += _count_digits(read(place).view(integer), digit, prefix)
        if digit == digits - 1:
            wanted += kept(int(counts[0].sum()))
        from_top = counts.flip(1).cumsum(1)
        above = (from_top < wanted[:, None]).sum(1, keepdim=True)
        wanted -= (from_top - counts.flip(1)).gather(1, above.clamp(max=_BASE - 1)).squeeze(1)
        prefix = prefix * _BASE + (_BASE - 1 - above.squeeze(1))
    found = prefix.to(integer).view(dtype)
    return torch.where(wanted > 0, found, torch.inf), wanted


def _count_digits(magnitudes: Tensor, digit: int, prefix: Tensor) -> Tensor:
    """Count (n, 65536) each digit at ``digit`` among the entries whose higher digits are prefix."""
    counts = []
    for tensor, above in zip(magnitudes, prefix.tolist(), strict=True):
        bits = tensor.flatten() >> 16 * digit
        # Shifted once more: the higher digits, none at the top place.
        inside = bits[bits >> 16 == above] & (_BASE - 1)
        counts.append(inside.bincount(minlength=_BASE).cpu())
    return torch.stack(counts)


@register(
    "magnitude_prune",
    summary="keep the largest entries of each adapter, then the weighted sum",
    formula="sum_i alpha_i top(dW_i, density)",
    paper="peft",
    linearity=IN_DELTA,
    options={"density": DENSITY, "trim": TRIM},
)
def _magnitude_prune(sources: Sources, space: str, options: Mapping[str, Any]) -> Kernel:
    """Prepare trimmed tensors for their sum."""
    view = SPACES[space](sources)
    return Pipeline(view, trimming(view, options), fixed=True)
