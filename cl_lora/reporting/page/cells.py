"""Cells of the report's tables: what is read, and the full value that sorting uses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cl_lora.reporting.tables import MISSING


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        value: the full number, for sorting.
        text: what is read.
        around: what is read beside it, small.
        best: whether it leads its column.
    """

    value: str
    text: str
    around: str = ""
    best: bool = False


def sortable(value: float) -> str:
    """Return a number for sorting; JavaScript reads what repr writes, and "nan" as NaN."""
    return repr(float(value))


def number_cells(values: Mapping[int, float], count: int) -> list[Cell]:
    """Return cells for the places 0 to ``count - 1``, a dash where there is no value."""
    found = [values.get(j, math.nan) for j in range(count)]
    return [Cell(sortable(v), MISSING if math.isnan(v) else f"{v:.4f}") for v in found]
