"""The running average: after every experience the mean of the updates so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from cl_lora.merging.balanced import BalancedSum
from cl_lora.merging.kernels import LowRankSum
from cl_lora.merging.registry import ALWAYS, Kernel, register
from cl_lora.merging.spaces import DeltaSpace, Sources


@register(
    "running_average",
    summary="the mean of the updates, which can be kept up one adapter at a time",
    formula="M_n, M_t = M_(t-1) + (alpha_t dW_t - M_(t-1)) / t; = sum_i alpha_i dW_i / n",
    paper="the average of Marczak et al. 2024",
    linearity=ALWAYS,
    spaces=("delta",),
    scaling=DeltaSpace.scaling,
)
def _running_average(sources: Sources, space: str, options: Mapping[str, Any]) -> Kernel:
    """Prepare the exact mean."""
    shares = torch.full((sources.n,), 1 / sources.n, dtype=torch.float64)
    return BalancedSum(LowRankSum(sources), shares)
