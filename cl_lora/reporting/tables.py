"""One table of results, rendered for the terminal, Markdown, LaTeX and CSV."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from cl_lora.evaluation.aggregate import ALL_EXPERIENCES, AVERAGE, FINAL, estimates
from cl_lora.evaluation.continual import MEASURES, FloatArray
from cl_lora.evaluation.metrics import ACCURACY, Metric
from cl_lora.evaluation.scores import ScoreTable
from cl_lora.evaluation.shape import Shape
from cl_lora.reporting.describe import at_the_end, in_unit
from cl_lora.run_folder.reader import RunFolder

MISSING = "–"

BoolArray = NDArray[np.bool_]
Form: TypeAlias = Literal["mean", "interval", "p", "count"]


@dataclass(frozen=True)
class Column:
    """One column of results.

    Attributes:
        key: its name in the data frame and the CSV.
        title: heading.
        short: heading where room is scarce.
        higher_is_better: direction; None where no best row is marked.
        percent: whether values in [0, 1] are shown in percent.
        priority: 0 stays; of the others the highest goes first where room is scarce. What tells how
            far to trust a row, :data:`N`, goes after the spread of the detail columns only.
        detail: whether it is one of many of a kind, e.g. one domain of the average.
        signed: whether a plus sign is shown.
        note: the definition, for the caption.
        form: what stands in a cell. ``mean``: a value, ± its standard deviation; ``interval``: a
            value, then [low, high]; ``p``: a p value; ``count``: a whole number.
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

    def number(self, value: float) -> str:
        """Return ``value`` as shown, in percent or not."""
        if np.isnan(value):
            return MISSING
        if self.form == "count":
            return f"{value:.0f}"
        if self.form == "p":
            return f"{value:.3f}" if value >= _SMALLEST_P else f"<{_SMALLEST_P}"
        decimals = 1 if self.percent else 3
        text = f"{100 * value if self.percent else value:.{decimals}f}"
        text = re.sub(r"^-(0\.0+)$", r"\1", text)  # no "-0.0"
        # A true minus is as wide as the plus sign and cannot be taken for a hyphen.
        return ("+" if self.signed and value > 0 else "") + text.replace("-", "−")


_SMALLEST_P = 0.001
_LAST = 1  # the priority that is given up after the spread of the detail columns

N = Column("seeds", "n", "n", None, percent=False, form="count")
"""The number of seeds behind a row."""


