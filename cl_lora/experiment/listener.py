"""Who is told of a run while it is computed; the run knows nothing else of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from cl_lora.evaluation.scores import Score


class Listener(Protocol):
    """Is told in the process that computes; what it does with it must not raise."""

    def begun(self, folder: Path) -> None:
        """A run folder is about to be computed: it says what is to be there, and what is there."""

    def scored(self, scores: Sequence[Score]) -> None:
        """One unit was scored: a row of one seed at one stage."""


class Silent:
    """Does nothing."""

    def begun(self, folder: Path) -> None:
        """Do nothing."""

    def scored(self, scores: Sequence[Score]) -> None:
        """Do nothing."""
