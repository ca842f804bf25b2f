"""The spaces in which adapters are merged: dense deltas, or the factors A and B apart.

A space turns one module of n adapters into one or two stacks of n tensors (its sides), the
coefficients into a weight for each tensor of a stack, and the merged tensors back into an update.
Nothing is kept: a stack is computed when it is asked for, or some rows of it (:class:`Stack`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from cl_lora.adapters import Entry, LoRAFactors, entry_shape
from cl_lora.support.errors import UserError


@dataclass(frozen=True, eq=False)
class Sources:
    """Checked adapters, turned around.

    Attributes:
        modules: module -> its n entries, all float32 or all float64; may be read only when they
            are asked for, so that whoever goes over them holds one module's at a time.
        n: the number of adapters.
        dtype: of every entry.
        seed: the run's seed, for methods that draw at random; None outside a run.
        statistics: for a method that needs one: of each adapter module -> tensor. A module
            without a statistic, such as a bias without a Gram matrix, is not in it.
        ranks: module -> the ranks of its n entries, or the smaller side of dense matrices; empty
            for a parameter that is no matrix.
    """

    modules: Mapping[str, tuple[Entry, ...]]
    n: int
    dtype: torch.dtype
    seed: int | None = None
    statistics: tuple[Mapping[str, Tensor], ...] = ()
    ranks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def largest_rank(self) -> int:
        """The largest rank of any adapter in any module."""
        return max((rank for ranks in self.ranks.values() for rank in ranks), default=1)

    def factors(self, module: str) -> tuple[LoRAFactors, ...] | None:
        """Return a module's n entries if all are low-rank factors, else None."""
        entries = self.modules[module]
        low_rank = tuple(e for e in entries if isinstance(e, LoRAFactors))
        return low_rank if len(low_rank) == len(entries) else None


_ROWS = 64
"""Rows of a product B A that are computed at a time.

Always the same ones, whatever rows are asked for, so that an entry is the same number, bit for bit,
in all of them: the threshold of a trim is found in one pass and applied in another.
"""


@dataclass(frozen=True, eq=False)
class Stack:
    """The n tensors of one module and side, of which a part is computed when it is asked for.

    Attributes:
        entries: what each tensor is.
        dtype: of the tensors.
    """

    entries: Sequence[Entry]
    dtype: torch.dtype

    @property
    def n(self) -> int:
        """How many tensors there are."""
        return len(self.entries)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of each tensor."""
        return entry_shape(self.entries[0])

    def whole(self) -> Tensor:
        """Return all of it, (n, ...), fresh."""
        result = torch.empty((self.n, *self.shape), dtype=self.dtype)
        for out, entry in zip(result, self.entries, strict=True):
            _fill(out, entry, 0)
        return result

    def one(self, index: int) -> Tensor:
        """Return one of the n tensors, fresh."""
        out = torch.empty(self.shape, dtype=self.dtype)
        _fill(out, self.entries[index], 0)
        return out

    def rows(self, first: int, last: int) -> Tensor:
        """Return rows ``first`` to ``last`` (left out) of all tensors, (n, rows, ...), fresh.

        Args:
            first: a multiple of what :meth:`chunks` counts by.
            last: one beyond the last row.
        """
        result = torch.empty((self.n, last - first, *self.shape[1:]), dtype=self.dtype)
        for out, entry in zip(result, self.entries, strict=True):
            _fill(out, entry, first)
        return result

    def chunks(self, entries: int) -> Iterator[tuple[int, int]]:
        """Yield (first, last) of the rows to take at a time, of about so many entries in all."""
        rows = self.shape[0]
        each = self.n * math.prod(self.shape[1:])
        step = max(1, entries // max(1, each) // _ROWS) * _ROWS
        return ((first, min(first + step, rows)) for first in range(0, rows, step))


def _fill(out: Tensor, entry: Entry, first: int) -> None:
    """Write the rows of an entry from ``first`` on, as many as ``out`` has."""
    if isinstance(entry, Tensor):
        out.copy_(entry[first : first + len(out)] if out.ndim else entry)
        return
    for start in range(0, len(out), _ROWS):
        part = out[start : start + _ROWS]
        torch.mm(entry.B[first + start : first + start + len(part)], entry.A, out=part)
    out.mul_(entry.scaling)


class Space(Protocol):
    """One module of n adapters as stacks of n tensors, and back."""

    @property
    def sides(self) -> tuple[str, ...]:
        """The stacks that a module has."""

    @property
    def sources(self) -> Sources:
        """The adapters."""

    def open(self, module: str, side: str) -> Stack:
        """Return the n tensors of a module and side, to be computed whole or in parts."""

    def stack(self, module: str, side: str) -> Tensor:
        """Return a fresh float tensor (n, ...) that the caller may overwrite.

        Behind n stands the shape of what is merged: (d_out, d_in) of a linear layer's weight.
        """

    def weights(self, module: str, side: str, alpha: Tensor) -> Tensor:
        """Return the weight (n,) of each tensor of the stack under coefficients ``alpha`` (n,)."""

    def assemble(self, tensors: Sequence[Tensor]) -> Entry:
        """Return the module's update from one merged tensor per side."""


