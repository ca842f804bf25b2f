"""Routed coefficients: every input is served with the adapters that its style asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cl_lora.merging.coefficients.registry import register_rule
from cl_lora.merging.coefficients.state import DTYPE, Given
from cl_lora.merging.registry import OptionSpec, choice, is_count, is_number

HARD, SOFT = "hard", "soft"


@register_rule(
    "routed",
    formula="alpha(x) = e_d, d = argmax score_d(z(x)) (hard); softmax(score(z(x)) / T) (soft)",
    paper="a method of this project",
    how="routed",
    options={
        "block": OptionSpec(
            None,
            lambda v: v is None or is_count(v, 0),
            "none or the number of a block from 0",
            "the block of the bare backbone at whose input an image is looked at; none: a third of "
            "the depth",
            most=10_000,
        ),
        "weights": choice(
            HARD, SOFT, help="the likeliest adapter alone, or all by their probability in one pass"
        ),
        "temperature": OptionSpec(
            4.0,
            lambda v: is_number(v) and v > 0,
            "a finite number above 0",
            "T of soft weights: the posterior of Gaussians is surer than it should be",
        ),
    },
)
def _routed(options: Mapping[str, Any], n: int, modules: Sequence[str]) -> Given:
    """Every adapter as it is: how much of it an input takes is only known with the input."""
    return Given(torch.ones(n, dtype=DTYPE))
