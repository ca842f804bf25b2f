"""MagMax: of every entry the update of the largest magnitude wins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cl_lora.merging.kernels import Pipeline
from cl_lora.merging.registry import ALWAYS, Kernel, register
from cl_lora.merging.spaces import DeltaSpace, Sources


def largest(stack: Tensor, weights: Tensor) -> Tensor:
    """Return the stack (n, ...) with all but the largest magnitude of each entry set to zero.

    Of equal ones the first is kept.
    """
    winner = stack.abs().argmax(0, keepdim=True)
    return stack.new_zeros(stack.shape).scatter_(0, winner, stack.gather(0, winner))


@register(
    "magmax",
    summary="of every entry the update of the largest magnitude",
    formula="sum_i alpha_i m_i dW_i, m_i = [|dW_i| = max_j |dW_j|] (elementwise)",
    paper="Marczak et al. 2024",
    linearity=ALWAYS,
    spaces=("delta",),
    scaling=DeltaSpace.scaling,
)
def _magmax(sources: Sources, space: str, options: Mapping[str, Any]) -> Kernel:
    """Prepare the selection, by magnitudes before the coefficients weigh them."""
    return Pipeline(DeltaSpace(sources), spread=largest, by_rows=True, fixed=True)