@dataclass(frozen=True, eq=False)
class DeltaSpace:
    """Dense updates ``dW_i`` (``s_i B_i A_i`` of a LoRA) with weights ``alpha_i``.

    Attributes:
        sources: the adapters.
        scaling: how the coefficient alpha and the adapter's scaling s enter, for the variant.
    """

    sources: Sources
    scaling: ClassVar[str] = "alpha * s * B A"
    sides: ClassVar[tuple[str, ...]] = ("delta",)

    def stack(self, module: str, side: str) -> Tensor:
        """Return the deltas (n, ...) of the module."""
        return self.open(module, side).whole()

    def open(self, module: str, side: str) -> Stack:
        """Return the deltas of the module, to be computed whole or in parts."""
        return Stack(self.sources.modules[module], self.sources.dtype)

    def weights(self, module: str, side: str, alpha: Tensor) -> Tensor:
        """Return ``alpha`` itself."""
        return alpha

    def assemble(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the one merged delta."""
        (delta,) = tensors
        return delta


@dataclass(frozen=True, eq=False)
class FactorSpace:
    """``A_i`` and ``B_i`` apart, as ``add_weighted_adapter`` of peft merges them.

    A_i weighs ``sign(alpha_i s_i) sqrt|alpha_i s_i|`` and B_i ``sqrt|alpha_i s_i|``. The product of
    the two merged factors has cross terms B_i A_j, so it is neither the sum of the updates nor
    linear in alpha: one adapter twice at weight 1 gives 4 dW. It is differentiable where no
    alpha_i s_i is 0, the kink of the root: learned coefficients must start away from it, and the
    sigmoids and the softmax of bounded rules never reach it (the rule unbounded may).

    Raises:
        UserError: if the adapters of a module differ in rank, or are no low-rank factors.
    """

    sources: Sources
    scaling: ClassVar[str] = "sqrt(alpha * s) on A and on B"
    sides: ClassVar[tuple[str, ...]] = ("A", "B")

    def __post_init__(self) -> None:
        for module in self.sources.modules:
            factors = self.sources.factors(module)
            if factors is None:
                raise UserError(
                    f"Expected low-rank factors in space 'factors' but module {module!r} has dense "
                    "updates of a fully fine-tuned model; use space 'delta'"
                )
            ranks = [f.rank for f in factors]
            if len(set(ranks)) > 1:
                raise UserError(
                    f"Expected adapters of one rank in space 'factors' but module {module!r} has "
                    f"ranks {ranks}; use space 'delta' or method 'cat'"
                )

    def stack(self, module: str, side: str) -> Tensor:
        """Return the factors A (n, r, d_in) or B (n, d_out, r) of the module."""
        return self.open(module, side).whole()

    def open(self, module: str, side: str) -> Stack:
        """Return the factors A or B of the module."""
        tensors = [f.A if side == "A" else f.B for f in self._factors(module)]
        return Stack(tensors, self.sources.dtype)

    def weights(self, module: str, side: str, alpha: Tensor) -> Tensor:
        """Return the square roots of ``alpha * s``; a negative sign goes to A alone."""
        scaled = alpha * alpha.new_tensor([f.scaling for f in self._factors(module)])
        root = scaled.abs().sqrt()
        # At 0 the root is 0 either way; torch.sign would only hide a -0.0 from the comparison.
        return torch.where(scaled < 0, -root, root) if side == "A" else root

    def assemble(self, tensors: Sequence[Tensor]) -> LoRAFactors:
        """Return the merged factors with scaling 1."""
        A, B = tensors
        return LoRAFactors(A, B, 1.0)

    def _factors(self, module: str) -> tuple[LoRAFactors, ...]:
        factors = self.sources.factors(module)
        assert factors is not None
        return factors


@dataclass(frozen=True, eq=False)
class KeptStacks:
    """A space whose stacks are held in memory, for merging again and again.

    Attributes:
        space: the space.
        stacks: (module, side) -> what its stack is.
    """

    space: Space
    stacks: Mapping[tuple[str, str], Tensor]

    @property
    def sources(self) -> Sources:
        """The adapters."""
        return self.space.sources

    @property
    def sides(self) -> tuple[str, ...]:
        """As of the space."""
        return self.space.sides

    def stack(self, module: str, side: str) -> Tensor:
        """Return a copy of the stack, because the caller may overwrite it."""
        return self.stacks[module, side].clone()

    def open(self, module: str, side: str) -> Stack:
        """Return the stack that is kept."""
        return Stack(self.stacks[module, side].unbind(), self.sources.dtype)

    def weights(self, module: str, side: str, alpha: Tensor) -> Tensor:
        """Return the weights of the space."""
        return self.space.weights(module, side, alpha)

    def assemble(self, tensors: Sequence[Tensor]) -> Entry:
        """Return the update of the space."""
        return self.space.assemble(tensors)


SPACES: Mapping[str, type[DeltaSpace | FactorSpace]] = {
    "delta": DeltaSpace,
    "factors": FactorSpace,
}


def sites(space: Space) -> Iterator[tuple[str, str]]:
    """Yield every (module, side) of a space, in the order of the adapters."""
    return ((module, side) for module in space.sources.modules for side in space.sides)
