"""The sums: task arithmetic, and what peft calls linear and cat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cl_lora.merging.kernels import LowRankSum, Pipeline
from cl_lora.merging.registry import ALWAYS, IN_DELTA, Kernel, register
from cl_lora.merging.spaces import SPACES, DeltaSpace, Sources


@register(
    "cat",
    summary="exact sum of the updates, as peft's cat: factors stacked, ranks added",
    formula="sum_i alpha_i s_i B_i A_i",
    paper="peft; Kesim and Helli 2024",
    linearity=ALWAYS,
    scaling=DeltaSpace.scaling,
    plain=True,
)
def _exact(sources: Sources, space: str, options: Mapping[str, Any]) -> Kernel:
    """Prepare the exact sum; stacking factors is the same in either space."""
    return LowRankSum(sources)


@register(
    "task_arithmetic",
    summary="weighted sum of the updates; in factors the same as peft's linear",
    formula="sum_i alpha_i s_i B_i A_i",
    paper="Ilharco et al. 2023",
    linearity=IN_DELTA,
    plain=True,
)
@register(
    "linear",
    summary="peft's linear: exact sum in delta, in factors the sums of A and of B with cross terms",
    formula="delta: sum_i alpha_i s_i B_i A_i; "
    "factors: (sum_i sqrt(alpha_i s_i) B_i)(sum_i sqrt(alpha_i s_i) A_i)",
    paper="peft; Kesim and Helli 2024",
    linearity=IN_DELTA,
    plain=True,
)
def _sum(sources: Sources, space: str, options: Mapping[str, Any]) -> Kernel:
    """Prepare the sum; only in delta does it stay low-rank by stacking."""
    return LowRankSum(sources) if space == "delta" else Pipeline(SPACES[space](sources), fixed=True)
