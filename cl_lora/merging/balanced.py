"""The sum of updates of one size: none dominates because its training moved further."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from cl_lora.adapters import LoRAFactors
from cl_lora.merging.geometry import norm
from cl_lora.merging.kernels import LowRankSum, MaterialisedSum
from cl_lora.merging.registry import ALWAYS, Kernel, register
from cl_lora.merging.spaces import DeltaSpace, Sources
from cl_lora.support.errors import UserError


@dataclass(frozen=True, eq=False)
class BalancedSum:
    """The exact sum of rescaled updates; no plain sum of the adapters, which keep their size."""

    rescaled: LowRankSum

    def combine(self, module: str, alpha: Tensor) -> LoRAFactors:
        """Return the stacked factors of the module."""
        return self.rescaled.combine(module, alpha)

    def materialise(self) -> MaterialisedSum:
        """Return the sum with its factors stacked once and for all."""
        return self.rescaled.materialise()


@register(
    "norm_balanced",
    summary="sum of the updates, each scaled to the mean of their Frobenius norms over all modules",
    formula="sum_i alpha_i (m / |dW_i|_F) dW_i, m = mean_i |dW_i|_F",
    paper="this project, after Kesim and Helli 2024",
    linearity=ALWAYS,
    scaling=DeltaSpace.scaling,
)
def _balanced(sources: Sources, space: str, options: Mapping[str, Any]) -> Kernel:
    """Prepare the sum of rescaled updates; stacking factors is the same in either space.

    Raises:
        UserError: if an adapter changes nothing.
    """
    norms = [
        norm({module: factors[i] for module, factors in sources.modules.items()})
        for i in range(sources.n)
    ]
    if not all(size > 0 for size in norms):
        raise UserError(
            f"Expected adapters that change the model but number {norms.index(0.0)} of "
            f"{len(norms)} has an update of norm 0, which cannot be scaled; leave it out"
        )
    mean = sum(norms) / len(norms)
    shares = [mean / size for size in norms]
    modules = {
        module: tuple(
            replace(f, scaling=f.scaling * share) for f, share in zip(factors, shares, strict=True)
        )
        for module, factors in sources.modules.items()
    }
    return BalancedSum(LowRankSum(replace(sources, modules=modules)))
