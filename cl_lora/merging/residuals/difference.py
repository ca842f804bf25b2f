"""The difference of a task's own update to a base, one module at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cl_lora.adapters import Entry, LoRAFactors, entry_shape
from cl_lora.adapters.entries import is_finite
from cl_lora.merging.residuals.residue import add
from cl_lora.support.errors import UserError


@dataclass(frozen=True, eq=False)
class Differences(Mapping[str, Entry]):
    """``u = own - base`` for every module that either has; what is absent counts as zero.

    Nothing is kept: a difference is made when it is asked for. It consists of factors where both
    sides do (their ranks add up), and is dense elsewhere. Half precision is raised to float32,
    gradients are cut.

    Attributes:
        own: module -> the task's own update of the pre-trained weights.
        base: module -> the update that all tasks share; empty for the pre-trained weights.

    Raises:
        UserError: if nothing is changed, or own and base differ in the shape of a module.
    """

    own: Mapping[str, Entry]
    base: Mapping[str, Entry]

    def __post_init__(self) -> None:
        if not self.own and not self.base:
            raise UserError("Expected an update to take a residual of but it has no modules")

    def __getitem__(self, module: str) -> Entry:
        """Return the difference of one module.

        Raises:
            UserError: if it is not finite, or the shapes differ.
        """
        sides = [_plain(side[module]) for side in (self.own, self.base) if module in side]
        if len(sides) == 2 and entry_shape(sides[0]) != entry_shape(sides[1]):
            raise UserError(
                f"Expected an own update and a base of one shape but module {module!r} has "
                f"{entry_shape(sides[0])} and {entry_shape(sides[1])}; use models of one backbone"
            )
        for side in sides:
            if not is_finite(side):
                raise UserError(
                    f"Expected finite updates but module {module!r} holds NaN or infinity; train "
                    "it again with a smaller learning rate"
                )
        if len(sides) == 2:
            return add(sides[0], sides[1], weight=-1.0)
        return sides[0] if module in self.own else _negative(sides[0])

    def __contains__(self, module: object) -> bool:
        return module in self.own or module in self.base  # without making the difference

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.own, *self.base]))

    def __len__(self) -> int:
        return len(self.own.keys() | self.base.keys())


def _plain(entry: Entry) -> Entry:
    if isinstance(entry, LoRAFactors):
        return LoRAFactors(_raised(entry.A), _raised(entry.B), entry.scaling)
    return _raised(entry)


def _raised(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def _negative(entry: Entry) -> Entry:
    if isinstance(entry, LoRAFactors):
        return LoRAFactors(entry.A, entry.B, -entry.scaling)
    return -entry
