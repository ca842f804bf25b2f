"""What is reached with how many parameters: the Pareto figure, and scores by size of residuals."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.budgets import (
    Point,
    backbone_of,
    has_budgets,
    on_front,
    points_of,
    singles,
)
from cl_lora.reporting.describe import ArmSettings, arm_settings
from cl_lora.reporting.figures.axes import axis_title
from cl_lora.reporting.figures.labels import label_column, label_points
from cl_lora.reporting.figures.marks import number, tell
from cl_lora.reporting.figures.registry import figure
from cl_lora.reporting.figures.style import GREY, color_of, line_of, marker_of
from cl_lora.reporting.tables.column import Column
from cl_lora.run_folder.layout import FRESH
from cl_lora.run_folder.reader import RunFolder

SECTION = "budgets"
"""The section of the report that these figures stand in."""

BARE = "θ₀"
"""How the pre-trained weights are called, where arms keep residuals to them."""

_MILLION = 1e6
_HEAP = 4  # rows of one size whose names stand in a column
_EVEN, _FEW = 3.0, 10.0  # factors between the ends of an axis: of even ticks, of few in a decade
_REACH = (7.0, 16.0, 28.0, 42.0)  # points between a marker and its name, the nearest first
_INTERVAL = "Whiskers: Student's 95 % interval over seeds, for these tasks."


@dataclass(frozen=True)
class Family:
    """Arms that differ in the size of their residual alone.

    Attributes:
        title: in words: the residual, its base, the bank.
        budget: the option in which they differ, e.g. ``q``.
        arms: its value -> the arm, ascending.
        base: the arm that serves their base without any residual; None if there is none.
    """

    title: str
    budget: str
    arms: Mapping[float, str]
    base: str | None


def families(run: RunFolder) -> tuple[Family, ...]:
    """Return the arms with a residual by what they share: its kind, base, bank and options."""
    found: dict[str, dict[float, str]] = {}
    settings: dict[str, ArmSettings] = {}
    bases = {_key(run.variant(a)): a for a in run.arms if not arm_settings(run, a).residual}
    of_key: dict[str, str | None] = {}
    for arm in run.arms:
        s = arm_settings(run, arm)
        if s.budget is None:
            continue
        name, value = s.budget
        variant = dict(run.variant(arm))
        residual = dict(variant.pop("residual"))
        residual.pop(name)
        key = _key({**variant, "residual": residual})
        found.setdefault(key, {})[value] = arm
        settings[key] = s
        of_key[key] = bases.get(_key(variant))
    titles = _titles(settings)
    return tuple(
        Family(titles[key], _budget(settings[key]), dict(sorted(arms.items())), of_key[key])
        for key, arms in found.items()
    )


@figure(
    "pareto",
    "Score against parameters",
    "Numbers that serve all tasks, the backbone once among them and heads left out, on a log axis; "
    "mean over tasks, then over seeds. Dashed: the Pareto front; nothing left of it scores as "
    "much. Thin lines join arms that keep more or less of the same difference. Hollow and grey: "
    f"baselines, which are no choice. {_INTERVAL}",
    position=2,
    open=True,
    whole=True,
    section=SECTION,
)
def score_against_parameters(run: RunFolder, metric: Metric) -> Figure | None:
    """Draw the average of every arm and row against the numbers that it needs.

    Colour is the family, marker the bank.

    Returns:
        The figure; None where no row says what it needs.
    """
    if not has_budgets(run):
        return None
    points = points_of(run, metric)
    if not points:
        return None
    fig = Figure(figsize=(7.4, 5.2), layout="constrained")
    ax = fig.add_subplot()
    ax.set_xscale("log")
    banks = {row: _bank(run, row) for row in points}
    markers = {bank: marker_of(k) for k, bank in enumerate(dict.fromkeys(banks.values()))}
    groups = families(run)
    colors = {a: color_of(k + 1) for k, f in enumerate(groups) for a in f.arms.values()}
    for k, family in enumerate(groups):
        joined = [points[a] for a in family.arms.values() if a in points]
        ax.plot(*_at(joined, metric), color=color_of(k + 1), lw=0.8, zorder=2)
    for row, p in points.items():
        apart = row in run.references
        color = GREY if apart else colors.get(row, color_of(0))
        x, y = p.parameters / _MILLION, metric.scale * p.mean
        if not math.isnan(p.low):
            _whisker(ax, x, p, metric, color)
        (mark,) = ax.plot(
            x,
            y,
            markers[banks[row]],
            color=color,
            markerfacecolor="white" if apart else color,
            ms=5.5,
            zorder=4,
        )
        tell(mark, f"{row}: {_number(p, metric)}, {x:,.3g} M numbers")
    _draw_front(ax, [points[row] for row in on_front(run, metric)], metric)
    ax.margins(0.1, 0.08)
    above = _size_axis(ax, backbone_of(run))
    tasks = len(run.stream.shape(metric.name).final)
    ax.set_ylabel(axis_title(metric, f"averaged over {tasks} task{'s' * (tasks != 1)}"))
    merged = any(a not in colors and a in points for a in run.arms)
    handles: list[Any] = [Patch(color=color_of(0), label="no residual")] if merged else []
    handles += [Patch(color=color_of(k + 1), label=f.title) for k, f in enumerate(groups)]
    if any(row in points for row in run.references):
        handles.append(Patch(facecolor="white", edgecolor=GREY, label="baseline"))
    if len(markers) > 1:
        handles += [
            Line2D([], [], color="black", marker=m, ls="", label=f"made of the {bank} bank")
            for bank, m in markers.items()
        ]
    handles.append(Line2D([], [], color="black", ls="--", lw=0.9, label="Pareto front"))
    fig.legend(handles=handles, loc="outside upper left", ncols=3)
    muted = set(run.references)
    places = {row: (p.parameters / _MILLION, metric.scale * p.mean) for row, p in points.items()}
    column = _column(places)
    if column:
        label_column(fig, ax, column, muted)
        _round_ticks(ax, above, backbone_of(run))
    others = {row: place for row, place in places.items() if row not in column}
    label_points(fig, ax, others, list(places.values()), muted, reach=_REACH)
    return fig


@figure(
    "by_q_and_m",
    "Score by what each task keeps",
    "A line for each base that residuals are taken of, a panel for each measure of their size (log "
    "axes): q, singular values a layer; m, per cent of all entries. Dotted: the base itself, in "
    f"the colour of its line; grey: single tasks. {_INTERVAL}",
    position=3,
    whole=True,
    section=SECTION,
)
def score_by_residual(run: RunFolder, metric: Metric) -> Figure | None:
    """Draw the average against the size of residuals, a panel for each way to say it.

    Returns:
        The figure; None where no two arms differ in the size of their residual alone.
    """
    points = points_of(run, metric) if has_budgets(run) else {}
    every = families(run)
    kept = [f for f in every if sum(a in points for a in f.arms.values()) > 1]
    if not kept:
        return None
    budgets = list(dict.fromkeys(f.budget for f in kept))
    lines = max(sum(f.budget == b for f in kept) for b in budgets)
    fig = Figure(figsize=(3.7 * len(budgets) + 0.8, 3.1 + 0.17 * lines), layout="constrained")
    axes = fig.subplots(1, len(budgets), squeeze=False, sharey=True)[0]
    alone = [row for row in singles(run) if row in points]
    for ax, budget in zip(axes, budgets, strict=True):
        ax.set_xscale("log")
        for k, row in enumerate(alone):
            ax.axhline(metric.scale * points[row].mean, color=GREY, lw=1, ls=("--", "-.")[k % 2])
        values: set[float] = set()
        for k, family in ((k, f) for k, f in enumerate(every, start=1) if f in kept):
            if family.budget != budget:
                continue
            there = {v: points[a] for v, a in family.arms.items() if a in points}
            values |= set(there)
            _line(ax, there, metric, k, family.title)
            if family.base in points:
                base = metric.scale * points[family.base].mean
                ax.axhline(base, color=color_of(k), lw=1, ls=":", zorder=1)
        ax.xaxis.set_major_locator(FixedLocator(sorted(values)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel(budget)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=1, handlelength=2.6)
    tasks = len(run.stream.shape(metric.name).final)
    axes[0].set_ylabel(axis_title(metric, f"averaged over {tasks} task{'s' * (tasks != 1)}"))
    if alone:
        handles = [
            Line2D([], [], color=GREY, lw=1, ls=("--", "-.")[k % 2], label=row)
            for k, row in enumerate(alone)
        ]
        fig.legend(handles=handles, loc="outside upper left", ncols=len(alone))
    return fig


def _line(ax: Axes, there: Mapping[float, Point], metric: Metric, k: int, title: str) -> None:
    x, points = list(there), list(there.values())
    mean = metric.scale * np.array([p.mean for p in points])
    ends = metric.scale * np.array([[p.mean - p.low, p.high - p.mean] for p in points]).T
    line, *_ = ax.errorbar(
        x,
        mean,
        yerr=None if np.isnan(ends).all() else np.nan_to_num(ends),
        color=color_of(k),
        marker=marker_of(k),
        ls=line_of(k),
        capsize=2,
        lw=1.3,
        label=title,
    )
    numbers = zip(x, points, strict=True)
    tell(line, *(f"{title}, {v:g}: {_number(p, metric)}" for v, p in numbers))


def _number(p: Point, metric: Metric) -> str:
    """Return what a point reaches, with its interval."""
    column = Column("", "", "", percent=metric.percent)
    ends = "" if math.isnan(p.low) else f" [{column.number(p.low)}, {column.number(p.high)}]"
    return f"{number(metric, p.mean)}{ends}"


def _whisker(ax: Axes, x: float, p: Point, metric: Metric, color: str) -> None:
    # No further than the metric goes: an interval of few seeds knows nothing of its limits.
    low, high = max(p.low, metric.low), min(p.high, metric.high)
    ends = metric.scale * np.array([low, high])
    ax.plot([x, x], ends, color=color, lw=0.8, alpha=0.8, zorder=3)
    for end in ends:
        ax.plot(x, end, "_", color=color, ms=4, alpha=0.8, zorder=3)


def _draw_front(ax: Axes, found: Sequence[Point], metric: Metric) -> None:
    """Draw what can be reached with a given number of parameters as stairs."""
    if not found:
        return
    x, y = _at(found, metric)
    right = ax.dataLim.x1 * 1.1
    ax.step(
        [*x, max(right, x[-1])], [*y, y[-1]], where="post", color="black", lw=0.9, ls="--", zorder=1
    )


def _column(places: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Return the points of the smallest size, such as those of all merges, if there are many."""
    smallest = min(x for x, _ in places.values())
    found = {row: place for row, place in places.items() if place[0] == smallest}
    return found if len(found) >= _HEAP else {}


