"""LiNeS: a merged update is scaled up with depth, so that the first layers stay general."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from cl_lora.adapters import Entry, LoRAFactors
from cl_lora.merging.depths import depths
from cl_lora.merging.inner import AS_INNER, INNER, inner_kernel, inner_option
from cl_lora.merging.registry import Kernel, OptionSpec, is_number, register
from cl_lora.merging.spaces import DeltaSpace, Sources

SHARE = "1/n"


@dataclass(frozen=True, eq=False)
class ByDepth:
    """An update whose modules are scaled.

    Attributes:
        kernel: makes the update.
        scales: module -> its factor.
    """

    kernel: Kernel
    scales: Mapping[str, float]

    def combine(self, module: str, alpha: Tensor) -> Entry:
        """Return the module's update, scaled."""
        entry, scale = self.kernel.combine(module, alpha), self.scales[module]
        if isinstance(entry, LoRAFactors):
            return replace(entry, B=scale * entry.B)
        return scale * entry

    def materialise(self) -> ByDepth:
        """Return the same with all in memory that the inner method keeps."""
        return replace(self, kernel=self.kernel.materialise())


@register(
    "lines",
    summary="the inner method's update, scaled linearly from the first layer to the last",
    formula="(first + (last - first) l / (L - 1)) inner(alpha, dW), l: the layer's index, from 0",
    paper="Wang et al. 2024",
    spaces=("delta",),
    options={
        INNER: inner_option("task_arithmetic", "the method whose update is scaled"),
        "first": OptionSpec(
            SHARE,
            lambda v: v == SHARE or is_number(v),
            f"{SHARE} or a number",
            "the scale of the first layer and of what lies outside layers; the paper takes 1/n for "
            "sums of n updates",
        ),
        "last": OptionSpec(1.0, is_number, "a number", "the scale of the last layer"),
    },
    scaling=DeltaSpace.scaling,
    **{**AS_INNER, "across_modules": lambda options: True},
)
def _lines(sources: Sources, space: str, options: Mapping[str, Any]) -> Kernel:
    """Prepare the inner merge; layers are found by the first number in a module's name."""
    first, last = options["first"], options["last"]
    first = 1 / sources.n if first == SHARE else first
    scales = {m: first + (last - first) * (d or 0) for m, d in depths(sources.modules).items()}
    return ByDepth(inner_kernel(sources, options), scales)
