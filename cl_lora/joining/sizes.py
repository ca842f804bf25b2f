"""Whether the numbers of an update are within what their precision holds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cl_lora.adapters import Entry, LoRAFactors

_AT_ONCE = 256  # rows of a product that are in memory


def fits(entry: Entry, factor: float = 1.0) -> bool:
    """Return whether every number of an update is one that its precision holds.

    Args:
        entry: the update.
        factor: what it is multiplied by.
    """
    if isinstance(entry, Tensor):
        return _largest(entry) * abs(factor) <= torch.finfo(entry.dtype).max
    limit = torch.finfo(entry.B.dtype).max
    scaling = abs(entry.scaling * factor)
    bound = scaling * _largest(entry.A) * _largest(entry.B) * entry.rank
    if bound <= limit:
        return True
    # A bound: what factors give is often much smaller. NaN and infinity have none.
    if not (math.isfinite(scaling) and bool(entry.A.isfinite().all() & entry.B.isfinite().all())):
        return False
    rows = (part.double() @ entry.A.double() for part in torch.split(entry.B, _AT_ONCE))
    return max(_largest(part) for part in rows) * scaling <= limit


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def how_large(entry: Entry) -> str:
    """Return in words how large the numbers of an update are."""
    if isinstance(entry, LoRAFactors):
        parts = (_largest(entry.A), _largest(entry.B), entry.scaling)
        return "whose A reaches {:.3g}, whose B {:.3g}, scaled by {:.3g}".format(*parts)
    return f"which reaches {_largest(entry):.3g}"
