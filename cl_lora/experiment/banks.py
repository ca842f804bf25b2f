"""The kinds of bank that a run may train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cl_lora.adapters import Adapter
from cl_lora.benchmarks.core import Benchmark
from cl_lora.run_folder import layout
from cl_lora.strategies.config import ANEW, CONTINUED, Lineage
from cl_lora.strategies.tunings import LORA, WHOLE, Tuning
from cl_lora.support.errors import UserError
from cl_lora.support.registry import look_up


@dataclass(frozen=True)
class BankKind:
    """A bank that a run may train.

    Attributes:
        name: in the folder's name and in logs.
        summary: one sentence.
        lineage: whether its adapters start fresh or are trained on.
        joint: whether all experiences are trained on at once, as one.
        begins_like: a bank whose first adapter comes from the same training; copying it saves one.
        tuning: what is trained of the backbone.
        own_heads: whether each of its adapters has the head of its own experience beside it, where
            every experience has one.
        for_arms: whether an arm may merge its adapters.
    """

    name: str
    summary: str
    lineage: Lineage = ANEW
    joint: bool = False
    begins_like: BankKind | None = None
    tuning: Tuning = LORA
    own_heads: bool = False
    for_arms: bool = False

    def names(self, benchmark: Benchmark) -> tuple[str, ...]:
        """Return the names of its adapters, in order."""
        return (self.name,) if self.joint else benchmark.names

    def title(self, name: str) -> str:
        """Return what training the adapter ``name`` is called."""
        return name if self is FRESH or self.joint else f"{self.name} {name}"


BANKS: dict[str, BankKind] = {}
"""Every registered kind of bank by name."""


def register_bank(kind: BankKind) -> BankKind:
    """Register a kind of bank and return it.

    Raises:
        UserError: if the name is taken.
    """
    if BANKS.get(kind.name, kind) != kind:
        raise UserError(
            f"The bank {kind.name!r} is registered already: {BANKS[kind.name].summary}; choose "
            "another name"
        )
    BANKS[kind.name] = kind
    return kind


def get_arm_bank(name: str) -> BankKind:
    """Return the bank called ``name``, whose adapters an arm merges.

    Raises:
        UserError: if there is none, naming the nearest known.
    """
    return look_up("bank", {kind.name: kind for kind in BANKS.values() if kind.for_arms}, name)


FRESH = register_bank(
    BankKind(layout.FRESH, "one new adapter per experience", own_heads=True, for_arms=True)
)
SEQUENTIAL = register_bank(
    BankKind(
        "sequential",
        "the states of one adapter that is trained on from experience to experience",
        CONTINUED,
        begins_like=FRESH,
        for_arms=True,
    )
)
JOINT = register_bank(
    BankKind("joint", "one adapter trained on all experiences at once", joint=True)
)
FULL = register_bank(
    BankKind(
        "full",
        "the whole backbone, fine-tuned for each experience anew",
        tuning=WHOLE,
        own_heads=True,
        for_arms=True,
    )
)

Banks = Mapping[str, tuple[Adapter, ...]]
"""The adapters of one seed by kind of bank, in the order of the experiences."""
