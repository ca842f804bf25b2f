"""Reference rows: what the arms are compared with. Each is a choice of bank and adapter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from cl_lora.experiment.banks import FRESH, JOINT, SEQUENTIAL, BankKind
from cl_lora.experiment.serving import Served, Workbench
from cl_lora.experiment.stages import Stage, shots_of
from cl_lora.support.errors import unknown_name
from cl_lora.support.registry import registers


class Reference(ABC):
    """A row that stands beside the arms and is not ranked among them.

    Attributes:
        name: the row's name in every table and file.
        summary: what it is, in a few words.
        banks: the kinds of bank that it needs.
        yardstick: how well a report may measure the arms by it: the row with the highest number is
            taken; an upper bound has 0.
        role: what it stands for in the analysis of a run, such as ``single``; mostly nothing.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    banks: ClassVar[tuple[BankKind, ...]] = (FRESH,)
    yardstick: ClassVar[int] = 0
    role: ClassVar[str] = ""

    def scored(self, stages: Sequence[Stage]) -> tuple[Stage, ...]:
        """Return the stages at which it is scored: those in time, that need no support set."""
        return tuple(stage for stage in stages if shots_of(stage) is None)

    @abstractmethod
    def serve(self, bench: Workbench, stage: Stage) -> Served:
        """Return what it serves at a stage after training."""

    def adapter(self, stage: Stage) -> tuple[BankKind, int] | None:
        """Return the bank and index of the one adapter that it serves; None where it is not one."""
        return None


REFERENCES: dict[str, Reference] = {}
"""Every registered reference row by name, in the order in which they are shown."""

register_reference = registers("reference row", REFERENCES)
"""Registers a class by its name; it must be free."""


def get_references(names: Sequence[str]) -> tuple[Reference, ...]:
    """Return the reference rows of these names, in their usual order.

    Raises:
        UserError: for an unknown name.
    """
    for name in names:
        if name not in REFERENCES:
            raise unknown_name("reference row", name, REFERENCES)
    return tuple(row for name, row in REFERENCES.items() if name in names)


@register_reference
class Base(Reference):
    """What the backbone can do without any adapter."""

    name = "base"
    summary = "no adapter: the pre-trained backbone under the current head"
    yardstick = 1

    def serve(self, bench: Workbench, stage: Stage) -> Served:
        """Serve the bare backbone."""
        return Served(bench.bare(stage))


@register_reference
class Last(Reference):
    """What is left of the past where nothing is merged."""

    name = "last"
    summary = "the adapter trained last, alone"
    yardstick = 2

    def serve(self, bench: Workbench, stage: Stage) -> Served:
        """Serve the newest adapter."""
        return Served(bench.alone(FRESH, stage.members[-1], stage))

    def adapter(self, stage: Stage) -> tuple[BankKind, int] | None:
        """Return the newest adapter."""
        return FRESH, stage.members[-1]


@register_reference
class Oracle(Reference):
    """What the adapters can do where it is known which one an input needs."""

    name = "oracle"
    summary = "each experience served by its own adapter and head (needs to know the experience)"

    def serve(self, bench: Workbench, stage: Stage) -> Served:
        """Serve every experience its own adapter, and the newest where it has none yet.

        A head made of support samples is that of the time when the adapter was the newest.
        """
        members = {m: bench.alone(FRESH, m, stage.seen_by(m)) for m in stage.members}
        newest = members[stage.members[-1]]
        return Served({j: members.get(j, newest)[j] for j in stage.evaluated})


@register_reference
class Sequential(Reference):
    """What plain fine-tuning does."""

    name = "sequential"
    summary = "one LoRA trained on from experience to experience"
    banks = (FRESH, SEQUENTIAL)
    yardstick = 3

    def serve(self, bench: Workbench, stage: Stage) -> Served:
        """Serve the state after the newest experience."""
        return Served(bench.alone(SEQUENTIAL, stage.members[-1], stage))

    def adapter(self, stage: Stage) -> tuple[BankKind, int] | None:
        """Return the state after the newest experience."""
        return SEQUENTIAL, stage.members[-1]


@register_reference
class Joint(Reference):
    """What could be done if all data were there at once."""

    name = "joint"
    summary = "one LoRA trained on all experiences at once, scored at the end"
    banks = (FRESH, JOINT)

    def scored(self, stages: Sequence[Stage]) -> tuple[Stage, ...]:
        """Return the stages that merge all there is, and the one before any training.

        Where no stage merges everything, the last stands for them.
        """
        everything = {member for stage in stages for member in stage.members}
        whole = [s for s in stages if set(s.members) == everything] or [stages[-1]]
        return tuple(s for s in stages if s.index < 0 or s in whole)

    def serve(self, bench: Workbench, stage: Stage) -> Served:
        """Serve the one adapter."""
        return Served(bench.alone(JOINT, 0, stage))

    def adapter(self, stage: Stage) -> tuple[BankKind, int] | None:
        """Return the one adapter."""
        return JOINT, 0
