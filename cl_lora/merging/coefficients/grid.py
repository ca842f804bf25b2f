"""The grid: one coefficient for all adapters, the best of a few. Ilharco et al. 2023."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cl_lora.merging.coefficients.registry import register_rule
from cl_lora.merging.coefficients.state import DTYPE
from cl_lora.merging.registry import OptionSpec, is_number

MEAN = "1/n"
"""The value that stands for the mean of the adapters."""


@dataclass(frozen=True)
class Candidates:
    """Coefficients to choose from.

    Attributes:
        vectors: float64 (n,) each, one coefficient per adapter.
    """

    vectors: tuple[Tensor, ...]

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Nothing is learned by gradient."""
        return {}

    def alpha(self) -> Tensor:
        """Return the first candidate."""
        return self.vectors[0]

    def candidates(self) -> tuple[Tensor, ...]:
        """Return every candidate."""
        return self.vectors


def _are_values(values: object) -> bool:
    if not isinstance(values, Sequence) or isinstance(values, str):
        return False
    return len(values) > 0 and all(v == MEAN or is_number(v) for v in values)


@register_rule(
    "grid",
    formula="alpha_i = the one of values with the lowest loss",
    paper="Ilharco et al. 2023",
    how="search",
    options={
        "values": OptionSpec(
            [0.1, 0.25, 0.5, 1.0, 1.5],
            _are_values,
            f"a list of finite numbers, or {MEAN} for the mean",
            "the coefficients that are tried, each for every adapter",
        )
    },
)
def _grid(options: Mapping[str, Any], n: int, modules: Sequence[str]) -> Candidates:
    """Candidates in the order given, each once."""
    numbers = (1 / n if value == MEAN else float(value) for value in options["values"])
    return Candidates(
        tuple(torch.full((n,), number, dtype=DTYPE) for number in dict.fromkeys(numbers))
    )
