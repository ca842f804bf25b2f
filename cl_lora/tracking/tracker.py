"""What a tracker is: a name, a package that may be missing, and a connection that takes runs.

Adding a tracker is one class that connects, with one line above it, and one class of the
connection::

    @register_tracker
    class Mine(Tracker):
        name, package, extra = "mine", "mine_client", ""
        summary = "what it is"

        def connect(self) -> Connection: ...
"""

from __future__ import annotations

import importlib
import importlib.util
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, TypeAlias
from urllib.parse import urlsplit

from cl_lora.support.errors import UserError
from cl_lora.support.registry import look_up, registers

PROJECT = "cl-lora"
"""Where runs go that nothing sends elsewhere: an experiment of MLflow, a project of W&B."""

PATIENCE_S = 5.0
"""How long a server may take to answer before a run is begun without need of it."""

Points: TypeAlias = Sequence[tuple[int, Mapping[str, float]]]
"""(step, name of a metric -> value), in the order in which they were measured."""


@dataclass(frozen=True)
class TrackedRun:
    """One run of a tracker: an arm or baseline of one seed, or the run folder as a whole.

    Attributes:
        name: as the tracker shows it.
        group: what the runs of one run folder share: its name.
        kind: ``arm``, ``reference``, or ``overview`` of the run folder as a whole.
        parent: identifier of the overview; None for itself.
        parameters: nested by dots of their names; plain values.
        folder: the run folder.
        notes: what it is, in sentences.
    """

    name: str
    group: str
    kind: str
    parent: str | None
    parameters: Mapping[str, Any]
    folder: Path
    notes: str = ""


class Connection(ABC):
    """An open connection. Whatever it raises ends it, and never the run.

    Attributes:
        place: where it sends to, in words, without credentials; a run folder that is sent to
            another place has runs of its own there.
    """

    place: str

    @abstractmethod
    def begin(self, run: TrackedRun, known: str | None) -> tuple[str, bool]:
        """Begin a tracker's run, or go on with one.

        Args:
            run: what it is.
            known: identifier of an earlier command's; None to begin another.

        Returns:
            Its identifier, and whether it holds what was sent by that name before.
        """

    @abstractmethod
    def log(self, identifier: str, points: Points) -> None:
        """Send metrics of a begun run."""

    @abstractmethod
    def conclude(self, identifier: str, results: Mapping[str, float]) -> None:
        """Send numbers that sum a begun run up, in the place of those sent before."""

    @abstractmethod
    def upload(self, identifier: str, files: Mapping[str, Path], new: Collection[str]) -> None:
        """Send files of a begun run.

        Args:
            identifier: of the run.
            files: path below the run folder -> file; all that belong to the run.
            new: those that it does not hold as they are now.
        """

    @abstractmethod
    def end(self, identifier: str, *, finished: bool) -> None:
        """End a begun run: nothing more is missing, or something is."""


class Tracker(ABC):
    """A tracker that runs can be sent to.

    Attributes:
        name: as ``tracker=NAME`` gives it.
        package: the module that sends.
        extra: of this package that installs it; empty where there is none.
        summary: what it is, for ``cl-lora list trackers``.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    extra: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def connect(self) -> Connection:
        """Return a connection that is known to work, within seconds.

        Raises:
            UserError: if the package, the server or the login is missing.
        """

    def load(self) -> ModuleType:
        """Return the tracker's package.

        Raises:
            UserError: if it is not installed or cannot be imported; names the extra.
        """
        install = f"'cl-lora[{self.extra}]'" if self.extra else self.package
        spec = importlib.util.find_spec(self.package)
        # A folder of that name in the current one, as W&B keeps, is no package.
        if spec is None or spec.origin is None:
            raise UserError(
                f"tracker={self.name} sends by the package {self.package}, which is not installed; "
                f"pip install {install}, or leave tracker out"
            )
        try:
            return importlib.import_module(self.package)
        except Exception as error:
            raise UserError(
                f"tracker={self.name}: the package {self.package} cannot be imported "
                f"({one_line(error)}); pip install {install} again, or leave tracker out"
            ) from error


TRACKERS: dict[str, Tracker] = {}
"""Every registered tracker by name."""

register_tracker = registers("tracker", TRACKERS)
"""Register the decorated class, a :class:`Tracker`, by its ``name``."""


def names_of(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the trackers that ``tracker`` asks for: none, one or a list.

    Raises:
        UserError: for an unknown name, or one that is named twice.
    """
    names = () if given is None else (given,) if isinstance(given, str) else tuple(given)
    for name in names:
        look_up("tracker", TRACKERS, name)
    if len(set(names)) != len(names):
        raise UserError(f"A tracker is named twice in tracker={list(names)}; remove it")
    return names


def answers(url: str) -> str:
    """Return why the server at ``url`` does not answer within seconds; empty if it does.

    Any answer is one, an error too: what it says is for the tracker's own package to explain.
    """
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE_S):
            return ""
    except urllib.error.HTTPError as error:
        error.close()
        return ""
    except (OSError, ValueError) as error:
        return one_line(getattr(error, "reason", error))


def without_credentials(address: str) -> str:
    """Return an address without user, password and query, to be shown and kept."""
    user, at, _ = urlsplit(address).netloc.rpartition("@")
    return address.partition("?")[0].replace(f"{user}{at}", "", 1)


def one_line(error: object, shown: int = 200) -> str:
    """Return the beginning of what an error says."""
    text = " ".join(str(error).split())[:shown].rstrip(". ")
    return text or type(error).__name__
