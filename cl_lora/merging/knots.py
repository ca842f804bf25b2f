"""KnOTS: updates in the one basis that the SVD of all of them beside each other shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from cl_lora.merging.frames import Frame, frame_of, singular
from cl_lora.merging.inner import AS_INNER, INNER, inner_option, inside
from cl_lora.merging.registry import Kernel, register
from cl_lora.merging.spaces import DeltaSpace, Sources


def shared_basis(sources: Sources, module: str) -> Frame:
    """Return a module's updates in their shared basis: ``dW_i = U (S V_i^T)``.

    ``[dW_1 .. dW_n] = U S [V_1^T .. V_n^T]``. Only singular vectors of values above zero are kept,
    of a module that nothing changed one.
    """
    core = frame_of(sources, module)
    beside = torch.cat(tuple(core.tensors), dim=1)
    left = singular(beside)[0]
    if not left.shape[1]:
        left = torch.eye(len(beside), 1, dtype=beside.dtype)
    tensors = left.T @ core.tensors
    if core.left is not None and core.right is not None:
        left, tensors = core.left @ left, tensors @ core.right
    return Frame(tensors, left, None, core.low_rank)


@register(
    "knots",
    summary="the inner method in the basis that all updates share, by the SVD of them beside each "
    "other",
    formula="U inner_i(alpha, S V_i^T), [dW_1 .. dW_n] = U S [V_1^T .. V_n^T]",
    paper="Stoica et al. 2024",
    spaces=("delta",),
    options={
        INNER: inner_option(
            "ties", "the method that merges S V_i^T; the paper takes ties, trimmed globally"
        )
    },
    scaling=DeltaSpace.scaling,
    **AS_INNER,
)
def _knots(sources: Sources, space: str, options: Mapping[str, Any]) -> Kernel:
    """Prepare the inner merge in the shared basis; low-rank updates stay low-rank."""
    return inside(sources, options, shared_basis)
