"""What a baseline is: something that the arms are compared with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from cl_lora.experiment.banks import FRESH, BankKind
from cl_lora.experiment.serving import Served, Workbench
from cl_lora.experiment.stages import ALONE, Stage, shots_of
from cl_lora.models.head_policies import HeadPolicy
from cl_lora.support.errors import unknown_name
from cl_lora.support.registry import registers


class Reference(ABC):
    """A row that stands beside the arms and is not ranked among them.

    Attributes:
        name: the row's name in every table and file.
        summary: what it is, in a few words.
        banks: the kinds of bank that it needs; none where it serves no adapter.
        yardstick: how well a report may measure the arms by it: the row with the highest number is
            taken; an upper bound has 0.
        needs_partner: whether it needs the adapters of a second seed.
        role: what it stands for in the analysis of a run, such as ``single``; mostly nothing.
        statistics: names of the statistics that it needs beside adapters.
        of_statistics: names of the banks beside whose adapters it needs them.
        head: the head policy that it serves under; None for the run's.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    banks: ClassVar[tuple[BankKind, ...]] = (FRESH,)
    yardstick: ClassVar[int] = 0
    role: ClassVar[str] = ""
    needs_partner: ClassVar[bool] = False
    statistics: ClassVar[tuple[str, ...]] = ()
    of_statistics: ClassVar[tuple[str, ...]] = ()
    head: ClassVar[type[HeadPolicy] | None] = None

    def scored(self, stages: Sequence[Stage]) -> tuple[Stage, ...]:
        """Return the stages at which it is scored: those that need no support set, nor a merge.

        Where every adapter has a stage by itself, those.
        """
        timely = (stage for stage in stages if shots_of(stage) is None)
        return tuple(stage for stage in timely if stage.group in ("", ALONE))

    @abstractmethod
    def serve(self, bench: Workbench, stage: Stage) -> Served:
        """Return what it serves at a stage after training."""

    def adapter(self, stage: Stage) -> tuple[BankKind, int] | None:
        """Return the bank and index of the one adapter that it serves; None where it is not one."""
        return None


CONTROL = "control"
"""The role of rows and arms that only tell why a merge does what it does."""

REFERENCES: dict[str, Reference] = {}
"""Every registered baseline by name, in the order in which they are shown."""

register_reference = registers("baseline", REFERENCES)
"""Registers a class by its name; it must be free."""


def get_references(names: Sequence[str]) -> tuple[Reference, ...]:
    """Return the baselines of these names, in their usual order.

    Raises:
        UserError: for an unknown name.
    """
    for name in names:
        if name not in REFERENCES:
            raise unknown_name("baseline", name, REFERENCES)
    return tuple(row for name, row in REFERENCES.items() if name in names)
