"""Coefficients of one merge, as a rule makes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

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


@runtime_checkable
class SearchState(CoefficientState, Protocol):
    """Coefficients that are chosen among candidates."""

    def candidates(self) -> Sequence[Tensor]:
        """Return the candidates, (n,) or (M, n) each, in the order in which they are tried."""


@runtime_checkable
class Following(CoefficientState, Protocol):
    """Learned coefficients that can start from given ones."""

    def follow(self, previous: Tensor) -> None:
        """Move the parameters to where the coefficients are given ones, or near.

        Args:
            previous: (k,) or (M, k), of the first k adapters; the others stay as they are.
        """


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
