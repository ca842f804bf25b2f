"""How many parameters each row needs, in the tables of runs that say it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.budgets import (
    PARAMETERS,
    backbone_of,
    has_budgets,
    on_front,
    parameters_of,
    points_of,
)
from cl_lora.reporting.describe import heading
from cl_lora.reporting.tables.column import Column, N
from cl_lora.reporting.tables.table import ResultTable
from cl_lora.run_folder.reader import RunFolder

SIZE = Column(PARAMETERS, "Parameters, M", "M", None, percent=False, form="millions")
"""Numbers that serve all tasks, in millions."""

MULTIPLE = Column("multiple", "× backbone", "×", None, percent=False, form="times")
"""The same as a multiple of the backbone's."""


def with_sizes(table: ResultTable, run: RunFolder) -> ResultTable:
    """Return a table of a run with what each row needs before its scores.

    In millions, and as a multiple of the backbone where the run says how large that is; the table
    itself where no row says what it needs.
    """
    if not has_budgets(run):
        return table
    sizes = parameters_of(run)
    size = np.array([sizes.get(row, math.nan) for row in table.rows], dtype=np.float64)
    columns, values = [SIZE], [size]
    if not math.isnan(backbone_of(run)):
        # Where room is scarce the multiple says it all.
        columns = [replace(SIZE, priority=-1), MULTIPLE]
        values = [size, size / backbone_of(run)]
    more = np.array(values).T
    none = np.full(more.shape, np.nan)
    return ResultTable(
        rows=table.rows,
        references=table.references,
        columns=(*columns, *table.columns),
        mean=np.hstack([more, table.mean]),
        spread=np.hstack([none, table.spread]),
        title=table.title,
        row_title=table.row_title,
        notes=(_note(run), *table.notes),
        complete=None
        if table.complete is None
        else np.hstack([np.ones(more.shape, dtype=np.bool_), table.complete]),
        ranked_by=table.ranked_by,
        marked=table.marked,
        mark=table.mark,
    )


def sizes_table(run: RunFolder, metric: Metric) -> ResultTable | None:
    """Return what every row needs beside what it reaches, the smallest first, of equals the best.

    The average over tasks stands with Student's 95 % interval over seeds. A note names the Pareto
    front. Baselines stand below.

    Returns:
        The table; None where no row has both a size and a score.
    """
    points = points_of(run, metric) if has_budgets(run) else {}
    if not points:
        return None
    sign = -1.0 if metric.higher_is_better else 1.0
    ordered = sorted(
        points,
        key=lambda row: (
            row in run.references,
            points[row].parameters,
            sign * points[row].mean,
        ),
    )
    backbone = backbone_of(run)
    known = not math.isnan(backbone)
    up = metric.higher_is_better
    average = Column(
        "average",
        heading(f"Average {metric.in_text}", metric.unit, up),
        "Avg" if up else "Avg ↓",
        metric.higher_is_better,
        metric.percent,
        form="interval",
    )
    beside = Column("beside", "Beside the backbone, M", "beside", None, False, form="millions")
    columns = [SIZE, *([MULTIPLE, beside] if known else []), average, N]
    rows = []
    for row in ordered:
        p = points[row]
        more = [p.parameters / backbone, max(0.0, p.parameters - backbone)] if known else []
        rows.append([p.parameters, *more, p.mean, p.seeds])
    mean = np.array(rows, dtype=np.float64)
    low, high = np.full(mean.shape, np.nan), np.full(mean.shape, np.nan)
    low[:, -2] = [points[row].low for row in ordered]
    high[:, -2] = [points[row].high for row in ordered]
    most = max(p.seeds for p in points.values())
    complete = np.ones(mean.shape, dtype=np.bool_)
    complete[:, -2] = [points[row].seeds == most for row in ordered]
    found = on_front(run, metric)
    several = most > 1
    return ResultTable(
        rows=tuple(ordered),
        references=sum(row in run.references for row in ordered),
        columns=tuple(columns),
        mean=mean,
        spread=np.full(mean.shape, np.nan),
        title="Parameters and scores, from the smallest to the largest",
        notes=(
            _note(run),
            f"On the Pareto front: {', '.join(found)}. No other row needs as few numbers and "
            "scores more.",
            "[low, high]: Student's 95 % interval over seeds, for these tasks."
            if several
            else "One seed: no interval.",
        ),
        low=low,
        high=high,
        complete=complete,
    )


def _note(run: RunFolder) -> str:
    backbone = backbone_of(run)
    size = "" if math.isnan(backbone) else f" ({SIZE.number(backbone)} M)"
    return (
        f"Parameters: numbers that serve all tasks, the backbone{size} once among them, heads left "
        "out; a merge that serves all tasks is folded into the backbone."
    )
