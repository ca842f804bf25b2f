"""A table of results at the width of a terminal: what is given up for it, in which order."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Group
from rich.table import Table
from rich.text import Text

from cl_lora.reporting.tables.column import LATE
from cl_lora.reporting.tables.data import TableData
from cl_lora.reporting.tables.names import shorten

MARK = "*"
"""What stands behind the number of a marked row."""


def fitted(table: TableData, width: int) -> Group:
    """Return title, table and notes for a terminal of ``width`` columns.

    Headings are broken into lines, as narrow as their numbers; short ones stand where that does not
    do. What does not fit is given up in this order: columns by priority, the spread of the detail
    columns, n and what else is late, parts of long names, the detail columns, all spreads, the last
    columns. A note names the columns that are left out.
    """
    cells: _Cells = {}
    for layout in _layouts(table):
        columns = _columns(table, layout, cells)
        if _width(columns) <= width:
            break
    drawn = _render(table, columns)
    notes = [*([f"{MARK} {table.mark}"] if table.mark else []), *table.notes]
    dropped = [c.title for j, c in enumerate(table.columns) if j not in layout.columns]
    if dropped:
        notes.append(f"Not shown at this width: {', '.join(dropped)}.")
    # Text, as markup would take R[l,j] for a style. Beside the table, not as its title and
    # caption, which would be wrapped at the width of a narrow table.
    title = [Text(table.title, style="bold")] if table.title else []
    return Group(*title, drawn, *map(Text, notes))


def _layouts(table: TableData) -> Iterator[_Layout]:
    """Yield what is tried, the fullest first; each with long headings before short ones.

    Where names are cut, headings are short: a name tells more.
    """
    longest = max(map(len, table.rows), default=0)
    for layout in _contents(table):
        whole = layout.name_width == longest
        for heads in (_LONG, _MIXED, _SHORT) if whole else (_SHORT,):
            yield replace(layout, heads=heads)


def _contents(table: TableData) -> Iterator[_Layout]:
    everything = tuple(range(len(table.columns)))
    longest = max(map(len, table.rows), default=0)
    yield _Layout(everything, longest)
    kept = everything
    priorities = sorted({c.priority for c in table.columns} - {0}, reverse=True)
    for priority in (p for p in priorities if p > LATE):
        kept = tuple(j for j in kept if table.columns[j].priority < priority)
        yield _Layout(kept, longest)
    for priority in (p for p in priorities if p <= LATE):
        yield _Layout(kept, longest, detail_spread=False)
        kept = tuple(j for j in kept if table.columns[j].priority != priority)
    widths = [w for w in (36, 30, 26, 22, 18, 16) if w < longest]
    for width in (longest, *widths):
        yield _Layout(kept, width, detail_spread=False)
    for width in (longest, *widths):
        yield _Layout(kept, width, detail_spread=False, detail_width=5)
    kept = tuple(j for j in kept if not table.columns[j].detail)
    for width in (longest, *widths):
        yield _Layout(kept, width)
    for count in range(len(kept), 0, -1):
        yield _Layout(kept[:count], min([longest, *widths]), detail_spread=False, spread=False)


_Cells = dict[tuple[int, bool], list[Text]]
"""The cells of a column, with or without its spread."""

_BETWEEN = 2
"""Characters between two columns."""


def _columns(table: TableData, layout: _Layout, cells: _Cells) -> list[tuple[str, list[Text]]]:
    """Return the heading and the cells of every column, that of the names first."""
    names = shorten(table.rows, layout.name_width)
    found = [(table.row_title, [Text(name) for name in names])]
    details = [j for j in layout.columns if table.columns[j].detail]
    tiny = dict(
        zip(
            details,
            shorten([table.columns[j].title for j in details], layout.detail_width, words=True),
            strict=True,
        )
    )
    for j in layout.columns:
        column = table.columns[j]
        short = layout.heads == _SHORT or (layout.heads == _MIXED and column.detail)
        heading = column.short if short else column.title
        if short and j in tiny and len(heading.removesuffix(" ↓")) > layout.detail_width:
            heading = tiny[j]
        with_spread = layout.spread and (layout.detail_spread or not column.detail)
        if (j, with_spread) not in cells:
            cells[j, with_spread] = _texts(table, j, with_spread)
        texts = cells[j, with_spread]
        widest = max((text.cell_len for text in texts), default=0)
        found.append((heading if short else _broken(heading, widest), texts))
    return found


def _width(columns: Sequence[tuple[str, list[Text]]]) -> int:
    """Return how wide a table of these columns is."""
    widths = [
        max(*map(cell_len, heading.split("\n")), *(text.cell_len for text in texts))
        for heading, texts in columns
    ]
    return sum(widths) + _BETWEEN * (len(widths) - 1)


def _render(table: TableData, columns: Sequence[tuple[str, list[Text]]]) -> Table:
    drawn = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    (title, names), *others = columns
    drawn.add_column(title, no_wrap=True, vertical="bottom")
    for heading, _ in others:
        drawn.add_column(Text(heading), justify="right", no_wrap=True, vertical="bottom")
    for i, name in enumerate(names):
        if table.references and i == len(names) - table.references and i:
            drawn.add_section()
        drawn.add_row(name, *(texts[i] for _, texts in others))
    return drawn


def _broken(heading: str, width: int) -> str:
    """Return a heading in lines that are no wider than its numbers, or its longest word."""
    words = heading.split(" ")
    return "\n".join(textwrap.wrap(heading, max(width, *map(len, words)), break_on_hyphens=False))


def _texts(table: TableData, j: int, with_spread: bool) -> list[Text]:
    pairs = [table.cell(i, j) for i in range(len(table.rows))]
    # Narrow: the sign close to its number.
    arounds = [around.replace("± ", "±") for _, around in pairs]
    width = max(map(len, arounds), default=0) if with_spread else 0
    texts = []
    # Marked without colour, too; the others are padded, so that numbers stand below one another.
    marks = table.columns[j].key == table.ranked_by and bool(table.mark)
    for i, (mean, _) in enumerate(pairs):
        best = table.is_best(i, j)
        text = Text(mean, style="bold" if best else "")
        if marks:
            text.append(MARK if best else " ")
        if width:
            # Padded, so that the means stand below one another.
            sign = "±" * arounds[i].startswith("±")
            rest = arounds[i].removeprefix(sign)
            text.append(f" {sign}{rest:>{width - len(sign)}}")
        texts.append(text)
    return texts


_LONG, _MIXED, _SHORT = range(3)
"""Headings: long ones, short ones of the details alone, short ones."""


@dataclass(frozen=True)
class _Layout:
    columns: tuple[int, ...]
    name_width: int
    heads: int = 0
    detail_spread: bool = True
    detail_width: int = 8
    spread: bool = True
