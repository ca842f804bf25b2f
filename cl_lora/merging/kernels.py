"""The two computations all methods are made of: a stacked low-rank sum, and a tensor pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from cl_lora.adapters import Entry, LoRAFactors, concatenate, entry_delta
from cl_lora.merging.registry import Kernel
from cl_lora.merging.spaces import KeptStacks, Sources, Space, Stack, sites

Mask: TypeAlias = Callable[[Tensor], Tensor]
"""Rows (n, k, ...) of a stack -> the same with entries set to zero; may overwrite.

Called with all rows, or with some of them after others, from the first row to the last.
"""

Sparsify: TypeAlias = Callable[[Stack, str, str], Mask]
"""(stack of n tensors, module, side) -> what sets entries of its rows to zero."""

Spread: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(stack, weights (n,)) -> the basis (n, ...) with merged = sum_i weights_i basis_i.

May overwrite the stack. A gradient that the basis carries flows to the weights.
"""


_BLOCK = 2**16
"""Entries of a stack that are spread at a time."""

CHUNK = 2**22
"""Entries of a stack that are in memory at a time, where rows do not depend on each other."""


def keep_all(stack: Stack, module: str, side: str) -> Mask:
    """Return what leaves the rows as they are."""
    return lambda rows: rows


def plain_sum(stack: Tensor, weights: Tensor) -> Tensor:
    """Return the basis of the plain weighted sum: the stack itself."""
    return stack


def weighted_sum(weights: Tensor, basis: Tensor) -> Tensor:
    """Return ``sum_i weights_i basis_i`` for weights (n,) and a basis (n, ...)."""
    return (weights @ basis.reshape(len(basis), -1)).view(basis.shape[1:])


@dataclass(frozen=True, eq=False)
class LowRankSum:
    """The exact sum ``sum_i alpha_i dW_i``: of LoRA as factors of rank ``sum r_i``, else dense."""

    sources: Sources

    @property
    def apart(self) -> bool:
        """Whether every entry is low-rank, so that adapters may stay apart in a forward pass."""
        return all(self.sources.factors(module) is not None for module in self.sources.modules)

    def combine(self, module: str, alpha: Tensor) -> Entry:
        """Return the stacked factors of the module, the coefficients on B, or the dense sum."""
        factors = self.sources.factors(module)
        if factors is not None:
            return concatenate(factors, alpha)
        entries = self.sources.modules[module]
        return torch.stack(
            [a.to(self.sources.dtype) * entry_delta(e) for a, e in zip(alpha, entries, strict=True)]
        ).sum(0)

    def materialise(self) -> Kernel:
        """Return the sum with its factors stacked once and for all."""
        modules = self.sources.modules
        factors = {module: self.sources.factors(module) for module in modules}
        if any(found is None for found in factors.values()):
            return KeptSum(dict(modules.items()))
        ones = torch.ones(self.sources.n, dtype=torch.float64)  # no rounding of the scalings
        low_rank = {module: found for module, found in factors.items() if found is not None}
        return MaterialisedSum(
            {module: concatenate(found, ones) for module, found in low_rank.items()},
            {m: torch.tensor([f.rank for f in fs]) for m, fs in low_rank.items()},
        )


@dataclass(frozen=True, eq=False)
class KeptSum:
    """The dense sum of entries that are held in memory."""

    modules: Mapping[str, Sequence[Entry]]

    def combine(self, module: str, alpha: Tensor) -> Tensor:
        """Return the sum of the module's deltas."""
        deltas = torch.stack([entry_delta(entry) for entry in self.modules[module]])
        return weighted_sum(alpha.to(deltas), deltas)

    def materialise(self) -> KeptSum:
        """Return itself."""
        return self