def _size_axis(ax: Axes, backbone: float) -> Any:
    """Write millions below; return an axis of multiples above, where the backbone is known."""
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("numbers to serve all tasks, in millions (log axis)")
    above = None
    if not math.isnan(backbone):
        unit = backbone / _MILLION

        def multiples(millions: Any) -> Any:
            return np.asarray(millions) / unit

        def millions(multiples: Any) -> Any:
            return np.asarray(multiples) * unit

        above = ax.secondary_xaxis("top", functions=(multiples, millions))
        above.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}×"))
        above.xaxis.set_minor_locator(NullLocator())
        above.set_xlabel("multiples of the backbone")
    _round_ticks(ax, above, backbone)
    return above


def _round_ticks(ax: Axes, above: Any, backbone: float) -> None:
    low, high = ax.get_xlim()
    ax.xaxis.set_major_locator(FixedLocator(_round_numbers(low, high)))
    if above is not None:
        unit = backbone / _MILLION
        ticks = _round_numbers(max(low / unit, 1.0), high / unit)
        above.xaxis.set_major_locator(FixedLocator(ticks))


def _round_numbers(low: float, high: float) -> list[float]:
    """Return round numbers from ``low`` to ``high``: few over decades, evenly spaced within one.

    Example:
        >>> _round_numbers(0.9, 11), _round_numbers(95, 150)
        ([1.0, 2.0, 5.0, 10.0], [100.0, 110.0, 120.0, 130.0, 140.0, 150.0])
    """
    if high < _EVEN * low:
        every = [float(v) for v in MaxNLocator(7, steps=[1, 2, 5, 10]).tick_values(low, high)]
    else:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        digits = (1, 2, 5) if high > _FEW * low else (1, 1.5, 2, 3, 4, 5, 6, 8)
        every = sorted(d * 10.0**e for e in decades for d in digits)
    return [round(v, 9) for v in every if low <= v <= high]


