"""OPCM: adapters merged one after the other, each without what lies along the merge so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cl_lora.merging.balanced import BalancedSum
from cl_lora.merging.frames import InFrame, is_matrix, singular
from cl_lora.merging.registry import ALWAYS, Kernel, OptionSpec, is_number, register
from cl_lora.merging.spaces import DeltaSpace, Sources


def projected(tensors: Tensor, share: float) -> Tensor:
    """Return each update (n, a, b) without what the sum of those before it has already.

    In the singular vectors of that sum the diagonal is taken away, and the block of the largest
    singular values that make up ``share`` of all of them.
    """
    kept = [tensors[0]]
    total = tensors[0]
    for tensor in tensors[1:]:
        u, s, vh = singular(total)
        along = u.T @ tensor @ vh.T
        sums = s.cumsum(0)
        split = int((sums <= share * sums[-1:]).sum())
        taken = along.diag().diag()
        taken[:split, :split] = along[:split, :split]
        kept.append(tensor - u @ taken @ vh)
        total = total + kept[-1]
    return torch.stack(kept)


@register(
    "opcm",
    summary="adapters added one after the other, each without what lies along those before it, the "
    "sum brought to their mean norm; their order counts",
    formula="(m / |sum_i C_i|) sum_i alpha_i C_i, C_i = dW_i - U_i (M * U_i^T dW_i V_i) V_i^T, "
    "U_i S_i V_i^T = sum_(j<i) C_j, m = mean_i |dW_i|, norms over all modules",
    paper="Tang et al. 2025",
    linearity=ALWAYS,
    spaces=("delta",),
    options={
        "share": OptionSpec(
            0.5,
            lambda v: is_number(v) and 0 <= v <= 1,
            "a number in [0, 1]",
            "of the sum of the singular values so far, how much spans the block that is taken away "
            "of the next adapter",
        )
    },
    scaling=DeltaSpace.scaling,
    ordered=True,
    across_modules=lambda options: True,
)
def _opcm(sources: Sources, space: str, options: Mapping[str, Any]) -> Kernel:
    """Prepare the projected updates and the one scale of their sum.

    The coefficients weigh what is left of each; the projections do not depend on them.
    """
    share = options["share"]
    plain = InFrame(sources)
    squares, total = torch.zeros(sources.n, dtype=torch.float64), 0.0
    for module in sources.modules:
        tensors = plain.changed(module).tensors
        squares += tensors.reshape(sources.n, -1).square().sum(1)
        kept = projected(tensors, share) if is_matrix(sources, module) else tensors
        total += float(kept.sum(0).square().sum())
    scale = float(squares.sqrt().mean()) / math.sqrt(total) if total > 0 else 1.0
    kernel = InFrame(sources, lambda tensors, shape: projected(tensors, share))
    return BalancedSum(kernel, torch.full((sources.n,), scale, dtype=torch.float64))
