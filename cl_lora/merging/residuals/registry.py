"""The registry of task residuals: what each is called, keeps, accepts and needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from cl_lora.adapters import Entry
from cl_lora.merging.registry import OptionSpec, check_options, options_text
from cl_lora.merging.residuals.residue import Residue
from cl_lora.support.errors import UserError
from cl_lora.support.registry import look_up, registers


class Residual(ABC):
    """A way to keep little of the difference between a task's own model and a base.

    Attributes:
        name: the name it is chosen by.
        summary: one sentence.
        formula: the update that serves task t.
        paper: where it comes from.
        options: option name -> its specification.
        needs_task: the task must be known at inference.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    formula: ClassVar[str]
    paper: ClassVar[str]
    options: ClassVar[Mapping[str, OptionSpec]]
    needs_task: ClassVar[bool] = True

    @abstractmethod
    def take(
        self,
        own: Mapping[str, Entry],
        base: Mapping[str, Entry] | None,
        options: Mapping[str, Any],
    ) -> Residue:
        """Return what is kept of ``own - base``.

        Args:
            own: module -> the update of the task's own model; read a module at a time.
            base: module -> the update that all tasks share, such as the entries of a merged one;
                None for the pre-trained weights. A module that is on one side only counts as zero
                on the other.
            options: the complete options, as :func:`make_residual` leaves them.

        Raises:
            UserError: if there is nothing to take, shapes differ, an update is not finite, or an
                option does not fit the update.
        """

    def check_rank(self, options: Mapping[str, Any], rank: int) -> None:  # noqa: B027
        """Check before anything is trained that updates of ``rank`` can be served.

        Nothing to check where a rank does not matter.

        Args:
            options: the complete options.
            rank: what the rank of the differences is at most: that of the adapters if the base is
                the pre-trained weights.

        Raises:
            UserError: if more is to be kept than there is.
        """


RESIDUALS: dict[str, Residual] = {}
"""Every registered residual by name."""

register_residual = registers("residual", RESIDUALS)
"""Class decorator that registers a :class:`Residual`."""


@dataclass(frozen=True)
class ResidualChoice:
    """A residual with its options, checked: made by :func:`make_residual`.

    Attributes:
        kind: the residual.
        options: its complete options.
    """

    kind: Residual
    options: Mapping[str, Any]

    @property
    def variant(self) -> dict[str, Any]:
        """The name and the complete options: :func:`make_residual` makes the same of it."""
        return {"name": self.kind.name, **self.options}

    def take(self, own: Mapping[str, Entry], base: Mapping[str, Entry] | None = None) -> Residue:
        """Return what is kept of ``own - base``; see :meth:`Residual.take`."""
        return self.kind.take(own, base, self.options)

    def check_rank(self, rank: int) -> None:
        """Check before training that updates of ``rank`` fit; see :meth:`Residual.check_rank`."""
        self.kind.check_rank(self.options, rank)


def residual_names() -> tuple[str, ...]:
    """Return the names of all residuals, sorted."""
    return tuple(sorted(RESIDUALS))


def make_residual(config: Mapping[str, Any]) -> ResidualChoice:
    """Return the residual that ``config`` describes, everything checked.

    >>> make_residual({"name": "sparse", "m": 5}).variant
    {'name': 'sparse', 'm': 5, 'scope': 'model'}

    Args:
        config: ``name`` of the residual, and its options.

    Raises:
        UserError: if the name is missing or unknown, an option unknown, or a value not accepted.
    """
    if not isinstance(config, Mapping) or "name" not in config:
        given = dict(config) if isinstance(config, Mapping) else config
        raise UserError(
            f"Expected a residual with a name, such as {{name: low_rank, q: 8}}, but got "
            f"{given!r}; name one of {', '.join(residual_names())}"
        )
    kind = look_up("residual", RESIDUALS, str(config["name"]))
    given = {str(key): value for key, value in config.items() if key != "name"}
    return ResidualChoice(kind, check_options(f"residual {kind.name!r}", kind.options, given))


def residuals_table() -> list[dict[str, str]]:
    """Return the rows of ``cl-lora list residuals``, one per residual, sorted by name.

    Columns: name, summary, formula, options, task, paper.
    """
    return [
        {
            "name": kind.name,
            "summary": kind.summary,
            "formula": kind.formula,
            "options": options_text(kind.options),
            "task": "known" if kind.needs_task else "unknown",
            "paper": kind.paper,
        }
        for kind in (RESIDUALS[name] for name in residual_names())
    ]
