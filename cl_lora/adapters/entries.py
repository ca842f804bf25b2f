"""What is added to one parameter of a model: low-rank factors, or a dense delta."""

from __future__ import annotations

import math
from typing import TypeAlias

from torch import Tensor

from cl_lora.adapters.factors import LoRAFactors

Entry: TypeAlias = LoRAFactors | Tensor
"""Low-rank factors of a weight (d_out, d_in), or a dense delta in the shape of its parameter."""

_WEIGHT = ".weight"


def entry_name(parameter: str) -> str:
    """Return how the entry of a parameter is called: without ``.weight``, as LoRA names layers.

    >>> entry_name("blocks.0.attn.qkv.weight"), entry_name("cls_token")
    ('blocks.0.attn.qkv', 'cls_token')
    """
    return parameter.removesuffix(_WEIGHT)


def entry_delta(entry: Entry) -> Tensor:
    """Return the dense delta of an entry."""
    return entry.delta() if isinstance(entry, LoRAFactors) else entry


def entry_shape(entry: Entry) -> tuple[int, ...]:
    """Return the shape of an entry's dense delta."""
    return entry.shape if isinstance(entry, LoRAFactors) else tuple(entry.shape)


def entry_numbers(entry: Entry) -> int:
    """Return how many numbers an entry takes: those of its factors, or of the delta if fewer."""
    dense = math.prod(entry_shape(entry))
    if isinstance(entry, LoRAFactors):
        return min(entry.A.numel() + entry.B.numel(), dense)
    return dense


def is_finite(entry: Entry) -> bool:
    """Return whether an entry holds neither NaN nor infinity."""
    if isinstance(entry, LoRAFactors) and not math.isfinite(entry.scaling):
        return False
    tensors = (entry.A, entry.B) if isinstance(entry, LoRAFactors) else (entry,)
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
