"""The exception for a user's mistake, and the helpers that word it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_SHOWN = 30  # names that an error lists at most
_LONGEST = 120  # characters of a value that an error shows


class UserError(ValueError):
    """A mistake in what the user gave: one sentence with expected, received and remedy.

    The command line prints the sentence without a traceback and exits with code 2.
    """


class DivergedError(UserError):
    """Learning the coefficients of one arm failed; the other arms can go on without it."""


def shown(value: object) -> str:
    """Return a value as Python writes it, without its middle if that is long: for an error."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of thousands of digits"
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]} ... {text[-half:]}"


def unknown_name(kind: str, name: object, known: Iterable[str]) -> UserError:
    """Return the error for a name that does not exist, naming the nearest known ones.

    Args:
        kind: what was looked up, e.g. ``"merge method"``.
        name: what was received.
        known: every accepted name.
    """
    names = sorted(set(known))
    near = difflib.get_close_matches(str(name)[:_LONGEST], names, n=3, cutoff=0.5)
    if near:
        hint = f"did you mean {' or '.join(repr(n) for n in near)}?"
        rest = f" (known: {', '.join(names)})" if len(names) <= _SHOWN else ""
    else:
        more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        hint, rest = f"known: {', '.join(names[:_SHOWN]) or 'none'}{more}", ""
    return UserError(f"Unknown {kind} {shown(str(name))}: {hint}{rest}")


def printable(text: str) -> str:
    """Return ``text`` on one line, with a backslash escape for whatever is not printable.

    Names of files hold what they like: line breaks, escape codes that a terminal obeys, bytes that
    are no UTF-8 (which Python keeps as lone surrogates).

    Example:
        >>> printable("cat\\x1b[31m\\n.jpg")
        'cat\\\\x1b[31m\\\\n.jpg'
    """
    if text.isprintable():
        return text
    escaped = (c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return "".join(escaped)
