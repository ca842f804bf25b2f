"""Softmax coefficients: positive, and 1 in sum. Asadi et al. 2024."""

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

_SMALLEST_START = 0.01


@dataclass(frozen=True)
class _Softmax:
    """State of the softmax rule: v (G, n)."""

    v: Tensor
    rows: Rows

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The logits of the coefficients."""
        return {"v": self.v}

    def alpha(self) -> Tensor:
        """Return the coefficients; each group's sum to 1."""
        return self.rows.spread(self.v.softmax(-1))

    @torch.no_grad()
    def follow(self, previous: Tensor) -> None:
        """Start from earlier shares, at least a hundredth each; every new adapter takes 1/n."""
        known = self.rows.collect(previous).clamp(min=_SMALLEST_START)
        # Logits count up to a constant: those of the known are made to have the mean share 1/k.
        self.v[:, : known.shape[1]] = known.log() + math.log(known.shape[1])


@register_rule(
    "softmax",
    formula="alpha_i = exp(v_i) / sum_j exp(v_j), v = 0 at the start",
    paper="Asadi et al. 2024",
    how="gradient",
    options=learning_options(100, 0.05, ("module", "adapter", "layer")),
)
def _softmax(options: Mapping[str, Any], n: int, modules: Sequence[str]) -> _Softmax:
    rows = group_rows(options["granularity"], modules)
    return _Softmax(torch.zeros(rows.count, n, dtype=DTYPE).requires_grad_(), rows)
