"""What can go wrong around a command: disks, permissions, output, limits.

Each function returns what a fork calls before it becomes the command (``before`` of
:func:`attack.core.fork`), or does something to the system that the command finds.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import errno
import io
import mmap
import os
import resource
import signal
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Before = Callable[[], object]

NOBODY = 65534


def both(*faults: Before) -> Before:
    """Return the faults one after the other."""

    def before() -> None:
        for fault in faults:
            fault()

    return before


class Counter:
    """A number that forks share."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 8)

    @property
    def value(self) -> int:
        return int(struct.unpack("q", self._shared[:8])[0])

    def up(self) -> int:
        """Add one and return the number."""
        value = self.value + 1
        self._shared[:8] = struct.pack("q", value)
        return value


class Disk:
    """A disk that refuses from one of its events on: files made, folders made, data written.

    Args:
        first: number of the first event that is refused, from 1; None refuses nothing.
        error: with which errno.
        once: whether only that event is refused, as by a quota that was raised at once.
        match: only events whose path contains this count; data written by libraries of other
            languages have no path and always count where this is empty.
        act: what is done instead of refusing.
    """

    def __init__(
        self,
        first: int | None = None,
        error: int = errno.ENOSPC,
        *,
        once: bool = False,
        match: str = "",
        act: Before | None = None,
    ) -> None:
        self.first, self.error, self.once, self.match, self.act = first, error, once, match, act
        self.events = Counter()

    def event(self, path: object) -> None:
        """Count an event, and refuse it if it is its turn."""
        name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else str(path)
        if self.match not in name or name.startswith(("/dev/", "/proc/")):
            return
        count = self.events.up()
        if self.first is None or count < self.first or (self.once and count > self.first):
            return
        if self.act is not None:
            if count == self.first:
                self.act()
            return
        raise OSError(self.error, os.strerror(self.error), name)

    def __call__(self) -> None:
        """Put this disk below everything that Python code of this process writes."""
        self._gate_open()
        self._gate_calls()
        self._gate_safetensors()

    def _gate_open(self) -> None:
        real = io.open
        disk = self

        def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            writes = any(letter in mode for letter in "wax+")
            named = isinstance(file, str | bytes | os.PathLike)
            if writes and named:
                disk.event(file)
            stream = real(file, mode, *args, **kwargs)
            if writes and _is_file(stream):
                raw = _raw(stream)
                name = file if named else os.readlink(f"/proc/self/fd/{stream.fileno()}")
                if raw is not None:
                    write = raw.write

                    def gated(data: Any) -> Any:
                        disk.event(name)
                        return write(data)

                    raw.write = gated
            return stream

        io.open = builtins.open = opened  # type: ignore[assignment]

    def _gate_calls(self) -> None:
        real_open, real_mkdir = os.open, os.mkdir
        real_send, real_write = os.sendfile, os.write

        def opened(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & os.O_CREAT:
                self.event(path)
            return real_open(path, flags, *args, **kwargs)

        def mkdir(path: Any, *args: Any, **kwargs: Any) -> None:
            if not os.path.exists(path):
                self.event(path)
            real_mkdir(path, *args, **kwargs)

        def send(out: int, *args: Any, **kwargs: Any) -> int:
            self.event(os.readlink(f"/proc/self/fd/{out}"))
            return real_send(out, *args, **kwargs)

        def write(handle: int, data: Any) -> int:
            if stat.S_ISREG(os.fstat(handle).st_mode):
                self.event(os.readlink(f"/proc/self/fd/{handle}"))
            return real_write(handle, data)

        os.open, os.mkdir, os.sendfile, os.write = opened, mkdir, send, write  # type: ignore

    def _gate_safetensors(self) -> None:
        """Refuse as the library does: by an error that is no OSError, and with half a file."""
        import safetensors.torch

        real = safetensors.torch.serialize_file
        disk = self

        def serialize_file(tensors: Any, filename: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                disk.event(filename)
            except OSError as error:
                Path(filename).touch()
                raise safetensors.SafetensorError(
                    f"Error while serializing: I/O error: {error.strerror} (os error {disk.error})"
                ) from None
            return real(tensors, filename, *args, **kwargs)

        safetensors.torch.serialize_file = serialize_file


def _is_file(stream: Any) -> bool:
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):
        return False


def _raw(stream: Any) -> Any:
    """Return the lowest layer of a stream, whose ``write`` is an attribute that can be set."""
    while not isinstance(stream, io.FileIO):
        below = getattr(stream, "buffer", None) or getattr(stream, "raw", None)
        if below is None:
            return None
        stream = below
    return stream


def refusing(call: str, number: int, error: int) -> Before:
    """Let the n-th use of a function of ``os`` or ``fcntl`` fail, and those after it."""
    uses = Counter()

    def before() -> None:
        module_name, _, name = call.partition(".")
        module = sys.modules.get(module_name) or __import__(module_name)
        real = getattr(module, name)

        def refused(*args: Any, **kwargs: Any) -> Any:
            if uses.up() >= number:
                raise OSError(error, os.strerror(error))
            return real(*args, **kwargs)

        setattr(module, name, refused)

    return before


def limit(what: int, most: int) -> Before:
    """Set a limit of the process; files that grow beyond theirs fail instead of ending it."""

    def before() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(what, (most, most))

    return before


def little_memory(more: int) -> Before:
    """Leave the process ``more`` bytes of address space beyond what it has."""

    def before() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    return before


def nobody() -> None:
    """Give the rights of root up, which no permission stops."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def without_user() -> None:
    """Become a user that the system knows nothing of, and that has no home."""
    os.environ.pop("HOME", None)
    os.environ.pop("CL_LORA_CACHE", None)
    os.environ.pop("XDG_CACHE_HOME", None)
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(54321)
        os.setuid(54321)


def output(number: int, name: str, encoding: str = "utf-8") -> Before:
    """Send standard output (1) or error (2) to a device."""

    def before() -> None:
        there = os.open(name, os.O_WRONLY)
        os.dup2(there, number)
        os.close(there)

    return before


def unread(number: int) -> Before:
    """Send standard output (1) or error (2) into a pipe that nobody reads any more."""

    def before() -> None:
        reads, writes = os.pipe()
        os.dup2(writes, number)
        os.close(writes)
        os.close(reads)

    return before


def closed(number: int) -> Before:
    """Close standard output (1) or error (2), as ``>&-`` of a shell does."""

    def before() -> None:
        os.close(number)
        setattr(sys, {1: "stdout", 2: "stderr"}[number], None)

    return before


def ascii_only() -> None:
    """Speak ASCII alone, as where the locale is C."""
    import locale

    locale.setlocale(locale.LC_ALL, "C")
    for number, name in ((1, "stdout"), (2, "stderr")):
        errors = "strict" if number == 1 else "backslashreplace"
        stream = os.fdopen(number, "w", encoding="ascii", errors=errors, closefd=False)
        setattr(sys, name, stream)


def clock(seconds: float) -> Before:
    """Set the clock of this process on by ``seconds``, which may be negative."""

    def before() -> None:
        import time

        real, real_ns = time.time, time.time_ns
        time.time = lambda: real() + seconds
        time.time_ns = lambda: real_ns() + int(seconds * 1e9)

    return before


# Disks that are real: tmpfs in a mount namespace of this process's own ------------------------

_CLONE_NEWNS, _MS_REMOUNT, _MS_RDONLY, _MS_REC, _MS_PRIVATE = 0x20000, 32, 1, 0x4000, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)
_own: list[bool] = []


def can_mount() -> bool:
    """Return whether disks can be mounted here, where nobody else sees them."""
    if not _own:
        apart = os.getuid() == 0 and _libc.unshare(_CLONE_NEWNS) == 0
        _own.append(apart and _libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None) == 0)
    return _own[0]


@contextlib.contextmanager
def disk_of(size: int, where: Path) -> Iterator[None]:
    """Mount a disk of ``size`` bytes at ``where``."""
    _call(_libc.mount(b"none", bytes(where), b"tmpfs", 0, f"size={size}".encode()))
    try:
        yield
    finally:
        _call(_libc.umount2(bytes(where), 2))  # also where something is still open


def resize(where: Path, size: int, *, read_only: bool = False) -> None:
    """Give a disk another size, and forbid writing or allow it."""
    flags = _MS_REMOUNT | (_MS_RDONLY if read_only else 0)
    _call(_libc.mount(b"none", bytes(where), b"tmpfs", flags, f"size={size}".encode()))


def _call(code: int) -> None:
    if code:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