@dataclass(frozen=True, eq=False)
class MaterialisedSum:
    """Stacked factors whose columns of B are scaled by the coefficients."""

    stacked: Mapping[str, LoRAFactors]
    ranks: Mapping[str, Tensor]

    def combine(self, module: str, alpha: Tensor) -> LoRAFactors:
        """Return the module's factors of rank ``sum r_i``, the coefficients on B."""
        f = self.stacked[module]
        columns = alpha.to(f.B).repeat_interleave(self.ranks[module].to(f.B.device))
        return LoRAFactors(f.A, f.B * columns)

    def materialise(self) -> MaterialisedSum:
        """Return itself."""
        return self


@dataclass(frozen=True, eq=False)
class Pipeline:
    """Sparsify each tensor, spread the stack into a basis, take the weighted sum; module by module.

    merged = sum_i weights_i basis_i,   basis = spread(sparsify(stack), weights)

    At most one module's stack is alive at a time, and of a basis by rows only a part of it: then n
    adapters take no more memory than a few.

    Attributes:
        space: where the stacks come from and where the result goes.
        sparsify: sets entries of a stack to zero.
        spread: makes the basis.
        fixed: whether the basis is the same for all weights, so that it need be made only once
            when coefficients are learned.
        by_rows: each row of the basis depends on that row of the stack alone, so that a few rows
            are spread at a time and masks stay in the cache.
    """

    space: Space
    sparsify: Sparsify = keep_all
    spread: Spread = plain_sum
    by_rows: bool = False
    fixed: bool = False

    def combine(self, module: str, alpha: Tensor) -> Entry:
        """Return the merged tensors of one module as its update."""
        return self.space.assemble([self._merge(module, side, alpha) for side in self.space.sides])

    def materialise(self) -> Kernel:
        """Return the weighted sum over bases made once, or the same merge of stacks kept."""
        if self.fixed:
            unused = torch.ones(self.space.sources.n)
            bases = {site: self.spread(self._stack(*site), unused) for site in sites(self.space)}
            return MaterialisedBasis(self.space, bases)
        stacks = {site: self._stack(*site) for site in sites(self.space)}
        return replace(self, space=KeptStacks(self.space, stacks), sparsify=keep_all)

    def _stack(self, module: str, side: str) -> Tensor:
        stack = self.space.open(module, side)
        return self.sparsify(stack, module, side)(stack.whole())

    def _merge(self, module: str, side: str, alpha: Tensor) -> Tensor:
        stack = self.space.open(module, side)
        mask = self.sparsify(stack, module, side)
        weights = self.space.weights(module, side, alpha).to(stack.dtype)
        apart = self.by_rows or self.spread is plain_sum
        if not (apart and stack.shape):  # a parameter may be a single number
            return weighted_sum(weights, self.spread(mask(stack.whole()), weights))
        return torch.cat(
            [
                self._merge_rows(mask(stack.rows(first, last)), weights)
                for first, last in stack.chunks(CHUNK)
            ]
        )

    def _merge_rows(self, rows: Tensor, weights: Tensor) -> Tensor:
        if not self.by_rows:
            return weighted_sum(weights, self.spread(rows, weights))
        each = max(1, _BLOCK // max(1, rows[:, 0].numel()))
        return torch.cat(
            [
                weighted_sum(weights, self.spread(part, weights))
                for part in torch.split(rows, each, dim=1)
            ]
        )


@dataclass(frozen=True, eq=False)
class MaterialisedBasis:
    """The weighted sum over bases held in memory."""

    space: Space
    bases: Mapping[tuple[str, str], Tensor]

    def combine(self, module: str, alpha: Tensor) -> Entry:
        """Return ``sum_i weights_i basis_i`` of one module."""
        return self.space.assemble([self._merge(module, side, alpha) for side in self.space.sides])

    def _merge(self, module: str, side: str, alpha: Tensor) -> Tensor:
        basis = self.bases[module, side]
        return weighted_sum(self.space.weights(module, side, alpha).to(basis), basis)

    def materialise(self) -> MaterialisedBasis:
        """Return itself."""
        return self
