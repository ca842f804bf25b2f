"""The spaces in which adapters are merged: dense deltas, or the factors A and B apart.

A space turns one module of n adapters into one or two stacks of n tensors (its sides), the
coefficients into a weight for each tensor of a stack, and the merged tensors back into an update.
Nothing is kept: a stack is computed when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from cl_lora.adapters import LoRAFactors
from cl_lora.merging.update import Entry
from cl_lora.support.errors import UserError


@dataclass(frozen=True, eq=False)
class Sources:
    """Checked adapters, turned around.

    Attributes:
        modules: module -> its n factors, all float32 or all float64.
        n: the number of adapters.
        dtype: of every factor.
        seed: the run's seed, for methods that draw at random; None outside a run.
    """

    modules: Mapping[str, tuple[LoRAFactors, ...]]
    n: int
    dtype: torch.dtype
    seed: int | None = None

    @property
    def largest_rank(self) -> int:
        """The largest rank of any adapter in any module."""
        return max(f.rank for factors in self.modules.values() for f in factors)


class Space(Protocol):
    """One module of n adapters as stacks of n tensors, and back."""

    @property
    def sides(self) -> tuple[str, ...]:
        """The stacks that a module has."""

    @property
    def sources(self) -> Sources:
        """The adapters."""

    def stack(self, module: str, side: str) -> Tensor:
        """Return a fresh float tensor (n, rows, columns) that the caller may overwrite."""

    def weights(self, module: str, side: str, alpha: Tensor) -> Tensor:
        """Return the weight (n,) of each tensor of the stack under coefficients ``alpha`` (n,)."""

    def assemble(self, tensors: Sequence[Tensor]) -> Entry:
        """Return the module's update from one merged tensor (rows, columns) per side."""


@dataclass(frozen=True, eq=False)
class DeltaSpace:
    """Dense updates ``dW_i = s_i B_i A_i`` with weights ``alpha_i``: the plain mathematics.

    Attributes:
        sources: the adapters.
        scaling: how the coefficient alpha and the adapter's scaling s enter, for the variant.
    """

    sources: Sources
    scaling: ClassVar[str] = "alpha * s * B A"
    sides: ClassVar[tuple[str, ...]] = ("delta",)

    def stack(self, module: str, side: str) -> Tensor:
        """Return the deltas (n, d_out, d_in) of the module."""
        factors = self.sources.modules[module]
        result = factors[0].A.new_empty((self.sources.n, *factors[0].shape))
        for out, f in zip(result, factors, strict=True):
            torch.mm(f.B, f.A, out=out)
            out.mul_(f.scaling)
        return result

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
        UserError: if the adapters of a module differ in rank.
    """

    sources: Sources
    scaling: ClassVar[str] = "sqrt(alpha * s) on A and on B"
    sides: ClassVar[tuple[str, ...]] = ("A", "B")

    def __post_init__(self) -> None:
        for module, factors in self.sources.modules.items():
            ranks = [f.rank for f in factors]
            if len(set(ranks)) > 1:
                raise UserError(
                    f"Expected adapters of one rank in space 'factors' but module {module!r} has "
                    f"ranks {ranks}; use space 'delta' or method 'cat'"
                )

    def stack(self, module: str, side: str) -> Tensor:
        """Return the factors A (n, r, d_in) or B (n, d_out, r) of the module."""
        return torch.stack([f.A if side == "A" else f.B for f in self.sources.modules[module]])

    def weights(self, module: str, side: str, alpha: Tensor) -> Tensor:
        """Return the square roots of ``alpha * s``; a negative sign goes to A alone."""
        scaled = alpha * alpha.new_tensor([f.scaling for f in self.sources.modules[module]])
        root = scaled.abs().sqrt()
        # At 0 the root is 0 either way; torch.sign would only hide a -0.0 from the comparison.
        return torch.where(scaled < 0, -root, root) if side == "A" else root

    def assemble(self, tensors: Sequence[Tensor]) -> LoRAFactors:
        """Return the merged factors with scaling 1."""
        A, B = tensors
        return LoRAFactors(A, B, 1.0)


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
