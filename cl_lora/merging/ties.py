"""TIES: trim, elect a sign for each entry, average over the adapters that agree with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from cl_lora.merging.kernels import Pipeline, Spread, weighted_sum
from cl_lora.merging.pruning import TRIM, is_global, trimming
from cl_lora.merging.registry import DENSITY, Kernel, Linearity, choice, register
from cl_lora.merging.spaces import SPACES, Sources

ELECTION = {
    "sign": choice(
        "unweighted",
        "weighted",
        help="elect signs before (peft, TIES paper) or after (mergekit) weighting",
    ),
    "elect": choice(
        "total",
        "frequency",
        help="the sign of the sum of the entries, or of the number of positive less negative ones",
    ),
    "divisor": choice(
        "count",
        "weight_sum",
        "none",
        help="divide by the number of agreeing adapters (peft, TIES paper), by the sum of their "
        "weights (mergekit), or not at all",
    ),
}


def is_fixed(options: Mapping[str, Any]) -> bool:
    """Return whether masks and divisors are the same for all weights."""
    return bool(options["sign"] == "unweighted" and options["divisor"] != "weight_sum")


FIXED_ELECTION = Linearity(
    "in delta, with sign=unweighted and divisor=count or none",
    lambda space, options: space == "delta" and is_fixed(options),
    "differentiable",
)

_SMALLEST_DIVISOR = 1e-8


def column(weights: Tensor, stack: Tensor) -> Tensor:
    """Return ``weights`` (n,) as (n, 1, ...), to scale a stack (n, ...)."""
    return weights.view(-1, *[1] * (stack.ndim - 1))


def elect_total(stack: Tensor) -> Tensor:
    """Return 1 where an entry has the sign of the sum over n, else 0; shape (n, rows, columns).

    A sum of zero counts as positive; an entry of zero never agrees.
    """
    return _agreement(stack.sign(), stack.sum(0))


def elect_frequency(stack: Tensor) -> Tensor:
    """Return 1 where an entry has the sign that most of n have, else 0; (n, rows, columns).

    A tie counts as positive; an entry of zero never agrees.
    """
    sign = stack.sign()
    return _agreement(sign, sign.sum(0))


def _agreement(sign: Tensor, score: Tensor) -> Tensor:
    # In floats throughout: comparing into bools is several times slower than multiplying. The half
    # makes a score of zero positive.
    majority = score.sign().add_(0.5).sign_()
    return sign.mul_(majority).clamp_(min=0)


def by_count(mask: Tensor, weights: Tensor) -> Tensor:
    """Return how many entries agree, at least 1; shape (rows, columns)."""
    return mask.sum(0).clamp(min=1)


def by_weight_sum(mask: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of the weights of the agreeing entries, 1 where that is about zero."""
    total = weighted_sum(weights, mask)
    return torch.where(total.abs() < _SMALLEST_DIVISOR, 1.0, total)


def by_one(mask: Tensor, weights: Tensor) -> Tensor:
    """Return 1: the agreeing entries are summed."""
    return torch.ones((), dtype=mask.dtype, device=mask.device)


ELECT: Mapping[str, Callable[[Tensor], Tensor]] = {
    "total": elect_total,
    "frequency": elect_frequency,
}
SIGN: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "unweighted": lambda stack, weights: stack,
    "weighted": lambda stack, weights: stack * column(weights.detach(), stack),
}
DIVISOR: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "count": by_count,
    "weight_sum": by_weight_sum,
    "none": by_one,
}


def disjoint(options: Mapping[str, Any]) -> Spread:
    """Return the spread of a disjoint merge: basis_i = mask_i T_i / divisor.

    Of the weights only those in a divisor carry a gradient: masks are constant almost everywhere.

    Args:
        options: ``sign``, ``elect`` and ``divisor``; see :data:`ELECTION`.
    """
    sign, elect = SIGN[options["sign"]], ELECT[options["elect"]]
    divisor = DIVISOR[options["divisor"]]

    def spread(stack: Tensor, weights: Tensor) -> Tensor:
        weights = weights.to(stack)
        mask = elect(sign(stack, weights))
        by = divisor(mask, weights)
        # In place, because the stack is ours; but autograd keeps what is divided by a divisor that
        # carries a gradient, and blocks of rows share one stack.
        return (stack * mask if by.requires_grad else stack.mul_(mask)) / by

    return spread


@register(
    "ties",
    summary="trim each adapter, elect a sign per entry, average the entries that agree",
    formula="sum_i alpha_i m_i top(dW_i, density) / sum_i m_i, "
    "m_i = [sign(top(dW_i)) = sign(sum_j top(dW_j))]",
    paper="Yadav et al. 2023",
    linearity=FIXED_ELECTION,
    options={"density": DENSITY, "trim": TRIM, **ELECTION},
    across_modules=is_global,
)
def _ties(sources: Sources, space: str, options: Mapping[str, Any]) -> Kernel:
    """Prepare trimmed tensors for their election."""
    view = SPACES[space](sources)
    return Pipeline(
        view,
        trimming(view, options),
        disjoint(options),
        by_rows=True,
        fixed=is_fixed(options),
    )
