"""Adaptive coefficients: sigmoids times a learned bound. Coleman et al. 2024."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cl_lora.merging.coefficients.groups import Rows, group_rows
from cl_lora.merging.coefficients.learning import learning_options
from cl_lora.merging.coefficients.registry import register_rule
from cl_lora.merging.coefficients.state import DTYPE
from cl_lora.merging.registry import OptionSpec, is_number
from cl_lora.support.errors import UserError


@dataclass(frozen=True)
class _Adaptive:
    """State of :func:`adaptive_alpha`: c (G, n), and b_raw (G, 1), one for each group."""

    c: Tensor
    b_raw: Tensor
    b_max: float
    rows: Rows

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The logits of the coefficients and of their bound."""
        return {"c": self.c, "b_raw": self.b_raw}

    def alpha(self) -> Tensor:
        """Return the coefficients."""
        return self.rows.spread(adaptive_alpha(self.c, self.b_raw, self.b_max))

    @torch.no_grad()
    def follow(self, previous: Tensor) -> None:
        """Start from earlier coefficients, a little inside (0, b_max) where they lie at its edge.

        The bound stays where it is unless a coefficient needs more.
        """
        known = self.rows.collect(previous)
        initial = adaptive_alpha(self.c, self.b_raw, self.b_max)
        alpha = torch.cat([known, initial[:, known.shape[1] :]], dim=1)
        highest = alpha.amax(1, keepdim=True) / _HIGHEST_START
        spare = self.b_max - 1
        if spare > 0:
            share = ((highest - 1) / spare).clamp(0.5, _HIGHEST_START)
            self.b_raw.copy_(share.logit())
        bound = 1 + spare * self.b_raw.sigmoid()
        self.c.copy_((alpha / bound).clamp(1 - _HIGHEST_START, _HIGHEST_START).logit())


def adaptive_alpha(c: Tensor, b_raw: Tensor, b_max: float) -> Tensor:
    """Return ``sigmoid(c) * b`` with ``b = 1 + (b_max - 1) * sigmoid(b_raw)``; in (0, b_max).

    Coleman et al. 2024, "Adaptive LoRA Merging for Domain-Incremental Learning".

    Args:
        c: float tensor (..., n).
        b_raw: float tensor broadcastable to ``c``.
        b_max: upper limit of the bound b, at least 1.
    """
    return c.sigmoid() * (1 + (b_max - 1) * b_raw.sigmoid())


# The share of the bound at which "uniform" starts where 1/n lies at the bound or above it, and
# earlier coefficients that lie there: where a sigmoid is flat nothing would be learned.
_HIGHEST_START = 0.95


@register_rule(
    "adaptive",
    formula="alpha_i = sigmoid(c_i) b, b = 1 + (b_max - 1) sigmoid(b_raw)",
    paper="Coleman et al. 2024",
    how="gradient",
    scale=("b_max", "b_max"),
    options={
        "b_max": OptionSpec(
            1.0,
            lambda v: is_number(v) and v >= 1,
            "a finite number of at least 1",
            "no coefficient exceeds it",
        ),
        "init": OptionSpec(
            "zero",
            lambda v: v in ("zero", "uniform") or (is_number(v) and v > 0),
            "zero, uniform or a number in (0, (1 + b_max) / 2)",
            "where alpha starts: c = 0, hence (1 + b_max) / 4; 1/n; or the number itself",
        ),
        **learning_options(100, 0.05, ("adapter", "layer", "module")),
    },
)
def _adaptive(options: Mapping[str, Any], n: int, modules: Sequence[str]) -> _Adaptive:
    """Start at b_raw = 0, hence b = (1 + b_max) / 2. One b per group: one for all by adapter."""
    rows = group_rows(options["granularity"], modules)
    bound = (1 + options["b_max"]) / 2
    share = _initial_share(options["init"], bound, n)
    c = torch.full((rows.count, n), math.log(share / (1 - share)), dtype=DTYPE)
    b_raw = torch.zeros(rows.count, 1, dtype=DTYPE)
    return _Adaptive(c.requires_grad_(), b_raw.requires_grad_(), float(options["b_max"]), rows)


def _initial_share(init: str | float, bound: float, n: int) -> float:
    if init == "zero":
        return 0.5
    if init == "uniform":
        return min(1 / n / bound, _HIGHEST_START)
    if float(init) >= bound:
        raise UserError(
            f"Expected init of coefficient rule 'adaptive' to be below (1 + b_max) / 2 = {bound} "
            f"but got {init}; lower it or raise b_max"
        )
    return float(init) / bound
