"""A table of results as Markdown and LaTeX."""

from __future__ import annotations

import re

from cl_lora.reporting.tables.data import TableData


def markdown(table: TableData) -> str:
    """Return a Markdown table of all columns; the best in bold, references in italics."""

    def cell(i: int, j: int) -> str:
        text = " ".join(part for part in table.cell(i, j) if part)
        return f"**{text}**" if table.is_best(i, j) else text

    def name(i: int) -> str:
        # Between letters underscores are literal in Markdown, at a word's edge they are not.
        text = re.sub(r"([\\|*_`<\[])", r"\\\1", table.rows[i])
        return f"*{text}*" if i >= len(table.rows) - table.references else text

    head = [table.row_title, *(_markdown_escape(c.title) for c in table.columns)]
    lines = ["| " + " | ".join(head) + " |", "|:--|" + "--:|" * len(table.columns)]
    for i in range(len(table.rows)):
        cells = (cell(i, j) for j in range(len(table.columns)))
        lines.append("| " + " | ".join((name(i), *cells)) + " |")
    title = [f"**{_markdown_escape(table.title)}**", ""] if table.title else []
    notes = [line for note in table.notes for line in ("", _markdown_escape(note))]
    return "\n".join([*title, *lines, *notes]) + "\n"


def latex(table: TableData) -> str:
    r"""Return a LaTeX ``table`` that compiles without any package.

    The best in bold; ``\hline`` between the arms and the references. Small type, short
    headings, and a table wider than the text reaches into both margins alike.
    """
    lines = [
        r"\begin{table}",
        r"\centering\scriptsize\setlength{\tabcolsep}{3pt}\setlength{\belowcaptionskip}{4pt}",
        rf"\caption{{{' '.join(map(_latex_escape, (f'{table.title}.', *table.notes)))}}}",
        rf"\makebox[\textwidth][c]{{\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\hline",
        " & ".join(map(_latex_escape, (table.row_title, *(c.short for c in table.columns))))
        + r" \\",
        r"\hline",
    ]
    for i, row in enumerate(table.rows):
        if table.references and i == len(table.rows) - table.references and i:
            lines.append(r"\hline")
        cells = [_latex_escape(row)]
        for j in range(len(table.columns)):
            mean, around = (_latex_escape(text) for text in table.cell(i, j))
            mean = rf"\textbf{{{mean}}}" if table.is_best(i, j) else mean
            cells.append(rf"{mean} {{\tiny {around}}}" if around else mean)
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\hline", r"\end{tabular}}", r"\end{table}"]
    return "\n".join(lines) + "\n"


_LATEX: dict[str, str] = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "–": "--",
    "±": r"$\pm$",
    "×": r"$\times$",
    "↓": r"$\downarrow$",
    "…": r"\ldots{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    "Θ": r"$\Theta$",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


def _latex_escape(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in text)


def _markdown_escape(text: str) -> str:
    return re.sub(r"([\\|*_`<])", r"\\\1", text)
