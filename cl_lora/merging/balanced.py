"""The sum of updates of one size: none dominates because its training moved further."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cl_lora.adapters import Entry
from cl_lora.merging.geometry import inner
from cl_lora.merging.kernels import LowRankSum
from cl_lora.merging.registry import ALWAYS, Kernel, register
from cl_lora.merging.spaces import DeltaSpace, Sources
from cl_lora.support.errors import UserError


@dataclass(frozen=True, eq=False)
class BalancedSum:
    """The exact sum of rescaled updates; no plain sum of the adapters, which keep their size.

    Attributes:
        sum: of the updates as they are.
        shares: float64 (n,), what each is scaled by.
    """

    sum: Kernel
    shares: Tensor

    def combine(self, module: str, alpha: Tensor) -> Entry:
        """Return the sum of the rescaled updates of the module."""
        return self.sum.combine(module, alpha * self.shares.to(alpha))

    def materialise(self) -> BalancedSum:
        """Return the sum with all in memory."""
        return replace(self, sum=self.sum.materialise())


@register(
    "norm_balanced",
    summary="sum of the updates, each scaled to the mean of their Frobenius norms over all modules",
    formula="sum_i alpha_i (m / |dW_i|_F) dW_i, m = mean_i |dW_i|_F",
    paper="this project, after Kesim and Helli 2024",
    linearity=ALWAYS,
    scaling=DeltaSpace.scaling,
    across_modules=lambda options: True,
)
def _balanced(sources: Sources, space: str, options: Mapping[str, Any]) -> Kernel:
    """Prepare the sum of rescaled updates; stacking factors is the same in either space.

    Raises:
        UserError: if an adapter changes nothing.
    """
    squares = torch.zeros(sources.n, dtype=torch.float64)
    for entries in sources.modules.values():
        squares += torch.tensor([inner(e, e) for e in entries], dtype=torch.float64)
    norms = squares.clamp(min=0).sqrt().tolist()  # rounding may leave a square just below zero
    if not all(size > 0 for size in norms):
        raise UserError(
            f"Expected adapters that change the model but number {norms.index(0.0)} of "
            f"{len(norms)} has an update of norm 0, which cannot be scaled; leave it out"
        )
    mean = sum(norms) / len(norms)
    shares = torch.tensor([mean / size for size in norms], dtype=torch.float64)
    return BalancedSum(LowRankSum(sources), shares)
