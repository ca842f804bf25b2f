"""Every row beside the best arm: what is between them, and whether it is more than noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.budgets import backbone_of, has_budgets, parameters_of
from cl_lora.reporting.figures.marks import number, see, tell
from cl_lora.reporting.figures.registry import figure
from cl_lora.reporting.figures.style import GREY, LINES, OKABE_ITO, STRIPE
from cl_lora.reporting.ranking import Ranking, ranking_of
from cl_lora.reporting.rows import bounds_of
from cl_lora.reporting.tables import Column, shorten
from cl_lora.run_folder.reader import RunFolder

SECTION = "first"

_WIDTH = 3.8  # inches: as wide as a phone
_NAME = 24  # characters of a name
_ROOMY, _PITCH, _TIGHT = 24, 0.2, 0.158  # up to so many rows; inches of a row, and of more rows
_GAP = 0.8  # rows between arms and baselines
_FAR = 2.5  # how far the axis goes, in intervals of the group
_TOLD = 3


@figure(
    "ranking",
    "How far from the best arm",
    "Each row minus the best arm: mean over seeds with its 95 % interval (Student's t; with one "
    "seed over test samples, where these were kept). In colour: the arms that cannot be told from "
    "the best. Below the gap: baselines. Lines: joint training and single tasks. An arrow at the "
    "edge: further away than is shown. The best was picked by the same seeds, which flatters it.",
    position=1,
    whole=True,
    section=SECTION,
    open=True,
)
def distance_from_the_best(run: RunFolder, metric: Metric) -> Figure | None:
    """Draw the difference of every row to the best arm, sorted, with its interval.

    Returns:
        The figure; None where no arm has a score on every seed.
    """
    ranking = ranking_of(run, metric)
    return draw_ranking(ranking, bounds_of(run), _sizes(run))


def draw_ranking(
    ranking: Ranking, bounds: Mapping[str, str], beside: Mapping[str, str] | None = None
) -> Figure | None:
    """Draw a ranking.

    Args:
        ranking: the rows in order.
        bounds: baselines that are drawn as lines too.
        beside: row -> what stands behind its name, such as its size.
    """
    metric, best = ranking.metric, ranking.best
    if best is None:
        return None
    arms = [a for a in ranking.arms if not math.isnan(ranking.estimates[a].mean)]
    baselines = [b for b in ranking.baselines if not math.isnan(ranking.difference(b).mean)]
    rows = [*arms, *baselines]
    pitch = _PITCH if len(rows) <= _ROOMY else _TIGHT
    fig = Figure(
        figsize=(_WIDTH, pitch * (len(rows) + _GAP * bool(baselines)) + 0.95), layout="constrained"
    )
    ax = fig.add_subplot()
    y = np.arange(len(rows), dtype=np.float64)
    y[len(arms) :] += _GAP
    low, high = _limits(ranking, rows, bounds)
    ax.set_xlim(low, high)
    ax.set_ylim(y[-1] + 0.7, -0.7)
    for k, row in enumerate(rows):
        if k % 2 == 0:
            ax.axhspan(y[k] - 0.5, y[k] + 0.5, color=STRIPE, lw=0, zorder=0)
        _draw_row(ax, ranking, row, y[k], baseline=k >= len(arms))
    ax.axvline(0, color="black", lw=0.8, zorder=1)
    lines = [row for row in bounds if row in baselines]
    for row, style in zip(lines, LINES[1:], strict=False):
        ax.axvline(_shown(ranking, row), color=GREY, lw=1, ls=style, zorder=1)
    _write(ax, ranking, rows, y, beside or {})
    less = "" if metric.higher_is_better else " (lower is better)"
    unit = f", {metric.points}" if metric.points else ""
    where = f" {ranking.where}" if ranking.where else ""
    ax.set_xlabel(f"{metric.in_text}{where} minus that\nof {best}{unit}{less}")
    if lines:
        handles = [
            Line2D([], [], color=GREY, lw=1, ls=style, label=row)
            for row, style in zip(lines, LINES[1:], strict=False)
        ]
        fig.legend(handles=handles, loc="outside upper left", ncols=3, handlelength=2.2)
    see(fig, _seen(ranking, arms, lines))
    return fig


def _draw_row(ax: Axes, ranking: Ranking, row: str, y: float, baseline: bool) -> None:
    d, scale = ranking.difference(row), ranking.metric.scale
    best = row == ranking.best
    x = 0.0 if best else scale * d.mean
    color = OKABE_ITO[0] if (row in ranking.group and ranking.formed) or best else GREY
    low, high = ax.get_xlim()
    style: dict[str, Any] = {"color": color, "zorder": 4, "ls": "", "ms": 5}
    if x < low or x > high:
        edge, marker = (low, "<") if x < low else (high, ">")
        (mark,) = ax.plot(edge, y, marker, clip_on=False, **style)
    else:
        face = "white" if baseline else color
        marker = "D" if best else "o"
        (mark,) = ax.plot(x, y, marker, markerfacecolor=face, **style)
        if not math.isnan(d.low):
            ends = np.clip([scale * d.low, scale * d.high], low, high)
            ax.plot(ends, [y, y], color=color, lw=1.2, zorder=3)
    tell(mark, _text(ranking, row))


def _text(ranking: Ranking, row: str) -> str:
    metric, e, d = ranking.metric, ranking.estimates[row], ranking.difference(row)
    told = f"{row}: {number(metric, e.mean, e.deviation)}"
    if row == ranking.best:
        return f"{told}, the best arm"
    column = Column("", "", "", percent=metric.percent, signed=True)
    points = f" {metric.points}" if metric.points else ""
    ends = "" if math.isnan(d.low) else f" [{column.number(d.low)}, {column.number(d.high)}]"
    close = ", cannot be told from the best" if row in ranking.close else ""
    return f"{told}; {column.number(d.mean)}{ends}{points} from the best{close}"


def _limits(
    ranking: Ranking, rows: Sequence[str], bounds: Mapping[str, str]
) -> tuple[float, float]:
    """Return the ends of the axis: the better half of the arms is on it, and the lines if near.

    A few rows that are far away would leave no room for the ones that matter.
    """
    scale, sign = ranking.metric.scale, 1.0 if ranking.metric.higher_is_better else -1.0
    worse = sorted(-sign * scale * ranking.difference(a).mean for a in ranking.arms)
    known = [v for v in worse if not math.isnan(v)]
    middle = known[len(known) // 2] if known else 0.0
    ends = [
        abs(scale * end)
        for row in ranking.group
        for end in (ranking.difference(row).low, ranking.difference(row).high)
        if not math.isnan(end)
    ]
    reach = max([1.15 * middle, _FAR * max(ends, default=0.0), 1e-9])
    if known and known[-1] <= 2.5 * reach:  # all arms, where that costs little
        reach = max(reach, 1.1 * known[-1])
    if reach <= 1e-9:
        reach = (
            max(
                (abs(scale * ranking.difference(r).mean) for r in rows if r != ranking.best),
                default=1.0,
            )
            or 1.0
        )
    near = [sign * scale * ranking.difference(row).mean for row in rows if row != ranking.best]
    better = [v for v in near if 0 < v <= 1.5 * reach]
    beyond = max([0.12 * reach, 1.1 * max(ends, default=0.0), *(1.1 * v for v in better)])
    return (-reach, beyond) if sign > 0 else (-beyond, reach)


def _shown(ranking: Ranking, row: str) -> float:
    return ranking.metric.scale * ranking.difference(row).mean


def _write(
    ax: Axes, ranking: Ranking, rows: Sequence[str], y: Any, beside: Mapping[str, str]
) -> None:
    """Write the names at the left and the differences at the right."""
    room = _NAME - max((len(beside.get(row, "")) for row in rows), default=0)
    names = shorten(rows, room)
    ax.set_yticks(y, [f"{n}{beside.get(row, '')}" for n, row in zip(names, rows, strict=True)])
    column = Column("", "", "", percent=ranking.metric.percent, signed=True)
    right = ax.secondary_yaxis("right")
    texts = [
        "best" if row == ranking.best else column.number(ranking.difference(row).mean)
        for row in rows
    ]
    right.set_yticks(y, texts)
    right.spines["right"].set_visible(False)
    for axis in (ax, right):
        axis.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="y", visible=False)
    ax.locator_params(axis="x", nbins=4)


def _seen(ranking: Ranking, arms: Sequence[str], lines: Sequence[str]) -> str:
    best, metric = str(ranking.best), ranking.metric
    told = [f"{best} leads with {number(metric, ranking.estimates[best].mean)}"]
    others = [a for a in arms if a != best]
    for arm in others[:_TOLD]:
        told.append(_distance(ranking, arm))
    if len(others) > _TOLD:
        told.append(f"{len(others) - _TOLD} more arms are further away")
    told += [_distance(ranking, row) for row in lines]
    return f"{'; '.join(told)}."


def _distance(ranking: Ranking, row: str) -> str:
    column = Column("", "", "", percent=ranking.metric.percent, signed=True)
    points = f" {ranking.metric.points}" if ranking.metric.points else ""
    close = " (cannot be told from it)" if row in ranking.close else ""
    return f"{row} {column.number(ranking.difference(row).mean)}{points}{close}"


def _sizes(run: RunFolder) -> dict[str, str]:
    """Return what each row needs as a multiple of the backbone, where the run says so."""
    backbone = backbone_of(run)
    if not has_budgets(run) or math.isnan(backbone):
        return {}
    return {row: f" {size / backbone:.2f}×" for row, size in parameters_of(run).items()}
