"""A comparison as a table and as a figure."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cl_lora.evaluation.aggregate import Difference, Estimate
from cl_lora.evaluation.continual import MEASURES
from cl_lora.reporting.compare.joining import Condition
from cl_lora.reporting.compare.statistics import Comparison, letters
from cl_lora.reporting.describe import heading, in_unit, unit_of_difference
from cl_lora.reporting.figures.axes import axis_title
from cl_lora.reporting.figures.style import GREY, STYLE, color_of, marker_of
from cl_lora.reporting.ranking import ranking_of
from cl_lora.reporting.tables import Column, N, ResultTable
from cl_lora.reporting.tables.budgets import SIZE
from cl_lora.reporting.tables.ranked import ranked

_FEWER = (
    "n: seeds behind a row; only arms with every seed are ranked, and differences are paired over "
    "the seeds that both sides have."
)
_NOTHING = Estimate(math.nan, math.nan, 0, False)
_NO_DIFFERENCE = Difference(math.nan, math.nan, math.nan, 0)


def comparison_table(comparison: Comparison) -> ResultTable:
    """Return the table: a row per arm; per condition average, n, difference, p and forgetting.

    Averages and forgetting stand with their standard deviation ``± s`` over seeds, differences with
    their interval ``[low, high]``. Rows are in the order of the first condition. Each condition's
    best arm is marked with all that cannot be told from it; only arms with every seed can be best.
    """
    parts = [
        _columns(comparison, condition, letter)
        for letter, condition in zip(letters(), comparison.conditions, strict=False)
    ]
    columns = [column for part in parts for column in part]
    cells = np.array([x for part in parts for x in part.values()], dtype=np.float64)
    cells = cells.reshape(len(columns), len(comparison.arms), 4)
    complete = np.array(
        [
            [n == len(condition.scores.seeds) for n in comparison.seeds(condition)]
            for part, condition in zip(parts, comparison.conditions, strict=True)
            for _ in part
        ]
    )
    several = any(len(c.scores.seeds) > 1 for c in comparison.conditions)
    fewer = any(_lacks_seeds(comparison, c) for c in comparison.conditions)
    table = ResultTable(
        rows=comparison.arms,
        references=comparison.references,
        columns=tuple(columns),
        mean=cells[:, :, 0].T,
        spread=cells[:, :, 1].T,
        low=cells[:, :, 2].T,
        high=cells[:, :, 3].T,
        title=f"{in_unit(comparison.metric)} {comparison.when}"
        + (", mean ± standard deviation over n seeds" if several else ", one seed"),
        notes=(*comparison.notes, *([_FEWER] if fewer else [])),
        complete=complete.T,
    )
    orders = {
        f"{c.label} average": ranking_of(c.pooled, comparison.metric) for c in comparison.conditions
    }
    first, *others = orders
    return ranked(table, orders[first], first, {key: orders[key] for key in others})


Cell = tuple[float, float, float, float]
"""Value, deviation, lower and upper end."""


def _columns(comparison: Comparison, condition: Condition, letter: str) -> dict[Column, list[Cell]]:
    """Return the columns of one condition with their cells."""
    single = len(comparison.conditions) == 1
    label, metric = condition.label, comparison.metric
    long, short = ("", "") if single else (f"{label} ", f"{letter} ")
    found = [comparison.results.get((label, arm), {}) for arm in comparison.arms]
    # Not shortened with the condition's name, of which K would be cut off.
    before = "" if single else f"{letter} "
    names = dict.fromkeys(name for f in found for name in f if name not in MEASURES)
    columns = {
        Column(
            f"{label} {name}",
            f"{before}{name}",
            f"{before}{name}",
            metric.higher_is_better,
            metric.percent,
            detail=True,
        ): [_mean(f.get(name)) for f in found]
        for name in names
    }
    columns |= {
        Column(
            f"{label} average",
            f"{long}{heading('average', metric.unit, metric.higher_is_better)}",
            f"{short}Avg",
            metric.higher_is_better,
            metric.percent,
        ): [_mean(f.get("average")) for f in found],
        Column(f"{label} {N.key}", f"{long}n", f"{short}n", None, percent=False, form="count"): [
            _value(float(n) if n else math.nan) for n in comparison.seeds(condition)
        ],
    }
    if condition.parameters:
        columns[
            replace(
                SIZE,
                key=f"{label} {SIZE.key}",
                title=f"{before}{SIZE.title}",
                short=f"{before}{SIZE.short}",
            )
        ] = [_value(condition.parameters.get(arm, math.nan)) for arm in comparison.arms]
    differences = comparison.differences.get(label)
    if comparison.reference and differences is not None:
        of_arms = [differences.found.get(arm, _NO_DIFFERENCE) for arm in comparison.arms]
        over = " over images" if differences.over_images else ""
        title = f"{long}vs {comparison.reference}{over}"
        columns[
            Column(
                f"{label} difference",
                title,
                f"{short}diff{over}",
                None,
                metric.percent,
                1,
                signed=True,
                form="interval",
            )
        ] = [(d.mean, math.nan, d.low, d.high) for d in of_arms]
        if not all(math.isnan(d.holm) for d in of_arms):
            columns[Column(f"{label} p", f"{long}p", f"{short}p", None, False, 2, form="p")] = [
                _value(d.holm) for d in of_arms
            ]
    if any("forgetting" in f for f in found):
        columns[
            Column(
                f"{label} forgetting",
                f"{long}{heading('forgetting', unit_of_difference(metric), False)}",
                f"{short}Forget",
                False,
                metric.percent,
                3,
                signed=True,
            )
        ] = [_mean(f.get("forgetting")) for f in found]
    return columns


def comparison_figure(comparison: Comparison) -> Figure:
    """Draw the table: a row per arm, a marker per condition, one deviation to each side.

    A second panel shows the differences, if there are any, with their intervals. A marker is
    hollow where an arm lacks seeds that other arms of the condition have.
    """
    with mpl.rc_context(dict(STYLE)):
        return _draw(comparison)


def _draw(comparison: Comparison) -> Figure:
    count, arms, metric = len(comparison.conditions), comparison.arms, comparison.metric
    fig = Figure(
        figsize=(9.6 if comparison.reference else 7.2, 1.4 + len(arms) * (0.16 + 0.08 * count)),
        layout="constrained",
    )
    axes = fig.subplots(1, 2 if comparison.reference else 1, sharey=True, squeeze=False)[0]
    y = np.arange(len(arms), dtype=np.float64)
    ranked = len(arms) - comparison.references
    y[ranked:] += 0.5
    for k, condition in enumerate(comparison.conditions):
        # Side by side within a row, so that conditions with equal scores are all seen.
        rows = y + (0.0 if count == 1 else 0.5 * (k / (count - 1) - 0.5))
        whole = [n == len(condition.scores.seeds) for n in comparison.seeds(condition)]
        found = [comparison.results.get((condition.label, a), {}) for a in arms]
        averages = [f.get("average", _NOTHING) for f in found]
        points = [(e.mean, e.deviation, e.deviation) for e in averages]
        _mark(axes[0], k, rows, metric.scale * np.array(points), whole)
        if comparison.reference:
            ds = [comparison.difference(condition, a) or _NO_DIFFERENCE for a in arms]
            points = [(d.mean, d.mean - d.low, d.high - d.mean) for d in ds]
            _mark(axes[1], k, rows, metric.scale * np.array(points), whole)
    axes[0].set_yticks(y, arms)
    axes[0].set_ylim(y[-1] + 0.7, -0.7)
    axes[0].set_xlabel(
        axis_title(metric, f"{comparison.when}, average")
        + "\nwhiskers: one standard deviation over seeds"
    )
    if comparison.reference:
        axes[1].axvline(0, color=GREY, lw=0.8, ls="--")
        axes[1].set_xlabel(_difference_title(comparison))
    for ax in axes:
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0)
        for row in y[::2]:  # stripes, so that the eye keeps the row
            ax.axhspan(row - 0.5, row + 0.5, color="#f4f6f8", zorder=0)
        if 0 < comparison.references < len(arms):
            ax.axhline(ranked - 0.25, color=GREY, lw=0.8)
    fig.legend(handles=_legend(comparison), loc="outside upper left", ncols=3)
    return fig


def _mark(ax: Axes, k: int, rows: Any, points: Any, whole: list[bool]) -> None:
    """Draw markers with whiskers; ``points`` is (rows, 3): value, whisker left, whisker right."""
    x, left, right = points.T
    color = color_of(k)
    whiskers = np.nan_to_num([left, right])
    ax.errorbar(x, rows, xerr=whiskers, ls="", color=color, capsize=2, lw=1)
    for i, full in enumerate(whole):
        ax.plot(
            x[i], rows[i], marker_of(k), color=color, markerfacecolor=color if full else "white"
        )


def _difference_title(comparison: Comparison) -> str:
    points = comparison.metric.points
    found = list(comparison.differences.values())
    units = " or ".join(dict.fromkeys(d.unit for d in found))
    coverage = f"{100 * found[0].confidence:g} % " if found else ""
    return (
        f"difference to {comparison.reference}{f', {points}' if points else ''}\n"
        f"whiskers: {coverage}interval over {units}"
    )


def _legend(comparison: Comparison) -> list[Line2D]:
    handles = [
        Line2D([], [], ls="", marker=marker_of(k), color=color_of(k), label=c.label)
        for k, c in enumerate(comparison.conditions)
    ]
    if any(_lacks_seeds(comparison, c) for c in comparison.conditions):
        style: dict[str, Any] = {"color": GREY, "markerfacecolor": "white", "marker": "o"}
        handles.append(Line2D([], [], ls="", label="fewer seeds", **style))
    return handles


def _lacks_seeds(comparison: Comparison, condition: Condition) -> bool:
    """Return whether an arm lacks a seed that another arm of the condition has."""
    return any(0 < n < len(condition.scores.seeds) for n in comparison.seeds(condition))


def _mean(found: Estimate | None) -> Cell:
    e = found or _NOTHING
    return (e.mean, e.deviation, math.nan, math.nan)


def _value(value: float) -> Cell:
    return (value, math.nan, math.nan, math.nan)
