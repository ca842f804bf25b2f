"""What is reached with how much kept: the score against bytes, with joint training as the line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.budgets import over_seeds
from cl_lora.reporting.costs import KINDS, costs_of
from cl_lora.reporting.describe import at_the_end
from cl_lora.reporting.figures.axes import axis_title
from cl_lora.reporting.figures.labels import label_points
from cl_lora.reporting.figures.marks import number, tell
from cl_lora.reporting.figures.registry import figure
from cl_lora.reporting.figures.style import GREY, color_of, marker_of
from cl_lora.run_folder.reader import RunFolder

SECTION = "costs"
"""The section of the report that the figure stands in."""

_STYLES = ("--", "-.", ":")
_REACH = (7.0, 16.0, 28.0)


@dataclass(frozen=True)
class _Point:
    """Where a row lies: kilobytes, score as shown, the ends of its interval, what it keeps."""

    kept: float
    score: float
    low: float
    high: float
    kind: int


@figure(
    "costs",
    "Score against what is kept",
    "What must be kept beside the backbone to take in another experience, "
    "adapters and what is kept of the data, on a log axis. Lines: rows that keep all data, such as "
    "joint. Colour and marker: what is kept of the data; hollow: baselines. Whiskers: "
    "Student's 95 % interval over seeds.",
    ordered=True,
    few_shot="never",
    position=4,
    section=SECTION,
)
def score_against_kept(run: RunFolder, metric: Metric) -> Figure | None:
    """Draw the average of every arm and row against the bytes that it must keep.

    Returns:
        The figure; None where the run tells no costs.
    """
    points = _points(run, metric)
    if not points:
        return None
    fig = Figure(figsize=(7.4, 4.9), layout="constrained")
    ax = fig.add_subplot()
    ax.set_xscale("log")
    for row, p in points.items():
        color = color_of(p.kind)
        if not math.isnan(p.low):
            ends = [[p.score - p.low], [p.high - p.score]]
            ax.errorbar(p.kept, p.score, yerr=ends, color=color, lw=0.7, capsize=2, zorder=3)
        face = "white" if row in run.references else color
        (mark,) = ax.plot(
            p.kept, p.score, marker_of(p.kind), color=color, markerfacecolor=face, ms=6, zorder=4
        )
        score = number(metric, p.score / metric.scale)
        tell(mark, f"{row}: {score}, keeps {p.kept:,.3g} kB ({KINDS[p.kind]} kept)")
    lines = [row for row, p in points.items() if p.kind == len(KINDS) - 1]
    for row, style in zip(lines, _STYLES * len(lines), strict=False):
        ax.axhline(points[row].score, color=GREY, lw=1, ls=style, zorder=1)
    ax.margins(0.12, 0.1)
    _size_axis(ax)
    ax.set_xlabel("kept to take in another experience, kB")
    ax.set_ylabel(axis_title(metric, f"{at_the_end(run)}, average"))
    kinds = sorted({p.kind for p in points.values()})
    handles: list[Any] = [
        Line2D([], [], color=color_of(k), marker=marker_of(k), ls="", label=f"{KINDS[k]} kept")
        for k in kinds
    ]
    handles += [
        Line2D([], [], color=GREY, lw=1, ls=style, label=row)
        for row, style in zip(lines, _STYLES * len(lines), strict=False)
    ]
    fig.legend(handles=handles, loc="outside upper left", ncols=4)
    places = {row: (p.kept, p.score) for row, p in points.items()}
    label_points(fig, ax, places, list(places.values()), set(run.references), reach=_REACH)
    return fig


def _points(run: RunFolder, metric: Metric) -> Mapping[str, _Point]:
    """Return the point of every row that has a cost and a score; one that keeps nothing has none.

    A log axis has no zero: nothing at all is kept only by rows without an adapter and a head.
    """
    found = over_seeds(run, metric)
    points = {}
    for row, cost in costs_of(run).items():
        if row in found and cost.kept > 0:
            mean, low, high = (
                metric.scale * value for value in (found[row].mean, found[row].low, found[row].high)
            )
            points[row] = _Point(cost.kept / 1e3, mean, low, high, cost.kind)
    return points


def _size_axis(ax: Axes) -> None:
    """Write the sizes in full, with ticks between the powers of ten where these are few."""
    low, high = ax.get_xlim()
    subs = (1.0, 2.0, 5.0) if high / low < 300 else (1.0,)
    ax.xaxis.set_major_locator(LogLocator(subs=subs))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
