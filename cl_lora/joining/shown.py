"""What the terminal shows of a merge and of a comparison; all of it fits 80 columns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from cl_lora.joining.card import extent, loss
from cl_lora.joining.comparing import INTERFERENCE, Comparison, Matrix
from cl_lora.joining.joined import Joined

if TYPE_CHECKING:
    from rich.console import RenderableType

_SHOWN = 16  # adapters that a matrix has room for
_PAIRS = 10  # pairs that are named where it has none


def summary(joined: Joined) -> Iterator[RenderableType]:
    """Yield what is printed of a merge."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _facts(joined):
        table.add_row(f"{name}:", Text(text))  # a Text: names may hold what looks like markup
    yield table
    yield ""
    yield _members(joined)


def _facts(joined: Joined) -> Iterator[tuple[str, str]]:
    variant = {k: v for k, v in joined.variant.items() if k not in ("scaling", "rank")}
    yield "Merged", ", ".join(f"{k} {_word(v)}" for k, v in variant.items())
    yield "Result", f"{extent(joined)}; {joined.parameters:,} numbers, {_size(joined)}"
    yield "Loss", loss(joined)
    if joined.head:
        yield "Head", f"{', '.join(joined.head)}: merged with the same weights"
    for note in joined.notes:
        yield "Note", note
    yield "Folder", f"{joined.folder} (README.md says how to load it)"


def _members(joined: Joined) -> RenderableType:
    from rich.table import Table

    same = len(set(joined.weights)) == 1
    columns = list(zip(*joined.weights, strict=True))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", overflow="fold", ratio=1)
    table.add_column("weight" if same else "weights", justify="right")
    table.add_column("norm", justify="right")
    for name, norm, weights in zip(joined.names, joined.input_norms, columns, strict=True):
        low, high = min(weights), max(weights)
        shown = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
        table.add_row(name, shown, f"{norm:.4g}")
    table.add_row("merged", "", f"{joined.norm:.4g}", style="bold")
    return table


def comparison(found: Comparison) -> Iterator[RenderableType]:
    """Yield what is printed of a comparison."""
    yield _adapters(found)
    measures = (
        ("Cosine of the updates", found.cosine),
        ("Overlap of their top singular subspaces", found.overlap),
        ("Entries whose signs differ", found.conflicts),
        ("Predicted interference", found.interference),
    )
    for title, matrix in measures:
        if len(found.names) > 1:
            yield from _matrix(title, matrix)
    if len(found.names) > 1:
        yield ""
        yield from _sentences(found)


def _adapters(found: Comparison) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", justify="right")
    table.add_column("adapter", overflow="fold", ratio=1)
    for name in ("modules", "rank", "scaling", "norm", "stable rank"):
        table.add_column(name, justify="right", no_wrap=True)
    for i, name in enumerate(found.names):
        table.add_row(
            str(i + 1),
            name,
            str(found.modules[i]),
            _span(found.ranks[i]),
            _span(found.scalings[i]),
            f"{found.norms[i]:.4g}",
            _number(found.stable_ranks[i], ".1f"),
        )
    return table


def _matrix(title: str, matrix: Matrix) -> Iterator[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    n = len(matrix)
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n) if math.isfinite(matrix[i, j])]
    if not pairs:
        return
    yield ""
    yield Text(title, style="bold")
    if n > _SHOWN:
        highest = sorted(pairs, key=lambda pair: -abs(matrix[pair]))[:_PAIRS]
        yield f"  highest of {len(pairs)} pairs: " + ", ".join(
            f"{i + 1} and {j + 1} {matrix[i, j]:.2f}" for i, j in highest
        )
        return
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False)
    table.add_column(justify="right", no_wrap=True)
    for _ in range(n):
        table.add_column(justify="right", no_wrap=True, min_width=4)
    table.add_row("", *(str(i + 1) for i in range(n)), style="dim")
    for i in range(n):
        cells = ("" if i == j else _cell(matrix[i, j]) for j in range(i + 1))
        table.add_row(str(i + 1), *cells)
    yield table


def _sentences(found: Comparison) -> Iterator[RenderableType]:
    matrix = found.interference
    n = len(matrix)
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n) if math.isfinite(matrix[i, j])]
    if pairs:
        i, j = max(pairs, key=lambda pair: float(matrix[pair]))
        yield INTERFERENCE
        yield (
            f"Highest: {found.names[i]} and {found.names[j]}, {matrix[i, j]:.2f} (two updates in "
            "the same directions and at right angles have 0.50)."
        )


def _cell(value: float) -> str:
    """Return a number from -1 to 1 in four characters at most."""
    if not math.isfinite(value):
        return "-"
    text = f"{value:.2f}".replace("-0.00", "0.00")
    return text.replace("0.", ".", 1) if abs(value) < 0.995 else f"{value:.0f}"


def _span(span: Iterable[float] | None) -> str:
    if span is None:
        return "-"
    low, high = span
    return f"{low:.4g}" if low == high else f"{low:.4g}-{high:.4g}"


def _number(value: float, shape: str) -> str:
    return format(value, shape) if math.isfinite(value) else "-"


def _size(joined: Joined) -> str:
    size = float(joined.size)
    for unit in ("bytes", "KB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def _word(value: object) -> str:
    if isinstance(value, list | tuple):
        return "/".join(map(str, value))
    return str(value)
