"""What is forgotten against what is known at the end."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeAlias

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cl_lora.evaluation.aggregate import ALL_EXPERIENCES
from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.describe import arm_settings, at_the_end
from cl_lora.reporting.figures.axes import axis_title
from cl_lora.reporting.figures.labels import label_points
from cl_lora.reporting.figures.marks import number, tell
from cl_lora.reporting.figures.numbers import numbers_of, scored_arms
from cl_lora.reporting.figures.registry import figure
from cl_lora.reporting.figures.style import GREY, color_of, marker_of
from cl_lora.reporting.tables.column import Column
from cl_lora.run_folder.reader import RunFolder

Point: TypeAlias = tuple[float, float]
"""(average final score, forgetting)"""

_WIDTH = 5.8  # inches: two figures stand abreast on a page


@figure(
    "forgetting",
    "Forgetting against score",
    "Down is better, and so is to the right (to the left where the axis says that lower is "
    "better). Named are the baselines and the arms that no other arm beats in both.",
    ordered=True,
    position=30,
    open=True,
)
def forgetting_against_score(run: RunFolder, metric: Metric) -> Figure | None:
    """Draw each arm's forgetting (Chaudhry et al. 2018) against its average final score.

    Colour is the merge method, marker the coefficient rule, a grey cross a baseline. Named are
    the baselines and the arms on the Pareto front, those that no other arm beats in both.

    Returns:
        The figure; None if forgetting is undefined for all (one experience).
    """
    points = _points(run, metric)
    if not points:
        return None
    fig = Figure(figsize=(_WIDTH, 4.4), layout="constrained")
    ax = fig.add_subplot()
    settings = {a: arm_settings(run, a) for a in points}
    methods = list(dict.fromkeys(settings[a].method for a in points if a not in run.references))
    rules = list(dict.fromkeys(settings[a].rule for a in points if a not in run.references))
    for arm, (x, y) in points.items():
        if arm in run.references:
            (mark,) = ax.plot(x, y, "x", color=GREY, ms=6, zorder=2)
            tell(mark, _text(arm, (x, y), metric))
            continue
        color = color_of(methods.index(settings[arm].method))
        marker = marker_of(rules.index(settings[arm].rule))
        (mark,) = ax.plot(x, y, marker, color=color, markeredgecolor="white", mew=0.4, ms=7)
        mark.set_zorder(3)
        tell(mark, _text(arm, (x, y), metric))
    ranked = {a: p for a, p in points.items() if a not in run.references}
    front = [
        a for a, p in ranked.items() if not _beaten(p, ranked.values(), metric.higher_is_better)
    ]
    ax.margins(0.12)
    ax.set_xlabel(axis_title(metric, f"{at_the_end(run)}, average"))
    ax.set_ylabel(f"forgetting{f', {metric.points}' if metric.points else ''} (lower is better)")
    handles: list[Any] = [
        Line2D([], [], color=color_of(i), marker="s", ls="", label=m) for i, m in enumerate(methods)
    ]
    handles += [
        Line2D([], [], color="black", marker=marker_of(i), ls="", markerfacecolor="none", label=r)
        for i, r in enumerate(rules)
    ]
    handles.append(Line2D([], [], color=GREY, marker="x", ls="", label="baseline"))
    longest = max(len(str(handle.get_label())) for handle in handles)
    ncols = max(1, int(72 * _WIDTH / (6.2 * longest + 34)))
    fig.legend(handles=handles, loc="outside upper left", ncols=ncols)
    labelled = {a: points[a] for a in (*front, *(r for r in run.references if r in points))}
    label_points(fig, ax, labelled, list(points.values()), set(run.references))
    return fig


def _text(arm: str, point: Point, metric: Metric) -> str:
    average, lost = (value / metric.scale for value in point)
    forgotten = Column("", "", "", percent=metric.percent).number(lost)
    points = f" {metric.points}" if metric.points else ""
    return f"{arm}: {number(metric, average)}, forgets {forgotten}{points}"


def _points(run: RunFolder, metric: Metric) -> dict[str, Point]:
    """Return the points of the arms and references for which both numbers are defined."""
    numbers = numbers_of(run, metric)
    points = {}
    for arm in scored_arms(run):
        found = [numbers.get((arm, m, ALL_EXPERIENCES)) for m in ("average", "forgetting")]
        x, y = (math.nan if e is None else metric.scale * e.mean for e in found)
        if math.isfinite(x) and math.isfinite(y):
            points[arm] = (x, y)
    return points


def _beaten(point: Point, others: Iterable[Point], higher_is_better: bool) -> bool:
    """Return whether another point is at least as good in both numbers and better in one."""
    sign = 1 if higher_is_better else -1
    x, y = sign * point[0], point[1]
    return any(sign * ox >= x and oy <= y and (sign * ox, oy) != (x, y) for ox, oy in others)
