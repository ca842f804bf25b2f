"""Digests of an adapter's files in its ``training.json``, by which a single changed bit shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cl_lora.support import files
from cl_lora.support.errors import UserError

TRAINING_FILE = "training.json"
LISTED = "files"
"""In ``training.json``: what else belongs to an adapter."""

_DIGESTS = "digests"
_TIME = "seconds"
_OURS = (LISTED, _DIGESTS, files.SEAL)


def write_record(
    folder: Path, training: Mapping[str, Any], listed: Iterable[str], sealed: Iterable[str]
) -> None:
    """Write ``training.json`` beside the files of an adapter.

    Args:
        folder: where the files are.
        training: what is known of the training.
        listed: names of the files that the adapter has beside its weights, such as a head.
        sealed: names of the files that are written and never change.
    """
    record = {
        **training_of(training),
        LISTED: list(listed),
        _DIGESTS: {name: files.file_digest(folder / name) for name in sealed},
    }
    files.write_json(folder / TRAINING_FILE, _sealed(record))


def training_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``training.json`` tells of the training, without what it tells of files."""
    return {key: value for key, value in record.items() if key not in _OURS}


def add(folder: Path, name: str, data: bytes) -> None:
    """Take a file that is about to be written into an adapter's record, if it has one."""
    if not (folder / TRAINING_FILE).exists():
        return
    record = _record(folder)
    if _DIGESTS in record:
        digests = {**record[_DIGESTS], name: files.bytes_digest(data)}
        files.write_json(folder / TRAINING_FILE, _sealed({**record, _DIGESTS: digests}))


def holds(folder: Path, name: str) -> bool:
    """Return whether a file that is there belongs to the adapter.

    All do where the record knows no digests: it is of an earlier version, or of somebody else.
    """
    path = folder / TRAINING_FILE
    if not path.exists():
        return True
    digests = _record(folder).get(_DIGESTS)
    return digests is None or name in digests


def check(folder: Path) -> None:
    """Compare every file of an adapter with its digest, where it has one.

    Raises:
        UserError: naming the file that is not what was written.
    """
    if not (folder / TRAINING_FILE).exists():
        return
    record = _record(folder)
    digests = record.get(_DIGESTS, {})
    sealed = files.SEAL in record or _DIGESTS not in record  # they are written together
    if not (sealed and files.is_intact(record, (_TIME,)) and isinstance(digests, dict)):
        raise _damaged(folder / TRAINING_FILE, folder)
    for name, digest in digests.items():
        path = folder / name
        # What lies in a folder of its own, as statistics do, is made again without training.
        if path.parent != folder and not path.exists():
            continue
        if files.file_digest(path) != digest:
            raise _damaged(path, path if path.parent != folder else folder)


def _sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    return {**record, **files.sealed(_told(record))}


def _told(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record without what differs between two trainings that give the same adapter."""
    return {key: value for key, value in record.items() if key != _TIME}


def _record(folder: Path) -> dict[str, Any]:
    return files.read_json(
        folder / TRAINING_FILE, "is damaged", f"delete {folder} and train the adapter again"
    )


def _damaged(path: Path, lost: Path) -> UserError:
    return UserError(
        f"{path} is damaged: its contents are not those that were written; delete {lost} and run "
        "the command again, which makes it again"
    )
