"""How the residual of one parameter is stored: singular triples, kept entries, or all of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from cl_lora.adapters import Entry, LoRAFactors


class Part(Protocol):
    """The residual of one parameter."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the parameter."""

    @property
    def numbers(self) -> int:
        """How many numbers it takes to store."""

    def delta(self) -> Tensor:
        """Return the dense residual."""

    def entry(self) -> Entry:
        """Return the residual as factors where it is low-rank, else dense."""


@dataclass(frozen=True, eq=False)
class SingularDelta:
    """The q largest singular triples ``U diag(S) V`` of a matrix (d_out, d_in).

    Attributes:
        U: float tensor (d_out, q) with orthonormal columns.
        S: float tensor (q,), descending.
        V: float tensor (q, d_in) with orthonormal rows.
    """

    U: Tensor
    S: Tensor
    V: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (d_out, d_in) of the matrix."""
        return self.U.shape[0], self.V.shape[1]

    @property
    def numbers(self) -> int:
        """How many numbers are stored: ``q (d_out + d_in + 1)``."""
        return self.U.numel() + self.S.numel() + self.V.numel()

    def delta(self) -> Tensor:
        """Return the dense matrix (d_out, d_in)."""
        return self.entry().delta()

    def entry(self) -> LoRAFactors:
        """Return the same matrix as factors of rank q."""
        return LoRAFactors(self.V, self.U * self.S)


@dataclass(frozen=True, eq=False)
class SparseDelta:
    """The entries of a tensor that were kept; all others are zero.

    Attributes:
        indices: int32 or int64 tensor (nnz,), ascending: where they lie in the flattened tensor.
        values: float tensor (nnz,).
        shape: the shape of the tensor.
    """

    indices: Tensor
    values: Tensor
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        """How many entries were kept, nnz; where they lie is not counted, as in the paper."""
        return self.values.numel()

    def delta(self) -> Tensor:
        """Return the dense tensor."""
        flat = self.values.new_zeros(math.prod(self.shape))
        flat[self.indices.long()] = self.values
        return flat.view(self.shape)

    def entry(self) -> Tensor:
        """Return the dense tensor."""
        return self.delta()


@dataclass(frozen=True, eq=False)
class WholeDelta:
    """A tensor that is kept as it is.

    Attributes:
        values: float tensor of any shape.
    """

    values: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return tuple(self.values.shape)

    @property
    def numbers(self) -> int:
        """How many entries it has."""
        return self.values.numel()

    def delta(self) -> Tensor:
        """Return the tensor."""
        return self.values

    def entry(self) -> Tensor:
        """Return the tensor."""
        return self.values
