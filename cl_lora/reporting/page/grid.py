"""Tables of the page: heads that sort, cells with the full value, baselines in their own block."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cl_lora.reporting.tables import MISSING, ResultTable

_ROW = tuple[str, "list[Cell]"]


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        value: the full number, for sorting; empty for text.
        text: what is read.
        around: what is read beside it, small.
        best: whether it is marked.
    """

    value: str
    text: str
    around: str = ""
    best: bool = False


@dataclass(frozen=True)
class Head:
    """The head of a column.

    Attributes:
        title: with unit and direction in words.
        text: whether the column holds words.
        first: which way the first click sorts: ``descending`` where larger is better or neither is.
        sort: how the column is sorted as the page is opened; empty if it is not.
    """

    title: str
    text: bool = False
    first: str = "descending"
    sort: str = ""


@dataclass(frozen=True, eq=False)
class Grid:
    """A table of the page.

    Attributes:
        caption: what the numbers are.
        heads: of the names and of every column.
        rows: name -> cells.
        baselines: the same, in a block that sorting leaves below.
        notes: sentences below.
        mark: what a marked row means; empty where none is.
        label: what a tab calls it.
    """

    caption: str
    heads: tuple[Head, ...]
    rows: list[_ROW]
    baselines: list[_ROW] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    mark: str = ""
    label: str = ""


def grid(table: ResultTable, label: str = "") -> Grid:
    """Return a table of results as the page shows it."""
    rows = [(name, _cells(table, i)) for i, name in enumerate(table.rows)]
    first = len(rows) - table.references
    heads = [Head(table.row_title, text=True, first="ascending")]
    for column in table.columns:
        way = "ascending" if column.higher_is_better is False else "descending"
        heads.append(Head(column.title, False, way, way if column.key == table.ranked_by else ""))
    marked = table.ranked_by and table.mark
    mark = f"Marked {MARK}: {table.mark}" if marked else ""
    if not table.ranked_by and any(cell.best for _, cells in rows for cell in cells):
        mark = f"Marked {MARK}: best mean of a column, baselines left out."
    return Grid(table.title, tuple(heads), rows[:first], rows[first:], table.notes, mark, label)


MARK = "●"
"""What stands before a marked number; never a sign of sorting."""


def sortable(value: float) -> str:
    """Return a number for sorting; JavaScript reads what repr writes, and "nan" as NaN."""
    return repr(float(value))


def number_cells(values: Mapping[int, float], count: int) -> list[Cell]:
    """Return cells for the places 0 to ``count - 1``, a dash where there is no value."""
    found = [values.get(j, math.nan) for j in range(count)]
    return [Cell(sortable(v), MISSING if math.isnan(v) else f"{v:.4f}") for v in found]


def heads(names: Sequence[str], words: Sequence[str] = ()) -> tuple[Head, ...]:
    """Return heads by their titles; those in ``words`` are of columns of text."""
    return tuple(
        Head(name, name in words, "ascending" if name in words else "descending") for name in names
    )


def _cells(table: ResultTable, i: int) -> list[Cell]:
    cells = []
    for j in range(len(table.columns)):
        text, around = table.cell(i, j)
        value = sortable(float(table.mean[i, j]))
        cells.append(Cell(value, text, around.replace("± ", "±"), table.is_best(i, j)))
    return cells
