"""The single best adapter: weight 1 for one, 0 for all others. A baseline of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cl_lora.merging.coefficients.registry import register_rule
from cl_lora.merging.coefficients.state import DTYPE


@dataclass(frozen=True)
class OneOfMany:
    """One adapter of n, to be chosen."""

    n: int

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Nothing is learned by gradient."""
        return {}

    def alpha(self) -> Tensor:
        """Return the first candidate."""
        return self.candidates()[0]

    def candidates(self) -> list[Tensor]:
        """Return the n rows of the identity, float64 (n,) each."""
        return list(torch.eye(self.n, dtype=DTYPE))


@register_rule(
    "best",
    formula="alpha = e_i, the adapter with the lowest loss alone",
    paper="a baseline of this project",
    how="search",
)
def _best(options: Mapping[str, Any], n: int, modules: Sequence[str]) -> OneOfMany:
    return OneOfMany(n)
