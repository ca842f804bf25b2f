"""Plain mappings in, typed and validated settings out."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from cl_lora.support.errors import UserError, shown, unknown_name
from cl_lora.support.ranges import check_most, largest

C = TypeVar("C")

MISSING = "???"
"""What Hydra writes for a value that the user must give."""


def required(meaning: str, example: str) -> Any:
    """Return a dataclass field without default, described for the error when it is missing.

    Args:
        meaning: what the option is, e.g. ``the folder of the images``.
        example: what a value looks like, e.g. ``DIR``.
    """
    return dataclasses.field(metadata={"meaning": meaning, "example": example})


def missing_options(cls: type, values: Mapping[str, Any]) -> list[str]:
    """Return the options of the dataclass ``cls`` that must be given and are not in ``values``."""
    return [
        f.name
        for f in dataclasses.fields(cls)
        if values.get(f.name) == MISSING or (_needed(f) and values.get(f.name) is None)
    ]


def build(cls: type[C], values: Mapping[str, Any], where: str) -> C:
    """Build the dataclass ``cls`` from ``values``, checking names and types.

    Args:
        cls: a dataclass whose ``__post_init__`` checks the values themselves.
        values: option -> value, as YAML gives it; lists become tuples.
        where: prefix of the options in messages, e.g. ``strategy``; empty at the top.

    Raises:
        UserError: for an unknown or missing option, a value of the wrong type, or a number beyond
            what its field declares (:func:`cl_lora.support.ranges.at_most`).
    """
    hints = typing.get_type_hints(cls)
    prefix = f"{where}." if where else ""
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise unknown_name(f"{where} option".strip(), name, fields)
    for name in missing_options(cls, values):
        about = fields[name].metadata
        if "meaning" in about:
            raise UserError(
                f"Expected {prefix}{name}, {about['meaning']}, but it is not given; "
                f"add {prefix}{name}={about['example']}"
            )
        raise UserError(f"The option {prefix}{name} is missing; give it a value")
    given = {name: _convert(v, hints[name], prefix + name) for name, v in values.items()}
    for name, most in largest(cls).items():
        check_most(given.get(name), most, prefix + name)
    return cls(**given)


def _needed(field: dataclasses.Field[Any]) -> bool:
    """Return whether a field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(value: Any, hint: Any, where: str) -> Any:
    """Return ``value`` as the type ``hint``; lists pass as tuples."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, typing.get_args(hint), where)
    if origin in (tuple, Sequence) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise _wrong(value, "a list, as [A,B],", where, "give one in brackets")
        inner = typing.get_args(hint)[0]
        return tuple(_convert(v, inner, f"{where}[{i}]") for i, v in enumerate(value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong(value, "a mapping", where, "give one in braces, as {NAME: VALUE}")
        return dict(value)
    return _convert_scalar(value, hint, where)


def _convert_scalar(value: Any, hint: Any, where: str) -> Any:
    """Return ``value`` as the plain type ``hint``; ints pass as floats, paths as texts."""
    if hint is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        expected, remedy = _SCALARS.get(hint, (str(hint), "give one"))
        raise _wrong(value, expected, where, remedy)
    return value


_SCALARS: Mapping[type, tuple[str, str]] = {
    int: ("a whole number", "give one without quotes, point or exponent, as 8"),
    float: ("a number", "give one, as 0.5 or 1e-3"),
    str: ("a text", "give one, in inner quotes where it looks like something else, as \"'5'\""),
    bool: ("true or false", "give one of the two"),
}
"""Type -> what it is called, and what to do."""


def _convert_union(value: Any, options: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in options:
        return None
    errors = []
    for option in (o for o in options if o is not type(None)):
        try:
            return _convert(value, option, where)
        except UserError as error:
            errors.append(error)
    raise errors[-1]


def _wrong(value: Any, expected: str, where: str, remedy: str) -> UserError:
    return UserError(f"Expected {where} to be {expected} but got {shown(value)}; {remedy}")
