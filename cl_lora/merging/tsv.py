"""TSV-M: the largest singular triples of each task, made orthogonal to those of the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cl_lora.merging.frames import InFrame, orthogonalised, singular
from cl_lora.merging.registry import ALWAYS, Kernel, choice, register
from cl_lora.merging.spaces import DeltaSpace, Sources


def decorrelated(tensors: Tensor, most: int) -> Tensor:
    """Return each update rebuilt from singular vectors made orthogonal to those of the others.

    Args:
        tensors: (n, a, b).
        most: how many singular triples each keeps.
    """
    triples = [singular(tensor, most) for tensor in tensors]
    left = orthogonalised(torch.cat([u for u, _, _ in triples], dim=1))
    right = orthogonalised(torch.cat([vh for _, _, vh in triples]))
    counts = [len(s) for _, s, _ in triples]
    parts = zip(torch.split(left, counts, dim=1), triples, torch.split(right, counts), strict=True)
    return torch.stack([u @ (s[:, None] * vh) for u, (_, s, _), vh in parts])


@register(
    "tsv_m",
    summary="the largest singular triples of each update, their vectors made orthogonal to those "
    "of the others",
    formula="sum_i alpha_i U'_i S_i V'_i^T, U' = orthogonalise([U_1 .. U_n]), V' alike; each the "
    "top min(d_out, d_in) / n triples of dW_i",
    paper="Gargiulo et al. 2025",
    linearity=ALWAYS,
    spaces=("delta",),
    options={
        "share_of": choice(
            "matrix",
            "adapters",
            help="keep 1/n of the triples that a matrix of this shape may have (the paper; "
            "low-rank adapters then lose nothing) or that the adapter of the largest rank has",
        )
    },
    scaling=DeltaSpace.scaling,
)
def _tsv_m(sources: Sources, space: str, options: Mapping[str, Any]) -> Kernel:
    """Prepare the decorrelated updates; what is no matrix is averaged."""

    def change(tensors: Tensor, shape: tuple[int, ...]) -> Tensor:
        whole = min(shape)
        if options["share_of"] == "adapters":
            whole = max(len(singular(tensor)[1]) for tensor in tensors)
        return decorrelated(tensors, max(1, whole // sources.n))

    return InFrame(sources, change, share=1 / sources.n)
