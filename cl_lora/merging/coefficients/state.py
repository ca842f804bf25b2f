"""Coefficients of one merge, as a rule makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# Coefficients are a handful of numbers: float64 keeps sigmoids from saturating and costs nothing.
DTYPE = torch.float64


class CoefficientState(Protocol):
    """Coefficients of one merge: what is learned, and the coefficients it stands for."""

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The learned tensors by name, each requiring grad; empty if nothing is learned."""

    def alpha(self) -> Tensor:
        """Return the coefficients (n,) or (M, n), differentiable in the parameters."""


@dataclass(frozen=True)
class Given:
    """Coefficients that are not learned."""

    values: Tensor

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Nothing is learned."""
        return {}

    def alpha(self) -> Tensor:
        """Return the values."""
        return self.values
