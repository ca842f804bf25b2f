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
    notes = [line for note in _notes(table) for line in ("", _markdown_escape(note))]
    return "\n".join([*title, *lines, *notes]) + "\n"


def latex(table: TableData) -> str:
    r"""Return a LaTeX ``table`` in the style of booktabs, the one package that it needs.

    The best in bold, baselines below a rule and in italics. The headings say unit and direction,
    in two lines where they are long. A table wider than the text reaches into both margins alike.
    """
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering\scriptsize\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{' '.join(map(_latex_escape, (f'{table.title}.', *_notes(table))))}}}",
        rf"\label{{tab:{_label(table.title)}}}",
        rf"\makebox[\textwidth][c]{{\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        " & ".join((_latex_escape(table.row_title), *(_head(c.title) for c in table.columns)))
        + r" \\",
        r"\midrule",
    ]
    first = len(table.rows) - table.references
    for i, row in enumerate(table.rows):
        if table.references and i == first and i:
            lines.append(r"\midrule")
        name = _latex_escape(row)
        cells = [rf"\textit{{{name}}}" if i >= first else name]
        for j in range(len(table.columns)):
            mean, around = (_latex_escape(text) for text in table.cell(i, j))
            mean = rf"\textbf{{{mean}}}" if table.is_best(i, j) else mean
            cells.append(rf"{mean} {{\tiny {around}}}" if around else mean)
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _notes(table: TableData) -> tuple[str, ...]:
    return (f"Bold: {table.mark}", *table.notes) if table.mark else table.notes


_LONG_HEAD = 14
"""Characters from which a heading is set in two lines."""


def _head(title: str) -> str:
    """Return a heading; in two lines where it is long, what is in brackets in the second."""
    words = title.split()
    if len(title) < _LONG_HEAD or len(words) < 2:
        return _latex_escape(title)
    bracket = next((k for k, word in enumerate(words) if k and word.startswith("(")), 0)
    # Otherwise where the two lines come nearest to being equally long.
    cut = bracket or min(
        range(1, len(words)),
        key=lambda k: abs(len(" ".join(words[:k])) - len(" ".join(words[k:]))),
    )
    upper, lower = (_latex_escape(" ".join(part)) for part in (words[:cut], words[cut:]))
    return rf"\shortstack[r]{{{upper}\\{lower}}}"


def _label(title: str) -> str:
    """Return a title as LaTeX takes it for a label: small letters, digits and hyphens."""
    plain = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    return plain[:40].strip("-") or "results"


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
