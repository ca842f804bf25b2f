"""How far each job of a sweep is: a small file per job, written by it, read by its parent."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"
ENDED = (DONE, FAILED)

_SIZE = 4096
_SAID = 1500  # characters of a sentence, so that it fits with its escapes


@dataclass(frozen=True)
class State:
    """How far a job is.

    Attributes:
        phase: ``waiting``, ``running``, ``done`` or ``failed``.
        what: what is being done, a few words.
        step: steps of it that are done.
        steps: steps that it has; None where nobody knows.
        began: when the job began, seconds since the epoch.
        ended: when it ended.
        attempts: how often it was begun.
        pid: the process that runs it.
        said: the run folder of a job that is done, the sentence of one that failed.
        crashed: whether it failed by something else than a mistake that a sentence explains.
    """

    phase: str = WAITING
    what: str = ""
    step: int = 0
    steps: int | None = None
    began: float = 0.0
    ended: float = 0.0
    attempts: int = 0
    pid: int = 0
    said: str = ""
    crashed: bool = False


class StateFile:
    """The file of one job: of one size and written in place, so that a full disk takes it too.

    Args:
        folder: where the files of a sweep are.
        number: the job, from 0.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.path = folder / f"{number:06d}.json"
        self.log = folder / f"{number:06d}.txt"
        self._last = State()

    @property
    def has_log(self) -> bool:
        """Whether the job has printed something that was kept."""
        return self.log.exists() and self.log.stat().st_size > 0

    def create(self) -> None:
        """Make the file of a job that waits.

        Raises:
            OSError: if the disk refuses.
        """
        self.path.write_bytes(_record(State()))

    def write(self, state: State) -> bool:
        """Say how far the job is, and return whether that could be written.

        A job goes on where it could not, e.g. because its parent is gone.
        """
        self._last = state
        try:
            handle = os.open(self.path, os.O_WRONLY)
            try:
                os.pwrite(handle, _record(state), 0)
            finally:
                os.close(handle)
        except OSError:
            return False
        return True

    def read(self) -> State:
        """Return how far the job is; the last that was read where it is being written just now."""
        with suppress(OSError, ValueError, TypeError):
            self._last = State(**json.loads(self.path.read_bytes()))
        return self._last

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Hold the job, and yield whether no other process does.

        Who holds it is known to be alive, whatever it was killed by.
        """
        try:
            file = self.path.open("rb")
        except OSError:
            yield True
            return
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            except OSError:  # a file system without locks
                pass
            yield True

    def wait(self) -> None:
        """Return as soon as no process holds the job."""
        with suppress(OSError), self.path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)


def _record(state: State) -> bytes:
    values = dataclasses.asdict(state)
    for size in (_SAID, _SAID // 8):  # the second for text of which every letter is escaped
        values["said"] = state.said[:size]
        text = json.dumps(values).encode()
        if len(text) <= _SIZE:
            break
    return text.ljust(_SIZE)
