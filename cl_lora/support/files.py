"""Writing files and folders so that what exists is whole, also after a power cut.

What is renamed into place is on the disk before: a file system may otherwise keep the new name and
lose the contents.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from cl_lora.support.errors import UserError
from cl_lora.support.failures import remedy

# How a folder is called while another takes its place.
_ASIDE = re.compile(r"\.(?P<name>.+)\.old-[0-9a-f]{16}")
_SWAPS = 5  # how often a folder is put aside again that another process gave back meanwhile


@contextlib.contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` while writing below ``path`` into one sentence."""
    try:
        yield
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error), remedy(error.errno)) from error
    except SafetensorError as error:
        # Which is no OSError: "Error while serializing: I/O error: No space left on device (...)".
        _, told, reason = str(error).partition("I/O error: ")
        if not told:
            raise
        reason, _, number = reason.partition(" (os error ")
        code = int(number[:-1]) if number[:-1].isdecimal() else None
        raise _unwritable(path, reason, remedy(code)) from error


def _unwritable(path: Path, reason: str, what_to_do: str) -> UserError:
    return UserError(f"Cannot write to {path}: {reason}; {what_to_do}")


def read_bytes(path: Path) -> bytes:
    """Return what a file holds.

    What the system refuses is no damage: deleting the file would lose what it holds.

    Raises:
        FileNotFoundError: if it is missing, which callers explain.
        UserError: if it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"Cannot read {path}: {reason}; {remedy(error.errno)}") from error


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to a temporary name beside ``path``, then rename it over ``path``."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to a temporary name beside ``path``, then rename it over ``path``."""
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(handle)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
            _settle(path.parent)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON with sorted keys, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: Path, problem: str, remedy: str) -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        path: the file.
        problem: what to say of a file that cannot be read, behind its name.
        remedy: what to do then.

    Raises:
        UserError: if there is no such file, it is no JSON, or holds something else than an object.
    """
    if path.exists() and not path.is_file():  # a pipe would be read without end
        raise UserError(f"{path} {problem} (it is no file); {remedy}")
    try:
        value = json.loads(read_bytes(path).decode())
    except UserError:
        raise
    except (ValueError, OSError, RecursionError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{path} {problem} ({said}); {remedy}") from error
    if not isinstance(value, dict):
        raise UserError(
            f"Expected a JSON object in {path} but got {type(value).__name__}; {remedy}"
        )
    return value


@contextlib.contextmanager
def whole_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` on success: a folder that exists is whole.

    A folder that is replaced is renamed aside, never deleted before the new one is in its place:
    a process that is killed at any moment leaves the old folder or the new one, if need be under
    the hidden name from which :func:`restore` gives it back. Leftovers of killed processes carry a
    leading dot and are ignored by every reader.

    Args:
        path: the folder to write.
        replace: whether a folder that is there is replaced. The caller knows that it may be.

    Raises:
        UserError: if ``path`` is there and is a file, or a folder that is neither empty nor to be
            replaced; if the disk refuses.
    """
    with explain_write_errors(path):
        path = Path(os.path.realpath(path))  # the folder behind a link, and not the link
        new = missing(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        restore(path)
        if path.exists() and not path.is_dir():
            raise UserError(f"Expected {path} to be a folder but it is a file; give another name")
        if not replace and path.exists() and any(path.iterdir()):
            raise UserError(f"{path} holds files already; delete it or choose another folder")
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            yield temporary
            temporary.chmod(0o755)
            _settle_all(temporary)
            _put_in_place(temporary, path)
            _settle(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            remove_empty(new)
            raise


def missing(folder: Path) -> list[Path]:
    """Return what would have to be made for a folder to be there, the folder itself first."""
    return [place for place in (folder, *folder.parents) if not place.exists()]


def remove_empty(folders: Iterable[Path]) -> None:
    """Take folders away again that were made for nothing, up to the first that holds something."""
    with contextlib.suppress(OSError):  # somebody else may have put it there
        for folder in folders:
            folder.rmdir()


def _settle(path: Path) -> None:
    """Have the disk hold what a file contains, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems have nothing of the kind for folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def _settle_all(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            _settle(path)
    _settle(folder)


def restore(path: Path) -> None:
    """Give ``path`` back what a killed process had put aside to replace it, if nothing is there.

    Does nothing where the disk cannot be written: a reader then finds nothing, as before.
    """
    if path.exists() or not path.parent.is_dir():
        return
    with contextlib.suppress(OSError):
        for aside in sorted(_asides(path), key=lambda p: p.stat().st_mtime)[-1:]:
            os.rename(aside, path)


def restore_below(folder: Path) -> None:
    """Give every folder right below ``folder`` back that a killed process had put aside."""
    if folder.is_dir():
        for path in list(folder.iterdir()):
            match = _ASIDE.fullmatch(path.name)
            if match:
                restore(folder / match["name"])


def _put_in_place(new: Path, path: Path) -> None:
    """Rename ``new`` to ``path``, what was there aside, and then delete that."""
    for attempt in range(_SWAPS):
        aside = path.with_name(f".{path.name}.old-{secrets.token_hex(8)}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, aside)
        try:
            os.rename(new, path)
            break
        except OSError as error:
            # A reader may have given the old folder back between the two renames.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or attempt == _SWAPS - 1:
                restore(path)
                raise
    for aside in _asides(path):
        # A name that is no longer given back, before the first file is deleted. The new folder is
        # in its place: what cannot be deleted is a leftover, and no error.
        with contextlib.suppress(OSError):
            os.rename(aside, new)
            shutil.rmtree(new)


def _asides(path: Path) -> list[Path]:
    found = ((_ASIDE.fullmatch(p.name), p) for p in path.parent.iterdir())
    return [p for match, p in found if match and match["name"] == path.name]


SEAL = "digest"
"""The key under which a record holds the digest of all else in it."""


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with the digest of its contents in it, by which damage shows.

    >>> record = sealed({"seed": 0})
    >>> is_intact(record), is_intact({**record, "seed": 1}), is_intact({"seed": 1})
    (True, False, True)
    """
    return {**record, SEAL: _seal(record)}


def is_intact(record: Mapping[str, Any], unsealed: Container[str] = ()) -> bool:
    """Return whether a record is what was sealed; one without a digest is older, and taken so.

    Args:
        record: as it was read.
        unsealed: keys that were left out when it was sealed, or were not by an earlier version.
    """
    told = {key: value for key, value in record.items() if key not in unsealed}
    return SEAL not in record or record[SEAL] in (_seal(told), _seal(record))


def _seal(record: Mapping[str, Any]) -> str:
    # Through JSON: what is read back has lists for tuples and texts for other keys.
    contents = {key: value for key, value in record.items() if key != SEAL}
    return digest(json.loads(json.dumps(contents)))


def file_digest(path: Path) -> str:
    """Return the hex digest of a file's bytes, which are never in memory together.

    Raises:
        UserError: if the file is missing or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); restore it, or delete its folder and run "
            "the command again"
        ) from error


def bytes_digest(data: bytes) -> str:
    """Return the hex digest that :func:`file_digest` has of a file with these bytes."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def digest(*parts: object, size: int = 16) -> str:
    """Return a hex digest over ``parts``; bytes are taken as they are, all else through JSON."""
    hasher = hashlib.blake2b(digest_size=size)
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        hasher.update(len(data).to_bytes(8, "big"))
        hasher.update(data)
    return hasher.hexdigest()
