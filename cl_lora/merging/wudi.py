"""WUDI: the update that interferes least with every adapter, in closed form.

The rows of an update lie in the space of the inputs it has learned, so that what a merge does to
them stands for what it does to inputs: no data are needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cl_lora.merging.frames import InFrame
from cl_lora.merging.registry import ALWAYS, Kernel, OptionSpec, is_number, register
from cl_lora.merging.spaces import DeltaSpace, Sources


def least_interfering(tensors: Tensor, pull: float) -> Tensor:
    """Return ``dW_i (G_i + pull I)(sum_j G_j + pull I)^-1`` of every update (n, a, b).

    Their sum dW minimises ``sum_i |(dW - dW_i) dW_i^T|^2 / |dW_i|^2 + pull |dW - sum_j dW_j|^2``.
    An update of zero interferes with nothing.
    """
    squares = tensors.square().sum((1, 2)).clamp(min=torch.finfo(tensors.dtype).tiny)
    grams = tensors.mT @ tensors / squares[:, None, None]
    ridge = pull * torch.eye(tensors.shape[2], dtype=tensors.dtype)
    factor = torch.linalg.cholesky(grams.sum(0) + ridge)
    return torch.cholesky_solve((tensors @ (grams + ridge)).mT, factor).mT


@register(
    "wudi",
    summary="the update that interferes least with every adapter on the inputs that its own rows "
    "stand for, in closed form",
    formula="sum_i alpha_i dW_i (G_i + pull I)(sum_j G_j + pull I)^-1, G_i = dW_i^T dW_i / "
    "|dW_i|_F^2",
    paper="Cheng et al. 2025",
    linearity=ALWAYS,
    spaces=("delta",),
    options={
        "pull": OptionSpec(
            1e-4,
            lambda v: is_number(v) and v >= 1e-9,
            "a number of at least 1e-9",
            "how strongly the result is held to the plain sum, from which the paper starts: 300 "
            "steps of Adam there, the minimum itself here; the larger, the nearer to the sum",
        )
    },
    scaling=DeltaSpace.scaling,
)
def _wudi(sources: Sources, space: str, options: Mapping[str, Any]) -> Kernel:
    """Prepare the terms of the closed form; what is no matrix is averaged."""
    return InFrame(
        sources,
        lambda tensors, shape: least_interfering(tensors, options["pull"]),
        share=1 / sources.n,
    )
