"""Truncation of the exact sum by SVD."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cl_lora.merging.kernels import LowRankSum
from cl_lora.merging.registry import LARGEST, NEVER, Kernel, register
from cl_lora.merging.spaces import Sources


@register(
    "svd",
    summary="exact sum truncated to a rank, by default the largest of the adapters",
    formula="truncate(sum_i alpha_i s_i B_i A_i, rank)",
    paper="peft",
    linearity=NEVER,
    spaces=("delta",),
    default_rank=LARGEST,
)
def _svd(sources: Sources, space: str, options: Mapping[str, Any]) -> Kernel:
    """Prepare the exact sum; the plan truncates it through QR of the stacked factors."""
    return LowRankSum(sources)
