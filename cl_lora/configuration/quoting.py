"""Overrides that Hydra's grammar cannot read: what is a text gets its quotes, the rest a sentence.

Hydra takes letters beyond a to z, and signs such as ``;``, only between quotes, and a shell takes
those away: ``benchmark.root=/data/Bilder für x`` is plain enough without.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from cl_lora.support.errors import UserError, shown

_KEY = re.compile(r"(?P<key>(?:\+\+|\+|~)?[A-Za-z_$][\w.$@:/-]*)=(?P<value>.*)", re.DOTALL)
# What may mean something else than a text: lists, mappings, functions, sweeps and interpolations.
_STRUCTURE = re.compile(r"[\[\]{},'\"]|\$\{|^\s|\s$|^\w+\(", re.ASCII)
_BARE = re.compile(r"(?P<quoted>'[^']*'|\"[^\"]*\")|(?P<bare>[^\[\]{},:'\"\s][^\[\]{},:'\"]*)")

Unread = (HydraException, ValueError, RecursionError)
"""What the parser of overrides raises for one that it cannot read."""


def with_quotes(overrides: Sequence[str]) -> list[str]:
    """Return overrides with quotes around values that are a text and cannot be read without.

    Whatever can be read stays as it is, and so does what might be meant otherwise than as a text.
    """
    parser = OverridesParser.create()
    try:
        parser.parse_overrides(list(overrides))
    except Unread:
        pass
    else:
        return list(overrides)
    return [override if _reads(override, parser) else _quoted(override) for override in overrides]


def unreadable(override: str, error: Exception, parser: OverridesParser) -> UserError:
    """Return the sentence for an override that cannot be read, with a corrected one if there is.

    Args:
        override: what was given.
        error: of Hydra's parser.
        parser: that parser.
    """
    try:
        override.encode()
    except UnicodeEncodeError:
        return UserError(
            f"Expected text in UTF-8 but {shown(override)} holds other bytes; give another name, "
            "or a link to what has it"
        )
    match = _KEY.fullmatch(override)
    if match is None:
        before, equals, _ = override.partition("=")
        odd = f"the key {shown(before)}" if equals else "no '='"
        return UserError(
            f"Expected an override as KEY=VALUE but {shown(override)} has {odd}; write the name of "
            "an option, then '=', then its value"
        )
    key, value = match["key"], match["value"]
    better = f"{key}={_as_text(value)}"
    if value[:1] in ("[", "{"):
        better = f"{key}={_BARE.sub(_in_quotes, value)}"
    whole = value[:1] not in ("'", '"') and value.isprintable() and len(better) <= _LONGEST
    if not (whole and better != override and _reads(better, parser)):
        return UserError(
            f"The value of {key} cannot be read: {shown(value)}; close every bracket and quote, "
            f"and put a text with special characters between inner quotes, as '{key}=\"a; b\"'"
        )
    return UserError(
        f"The value of {key} cannot be read: {shown(value)}; put its texts between inner quotes, "
        f"as {shlex.quote(better)}"
    )


_LONGEST = 300  # characters of an override that is shown corrected


def _quoted(override: str) -> str:
    match = _KEY.fullmatch(override)
    if match is None or _STRUCTURE.search(match["value"]) or not match["value"].isprintable():
        return override
    return f"{match['key']}={_as_text(match['value'])}"


def _in_quotes(match: re.Match[str]) -> str:
    text = match["bare"]
    if text is None or re.fullmatch(r"[\w./+*@$%?| -]*", text, re.ASCII):
        return match[0]
    return _as_text(text.rstrip()) + " " * (len(text) - len(text.rstrip()))


def _as_text(value: str) -> str:
    return QuotedString(value, Quote.double).with_quotes()


def _reads(override: str, parser: OverridesParser) -> bool:
    try:
        parser.parse_overrides([override])
    except Unread:
        return False
    return True
