"""Decode every image once: a uint8 array in a file that is mapped.

The file's name is a digest of the images' content and size, so a file is never out of date; it is
written under another name and renamed, so a file that exists is whole. Of several processes that
need the same file one builds it and the others wait; one that dies lets the next build it. Every
image has a checksum, which is compared each time the file is opened: one that was damaged is built
again.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np

from cl_lora.benchmarks.checksums import SealedWriter, damage
from cl_lora.benchmarks.images import (
    Pixels,
    UnreadableImage,
    require_regular,
    without_pillows_warnings,
)
from cl_lora.support.errors import UserError, printable
from cl_lora.support.files import digest, explain_write_errors
from cl_lora.support.progress import track

log = logging.getLogger(__name__)

_FORMAT = "centre crop, bicubic, 2"  # part of the key: another way of decoding is another file
_HEADER_VERSION = (1, 0)  # of NumPy's format
_CHUNK = 32  # images a thread decodes before it hands them over
_MAX_THREADS = 8
_NAMED_IN_ERRORS = 10


@dataclass(frozen=True)
class ImageSource:
    """Images that can be made one by one.

    Attributes:
        content: digest that changes whenever one of the images does.
        count: how many there are.
        read: (index, size) -> uint8 (size, size, 3); raises ``UnreadableImage``.
        verb: what reading is, for the progress display.
        threads: whether ``read`` gains from threads, that is, mostly runs without the GIL.
    """

    content: str
    count: int
    read: Callable[[int, int], Pixels]
    verb: str = "Decoding images"
    threads: bool = True


def cache_folder(configured: str | os.PathLike[str] | None = None) -> Path:
    """Return where decoded images are kept.

    Args:
        configured: the user's choice; None falls back to ``$CL_LORA_CACHE``, then to ``cl-lora``
            in ``$XDG_CACHE_HOME``, then to ``~/.cache/cl-lora``.
    """
    chosen = configured or os.environ.get("CL_LORA_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "cl-lora"


def cache_key(source: ImageSource, size: int) -> str:
    """Return the name, without suffix, of the file that holds ``source`` at ``size`` pixels."""
    return digest(_FORMAT, source.content, size)


def cached_images(source: ImageSource, size: int, folder: Path) -> Pixels:
    """Return all images of ``source``, decoding them only if no earlier call has.

    Args:
        source: what to decode.
        size: side of the square images in pixels.
        folder: where the files are kept; made if it does not exist.

    Returns:
        uint8 (source.count, size, size, 3), a read-only memory map.

    Raises:
        UserError: images cannot be decoded (all of them were tried and the first ten are named),
            or the file cannot be written or read.
    """
    path = folder / f"{cache_key(source, size)}.npy"
    shape = (source.count, size, size, 3)
    images = _open(path, shape)
    if isinstance(images, str):
        if images:
            log.warning("%s is damaged (%s): it is made again", printable(str(path)), images)
        with _sole_builder(path):
            images = _open(path, shape)  # which another process may have built meanwhile
            if isinstance(images, str):
                _build(path, source, shape)
                images = _open(path, shape)
        if isinstance(images, str):
            raise UserError(
                f"Expected {printable(str(path))} to hold the decoded images but it is damaged as "
                f"soon as it is written ({images or 'it is gone'}); choose another "
                "benchmark.cache_dir"
            )
    return images


def _open(path: Path, shape: tuple[int, ...]) -> Pixels | str:
    """Return the images in ``path``, or what is wrong with it; empty where there is no file."""
    try:
        require_regular(os.stat(path), path)
        with path.open("rb") as file:
            begin = _header_length(file)
            if begin is None:
                return "it has no header"
            size = math.prod(shape[1:])
            problem = damage(file.fileno(), path.stem, begin, shape[0], size)
            if problem:
                return problem
            return np.memmap(file, dtype=np.uint8, mode="r", offset=begin, shape=shape)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise UserError(
            f"Cannot read {printable(str(path))}: {error.strerror or error}; remove it or choose "
            "another benchmark.cache_dir"
        ) from error


def _header_length(file: IO[bytes]) -> int | None:
    """Return where the images begin, behind the header of NumPy's format; None without one."""
    if file.read(len(np.lib.format.MAGIC_PREFIX)) != np.lib.format.MAGIC_PREFIX:
        return None
    version, length = file.read(2), file.read(2)
    if version != bytes(_HEADER_VERSION) or len(length) != 2:
        return None
    return file.tell() + int.from_bytes(length, "little")


