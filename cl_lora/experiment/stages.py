"""Stages: when adapters are merged, which, and what is scored then; a protocol makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cl_lora.evaluation.scores import UNTRAINED
from cl_lora.run_folder.records import StageRecord as Stage
from cl_lora.support.errors import UserError
from cl_lora.support.registry import check_free, look_up

__all__ = ["PROTOCOLS", "Protocol", "Stage", "get_protocol", "register_protocol", "untrained"]

MakeStages = Callable[[Sequence[str]], tuple[Stage, ...]]
"""Names of the experiences, in order -> the stages after training, numbered from 0."""


@dataclass(frozen=True)
class Protocol:
    """How a bank is merged over the course of a run.

    Attributes:
        name: the name it is chosen by.
        summary: one sentence.
        ordered: whether stages follow one another in time, stage t after experience t: forgetting
            and transfer are measured only then.
        make: makes the stages after training.
    """

    name: str
    summary: str
    ordered: bool
    make: MakeStages

    def stages(self, names: Sequence[str]) -> tuple[Stage, ...]:
        """Return every stage of a stream with these experiences, the untrained one first.

        Raises:
            UserError: if the protocol makes no stage, or one that cannot be served or scored.
        """
        made = self.make(names)
        if not made:
            raise UserError(
                f"The protocol {self.name!r} makes no stage of {len(names)} experiences; choose "
                "another protocol, or a stream with more experiences"
            )
        for index, stage in enumerate(made):
            self._check(stage, index, len(names))
        return (untrained(names), *made)

    def _check(self, stage: Stage, index: int, experiences: int) -> None:
        named = (*stage.members, *stage.evaluated, *stage.support)
        problem = None
        if stage.index != index:
            problem = f"has index {stage.index}, expected {index}"
        elif not stage.members or not stage.evaluated:
            problem = "merges or scores nothing"
        elif not set(named) <= set(range(experiences)):
            problem = f"names an experience outside 0..{experiences - 1}"
        if problem:
            raise UserError(
                f"Stage {stage.name!r} of the protocol {self.name!r} {problem}; correct the "
                "protocol"
            )


def untrained(names: Sequence[str]) -> Stage:
    """Return the stage before any training, at which every experience is scored."""
    return Stage(UNTRAINED, "untrained", (), tuple(range(len(names))), ())


PROTOCOLS: dict[str, Protocol] = {}
"""Every registered protocol by name."""


def register_protocol(
    name: str, *, summary: str, ordered: bool
) -> Callable[[MakeStages], MakeStages]:
    """Register the decorated ``make(names) -> stages`` as a protocol.

    Raises:
        UserError: if the name is taken.
    """

    def decorate(make: MakeStages) -> MakeStages:
        taken = PROTOCOLS.get(name)
        check_free("protocol", name, taken.make if taken else None, make)
        PROTOCOLS[name] = Protocol(name, summary, ordered, make)
        return make

    return decorate


def get_protocol(name: str) -> Protocol:
    """Return the protocol called ``name``.

    Raises:
        UserError: if there is none, naming the nearest known.
    """
    return look_up("protocol", PROTOCOLS, name)


@register_protocol(
    "prefixes",
    summary="after experience t the adapters 0..t are merged and every experience is scored",
    ordered=True,
)
def prefixes(names: Sequence[str]) -> tuple[Stage, ...]:
    """Return a stage after each experience."""
    everything = tuple(range(len(names)))
    return tuple(
        Stage(t, name, everything[: t + 1], everything, everything[: t + 1])
        for t, name in enumerate(names)
    )
