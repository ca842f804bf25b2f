"""Exponential moving average: the newest adapter counts most, and what came before fades."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cl_lora.merging.coefficients.registry import register_rule
from cl_lora.merging.coefficients.state import DTYPE, Given
from cl_lora.merging.registry import OptionSpec, is_fraction


@register_rule(
    "ema",
    formula="alpha_i = w (1 - w)^(n - 1 - i), alpha_0 = (1 - w)^(n - 1)",
    paper="a baseline of this project",
    options={
        "weight": OptionSpec(
            0.7,
            is_fraction,
            "a fraction in (0, 1]",
            "w, the share of the newest adapter at every step; 1 takes the newest alone",
        )
    },
)
def _ema(options: Mapping[str, Any], n: int, modules: Sequence[str]) -> Given:
    weight = float(options["weight"])
    values = torch.full((n,), weight, dtype=DTYPE)
    values[0] = 1.0
    return Given(values * (1 - weight) ** torch.arange(n - 1, -1, -1, dtype=DTYPE))
