"""Unbounded coefficients: any number, negative ones too. Zhang et al. 2024."""

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
from cl_lora.merging.registry import OptionSpec, is_number


@dataclass(frozen=True)
class _Unbounded:
    """State of the unbounded rule: v (G, n)."""

    v: Tensor
    rows: Rows

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The coefficients themselves."""
        return {"v": self.v}

    def alpha(self) -> Tensor:
        """Return the coefficients."""
        return self.rows.spread(self.v)

    @torch.no_grad()
    def follow(self, previous: Tensor) -> None:
        """Start from earlier coefficients as they are."""
        known = self.rows.collect(previous)
        self.v[:, : known.shape[1]] = known


@register_rule(
    "unbounded",
    formula="alpha_i = v_i, v = 1 / n at the start",
    paper="Zhang et al. 2024 (aTLAS)",
    how="gradient",
    difference=0.05,  # a coefficient of the other rules moves as far by theirs
    options={
        "init": OptionSpec(
            "uniform",
            lambda v: v == "uniform" or is_number(v),
            "uniform or a finite number",
            "where alpha starts: 1/n; or the number itself, in space factors not 0",
        ),
        **learning_options(100, 0.05, ("module", "adapter", "layer")),
    },
)
def _unbounded(options: Mapping[str, Any], n: int, modules: Sequence[str]) -> _Unbounded:
    rows = group_rows(options["granularity"], modules)
    start = 1 / n if options["init"] == "uniform" else float(options["init"])
    return _Unbounded(torch.full((rows.count, n), start, dtype=DTYPE).requires_grad_(), rows)
