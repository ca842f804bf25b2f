"""The section on what each way of serving all tasks costs."""

from __future__ import annotations

from collections.abc import Mapping

from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.budgets import Point, backbone_of, best_within, choosable, points_of, singles
from cl_lora.reporting.tables import Column, ResultTable, sizes_table
from cl_lora.reporting.tables.budgets import MULTIPLE, SIZE
from cl_lora.run_folder.reader import RunFolder

_LIMITS = (1.0, 1.1, 1.5, 2.0)
"""Multiples of the backbone within which the best arm is named."""

_SLACK = 1e-9


def budgets(run: RunFolder, metric: Metric) -> ResultTable | None:
    """Return the table of the section; None where no row says what it needs."""
    return sizes_table(run, metric)


def lead_of_budgets(run: RunFolder, metric: Metric) -> str:
    """Say which arm is best within how many numbers; empty where no arm says what it needs.

    Named are arms alone: reference rows and controls are no choice. A larger limit is left out
    where it brings no better arm.
    """
    points = points_of(run, metric)
    arms = [a for a in choosable(run) if a in points]
    if not arms:
        return ""
    up, backbone = metric.higher_is_better, backbone_of(run)
    parts = []
    named: list[str] = []
    # Without the backbone's size, NaN, no arm is within a multiple of it.
    for limit in _LIMITS:
        arm = best_within(points, arms, limit * backbone * (1 + _SLACK), up)
        if arm is None or arm in named:
            continue
        within = (
            "with nothing beside the backbone"
            if limit == 1
            else f"within {limit:g}× of the backbone"
        )
        parts.append(f"{within}: {_said(arm, points[arm], metric, backbone if limit > 1 else 0)}")
        named.append(arm)
    best = best_within(points, arms, max(p.parameters for p in points.values()), up)
    if best is not None and best not in named:
        parts.append(f"of any size: {_said(best, points[best], metric, backbone)}")
    tasks = len(run.stream.shape(metric.name).final)
    told = [
        f"{metric.title}, average over {tasks} task{'s' * (tasks != 1)}, best of {len(arms)} "
        f"arm{'s' * (len(arms) != 1)}, {'; '.join(parts)}."
    ]
    rows = [
        f"{row} {_said('', points[row], metric, backbone)}".replace("  ", " ")
        for row in singles(run)
        if row in points
    ]
    if rows:
        told.append(f"For reference, every task by itself: {', '.join(rows)}.")
    if best is not None:
        told += _outdone(run, points, best, up)
    return " ".join([*told, _interval(run)])


def _outdone(run: RunFolder, points: Mapping[str, Point], best: str, up: bool) -> list[str]:
    """Say which single-task rows need no more than the best arm and score more."""
    sign, mine = (1 if up else -1), points[best]
    rows = [
        row
        for row in singles(run)
        if row in points
        and points[row].parameters <= mine.parameters
        and sign * points[row].mean > sign * mine.mean
    ]
    if not rows:
        return []
    need = "needs" if len(rows) == 1 else "need"
    score = "scores" if len(rows) == 1 else "score"
    return [f"{' and '.join(rows)} {need} no more numbers than {best} and {score} better."]


def _interval(run: RunFolder) -> str:
    n = len(run.scores.seeds)
    if n == 1:
        return "There is one seed: how much of this is noise of training is unknown."
    return (
        f"[low, high]: Student's 95 % interval over {n} seeds, which are its unit: what another "
        "training would give on these tasks, and nothing of other tasks."
    )


def _said(arm: str, p: Point, metric: Metric, backbone: float) -> str:
    """Return an arm with its score, the interval and, where asked for, its size."""
    column = Column("", "", "", percent=metric.percent)
    unit = f"\N{NO-BREAK SPACE}{metric.unit}" if metric.unit else ""
    ends = f" [{column.number(p.low)}, {column.number(p.high)}]" if p.seeds > 1 else ""
    size = f"{SIZE.number(p.parameters)}\N{NO-BREAK SPACE}M"
    if backbone > 0:
        size = f"{MULTIPLE.number(p.parameters / backbone)}, {size}"
    told = f"{column.number(p.mean)}{ends}{unit} ({size})"
    return f"{arm}, {told}" if arm else told
