"""Trimming by magnitude: per tensor as peft does, or over the whole adapter as TIES defines it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from cl_lora.merging.kernels import CHUNK, Mask, Pipeline, Sparsify, keep_all
from cl_lora.merging.registry import DENSITY, IN_DELTA, Kernel, choice, is_number, register
from cl_lora.merging.spaces import SPACES, Sources, Space, Stack, sites
from cl_lora.support.errors import UserError

TRIM = choice(
    "tensor",
    "global",
    help="keep the largest entries of each tensor (peft) or of the whole adapter (TIES paper)",
)


def is_global(options: Mapping[str, Any]) -> bool:
    """Return whether entries are trimmed over the whole adapter."""
    return bool(options["trim"] == "global")


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


def trim_tensor(space: Space, densities: Sequence[float]) -> Sparsify:
    """Return the trim of each tensor of a stack to its largest entries.

    A tensor is looked at as a whole for its threshold, one after the other, and trimmed by rows.
    """

    def sparsify(stack: Stack, module: str, side: str) -> Mask:
        trims = [
            _trim(stack.one(i), density) if density < 1 else None
            for i, density in enumerate(densities)
        ]

        def mask(rows: Tensor) -> Tensor:
            for tensor, trim in zip(rows, trims, strict=True):
                if trim is not None:
                    trim(tensor)
            return rows

        return mask

    return keep_all if min(densities) >= 1 else sparsify


def _trim(tensor: Tensor, density: float) -> Callable[[Tensor], None]:
    """Return what sets all but the largest entries of the tensor's rows to zero, row after row.

    The same entries as :func:`top_mask` keeps: of those equal to the smallest one kept the first.
    """
    magnitudes = tensor.abs_().flatten()
    k = int(density * magnitudes.numel())
    threshold = _kth_largest(magnitudes, k) if k else math.inf
    equal = k - int((magnitudes > threshold).sum(dtype=torch.int32))

    def trim(rows: Tensor) -> None:
        nonlocal equal
        magnitudes = rows.abs()
        mask = magnitudes >= threshold
        tied = int((magnitudes == threshold).sum(dtype=torch.int32))
        if tied > equal:
            places = (magnitudes == threshold).flatten().nonzero().flatten()
            mask.view(-1)[places[equal:]] = False
        equal -= min(tied, equal)
        rows.mul_(mask)

    return trim


def trim_global(space: Space, densities: Sequence[float]) -> Sparsify:
    """Return the trim of each adapter to its largest entries over all modules and sides.

    Entries equal in magnitude to the smallest one kept are kept too.
    """
    if min(densities) >= 1:
        return keep_all
    thresholds = global_thresholds(space, densities)

    def mask(rows: Tensor) -> Tensor:
        for tensor, threshold in zip(rows, thresholds.to(rows), strict=True):
            tensor.mul_(tensor.abs() >= threshold)
        return rows

    return lambda stack, module, side: mask


def trimming(space: Space, options: Mapping[str, Any]) -> Sparsify:
    """Return the trim that the options ``trim`` and ``density`` describe."""
    scopes: Mapping[str, Callable[[Space, Sequence[float]], Sparsify]] = {
        "tensor": trim_tensor,
        "global": trim_global,
    }
    return scopes[options["trim"]](space, densities(options, space.sources.n))


def densities(options: Mapping[str, Any], n: int) -> Sequence[float]:
    """Return the density of each of n adapters.

    Raises:
        UserError: if the option lists another number of them.
    """
    density = options["density"]
    if is_number(density):
        return [density] * n
    if len(density) != n:
        raise UserError(
            f"Expected one density, or one for each of {n} adapters, but got {len(density)}: "
            f"{list(density)}"
        )
    return list(density)


def global_thresholds(space: Space, densities: Sequence[float]) -> Tensor:
    """Return for each adapter (n,) the magnitude of its k-th largest entry, k = int(density * all).

    Infinite where k is 0.
    """
    # One module's entries stay while its rows are gone through: reading them again takes long.
    opened = functools.lru_cache(maxsize=1)(space.open)
    places: list[tuple[str, str, int | None, int]] = []
    for module, side in sites(space):
        stack = opened(module, side)
        if stack.shape:
            places += [(module, side, *rows) for rows in stack.chunks(CHUNK)]
        else:
            places.append((module, side, None, 0))

    def read(place: tuple[str, str, int | None, int]) -> Tensor:
        module, side, first, last = place
        stack = opened(module, side)
        return (stack.whole() if first is None else stack.rows(first, last)).abs_()

    thresholds, _ = select_largest(
        read,
        places,
        n=space.sources.n,
        dtype=space.sources.dtype,
        kept=lambda total: torch.tensor([int(density * total) for density in densities]),
    )
    return thresholds


def select_largest(
    read: Callable[[Place], Tensor],
    places: Sequence[Place],
    *,
    n: int,
    dtype: torch.dtype,
    kept: Callable[[int], int | Tensor],
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
        kept: the number of all entries of one selection -> k, or k of each (n,).

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
    across_modules=is_global,
)
def _magnitude_prune(sources: Sources, space: str, options: Mapping[str, Any]) -> Kernel:
    """Prepare trimmed tensors for their sum."""
    view = SPACES[space](sources)
    return Pipeline(view, trimming(view, options), fixed=True)
