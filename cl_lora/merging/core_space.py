"""Core Space: any method run on the small cores of low-rank updates, and lifted without loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cl_lora.adapters import Entry, LoRAFactors
from cl_lora.merging.frames import Frame, core_frame, singular
from cl_lora.merging.inner import AS_INNER, INNER, inner_option, inside
from cl_lora.merging.registry import Kernel, register
from cl_lora.merging.spaces import DeltaSpace, Sources


def core(sources: Sources, module: str) -> Frame:
    """Return a module's updates in the frame of their stacked factors.

    A dense update has none, and takes those of its SVD, the singular values split evenly.
    """
    low_rank = sources.factors(module) is not None
    return core_frame(tuple(map(_factors, sources.modules[module])), low_rank)


def _factors(entry: Entry) -> LoRAFactors:
    if isinstance(entry, LoRAFactors):
        return entry
    u, s, vh = singular(entry.double())
    root = s.sqrt()
    return LoRAFactors(root[:, None] * vh, u * root)


@register(
    "core_space",
    summary="the inner method on the cores of the updates, small matrices that hold all of them",
    formula="U inner_i(alpha, M_i) V^T, M_i = s_i U^T B_i A_i V, U and V: singular vectors of "
    "[B_1 .. B_n] and of [A_1; ..; A_n]",
    paper="Panariello et al. 2025",
    spaces=("delta",),
    options={INNER: inner_option("tsv_m", "the method that merges the cores")},
    scaling=DeltaSpace.scaling,
    **AS_INNER,
)
def _core_space(sources: Sources, space: str, options: Mapping[str, Any]) -> Kernel:
    """Prepare the inner merge of the cores."""
    return inside(sources, options, core)
