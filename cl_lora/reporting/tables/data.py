"""The contents of a table of results: numbers with their deviations, and which lead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cl_lora.evaluation.continual import FloatArray
from cl_lora.reporting.tables.column import Column
from cl_lora.support.errors import printable

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class TableData:
    """Rows of numbers with their deviations and intervals, the baselines apart.

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
        ranked_by: key of the column that rows are sorted by, where they are.
        marked: of a sorted table, in place of the best of every column: key of a column -> the rows
            that are marked in it, the best one and all that cannot be told from it.
        mark: what a marked row means, after the mark.
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
    ranked_by: str = ""
    marked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    mark: str = ""
    _best: frozenset[tuple[int, int]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Names hold what they like, and every rendering goes to a terminal or into a file of lines.
        columns = tuple(
            replace(c, key=printable(c.key), title=printable(c.title), short=printable(c.short))
            for c in self.columns
        )
        for name, value in (
            ("rows", tuple(map(printable, self.rows))),
            ("columns", columns),
            ("title", printable(self.title)),
            ("row_title", printable(self.row_title)),
            ("notes", tuple(map(printable, self.notes))),
            ("ranked_by", printable(self.ranked_by)),
            ("mark", printable(self.mark)),
            (
                "marked",
                {printable(k): tuple(map(printable, rows)) for k, rows in self.marked.items()},
            ),
        ):
            object.__setattr__(self, name, value)
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
        """Return whether the row leads those that rest on all seeds; equal ones lead together.

        Of a table that is sorted: whether the row is marked in the column.
        """
        return (row, column) in self._best

    def _find_best(self) -> Iterator[tuple[int, int]]:
        ranked = len(self.rows) - self.references
        if self.ranked_by:
            for j, column in enumerate(self.columns):
                there = self.marked.get(column.key, ())
                yield from ((i, j) for i, row in enumerate(self.rows) if row in there)
            return
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
        ``<key> std``, or ``<key> low`` and ``<key> high``.
        """
        data: dict[str, object] = {
            self.row_title.lower(): list(self.rows),
            "reference": [i >= len(self.rows) - self.references for i in range(len(self.rows))],
        }
        for j, column in enumerate(self.columns):
            data[column.key] = self.mean[:, j]
            if column.words:
                data[column.key] = [
                    "" if np.isnan(v) else column.number(v) for v in self.mean[:, j]
                ]
            elif column.form == "count":
                data[column.key] = pd.Series(self.mean[:, j]).astype("Int64")
            elif column.form == "mean":
                data[f"{column.key} std"] = self.spread[:, j]
            elif column.form == "interval" and self.low is not None and self.high is not None:
                data[f"{column.key} low"] = self.low[:, j]
                data[f"{column.key} high"] = self.high[:, j]
        return pd.DataFrame(data)

    def csv(self) -> str:
        """Return :meth:`frame` as CSV; undefined values are empty."""
        return self.frame().to_csv(index=False, lineterminator="\n")

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
