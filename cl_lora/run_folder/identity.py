"""What makes two runs the same: everything that decides the numbers, and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cl_lora.support.errors import UserError

log = logging.getLogger(__name__)

_SENTENCES = {"data": "data", "backbone": "backbone's weights"}


def require_same(
    folder: Path, there: Mapping[str, Any], here: Mapping[str, Any], defaults: Mapping[str, Any]
) -> None:
    """Refuse to mix two identities in one folder.

    Args:
        folder: the run folder.
        there: the identity that it records.
        here: that of the command.
        defaults: strategy options at their defaults: what an option means that a folder of an
            older version does not know.

    Raises:
        UserError: naming the first difference.
    """
    known = filled(there, defaults)
    difference = first_difference(known, here)
    if difference is None:
        return
    key, old, new = difference
    what = _SENTENCES.get(key.split(".")[0])
    if what:
        raise UserError(f"The {what} changed since {folder} was begun; use a new run_dir")
    raise UserError(
        f"{folder} holds another configuration ({key} is {old!r} there and {new!r} here); choose "
        "another run_dir, or leave run_dir out"
    )


def take_threads(folder: Path, there: int | None, asked: int | None) -> None:
    """Compute with as many CPU threads as a folder was: other numbers give other last bits.

    Args:
        folder: the run folder.
        there: how many it records; None where it does not.
        asked: how many the command asks for; None where it does not care.

    Raises:
        UserError: if it asks for another number.
    """
    import torch  # not above: who only reads a folder does without

    if there is None or there == torch.get_num_threads():
        return
    if asked not in (None, there):
        raise UserError(
            f"{folder} was computed with {there} CPU thread{'s' * (there != 1)} but "
            f"threads={asked}, and sums of another number of threads differ in their last bits; "
            f"set threads={there}, or choose another run_dir"
        )
    log.info("computing with %d CPU threads, as %s was", there, folder)
    torch.set_num_threads(there)


def filled(identity: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return an identity with the options that it does not know yet, at their defaults.

    So an option that a later version adds makes no run another one.
    """
    return {**identity, "strategy": {**defaults, **identity.get("strategy", {})}}


def first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the dotted key of the first difference with both values, or None."""
    return next(differences(old, new), None)


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield the dotted key of every difference with both values."""
    for key in dict.fromkeys([*old, *new]):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from differences(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}", a, b
