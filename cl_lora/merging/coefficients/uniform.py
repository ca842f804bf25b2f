"""Uniform coefficients: the mean of the adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cl_lora.merging.coefficients.registry import register_rule
from cl_lora.merging.coefficients.state import DTYPE, Given


@register_rule("uniform", formula="alpha_i = 1 / n", paper="Asadi et al. 2024")
def _uniform(options: Mapping[str, Any], n: int, modules: Sequence[str]) -> Given:
    return Given(torch.full((n,), 1 / n, dtype=DTYPE))
