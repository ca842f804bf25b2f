"""What reaches the terminal: safely, in any locale, and without stopping the work if nobody reads.

Standard output is what a command was given for: where it cannot be written the command fails.
Standard error tells how far it is: where it cannot be written nothing else is wrong.
"""

from __future__ import annotations

import codecs
import contextlib
import logging
import os
import sys
from typing import IO

from cl_lora.support.errors import UserError, printable

_PLAIN = {
    "±": "+/-",
    "×": "x",
    "−": "-",
    "–": "-",
    "…": "...",
    "↓": "v",
    "→": "->",
    "≤": "<=",
    "≥": ">=",
    "·": "*",
    "─": "-",
    "\u2018": "'",
    "\u2019": "'",
    "\u201c": '"',
    "\u201d": '"',
}
"""What stands for a character of ours where the locale cannot show it."""

_ERRORS = "cl_lora.plain"
_quiet = False


class OutputError(UserError):
    """Standard output cannot be written."""


def tell(text: str) -> None:
    """Print one line on standard error; whatever is not printable in it is escaped.

    Nothing is raised where it cannot be written: no run fails for what it says of itself.
    """
    with contextlib.suppress(OSError, ValueError):
        print(printable(text), file=sys.stderr, flush=True)


def narrate(text: str) -> None:
    """Print one line of what is going on on standard error, unless quiet was asked for."""
    if not is_quiet():
        tell(text)


def be_quiet(quiet: bool = True) -> None:
    """Keep what is going on from being printed; tables, warnings and errors still are."""
    global _quiet  # noqa: PLW0603
    _quiet = quiet


def is_quiet() -> bool:
    """Return whether only tables, warnings and errors are printed."""
    return _quiet


def say(text: str) -> None:
    """Print one line on standard output; whatever is not printable in it is escaped."""
    print(printable(text))


class Lines(logging.Formatter):
    """Formats what is logged as one line, in which whatever is not printable is escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return printable(super().format(record))


def prepare_streams() -> None:
    """Make the standard streams fit to be written whatever the locale, and however we were begun.

    A standard stream that was closed is held by the null device: the next file that is opened would
    get its number, and what libraries print would go into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # as the interpreter has it where it was closed
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.reconfigure(errors=_ERRORS)  # type: ignore[union-attr]


def finish_output() -> None:
    """Write what is still buffered of standard output.

    Raises:
        BrokenPipeError: if its reader has gone.
        OutputError: if it cannot be written; what is buffered is dropped.
    """
    try:
        _flush(sys.stdout)
    except BrokenPipeError:
        raise
    except OSError as error:
        drop_output()
        raise OutputError(
            f"Cannot write to standard output: {error.strerror or error}; what is finished is kept "
            "on disk, send the output elsewhere and give the same command again"
        ) from error


def drop_output() -> None:
    """Send to nowhere what is still buffered of standard output, which cannot be written.

    The interpreter tries once more when it ends, and would say so at length.
    """
    _drop(sys.stdout)


def finish_errors() -> None:
    """Write what is still buffered of standard error, or drop it where it cannot be written."""
    try:
        _flush(sys.stderr)
    except OSError:
        _drop(sys.stderr)


def _drop(stream: IO[str] | None) -> None:
    if stream is None:
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)
    with contextlib.suppress(OSError, ValueError):
        _flush(stream)


def _flush(stream: IO[str] | None) -> None:
    if stream is not None and not stream.closed:
        stream.flush()


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Return what stands for characters that an encoding has not: see :func:`codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c, ascii(c)[1:-1]) for c in found), error.end


codecs.register_error(_ERRORS, _plain)
