"""The single best adapter: weight 1 for one, 0 for all others. A baseline of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cl_lora.merging.coefficients.grid import Candidates
from cl_lora.merging.coefficients.registry import register_rule
from cl_lora.merging.coefficients.state import DTYPE


@register_rule(
    "best",
    formula="alpha = e_i, the adapter with the lowest loss alone",
    paper="a baseline of this project",
    how="search",
)
def _best(options: Mapping[str, Any], n: int, modules: Sequence[str]) -> Candidates:
    """Return the n rows of the identity as candidates."""
    return Candidates(tuple(torch.eye(n, dtype=DTYPE)))