def _at(points: Sequence[Point], metric: Metric) -> tuple[list[float], list[float]]:
    """Return x in millions and y as shown."""
    return [p.parameters / _MILLION for p in points], [metric.scale * p.mean for p in points]


def _titles(settings: Mapping[str, ArmSettings]) -> dict[str, str]:
    """Name families by residual, base and bank, and by more where that does not tell them apart."""
    words = {
        key: [f"{s.residual} on {s.method or BARE}", *([f"{s.bank} bank"] if s.bank else [])]
        for key, s in settings.items()
    }
    for more in (_other_options, _coefficients):
        told = [", ".join(w) for w in words.values()]
        for key, s in settings.items():
            if told.count(", ".join(words[key])) > 1:
                words[key] = [*words[key], *more(s)]
    titles: dict[str, str] = {}
    for key, found in words.items():
        title = ", ".join(found)
        taken = sum(t == title or t.startswith(f"{title} (") for t in titles.values())
        titles[key] = f"{title} ({taken + 1})" if taken else title
    return titles


def _other_options(s: ArmSettings) -> list[str]:
    return [f"{k} {v}" for k, v in s.residual_options.items() if k != _budget(s)]


def _coefficients(s: ArmSettings) -> list[str]:
    return [s.rule, *([f"{s.axis[0]} {s.axis[1]:g}"] if s.axis else [])] if s.rule else []


def _budget(s: ArmSettings) -> str:
    return s.budget[0] if s.budget else ""


def _bank(run: RunFolder, row: str) -> str:
    return str(run.variant(row).get("bank") or FRESH)


def _key(variant: Mapping[str, Any]) -> str:
    return json.dumps(variant, sort_keys=True, default=str)
