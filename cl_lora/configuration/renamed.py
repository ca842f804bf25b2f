"""Choices that had another name in an earlier version: they keep working, with a hint."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache

from cl_lora.support.errors import UserError, unknown_name
from cl_lora.support.printing import tell

RENAMED: Mapping[str, Mapping[str, str]] = {
    "arms": {
        "paper_adaptive": "coleman2024_adaptive",
        "paper_fixed": "coleman2024_fixed",
        "paper_peft": "coleman2024_peft",
        "paper_peft_adaptive": "coleman2024_peft_adaptive",
        "paper_spc1": "coleman2024_spc1",
        "few_shot_paper": "asadi2024",
    },
    "strategy": {"paper_b": "coleman2024"},
    "experiment": {
        "paper_b_pacs": "coleman2024_pacs",
        "paper_b_office_home": "coleman2024_office_home",
    },
}
"""Group -> the earlier name of a choice -> its name now."""

_OVERRIDE = re.compile(r"(?P<key>(?:\+\+|\+)?(?P<group>\w+)(?:@[\w.]+)?=)(?P<value>.*)", re.DOTALL)


def with_new_names(overrides: Sequence[str], known: Callable[[str], Iterable[str]]) -> list[str]:
    """Return overrides with the names that choices have now, and tell each change once.

    In lists and sweeps too, as ``arms=[paper_fixed,mine]`` and ``arms=paper_fixed,none``.

    Args:
        overrides: as they are given.
        known: returns the choices of a group; a user's own file of an earlier name is left alone.
    """
    return [_with_new_names(override, known) for override in overrides]


def unknown_choice(group: str, name: object, known: Iterable[str]) -> UserError:
    """Return the error for a choice that does not exist; one that was renamed names its new name.

    Args:
        group: where it was looked up.
        name: what was received.
        known: every choice of the group.
    """
    new = RENAMED.get(group, {}).get(str(name))
    if new is not None:
        return UserError(f"{group}={name} is called {new} now; write {group}: {new} in your YAML")
    return unknown_name(group, name, known)


def _with_new_names(override: str, known: Callable[[str], Iterable[str]]) -> str:
    match = _OVERRIDE.fullmatch(override)
    names = RENAMED.get(match["group"], {}) if match else {}
    if match is None or not names:
        return override
    value = match["value"]
    for old, new in names.items():
        whole = rf"(?<![\w./-]){re.escape(old)}(?![\w./-])"
        if re.search(whole, value) and old not in known(match["group"]):
            value = re.sub(whole, new, value)
            _tell(match["group"], old, new)
    return match["key"] + value


@cache
def _tell(group: str, old: str, new: str) -> None:
    tell(f"{group}={old} is called {new} now")