def _build(path: Path, source: ImageSource, shape: tuple[int, ...]) -> None:
    """Decode everything into ``path``; memory use does not depend on the number of images."""
    unreadable: list[str] = []
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        handle, temporary = _locked_temporary(path)
        try:
            # Written row by row rather than through a writable map: on a full disk a write fails
            # with an error, whereas a map kills the process with SIGBUS.
            with os.fdopen(handle, "wb") as file:
                sealed = SealedWriter(file, path.stem)
                sealed.write(_header(shape))
                decoded = _decoded(source, shape[1])
                with without_pillows_warnings():
                    for image in track(decoded, source.verb, total=source.count):
                        if isinstance(image, UnreadableImage):
                            unreadable.append(str(image))
                        elif not unreadable:
                            sealed.write(image.tobytes())
                if unreadable:
                    raise UserError(_unreadable_message(unreadable, source.count))
                sealed.finish()
                file.flush()
                os.chmod(temporary, 0o644)
                os.replace(temporary, path)  # while it is open, and so locked
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _header(shape: tuple[int, ...]) -> bytes:
    """Return the header of NumPy's format, so that ``numpy.load`` reads the file too."""
    header = BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return header.getvalue()


@contextmanager
def _sole_builder(path: Path) -> Iterator[None]:
    """Wait until no other process builds ``path``: a lock beside it, which ends with its process.

    The file of the lock is removed again. Where the file system has no locks nobody waits: two
    processes that build the same file do no harm.
    """
    name = path.with_suffix(".lock")
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = name.open("w")
        while _wait_for(file, path) and not os.fstat(file.fileno()).st_nlink:
            file.close()  # who held it has removed it: another process may hold a new one
            file = name.open("w")
    with file:
        try:
            yield
        finally:
            with suppress(OSError):
                name.unlink()


def _wait_for(file: IO[str], path: Path) -> bool:
    """Lock ``file``, and return whether the file system has locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("waiting for another process that makes %s", path)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _locked_temporary(path: Path) -> tuple[int, str]:
    """Make a file beside ``path`` that no other process takes for a leftover."""
    while True:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, temporary
        os.close(handle)  # it was removed between making and locking it


def _remove_leftovers(path: Path) -> None:
    """Delete what killed processes left of ``path``; a file that is being written is locked."""
    for leftover in path.parent.glob(f".{path.name}.*"):
        with suppress(OSError), leftover.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()


def _decoded(source: ImageSource, size: int) -> Iterator[Pixels | UnreadableImage]:
    """Yield the images in order, and in place of an unreadable one what is wrong with it."""

    def read(chunk: range) -> list[Pixels | UnreadableImage]:
        results: list[Pixels | UnreadableImage] = []
        for index in chunk:
            try:
                results.append(source.read(index, size))
            except UnreadableImage as error:
                results.append(error)
        return results

    starts = range(0, source.count, _CHUNK)
    chunks = [range(start, min(start + _CHUNK, source.count)) for start in starts]
    threads = min(os.cpu_count() or 1, _MAX_THREADS) if source.threads else 1
    if threads == 1:
        for chunk in chunks:
            yield from read(chunk)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[list[Pixels | UnreadableImage]]] = deque()
        for chunk in chunks:
            waiting.append(pool.submit(read, chunk))
            if len(waiting) > 2 * threads:  # no more decoded images in memory than that
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _unreadable_message(unreadable: Sequence[str], count: int) -> str:
    return (
        f"Cannot read {len(unreadable)} of {count} images: {shortened(unreadable)}; "
        "replace or remove them"
    )


def shortened(phrases: Sequence[str]) -> str:
    """Join ``phrases`` for an error message: the first ten, then how many more there are."""
    more = len(phrases) - _NAMED_IN_ERRORS
    rest = [f"and {more} more"] if more > 0 else []
    return "; ".join([*phrases[:_NAMED_IN_ERRORS], *rest])
