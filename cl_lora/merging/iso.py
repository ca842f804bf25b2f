"""Isotropic merging: the sum of the updates with all its singular values made equal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cl_lora.merging.frames import InFrame, orthogonalised, singular
from cl_lora.merging.registry import NEVER, Kernel, OptionSpec, is_fraction, register
from cl_lora.merging.spaces import DeltaSpace, Sources


def flattened(tensors: Tensor) -> Tensor:
    """Return the sum (a, b) of updates (n, a, b), each singular value replaced by their mean."""
    u, s, vh = singular(tensors.sum(0))
    return u @ (s.mean() * vh)


def common_and_specific(tensors: Tensor, common: float) -> Tensor:
    """Return what is common to the updates (n, a, b) and what is specific to each, flattened.

    Of the R singular triples of the sum the last make room for as many triples of every update
    outside the space that the first span.

    Args:
        tensors: the updates.
        common: the share of R that stays common, rounded so that every update has as many.
    """
    u, s, vh = singular(tensors.sum(0))
    rank, n = len(s), len(tensors)
    each = min(round((rank - int(rank * common)) / n), rank // n)
    shared = rank - each * n
    u, s, vh = u[:, :shared], s[:shared], vh[:shared]
    specific = [singular(tensor - u @ (u.T @ tensor), each) for tensor in tensors]
    left = orthogonalised(torch.cat([*(t[0] for t in specific), u], dim=1))
    values = torch.cat([*(t[1] for t in specific), s])
    right = orthogonalised(torch.cat([*(t[2] for t in specific), vh]))
    return left @ (values.mean() * right)


@register(
    "iso_c",
    summary="the sum of the updates with all its singular values replaced by their mean",
    formula="mean(S) U V^T, U S V^T = sum_i alpha_i dW_i, over the singular values above 0",
    paper="Marczak et al. 2025",
    linearity=NEVER,
    spaces=("delta",),
    scaling=DeltaSpace.scaling,
)
def _iso_c(sources: Sources, space: str, options: Mapping[str, Any]) -> Kernel:
    """Prepare the sum; what is no matrix is averaged."""
    return InFrame(sources, finish=flattened, share=1 / sources.n)


@register(
    "iso_cts",
    summary="the largest directions of the sum and of what each update has outside them, all with "
    "one singular value",
    formula="mean(S') U' V'^T, U' = orthogonalise([U_1 .. U_n U]), V' alike; U S V^T: top triples "
    "of sum_i alpha_i dW_i; U_i S_i V_i^T: of (I - U U^T) alpha_i dW_i; S' = [S_1 .. S_n S]",
    paper="Marczak et al. 2025",
    linearity=NEVER,
    spaces=("delta",),
    options={
        "common": OptionSpec(
            0.8,
            is_fraction,
            "a fraction in (0, 1]",
            "the share of the directions that stays common to all; 1 is iso_c",
        )
    },
    scaling=DeltaSpace.scaling,
)
def _iso_cts(sources: Sources, space: str, options: Mapping[str, Any]) -> Kernel:
    """Prepare the updates; what is no matrix is averaged."""
    return InFrame(
        sources,
        finish=lambda tensors: common_and_specific(tensors, options["common"]),
        share=1 / sources.n,
    )
