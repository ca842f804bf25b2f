"""One table of results: its contents, rendered for a terminal and for files."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console, Group

from cl_lora.reporting.tables import markup, terminal
from cl_lora.reporting.tables.data import TableData


class ResultTable(TableData):
    """A table with its renderings; the arguments are those of :class:`TableData`."""

    def markdown(self) -> str:
        """Return a Markdown table of all columns; the best in bold, references in italics."""
        return markup.markdown(self)

    def latex(self) -> str:
        """Return a LaTeX ``table`` in the style of booktabs, the one package that it needs."""
        return markup.latex(self)

    def rich(self, width: int) -> Group:
        """Return title, table and notes for a terminal of ``width`` columns."""
        return terminal.fitted(self, width)

    def text(self, width: int, color: bool = False) -> str:
        """Return what :meth:`rich` prints; with ``color`` the best are bold by ANSI codes."""
        console = Console(width=width, force_terminal=color, no_color=True, highlight=False)
        with console.capture() as capture:
            console.print(self.rich(width))
        return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


RENDERERS: dict[str, Callable[[ResultTable], str]] = {
    "markdown": ResultTable.markdown,
    "latex": ResultTable.latex,
    "csv": ResultTable.csv,
}
"""The renderings for files, by name."""
