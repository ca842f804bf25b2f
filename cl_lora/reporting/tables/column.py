"""Columns of a table of results: what they are called and how their numbers are written."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

MISSING = "–"

LATE = 1
"""A column of at most this priority (but 0, which stays) goes after the spread of the details."""

Form: TypeAlias = Literal[
    "mean", "interval", "p", "count", "amount", "digits", "kilo", "millions", "times", "word"
]

_SMALLEST_P = 0.001
_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


@dataclass(frozen=True)
class Column:
    """One column of results.

    Attributes:
        key: its name in the data frame and the CSV.
        title: heading.
        short: heading where room is scarce.
        higher_is_better: direction; None where no best row is marked.
        percent: whether values in [0, 1] are shown in percent.
        priority: 0 stays; of the others the highest goes first where room is scarce, those of
            :data:`LATE` and below, such as :data:`N`, after the spread of the detail columns only.
        detail: whether it is one of many of a kind, e.g. one domain of the average.
        signed: whether a plus sign is shown.
        note: the definition, for the caption.
        form: what stands in a cell. ``mean``: a value, ± its standard deviation; ``interval``: a
            value, then [low, high]; ``p``: a p value; ``count``: a whole number;
            ``amount``: a number that is not negative in two or three digits, such as 1.2k;
            ``digits``: one in three digits, ``kilo`` in thousands, ``millions`` in millions;
            ``times``: how many times as much, such as 1.08×; ``word``: one of ``words``.
        words: those that the whole numbers from 0 stand for.
    """

    key: str
    title: str
    short: str
    higher_is_better: bool | None = True
    percent: bool = True
    priority: int = 0
    detail: bool = False
    signed: bool = False
    note: str = ""
    form: Form = "mean"
    words: tuple[str, ...] = ()

    def number(self, value: float) -> str:
        """Return ``value`` as shown, in percent or not."""
        if np.isnan(value):
            return MISSING
        if self.words:
            return self.words[round(value)]
        if self.form in _WRITTEN:
            return _WRITTEN[self.form](value)
        decimals = 1 if self.percent else 3
        text = f"{100 * value if self.percent else value:.{decimals}f}"
        text = re.sub(r"^-(0\.0+)$", r"\1", text)  # no "-0.0"
        # A true minus is as wide as the plus sign and cannot be taken for a hyphen.
        return ("+" if self.signed and value > 0 else "") + text.replace("-", "−")


N = Column("seeds", "n", "n", None, percent=False, form="count")
"""The number of seeds behind a row."""


def _amount(value: float) -> str:
    """Return a number in two or three digits, with k for thousands, M and G.

    Example:
        >>> [_amount(v) for v in (0, 0.04, 0.83, 7, 12.4, 999.7, 1234, 73_728, 5_526_346)]
        ['0', '<0.1', '0.8', '7', '12', '1.0k', '1.2k', '74k', '5.5M']
    """
    if 0 < value < 0.05:
        return "<0.1"
    # By what is shown: 999.7 would read 1000.
    unit, letter = next((u, x) for u, x in _UNITS if value >= 0.9995 * u or u == 1)
    shown = value / unit
    whole = shown >= 9.95 or (unit == 1 and shown == int(shown))
    return f"{shown:.0f}{letter}" if whole else f"{shown:.1f}{letter}"


def _three_digits(value: float) -> str:
    """Return a number that is not negative in at least three digits, without an exponent.

    Example:
        >>> [_three_digits(v) for v in (0, 0.00412, 0.9999, 5.5, 63.04, 908.31, 1234.5)]
        ['0', '0.00412', '1.00', '5.50', '63.0', '908', '1234']
    """
    if not value:
        return "0"
    # By what is shown: 0.9999 would read 1.000.
    rounded = float(f"{value:.2e}")
    return f"{value:.{max(0, 2 - math.floor(math.log10(rounded)))}f}"


_WRITTEN: Mapping[str, Callable[[float], str]] = {
    "count": lambda value: f"{value:.0f}",
    "p": lambda value: f"{value:.3f}" if value >= _SMALLEST_P else f"<{_SMALLEST_P}",
    "amount": _amount,
    "digits": _three_digits,
    "kilo": lambda value: _three_digits(value / 1e3),
    "millions": lambda value: _three_digits(value / 1e6),
    "times": lambda value: f"{value:.{2 if value < 9.995 else 1}f}×",
}
"""Form -> how a number of it is written, whatever the column."""