@dataclass(frozen=True, eq=False)
class ResultTable:
    """Rows of numbers with their deviations and intervals, the reference rows apart.

    Attributes:
        rows: names of the rows; the references come last.
        references: how many of the last rows are references, not ranked against the rest.
        columns: the columns of numbers.
        mean: (rows, columns) float64; NaN where undefined.
        spread: (rows, columns) standard deviation over seeds, shown in columns of means; NaN where
            undefined.
        title: what the numbers are.
        row_title: heading of the row names.
        notes: sentences below the table.
        low: (rows, columns) lower ends, shown in columns of intervals; none, if not given.
        high: (rows, columns) upper ends.
        complete: (rows, columns) whether a number rests on every seed, without which it is never
            marked as best: a mean over fewer seeds may lead by the luck of which they are. All
            are, if not given.
    """

    rows: tuple[str, ...]
    references: int
    columns: tuple[Column, ...]
    mean: FloatArray
    spread: FloatArray
    title: str = ""
    row_title: str = "Arm"
    notes: tuple[str, ...] = ()
    low: FloatArray | None = None
    high: FloatArray | None = None
    complete: BoolArray | None = None
    _best: frozenset[tuple[int, int]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        shape = (len(self.rows), len(self.columns))
        if self.mean.shape != shape or self.spread.shape != shape:
            raise ValueError(
                f"Expected mean and spread of shape {shape} "
                f"but got {self.mean.shape} and {self.spread.shape}"
            )
        ends = [x.shape for x in (self.low, self.high) if x is not None]
        if ends not in ([], [shape, shape]):
            raise ValueError(f"Expected both ends of intervals of shape {shape} but got {ends}")
        object.__setattr__(self, "_best", frozenset(self._find_best()))

    def is_best(self, row: int, column: int) -> bool:
        """Return whether the row leads those that rest on all seeds; equal ones lead together."""
        return (row, column) in self._best

    def _find_best(self) -> Iterator[tuple[int, int]]:
        ranked = len(self.rows) - self.references
        for j, column in enumerate(self.columns):
            values = self.mean[:ranked, j]
            if self.complete is not None:
                values = np.where(self.complete[:ranked, j], values, np.nan)
            if column.higher_is_better is None or np.isnan(values).all() or ranked < 2:
                continue
            best = np.nanmax(values) if column.higher_is_better else np.nanmin(values)
            shown = column.number(float(best))
            yield from ((i, j) for i, v in enumerate(values) if column.number(float(v)) == shown)

    def frame(self) -> pd.DataFrame:
        """Return the numbers, unrounded and not in percent, one row per arm.

        Columns: the row title, ``reference``, then ``<key>`` for every column, followed by
        ``<key> deviation``, or ``<key> low`` and ``<key> high``.
        """
        data: dict[str, object] = {
            self.row_title.lower(): list(self.rows),
            "reference": [i >= len(self.rows) - self.references for i in range(len(self.rows))],
        }
        for j, column in enumerate(self.columns):
            data[column.key] = self.mean[:, j]
            if column.form == "count":
                data[column.key] = pd.Series(self.mean[:, j]).astype("Int64")
            elif column.form == "mean":
                data[f"{column.key} deviation"] = self.spread[:, j]
            elif column.form == "interval" and self.low is not None and self.high is not None:
                data[f"{column.key} low"] = self.low[:, j]
                data[f"{column.key} high"] = self.high[:, j]
        return pd.DataFrame(data)

    def csv(self) -> str:
        """Return :meth:`frame` as CSV; undefined values are empty."""
        return self.frame().to_csv(index=False, lineterminator="\n")

    def markdown(self) -> str:
        """Return a Markdown table of all columns; the best in bold, references in italics."""

        def cell(i: int, j: int) -> str:
            text = " ".join(part for part in self.cell(i, j) if part)
            return f"**{text}**" if self.is_best(i, j) else text

        def name(i: int) -> str:
            # Between letters underscores are literal in Markdown, at a word's edge they are not.
            text = re.sub(r"([\\|*_`<\[])", r"\\\1", self.rows[i])
            return f"*{text}*" if i >= len(self.rows) - self.references else text

        head = [self.row_title, *(_markdown_escape(c.title) for c in self.columns)]
        lines = ["| " + " | ".join(head) + " |", "|:--|" + "--:|" * len(self.columns)]
        for i in range(len(self.rows)):
            cells = (cell(i, j) for j in range(len(self.columns)))
            lines.append("| " + " | ".join((name(i), *cells)) + " |")
        title = [f"**{_markdown_escape(self.title)}**", ""] if self.title else []
        notes = [line for note in self.notes for line in ("", _markdown_escape(note))]
        return "\n".join([*title, *lines, *notes]) + "\n"

    def latex(self) -> str:
        r"""Return a LaTeX ``table`` that compiles without any package.

        The best in bold; ``\hline`` between the arms and the references. Small type, short
        headings, and a table wider than the text reaches into both margins alike.
        """
        lines = [
            r"\begin{table}",
            r"\centering\scriptsize\setlength{\tabcolsep}{3pt}\setlength{\belowcaptionskip}{4pt}",
            rf"\caption{{{' '.join(map(_latex_escape, (f'{self.title}.', *self.notes)))}}}",
            rf"\makebox[\textwidth][c]{{\begin{{tabular}}{{l{'r' * len(self.columns)}}}",
            r"\hline",
            " & ".join(map(_latex_escape, (self.row_title, *(c.short for c in self.columns))))
            + r" \\",
            r"\hline",
        ]
        for i, row in enumerate(self.rows):
            if self.references and i == len(self.rows) - self.references and i:
                lines.append(r"\hline")
            cells = [_latex_escape(row)]
            for j in range(len(self.columns)):
                mean, around = (_latex_escape(text) for text in self.cell(i, j))
                mean = rf"\textbf{{{mean}}}" if self.is_best(i, j) else mean
                cells.append(rf"{mean} {{\tiny {around}}}" if around else mean)
            lines.append(" & ".join(cells) + r" \\")
        lines += [r"\hline", r"\end{tabular}}", r"\end{table}"]
        return "\n".join(lines) + "\n"

    def rich(self, width: int) -> Group:
        """Return title, table and notes for a terminal of ``width`` columns.

        What does not fit is given up in this order: long headings, columns by priority, the
        spread of the detail columns, n, parts of long names, the detail columns, all spreads, the
        last columns. A note names the columns that are left out.
        """
        console = Console(width=10_000)
        for layout in self._layouts():
            table = self._render(layout)
            if console.measure(table).maximum <= width:
                break
        notes = list(self.notes)
        dropped = [c.title for j, c in enumerate(self.columns) if j not in layout.columns]
        if dropped:
            notes.append(f"Not shown at this width: {', '.join(dropped)}.")
        # Text, as markup would take R[l,j] for a style. Beside the table, not as its title and
        # caption, which would be wrapped at the width of a narrow table.
        title = [Text(self.title, style="bold")] if self.title else []
        return Group(*title, table, *map(Text, notes))

    def text(self, width: int, color: bool = False) -> str:
        """Return what :meth:`rich` prints; with ``color`` the best are bold by ANSI codes."""
        console = Console(width=width, force_terminal=color, no_color=True, highlight=False)
        with console.capture() as capture:
            console.print(self.rich(width))
        return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"

    def cell(self, i: int, j: int) -> tuple[str, str]:
        """Return a cell as text: the value, then ``± s`` or ``[low, high]`` or nothing."""
        column = self.columns[j]
        mean, spread = float(self.mean[i, j]), float(self.spread[i, j])
        around = ""
        if column.form == "mean" and not np.isnan(spread):
            around = f"± {replace(column, signed=False).number(spread)}"
        elif column.form == "interval" and self.low is not None and self.high is not None:
            ends = float(self.low[i, j]), float(self.high[i, j])
            if not np.isnan(ends).any():
                around = f"[{', '.join(map(column.number, ends))}]"
        return column.number(mean), around

    def _layouts(self) -> Iterator[_Layout]:
        everything = tuple(range(len(self.columns)))
        longest = max(map(len, self.rows), default=0)
        yield _Layout(everything, longest, short=False)
        yield _Layout(everything, longest)
        kept = everything
        for priority in sorted({c.priority for c in self.columns} - {0, _LAST}, reverse=True):
            kept = tuple(j for j in kept if self.columns[j].priority < priority)
            yield _Layout(kept, longest)
        if any(self.columns[j].priority == _LAST for j in kept):
            yield _Layout(kept, longest, detail_spread=False)
            kept = tuple(j for j in kept if self.columns[j].priority < _LAST)
        widths = [w for w in (36, 30, 26, 22, 18) if w < longest]
        for width in (longest, *widths):
            yield _Layout(kept, width, detail_spread=False)
        for width in (longest, *widths):
            yield _Layout(kept, width, detail_spread=False, detail_width=5)
        kept = tuple(j for j in kept if not self.columns[j].detail)
        for width in (longest, *widths):
            yield _Layout(kept, width)
        for count in range(len(kept), 0, -1):
            yield _Layout(kept[:count], min([longest, *widths]), detail_spread=False, spread=False)

    def _render(self, layout: _Layout) -> Table:
        names = shorten(self.rows, layout.name_width)
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column(self.row_title, no_wrap=True)
        cells: list[list[Text]] = []
        details = [j for j in layout.columns if self.columns[j].detail]
        tiny = dict(
            zip(
                details,
                shorten([self.columns[j].title for j in details], layout.detail_width),
                strict=True,
            )
        )
        for j in layout.columns:
            column = self.columns[j]
            heading = tiny.get(j, column.short) if layout.short else column.title
            table.add_column(Text(heading), justify="right", no_wrap=True)
            with_spread = layout.spread and (layout.detail_spread or not column.detail)
            cells.append(self._texts(j, with_spread))
        for i, name in enumerate(names):
            if self.references and i == len(names) - self.references and i:
                table.add_section()
            table.add_row(Text(name), *(texts[i] for texts in cells))
        return table

    def _texts(self, j: int, with_spread: bool) -> list[Text]:
        pairs = [self.cell(i, j) for i in range(len(self.rows))]
        # Narrow: the sign close to its number.
        arounds = [around.replace("± ", "±") for _, around in pairs]
        width = max(map(len, arounds), default=0) if with_spread else 0
        texts = []
        for i, (mean, _) in enumerate(pairs):
            text = Text(mean, style="bold" if self.is_best(i, j) else "")
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


def run_table(run: RunFolder, metric: Metric | None = None) -> ResultTable:
    """Return the table of one metric of a run; of its primary metric, if not given."""
    metric = metric or next(iter(run.stream.metrics.values()))
    return result_table(
        run.scores,
        metric,
        shape=run.stream.shape(metric.name),
        experiences=run.experiences,
        references=run.references,
        arms=run.arms,
        when=at_the_end(run),
    )


def result_table(
    scores: ScoreTable,
    metric: Metric = ACCURACY,
    *,
    shape: Shape | None = None,
    experiences: Sequence[str] = (),
    references: Sequence[str] = (),
    arms: Sequence[str] = (),
    when: str = "after the last domain",
) -> ResultTable:
    """Return the table that ``cl-lora run`` prints: one row per arm, mean ± deviation over seeds.

    Columns: the final score on each experience that the last stage evaluates; every measure of
    :data:`~cl_lora.evaluation.continual.MEASURES` that exists for the stages and is defined for at
    least one arm; n, the number of seeds behind the average.

    Args:
        scores: the run's scores.
        metric: which metric.
        shape: what the stages are; what occurs in the scores if not given.
        experiences: their names in order; their numbers if not given.
        references: arms that are set apart and not ranked, such as ``base`` and ``joint``.
        arms: order of the rows; arms not named follow in order of appearance.
        when: when final scores are measured, in words.

    Raises:
        UserError: if the metric does not occur, or a score lies outside the shape.
    """
    up = scores.higher_is_better(metric.name)
    shape = shape or scores.shape()
    names = tuple(experiences) or tuple(f"exp {j}" for j in range(shape.experiences))
    present = [a for a in dict.fromkeys((*arms, *scores.arms)) if a in scores.arms]
    apart = [a for a in references if a in present]
    rows = (*(a for a in present if a not in references), *apart)

    columns = _columns(metric, up, shape, names)
    numbers = estimates(scores, metric.name, shape)
    of_rows = [[numbers[(arm, *key)] for key in columns] for arm in rows]
    mean, spread, counts = (
        np.array([[getattr(e, part) for e in row] for row in of_rows], dtype=np.float64).reshape(
            len(rows), len(columns)
        )
        for part in ("mean", "deviation", "seeds")
    )
    seeds = np.array([numbers[(a, AVERAGE, ALL_EXPERIENCES)].seeds for a in rows], dtype=np.float64)
    defined = [
        j for j, c in enumerate(columns.values()) if c.detail or not np.isnan(mean[:, j]).all()
    ]
    shown = [list(columns.values())[j] for j in defined]
    count = len(scores.seeds)
    title = f"{in_unit(metric)} {when}, "
    title += f"mean ± deviation over {count} seeds" if count > 1 else f"seed {scores.seeds[0]}"
    notes = [c.note for c in shown if c.key == "forgetting"]
    fewer = [f"{a} ({n:.0f})" for a, n in zip(rows, seeds, strict=True) if n < count]
    if fewer:
        notes.append(
            f"Finished on fewer than {count} seeds, so never marked as best: {', '.join(fewer)}."
        )
    none = np.full((len(rows), 1), np.nan)
    # Where all rows have the n of the title, its column may go rather than parts of names.
    n = N if fewer else replace(N, priority=_LAST)
    return ResultTable(
        rows=rows,
        references=len(apart),
        columns=(*shown, n),
        mean=np.hstack([mean[:, defined], seeds[:, None]]),
        spread=np.hstack([spread[:, defined], none]),
        title=title,
        notes=tuple(notes),
        complete=np.hstack([counts[:, defined] == count, np.isnan(none)]),
    )


def _columns(
    metric: Metric, up: bool, shape: Shape, names: Sequence[str]
) -> dict[tuple[str, int], Column]:
    """Return (measure, experience) -> its column."""
    short = shorten(names, 8)
    columns: dict[tuple[str, int], Column] = {
        (FINAL, j): Column(
            f"{FINAL} {names[j]}", names[j], short[j], up, metric.percent, detail=True
        )
        for j in shape.final
    }
    priorities = {"backward_transfer": 2, "forward_transfer": 3, "average_incremental": 4}
    for name, measure in MEASURES.items():
        if not measure.exists(shape):
            continue
        better = measure.direction(up)
        arrow = "" if better else " ↓"
        columns[name, ALL_EXPERIENCES] = Column(
            name,
            measure.title + arrow,
            measure.short + arrow,
            better,
            metric.percent,
            priorities.get(name, 0),
            signed=measure.higher_is_better is not None,
            note=f"{measure.title} = {measure.formula} ({measure.paper}).",
        )
    return columns


def shorten(names: Sequence[str], width: int) -> tuple[str, ...]:
    """Return ``names`` in at most ``width`` characters each, still distinct.

    A name that is too long becomes its first words where those identify it (``art_painting`` ->
    ``art``), else its start with an ellipsis, and where names start alike also its end.

    Raises:
        ValueError: if ``width`` is under 4 or the names are not distinct.

    Example:
        >>> shorten(["art_painting", "photo"], 8)
        ('art', 'photo')
    """
    if width < 4 and any(len(n) > width for n in names):
        raise ValueError(f"Expected a width of at least 4 but got {width}")
    if len(set(names)) != len(names):
        raise ValueError(f"Expected distinct names but got {list(names)}")
    taken = {n for n in names if len(n) <= width}
    short = {n: n for n in taken}
    for name in names:
        if name in short:
            continue
        starts = [name[: m.start()] for m in re.finditer(r"[_\-\s./]", name)]
        alone = [
            s
            for s in starts
            if 2 < len(s) <= width
            and len(s) * 3 >= min(width, len(name))
            and not any(other != name and other.startswith(s) for other in names)
        ]
        candidates: list[str] = alone[-1:]
        # The end of a name often tells siblings apart (..._b1, ..._b3): keep some of it then.
        alike = sum(other.startswith(name[: width - 1]) for other in names) > 1
        candidates += [
            name[: width - 1 - end] + "…" + name[len(name) - end :]
            for end in (width // 3 if alike else 0, *range(width - 2, -1, -1))
        ]
        candidates += [f"{name[: width - len(str(k)) - 1]}~{k}" for k in range(len(names))]
        short[name] = next(c for c in candidates if c not in taken)
        taken.add(short[name])
    return tuple(short[n] for n in names)


_LATEX: dict[str, str] = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "–": "--",
    "±": r"$\pm$",
    "↓": r"$\downarrow$",
    "…": r"\ldots{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


def _latex_escape(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in text)


def _markdown_escape(text: str) -> str:
    return re.sub(r"([\\|*_`<])", r"\\\1", text)


RENDERERS: dict[str, Callable[[ResultTable], str]] = {
    "markdown": ResultTable.markdown,
    "latex": ResultTable.latex,
    "csv": ResultTable.csv,
}
"""The renderings for files, by name."""
