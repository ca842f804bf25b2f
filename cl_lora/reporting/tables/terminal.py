"""A table of results at the width of a terminal: what is given up for it, in which order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from cl_lora.reporting.tables.column import LATE
from cl_lora.reporting.tables.data import TableData
from cl_lora.reporting.tables.names import shorten


def fitted(table: TableData, width: int) -> Group:
    """Return title, table and notes for a terminal of ``width`` columns.

    What does not fit is given up in this order: long headings, columns by priority, the
    spread of the detail columns, n and what else is late, parts of long names, the detail
    columns, all spreads, the last columns. A note names the columns that are left out.
    """
    console = Console(width=10_000)
    for layout in _layouts(table):
        drawn = _render(table, layout)
        if console.measure(drawn).maximum <= width:
            break
    notes = list(table.notes)
    dropped = [c.title for j, c in enumerate(table.columns) if j not in layout.columns]
    if dropped:
        notes.append(f"Not shown at this width: {', '.join(dropped)}.")
    # Text, as markup would take R[l,j] for a style. Beside the table, not as its title and
    # caption, which would be wrapped at the width of a narrow table.
    title = [Text(table.title, style="bold")] if table.title else []
    return Group(*title, drawn, *map(Text, notes))


def _layouts(table: TableData) -> Iterator[_Layout]:
    everything = tuple(range(len(table.columns)))
    longest = max(map(len, table.rows), default=0)
    yield _Layout(everything, longest, short=False)
    yield _Layout(everything, longest)
    kept = everything
    priorities = sorted({c.priority for c in table.columns} - {0}, reverse=True)
    for priority in (p for p in priorities if p > LATE):
        kept = tuple(j for j in kept if table.columns[j].priority < priority)
        yield _Layout(kept, longest)
    for priority in (p for p in priorities if p <= LATE):
        yield _Layout(kept, longest, detail_spread=False)
        kept = tuple(j for j in kept if table.columns[j].priority != priority)
    widths = [w for w in (36, 30, 26, 22, 18) if w < longest]
    for width in (longest, *widths):
        yield _Layout(kept, width, detail_spread=False)
    for width in (longest, *widths):
        yield _Layout(kept, width, detail_spread=False, detail_width=5)
    kept = tuple(j for j in kept if not table.columns[j].detail)
    for width in (longest, *widths):
        yield _Layout(kept, width)
    for count in range(len(kept), 0, -1):
        yield _Layout(kept[:count], min([longest, *widths]), detail_spread=False, spread=False)


def _render(table: TableData, layout: _Layout) -> Table:
    names = shorten(table.rows, layout.name_width)
    drawn = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    drawn.add_column(table.row_title, no_wrap=True)
    cells: list[list[Text]] = []
    details = [j for j in layout.columns if table.columns[j].detail]
    tiny = dict(
        zip(
            details,
            shorten([table.columns[j].title for j in details], layout.detail_width),
            strict=True,
        )
    )
    for j in layout.columns:
        column = table.columns[j]
        heading = column.short if layout.short else column.title
        if layout.short and j in tiny and len(heading.removesuffix(" ↓")) > layout.detail_width:
            heading = tiny[j]
        drawn.add_column(Text(heading), justify="right", no_wrap=True)
        with_spread = layout.spread and (layout.detail_spread or not column.detail)
        cells.append(_texts(table, j, with_spread))
    for i, name in enumerate(names):
        if table.references and i == len(names) - table.references and i:
            drawn.add_section()
        drawn.add_row(Text(name), *(texts[i] for texts in cells))
    return drawn


def _texts(table: TableData, j: int, with_spread: bool) -> list[Text]:
    pairs = [table.cell(i, j) for i in range(len(table.rows))]
    # Narrow: the sign close to its number.
    arounds = [around.replace("± ", "±") for _, around in pairs]
    width = max(map(len, arounds), default=0) if with_spread else 0
    texts = []
    for i, (mean, _) in enumerate(pairs):
        text = Text(mean, style="bold" if table.is_best(i, j) else "")
        if width:
            # Padded, so that the means stand below one another.
            sign = "±" * arounds[i].startswith("±")
            rest = arounds[i].removeprefix(sign)
            text.append(f" {sign}{rest:>{width - len(sign)}}")
        texts.append(text)
    return texts


@dataclass(frozen=True)
class _Layout:
    columns: tuple[int, ...]
    name_width: int
    short: bool = True
    detail_spread: bool = True
    detail_width: int = 8
    spread: bool = True
