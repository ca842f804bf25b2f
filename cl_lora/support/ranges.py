"""The largest sensible value of an option, said where the option is declared.

A number beyond it is a slip of the keyboard: it would take all memory, or all time, before anything
else could be said of it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from cl_lora.support.errors import UserError, shown

MOST = "most"
"""The key of the largest value in the metadata of a dataclass field."""

LARGEST_SEED = 2**63 - 1
"""Of every seed: what generators and the libraries below take."""


def at_most(most: float, default: Any = dataclasses.MISSING) -> Any:
    """Return a dataclass field whose numbers are ``most`` or less, in a list each of them.

    Args:
        most: the largest sensible value; the smallest of a field that takes negative numbers is
            ``-most``.
        default: of the field.
    """
    return dataclasses.field(default=default, metadata={MOST: most})


def largest(cls: type) -> dict[str, float]:
    """Return the largest values that a dataclass declares, by the name of the field."""
    return {f.name: f.metadata[MOST] for f in dataclasses.fields(cls) if MOST in f.metadata}


def check_most(value: object, most: float, where: str) -> None:
    """Refuse a number, or one in a list, that is larger than makes sense.

    What is no number, or is not finite, is left to other checks.

    Args:
        value: what was given.
        most: the largest sensible value.
        where: what it is called in messages.

    Raises:
        UserError: naming the number and the limit.
    """
    for number in _numbers(value):
        if number > most:
            raise UserError(
                f"Expected {where} to be at most {_written(most)} but got {shown(number)}; give a "
                "smaller number"
            )
        if number < -most:
            raise UserError(
                f"Expected {where} to be at least -{_written(most)} but got {shown(number)}; give "
                "a larger number"
            )


def _numbers(value: object) -> Iterator[float]:
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        yield value
    elif isinstance(value, float):
        if math.isfinite(value):
            yield value
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for inner in value:
            yield from _numbers(inner)


def _written(number: float) -> str:
    return f"{number:,}"


def check_plain(value: object, where: str = "") -> None:
    """Refuse what no option can hold, wherever it stands in a configuration.

    Those are texts that no file could be called by or hold (with a NUL, or not of UTF-8), and whole
    numbers beyond 64 bits.

    Args:
        value: a plain container, or what stands in one.
        where: its name, dotted; empty at the top.

    Raises:
        UserError: naming the first.
    """
    if isinstance(value, Mapping):
        _check_each(((key, key) for key in value), where)
        _check_each(value.items(), where)
    elif isinstance(value, str):
        _check_text(value, where)
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        _check_each(enumerate(value), where)
    elif isinstance(value, int) and abs(value) > LARGEST_SEED:
        raise UserError(
            f"Expected {where} to be a number of at most 64 bits but got {shown(value)}; give a "
            "smaller one"
        )


def _check_each(items: Iterable[tuple[object, object]], where: str) -> None:
    for name, value in items:
        told = shown(str(name))[1:-1]
        check_plain(value, f"{where}.{told}" if where else told)


def _check_text(text: str, where: str) -> None:
    odd = "a NUL character" if "\0" in text else None
    try:
        text.encode()
    except UnicodeEncodeError:
        odd = "bytes that are not UTF-8"
    if odd:
        raise UserError(f"{where or 'A text'} holds {odd}: {shown(text)}; write it without")
