"""What a task keeps of its own beside a base, and the two together as one update."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cl_lora.adapters import Entry, LoRAFactors, concatenate, entry_delta
from cl_lora.merging.residuals.parts import Part
from cl_lora.support.errors import unknown_name


@dataclass(frozen=True, eq=False)
class Residue:
    """The compressed difference of one task's model to a base.

    Attributes:
        entries: name of a module or parameter -> how its residual is stored.
    """

    entries: Mapping[str, Part]

    def modules(self) -> tuple[str, ...]:
        """Return the names of the modules and parameters that have a residual."""
        return tuple(self.entries)

    def delta(self, module: str) -> Tensor:
        """Return the dense residual of ``module`` alone, in the shape of its parameter.

        Raises:
            UserError: if the residue has no such module.
        """
        if module not in self.entries:
            raise unknown_name("module of the residual", module, self.entries)
        return self.entries[module].delta()

    @property
    def numbers(self) -> int:
        """How many numbers this task needs beside the base."""
        return sum(part.numbers for part in self.entries.values())


@dataclass(frozen=True, eq=False)
class TaskUpdate:
    """The update that serves one task: ``W = W0 + base + residual``.

    Attributes:
        base: module -> what all tasks share, such as the entries of a merged update; None for the
            bare backbone.
        residue: what this task has of its own.
    """

    base: Mapping[str, Entry] | None
    residue: Residue

    def modules(self) -> tuple[str, ...]:
        """Return the names of the modules that the base or the residual changes."""
        return tuple(self.entries)

    def delta(self, module: str) -> Tensor:
        """Return the dense sum of base and residual, in the shape of the parameter.

        Raises:
            UserError: if neither has such a module.
        """
        if module not in self.entries:
            raise unknown_name("module of the task's update", module, self.entries)
        return entry_delta(self.entries[module])

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Module -> base + residual, made when it is asked for.

        Factors where base and residual are both low-rank (their ranks add up), else dense.
        """
        return _Sums(self.base or {}, self.residue.entries)


@dataclass(frozen=True, eq=False)
class _Sums(Mapping[str, Entry]):
    base: Mapping[str, Entry]
    parts: Mapping[str, Part]

    def __getitem__(self, module: str) -> Entry:
        if module not in self.parts:
            return self.base[module]
        own = self.parts[module].entry()
        return own if module not in self.base else add(self.base[module], own)

    def __contains__(self, module: object) -> bool:
        return module in self.parts or module in self.base  # without making the sum

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.parts, *self.base]))

    def __len__(self) -> int:
        return len(self.parts.keys() | self.base.keys())


def add(first: Entry, second: Entry, weight: float = 1.0) -> Entry:
    """Return ``first + weight * second`` of one shape: factors if both are, else dense."""
    if isinstance(first, LoRAFactors) and isinstance(second, LoRAFactors):
        return concatenate([first, second], torch.tensor([1.0, weight], device=first.B.device))
    return entry_delta(first).add(entry_delta(second), alpha=weight)
