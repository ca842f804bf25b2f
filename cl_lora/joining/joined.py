"""What became of a merge: each module by itself, and all together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cl_lora.joining.recipe import Recipe


@dataclass(frozen=True)
class Module:
    """What became of one module.

    Attributes:
        name: the module, or the parameter of a whole model.
        shape: of its weight.
        rank: of the factors that were written; None for a dense delta.
        input_squares: squared Frobenius norm of each member's update.
        square: of the merged update.
        error_square: of what is missing in what was written.
    """

    name: str
    shape: tuple[int, ...]
    rank: int | None
    input_squares: tuple[float, ...]
    square: float
    error_square: float

    @property
    def error(self) -> float:
        """Relative error of what was written, in the Frobenius norm."""
        return _root_of_share(self.error_square, self.square)


@dataclass(frozen=True)
class Joined:
    """A merge that was written.

    Attributes:
        folder: where.
        recipe: what was asked for.
        names: of the members.
        modules: what became of each module, in order.
        weights: the coefficients of every module, (M, n).
        variant: all that defines the method, of the first module.
        rank: what every module was truncated to; None if to nothing.
        dtype: the precision that was written; None for that of each parameter of the base model.
        delta: whether only differences of whole models were written.
        head: parameters that were merged beside the modules.
        parameters: how many numbers were written.
        size: bytes of what was written.
        notes: what a reader should know, a sentence each.
    """

    folder: Path
    recipe: Recipe
    names: tuple[str, ...]
    modules: tuple[Module, ...]
    weights: tuple[tuple[float, ...], ...]
    variant: Mapping[str, Any]
    rank: int | None
    dtype: torch.dtype | None
    delta: bool
    head: tuple[str, ...]
    parameters: int
    size: int
    notes: tuple[str, ...] = field(default=())

    @property
    def norm(self) -> float:
        """Frobenius norm of the merged update over all modules."""
        return math.sqrt(sum(module.square for module in self.modules))

    @property
    def input_norms(self) -> tuple[float, ...]:
        """Frobenius norm of each member's update over all modules."""
        columns = zip(*(module.input_squares for module in self.modules), strict=True)
        return tuple(math.sqrt(sum(column)) for column in columns)

    @property
    def error(self) -> float:
        """Relative error of what was written over all modules, in the Frobenius norm."""
        missing = sum(module.error_square for module in self.modules)
        return _root_of_share(missing, sum(module.square for module in self.modules))

    @property
    def worst(self) -> Module:
        """The module with the largest relative error."""
        return max(self.modules, key=lambda module: module.error)

    @property
    def ranks(self) -> tuple[int, int] | None:
        """The lowest and the highest rank that was written; None where all is dense."""
        ranks = [module.rank for module in self.modules if module.rank is not None]
        return (min(ranks), max(ranks)) if ranks else None


def _root_of_share(part: float, whole: float) -> float:
    return math.sqrt(part / whole) if whole > 0 else 0.0
