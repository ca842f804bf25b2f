"""Softmax coefficients: positive, and 1 in sum. Asadi et al. 2024."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cl_lora.merging.coefficients.groups import Rows, group_rows
from cl_lora.merging.coefficients.learning import learning_options
from cl_lora.merging.coefficients.registry import register_rule
from cl_lora.merging.coefficients.state import DTYPE


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
