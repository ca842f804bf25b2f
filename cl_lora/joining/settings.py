"""Numbers that differ by module: by a pattern of its name, or from the first layer to the last."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cl_lora.merging.registry import is_number
from cl_lora.support.errors import UserError, shown, unknown_name

EVERYWHERE = "*"
_KEYS = ("filter", "value")
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Rule:
    """Values for the tensors whose name matches.

    Attributes:
        values: one number, or several that are spread evenly over the layers and joined by lines.
        filter: a part of the tensor's name, or a pattern of the whole name with ``*``, ``?`` or
            ``[]``; None for every tensor.
    """

    values: tuple[float, ...]
    filter: str | None = None

    def matches(self, name: str) -> bool:
        """Return whether the rule is for a tensor."""
        if self.filter is None or self.filter == EVERYWHERE:
            return True
        if _WILD.search(self.filter):
            return fnmatch.fnmatchcase(name, self.filter)
        return self.filter in name

    def value(self, name: str, depth: float | None) -> float:
        """Return the number for a tensor at ``depth`` from 0, the first layer, to 1, the last.

        Raises:
            UserError: if it depends on the layer and the tensor has none.
        """
        if len(self.values) == 1:
            return self.values[0]
        if depth is None:
            raise UserError(
                f"A list of numbers goes from the first layer to the last but {name!r} has no "
                "number of a layer in its name; give it a filter with one value"
            )
        place = depth * (len(self.values) - 1)
        below = int(place)
        above = min(below + 1, len(self.values) - 1)
        share = place - below
        return (1 - share) * self.values[below] + share * self.values[above]


@dataclass(frozen=True)
class Setting:
    """A number for every tensor: the first rule that matches says it.

    Attributes:
        rules: in order.
    """

    rules: tuple[Rule, ...]

    @classmethod
    def of(cls, value: float) -> Setting:
        """Return the setting of one number for all tensors."""
        return cls((Rule((value,)),))

    def at(self, name: str, depth: float | None) -> float | None:
        """Return the number for a tensor, None if no rule is for it."""
        for rule in self.rules:
            if rule.matches(name):
                return rule.value(name, depth)
        return None


def parse_setting(value: Any, what: str) -> Setting:
    """Read a number, a list of numbers over the layers, or a list of filters with values.

    Args:
        value: as YAML has it.
        what: what it is, for the errors.

    Raises:
        UserError: if it is none of these.
    """
    if is_number(value):
        return Setting.of(float(value))
    if isinstance(value, list) and value and all(map(is_number, value)):
        return Setting((Rule(tuple(map(float, value))),))
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list) and value and all(isinstance(rule, dict) for rule in value):
        return Setting(tuple(_rule(rule, what) for rule in value))
    raise UserError(
        f"Expected {what} to be a number, a list of numbers from the first layer to the last, or a "
        f"list of {{filter, value}}, but got {shown(value)}; correct it"
    )


def _rule(rule: Mapping[str, Any], what: str) -> Rule:
    for key in rule:
        if key not in _KEYS:
            raise unknown_name(f"key of {what}", key, _KEYS)
    pattern = rule.get("filter")
    if not (pattern is None or isinstance(pattern, str)):
        raise UserError(
            f"Expected filter of {what} to be text but got {shown(pattern)}; correct it"
        )
    if "value" not in rule:
        raise UserError(f"Expected {what} to have a value beside filter {pattern!r}; add it")
    inner = parse_setting(rule["value"], what).rules
    if len(inner) > 1 or inner[0].filter is not None:
        raise UserError(
            f"Expected the value of filter {pattern!r} of {what} to be numbers; correct it"
        )
    return Rule(inner[0].values, pattern)
