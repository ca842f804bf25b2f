"""Who may write to a run folder: one process at a time, and only into a folder of ours.

Only the processes that score parts of a run write side by side: each into a part of its own. They
share the lock of the run folder, so that no process that writes to all of it comes between them.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cl_lora.run_folder.layout import (
    CONFIG_FILE,
    LEFTOVERS,
    LEFTOVERS_OF_REPORTS,
    LOCK_FILE,
)
from cl_lora.support import files
from cl_lora.support.errors import UserError

log = logging.getLogger(__name__)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder and keep every other process from writing to it.

    Temporary names that a killed process left behind are deleted, and nothing else; a folder that
    it was about to replace gets its name back.

    Raises:
        UserError: if the folder holds something else than a run, cannot be written, or is in use.
    """
    with _held(folder, fcntl.LOCK_EX):
        _remove(folder, LEFTOVERS)
        with _reporting(folder, wait=False) as mine:
            if mine:  # else a report is being made
                _remove(folder, LEFTOVERS_OF_REPORTS)
        yield


@contextmanager
def reporting(folder: Path) -> Iterator[None]:
    """Wait until no other process makes the report of a run, and keep them from it.

    What a killed one left behind is deleted.

    Raises:
        UserError: if the folder cannot be written.
    """
    with _reporting(folder, wait=True):
        _remove(folder, LEFTOVERS_OF_REPORTS)
        yield


@contextmanager
def shared(folder: Path) -> Iterator[None]:
    """Make the folder and keep every process from it that writes to all of it.

    Raises:
        UserError: as :func:`locked`.
    """
    with _held(folder, fcntl.LOCK_SH):
        yield


@contextmanager
def in_turn(folder: Path, what: str) -> Iterator[None]:
    """Wait until no other process that shares the folder does ``what``, and keep them from it.

    Args:
        folder: the run folder, whose lock this process shares.
        what: names it among what is done in turn; part of a file's name.
    """
    with files.explain_write_errors(folder):
        lock = (folder / f"{LOCK_FILE}-{what}").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process: %s", what)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _reporting(folder: Path, wait: bool) -> Iterator[bool]:
    """Yield whether this process alone may make the report; its lock file is gone afterwards."""
    path = folder / f"{LOCK_FILE}-report"
    while True:
        with files.explain_write_errors(folder):
            lock = path.open("w")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            if not _is(path, lock.fileno()):
                continue  # the one that held it has deleted it
            try:
                yield True
            finally:
                path.unlink(missing_ok=True)
            return


def _is(path: Path, opened: int) -> bool:
    """Return whether an open file is the one that has a name now."""
    try:
        return os.path.samestat(path.stat(), os.fstat(opened))
    except FileNotFoundError:
        return False


@contextmanager
def _held(folder: Path, how: int) -> Iterator[None]:
    new = files.missing(folder)
    with files.explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        require_run_folder(folder)
        lock = (folder / LOCK_FILE).open("w")
    with lock:
        try:
            fcntl.flock(lock, how | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"Another process is writing to {folder}; wait for it, or choose another run_dir"
            ) from error
        try:
            yield
        except UserError:
            _take_away(folder, new)
            raise


def _take_away(folder: Path, new: Sequence[Path]) -> None:
    """Take away folders that were made for nothing: what was asked for has been refused."""
    if new and [path.name for path in folder.iterdir()] == [LOCK_FILE]:
        (folder / LOCK_FILE).unlink()
        files.remove_empty(new)


def require_run_folder(folder: Path) -> None:
    """Refuse a folder that holds files and no run; one that is missing or empty is none yet.

    Raises:
        UserError: naming one of the files.
    """
    if not folder.exists() or (folder / CONFIG_FILE).exists():
        return
    if not folder.is_dir():
        raise UserError(f"Expected a run folder but {folder} is a file; choose another run_dir")
    patterns = (*LEFTOVERS, *LEFTOVERS_OF_REPORTS)
    ours = (LOCK_FILE, *(pattern.split("*")[0] for pattern in patterns if "/" not in pattern))
    others = [path.name for path in folder.iterdir() if not path.name.startswith(ours)]
    if others:
        raise UserError(
            f"{folder} holds other files ({sorted(others)[0]}, ...) and no run; "
            "choose an empty or new run_dir"
        )


def _remove(folder: Path, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        # A process killed while it replaced a folder leaves the only copy under a hidden name.
        for parent in {path.parent for path in folder.glob(pattern)}:
            files.restore_below(parent)
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
