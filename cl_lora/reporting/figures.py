"""The figures of a run, as PNG and SVG, drawn from its files.

Colours are those of Okabe and Ito (2008) for kinds and cividis for amounts: both survive colour
blindness and, with markers and line styles beside them, a grey printer.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import Bbox

from cl_lora.evaluation.aggregate import ALL_EXPERIENCES, FINAL, Estimate, estimates
from cl_lora.evaluation.continual import FloatArray, seen_average
from cl_lora.reporting.describe import arm_settings
from cl_lora.reporting.tables import METRIC_TITLES, PERCENT_METRICS, shorten
from cl_lora.run_folder.reader import RunFolder
from cl_lora.support import files, progress

OKABE_ITO = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#000000",
    "#B8A800",  # yellow, darkened to be seen on white
)
MARKERS = "osD^vPX*"
LINES = ("-", "--", "-.", ":")
GREY = "#757575"

STYLE: Mapping[str, Any] = {
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "lines.markersize": 4,
    "figure.dpi": 100,
    "savefig.dpi": 160,
    # Text as outlines: the report shows it alike everywhere. The salt makes the ids repeatable.
    "svg.fonttype": "path",
    "svg.hashsalt": "cl-lora",
}


def final_scores(run: RunFolder, metric: str = "accuracy") -> Figure:
    """Draw the average final score of every arm, with its deviation over seeds, best first.

    A bar is ``mean_j R[T, j]``, its whisker one deviation over seeds to either side, and a marker
    the score on one domain. The reference rows stand below, in grey.
    """
    numbers = _estimates(run, metric)
    groups = [_by_average(numbers, run.arms), _by_average(numbers, run.references)]
    rows = [a for group in groups for a in group]
    fig = Figure(figsize=(7.2, 1.5 + 0.24 * len(rows)), layout="constrained")
    ax = fig.add_subplot()
    scale = _scale(metric)
    y = 0.0
    ticks: list[float] = []
    for group, color in zip(groups, (OKABE_ITO[4], "#c4c4c4"), strict=True):
        for arm in group:
            ticks.append(y)
            average = numbers[(arm, "average", ALL_EXPERIENCES)]
            x, spread = scale * average.mean, scale * average.deviation
            ax.barh(y, x, height=0.72, color=color, zorder=2)
            if not math.isnan(spread):
                ax.errorbar(x, y, xerr=spread, color="black", capsize=2, lw=1, zorder=4)
            for j in range(len(run.experiences)):
                ax.plot(
                    scale * numbers[(arm, FINAL, j)].mean,
                    y,
                    marker=MARKERS[j % len(MARKERS)],
                    color=OKABE_ITO[(j + 5) % len(OKABE_ITO)],
                    markerfacecolor="white",
                    markeredgewidth=0.9,
                    ls="",
                    zorder=3,
                )
            y += 1
        y += 0.6
    ax.set_yticks(ticks, rows)
    ax.set_ylim(y - 0.8, -0.8)
    ax.set_xlim(left=0)
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(_axis_title(metric, "after the last domain"))
    handles: list[Any] = [Patch(color=OKABE_ITO[4], label="average")]
    if any(run.references):
        handles.append(Patch(color="#c4c4c4", label="average, reference row"))
    handles += [
        Line2D(
            [],
            [],
            marker=MARKERS[j % len(MARKERS)],
            color=OKABE_ITO[(j + 5) % len(OKABE_ITO)],
            markerfacecolor="white",
            ls="",
            label=name,
        )
        for j, name in enumerate(run.experiences)
    ]
    fig.legend(handles=handles, loc="outside upper left", ncols=min(5, len(handles)))
    return fig


def score_matrices(run: RunFolder, metric: str = "accuracy") -> Figure:
    """Draw R of every arm, mean over seeds: rows are time, columns the domain that was scored."""
    arms = [a for a in (*run.arms, *run.references) if a in run.scores.arms]
    columns = min(5, len(arms))
    rows = -(-len(arms) // columns)
    T = len(run.experiences)
    side = 1.5 if T <= 6 else 2.2
    fig = Figure(figsize=(columns * side + 0.9, rows * (side + 0.28) + 0.7), layout="constrained")
    axes = np.atleast_1d(np.array(fig.subplots(rows, columns, squeeze=False))).ravel()
    image = None
    for i, ax in enumerate(axes):
        if i >= len(arms):
            ax.set_visible(False)
            continue
        # Labels at the outer edge only; a row's last panel may have nothing below it.
        lowest = i + columns >= len(arms)
        image = draw_matrix(
            ax,
            mean_matrix(run, arms[i], metric),
            run.experiences,
            metric,
            left=i % columns == 0,
            bottom=lowest,
        )
        ax.set_title(shorten(arms, 26 if T <= 6 else 36)[i], fontsize=6.5, weight="normal")
    assert image is not None
    bar = fig.colorbar(image, ax=axes.tolist(), shrink=min(1.0, 2.0 / rows), aspect=25, pad=0.01)
    bar.set_label(_axis_title(metric, ""))
    fig.supylabel("after training on", fontsize=8.5)
    fig.supxlabel("evaluated on", fontsize=8.5)
    return fig


def matrix_figure(matrix: FloatArray, domains: Sequence[str], metric: str, title: str) -> Figure:
    """Draw one score matrix R (T, T), as shown in TensorBoard."""
    side = 1.4 + 0.5 * len(domains)
    fig = Figure(figsize=(side, side), layout="constrained")
    ax = fig.add_subplot()
    draw_matrix(ax, matrix, domains, metric)
    ax.set_title(title)
    ax.set_ylabel("after training on")
    ax.set_xlabel("evaluated on")
    return fig


def score_over_time(run: RunFolder, metric: str = "accuracy") -> Figure:
    """Draw ``mean_{j<=t} R[t, j]``, the mean over what was seen, after each experience t.

    One panel per merge method, so that lines stay apart; the reference rows are repeated in each
    panel, in grey. Bands are one deviation over seeds.
    """
    panels: dict[str, list[str]] = {}
    for arm in run.arms:
        s = arm_settings(run, arm)
        panels.setdefault(s.method + (f", {s.space}" if s.space != "delta" else ""), []).append(arm)
    panels = panels or {"reference rows": []}
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    lines_max = max(map(len, panels.values()))
    height = 2.5 + 0.14 * -(-lines_max // 2)
    fig = Figure(figsize=(3.9 * columns, rows * height + 0.5), layout="constrained")
    axes = np.array(fig.subplots(rows, columns, squeeze=False, sharey=True)).ravel()
    x = np.arange(1.0, len(run.experiences) + 1)
    scale = _scale(metric)
    below = -0.12 if len(x) <= 5 else -0.34
    for ax, (title, arms) in zip(axes, panels.items(), strict=False):
        for k, reference in enumerate(run.references):
            mean, _ = _seen(run, reference, metric)
            # A row that was scored at the end only is a single point there.
            style = LINES[k % len(LINES)]
            marker = "x" if np.isfinite(mean).sum() == 1 else None
            ax.plot(x, scale * mean, color=GREY, lw=1, ls=style, marker=marker, zorder=1)
        for k, arm in enumerate(arms):
            mean, spread = _seen(run, arm, metric)
            color = OKABE_ITO[k % len(OKABE_ITO)]
            ax.plot(
                x,
                scale * mean,
                color=color,
                marker=MARKERS[k % len(MARKERS)],
                ls=LINES[k // len(OKABE_ITO) % len(LINES)],
                lw=1.4,
                label=arm,
                zorder=3,
            )
            _draw_spread(ax, x, scale * mean, scale * spread, color)
        ax.set_title(title)
        _domain_ticks(ax, run.experiences, 9)
        if arms:
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, below), ncols=2, handlelength=2.6)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    fig.supylabel(_axis_title(metric, "on the domains seen so far"), fontsize=8.5)
    fig.supxlabel("after training on", fontsize=8.5)
    handles = [
        Line2D([], [], color=GREY, ls=LINES[k % len(LINES)], lw=1, label=name)
        if np.isfinite(_seen(run, name, metric)[0]).sum() != 1
        else Line2D([], [], color=GREY, ls="", marker="x", label=name)
        for k, name in enumerate(run.references)
    ]
    if handles:
        fig.legend(handles=handles, loc="outside upper left", ncols=len(handles))
    return fig


def coefficients_over_time(run: RunFolder, metric: str = "accuracy") -> Figure | None:
    """Draw how the learned coefficients evolve as experiences arrive (paper B).

    One panel per arm with learned coefficients, a line per adapter: its coefficient after each
    merge, mean over seeds (and over layers or modules where each has its own), band: one deviation
    over all of them. The dashed line marks 1, where an adapter has the weight it was trained with.

    Returns:
        The figure; None if no arm has learned coefficients.
    """
    del metric  # all figures are called alike
    frame = run.coefficients
    arms = [
        a
        for a in run.arms
        if arm_settings(run, a).rule not in ("fixed", "uniform") and (frame["arm"] == a).any()
    ]
    if not arms:
        return None
    columns = min(3, len(arms))
    rows = -(-len(arms) // columns)
    fig = Figure(figsize=(2.6 * columns + 0.5, 2.1 * rows + 0.8), layout="constrained")
    axes = np.array(fig.subplots(rows, columns, squeeze=False)).ravel()
    T = len(run.experiences)
    for i, ax in enumerate(axes):
        if i >= len(arms):
            ax.set_visible(False)
            continue
        of_arm = frame[frame["arm"] == arms[i]]
        ax.axhline(1, color=GREY, lw=0.8, ls="--", zorder=1)
        for j in range(T):
            values = of_arm[of_arm["adapter"] == j].groupby("stage")["value"]
            mean = values.mean().to_numpy(dtype=np.float64)
            spread = np.asarray(values.std(), dtype=np.float64)
            x = np.array(list(values.groups), dtype=np.float64) + 1
            color = OKABE_ITO[j % len(OKABE_ITO)]
            ax.plot(x, mean, color=color, marker=MARKERS[j % len(MARKERS)], lw=1.4, zorder=3)
            _draw_spread(ax, x, mean, spread, color)
        ax.set_title(shorten(arms, 30)[i], fontsize=8, weight="normal")
        _domain_ticks(ax, run.experiences, 8)
        ax.set_ylim(bottom=min(0.0, float(of_arm["value"].min())))
    handles = [
        Line2D([], [], color=OKABE_ITO[j % 8], marker=MARKERS[j % 8], lw=1.4, label=name)
        for j, name in enumerate(run.experiences)
    ]
    fig.legend(
        handles=handles,
        loc="outside upper left",
        ncols=min(T, 5),
        title="adapter trained on",
        alignment="left",
    )
    fig.supylabel("coefficient", fontsize=8.5)
    fig.supxlabel("after training on", fontsize=8.5)
    return fig


def forgetting_against_score(run: RunFolder, metric: str = "accuracy") -> Figure | None:
    """Draw each arm's forgetting (Chaudhry et al. 2018) against its average final score.

    Colour is the merge method, marker the coefficient rule, a grey cross a reference row. Named
    are the references and the arms on the Pareto front, those that no other arm beats in both.

    Returns:
        The figure; None if forgetting is undefined for all (one experience).
    """
    numbers = _estimates(run, metric)
    scale = _scale(metric)
    points: dict[str, tuple[float, float]] = {}
    for arm in (*run.arms, *run.references):
        if arm not in run.scores.arms:
            continue
        x = scale * numbers[(arm, "average", ALL_EXPERIENCES)].mean
        y = scale * numbers[(arm, "forgetting", ALL_EXPERIENCES)].mean
        if math.isfinite(x) and math.isfinite(y):
            points[arm] = (x, y)
    if not points:
        return None
    fig = Figure(figsize=(6.6, 4.6), layout="constrained")
    ax = fig.add_subplot()
    settings = {a: arm_settings(run, a) for a in points}
    methods = list(dict.fromkeys(settings[a].method for a in points if a not in run.references))
    rules = list(dict.fromkeys(settings[a].rule for a in points if a not in run.references))
    for arm, (x, y) in points.items():
        if arm in run.references:
            ax.plot(x, y, "x", color=GREY, ms=6, zorder=2)
            continue
        color = OKABE_ITO[methods.index(settings[arm].method) % len(OKABE_ITO)]
        marker = MARKERS[rules.index(settings[arm].rule) % len(MARKERS)]
        ax.plot(x, y, marker, color=color, markeredgecolor="white", mew=0.4, ms=7, zorder=3)
    up = run.scores.higher_is_better(metric)
    ranked = {a: p for a, p in points.items() if a not in run.references}
    front = [a for a in ranked if not _beaten(ranked[a], ranked.values(), up)]
    ax.margins(0.12)
    ax.set_xlabel(_axis_title(metric, "after the last domain, average"))
    ax.set_ylabel(f"forgetting{', points' if metric in PERCENT_METRICS else ''} (less is better)")
    handles: list[Any] = [
        Line2D([], [], color=OKABE_ITO[i % 8], marker="s", ls="", label=m)
        for i, m in enumerate(methods)
    ]
    handles += [
        Line2D([], [], color="black", marker=MARKERS[i % 8], ls="", markerfacecolor="none", label=r)
        for i, r in enumerate(rules)
    ]
    handles.append(Line2D([], [], color=GREY, marker="x", ls="", label="reference row"))
    fig.legend(handles=handles, loc="outside upper left", ncols=6)
    labelled = {a: points[a] for a in (*front, *(r for r in run.references if r in points))}
    _label_points(fig, ax, labelled, list(points.values()), set(run.references))
    return fig


def robustness(run: RunFolder, metric: str = "accuracy") -> Figure | None:
    """Draw the average final score over the coefficient's scale: how much does a wrong one cost?

    One panel for the fixed weight W, one for b_max of adaptive coefficients; a line per family of
    arms that differ in it alone. The legend says the best and the worst value, where they are, and
    the area under the line divided by its width: the mean over the range (trapezoidal rule).

    Returns:
        The figure; None if no two arms differ in the scale alone.
    """
    curves = robustness_curves(run, metric)
    if curves.empty:
        return None
    axes_names = list(dict.fromkeys(curves["axis"]))
    lines = curves.groupby("axis")["family"].nunique().max()
    height = max(2.6, 0.5 + 0.34 * lines)
    fig = Figure(figsize=(7.2, height * len(axes_names) + 0.2), layout="constrained")
    axes = np.array(fig.subplots(len(axes_names), 1, squeeze=False, sharey=True)).ravel()
    scale, up = _scale(metric), run.scores.higher_is_better(metric)
    digits = ".1f" if metric in PERCENT_METRICS else ".3f"
    for ax, name in zip(axes, axes_names, strict=True):
        of_axis = curves[curves["axis"] == name]
        for k, (family, curve) in enumerate(of_axis.groupby("family", sort=False)):
            x, y = curve["x"].to_numpy(), scale * curve["mean"].to_numpy()
            error = scale * curve["deviation"].to_numpy()
            area = float(np.trapezoid(y, x) / (x[-1] - x[0]))
            best, worst = (int(i) for i in (y.argmax(), y.argmin())[:: 1 if up else -1])
            label = (
                f"{textwrap.fill(str(family), 44)}\nbest {y[best]:{digits}} at {x[best]:g}, "
                f"worst {y[worst]:{digits}} at {x[worst]:g}, area {area:{digits}}"
            )
            ax.errorbar(
                x,
                y,
                yerr=None if np.isnan(error).all() else error,
                color=OKABE_ITO[k % len(OKABE_ITO)],
                marker=MARKERS[k % len(MARKERS)],
                ls=LINES[k // len(OKABE_ITO) % len(LINES)],
                capsize=2,
                lw=1.4,
                label=label,
            )
        ax.set_title({"W": "fixed weight W", "b_max": "adaptive, bound b_max"}[name])
        ax.set_xlabel(name)
        values = sorted(set(of_axis["x"]))
        ax.set_xticks(values, [f"{v:g}" for v in values])
        ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=2.6)
    fig.supylabel(_axis_title(metric, "after the last domain, average"), fontsize=8.5)
    return fig


def robustness_curves(run: RunFolder, metric: str = "accuracy") -> pd.DataFrame:
    """Return the points behind :func:`robustness`.

    Returns:
        A frame with the columns axis (``W`` or ``b_max``), family, x, arm, mean and deviation, by
        axis, family and x; families with at least two finite points only.
    """
    numbers = _estimates(run, metric)
    rows: list[tuple[str, str, float, str, float, float]] = []
    for arm in run.arms:
        settings = arm_settings(run, arm)
        if settings.axis is None or arm not in run.scores.arms:
            continue
        name, x = settings.axis
        average = numbers[(arm, "average", ALL_EXPERIENCES)]
        if math.isfinite(average.mean):
            rows.append((name, settings.family(), x, arm, average.mean, average.deviation))
    frame = pd.DataFrame(rows, columns=["axis", "family", "x", "arm", "mean", "deviation"])
    sizes = frame.groupby(["axis", "family"])["x"].transform("nunique")
    frame = frame[sizes >= 2].sort_values(["axis", "x"], kind="stable")
    return frame.reset_index(drop=True)


FIGURES: dict[str, tuple[str, Callable[[RunFolder, str], Figure | None]]] = {
    "final": ("Final score by arm", final_scores),
    "over_time": ("Score over time", score_over_time),
    "forgetting": ("Forgetting against score", forgetting_against_score),
    "robustness": ("Robustness to the coefficient's scale", robustness),
    "coefficients": ("Coefficients over time", coefficients_over_time),
    "matrices": ("Score matrices", score_matrices),
}
"""Every figure of a run: file name -> (title, function)."""


def draw_figures(run: RunFolder, metric: str = "accuracy") -> dict[str, Figure]:
    """Return every figure that the run has data for, by name."""
    with mpl.rc_context(dict(STYLE)):
        drawn = {name: draw(run, metric) for name, (_, draw) in FIGURES.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def write_figures(run: RunFolder, metric: str = "accuracy") -> tuple[Path, ...]:
    """Write ``figures/<name>.png`` and ``.svg`` of every figure of the run; return the paths.

    The same run gives the same bytes.
    """
    paths = []
    drawn = draw_figures(run, metric)
    for name, figure in progress.track(drawn.items(), "drawing figures", len(drawn)):
        for kind in ("png", "svg"):
            path = run.path / "figures" / f"{name}.{kind}"
            files.write_bytes(path, render(figure, kind))
            paths.append(path)
    return tuple(paths)


def render(figure: Figure, kind: str) -> bytes:
    """Return a figure as the bytes of a ``png`` or ``svg`` file, without a date."""
    buffer = io.BytesIO()
    metadata = {"svg": {"Date": None}, "png": {"Software": None}}[kind]
    with mpl.rc_context(dict(STYLE)):
        figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


def draw_matrix(
    ax: Axes,
    matrix: FloatArray,
    domains: Sequence[str],
    metric: str,
    *,
    left: bool = True,
    bottom: bool = True,
) -> Any:
    """Draw R (T, T) into ``ax`` with its numbers, and return the image for a colour bar."""
    T = len(domains)
    percent = metric in PERCENT_METRICS
    values = _scale(metric) * matrix
    low, high = (0.0, 100.0) if percent else (None, None)
    colors = mpl.colormaps["cividis"].with_extremes(bad="#eeeeee")
    image = ax.imshow(values, cmap=colors, aspect="equal", vmin=low, vmax=high)
    names = shorten(domains, 8)
    ax.grid(visible=False)
    ax.set_xticks(range(T), names if bottom else [], rotation=90)
    ax.set_yticks(range(T), names if left else [])
    ax.tick_params(length=0, labelsize=7)
    for spine in ax.spines.values():
        spine.set_visible(False)
    if T <= 10:
        for t in range(T):
            for j in range(T):
                value = values[t, j]
                if math.isfinite(value):
                    # White on the dark half of the map, black on the light half.
                    dark = float(np.asarray(image.norm(value))) < 0.55
                    text = f"{value:.0f}" if percent else f"{value:.2g}"
                    color = "white" if dark else "black"
                    ax.text(j, t, text, ha="center", va="center", fontsize=6.5, color=color)
    return image


def mean_matrix(run: RunFolder, arm: str, metric: str) -> FloatArray:
    """Return R (T, T) of ``arm``, mean over seeds; NaN where a seed has no score."""
    T = len(run.experiences)
    seeds = [s for s in run.seeds if s in run.scores.seeds]
    stacked = np.array([run.scores.matrix(s, arm, metric, T).values for s in seeds])
    mean: FloatArray = stacked.mean(axis=0)
    return mean


def _seen(run: RunFolder, arm: str, metric: str) -> tuple[FloatArray, FloatArray]:
    """Return mean and deviation over seeds of seen_average, (T,) each."""
    T = len(run.experiences)
    if arm not in run.scores.arms:
        return np.full(T, np.nan), np.full(T, np.nan)
    seeds = [s for s in run.seeds if s in run.scores.seeds]
    curves = np.array([seen_average(run.scores.matrix(s, arm, metric, T).values) for s in seeds])
    spread = curves.std(axis=0, ddof=1) if len(curves) > 1 else np.full(T, np.nan)
    return curves.mean(axis=0), spread


def _estimates(run: RunFolder, metric: str) -> dict[tuple[str, str, int], Estimate]:
    return estimates(run.scores, metric, len(run.experiences))


def _by_average(numbers: Mapping[tuple[str, str, int], Estimate], arms: Sequence[str]) -> list[str]:
    """Return those of ``arms`` that were scored, best average first, undefined last."""
    found = {a: numbers.get((a, "average", ALL_EXPERIENCES)) for a in arms}
    keys = {
        a: math.inf if math.isnan(e.mean) else (-e.mean if e.higher_is_better else e.mean)
        for a, e in found.items()
        if e is not None
    }
    return sorted(keys, key=lambda a: keys[a])


def _draw_spread(ax: Axes, x: FloatArray, mean: FloatArray, spread: FloatArray, color: str) -> None:
    """Draw one deviation to each side: a band, or a whisker where there is a single point."""
    if len(x) == 1:
        ax.errorbar(x, mean, yerr=np.nan_to_num(spread), color=color, capsize=2, lw=1, zorder=2)
    elif np.isfinite(spread).any():
        low, high = mean - spread, mean + spread
        ax.fill_between(x, low, high, color=color, alpha=0.15, lw=0, zorder=2)


def _domain_ticks(ax: Axes, domains: Sequence[str], width: int) -> None:
    """Write the domains below x = 1..T, upright where there are too many to stand abreast."""
    T = len(domains)
    few = T <= 5
    ax.set_xticks(np.arange(1, T + 1), shorten(domains, width), rotation=0 if few else 90)
    ax.set_xlim(0.85, T + 0.15)


def _scale(metric: str) -> float:
    return 100.0 if metric in PERCENT_METRICS else 1.0


def _axis_title(metric: str, what: str) -> str:
    title = METRIC_TITLES.get(metric, metric)
    return f"{title}{f' {what}' if what else ''}{' (%)' if metric in PERCENT_METRICS else ''}"


def _beaten(
    point: tuple[float, float], others: Any, higher_is_better: bool
) -> bool:  # points are (score, forgetting)
    sign = 1 if higher_is_better else -1
    x, y = sign * point[0], point[1]
    return any(sign * ox >= x and oy <= y and (sign * ox, oy) != (x, y) for ox, oy in others)


def _label_points(
    fig: Figure,
    ax: Axes,
    labels: Mapping[str, tuple[float, float]],
    obstacles: Sequence[tuple[float, float]],
    muted: set[str],
) -> None:
    """Name points: beside them where that covers no point and no name, else in the right margin.

    Names in the margin stand below one another in the order of their points, so that the lines
    that lead to them hardly cross.
    """
    fig.draw_without_rendering()  # settles the layout, so that sizes in pixels are final
    pixels = fig.dpi / 72
    dots = [ax.transData.transform(p) for p in obstacles]
    taken = [Bbox.from_extents(x, y, x, y).padded(5 * pixels) for x, y in dots]
    frame = ax.get_window_extent()
    colors = {name: GREY if name in muted else "black" for name in labels}
    crowded: list[tuple[float, float, str]] = []
    widest = 0.0
    for name, point in labels.items():
        probe = ax.text(0, 0, name, fontsize=7)
        size = probe.get_window_extent()
        probe.remove()
        x, y = ax.transData.transform(point)
        for angle in np.linspace(0, 2 * math.pi, 16, endpoint=False):
            # From the point to the nearest edge of the label, so that wide labels keep close.
            dx = math.cos(angle) * (7 * pixels + size.width / 2)
            dy = math.sin(angle) * (7 * pixels + size.height / 2)
            box = Bbox.from_bounds(
                x + dx - size.width / 2, y + dy - size.height / 2, size.width, size.height
            )
            inside = frame.contains(box.x0, box.y0) and frame.contains(box.x1, box.y1)
            if not inside or any(box.overlaps(other) for other in taken):
                continue
            taken.append(box.padded(pixels))
            ax.annotate(
                name,
                point,
                xytext=(dx / pixels, dy / pixels),
                textcoords="offset points",
                ha="center",
                va="center",
                fontsize=7,
                color=colors[name],
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},  # over the lines
                zorder=5,
            )
            break
        else:
            widest = max(widest, size.width)
            crowded.append(((y - frame.y0) / frame.height, x, name))
    # The margin is added to the figure, so that the points and their names stay where they are.
    fig.set_figwidth(fig.get_figwidth() + (widest + 20 * pixels) / fig.dpi * bool(crowded))
    heights = _spaced([y for y, _, _ in sorted(crowded)], 11 * pixels / frame.height)
    for (_, _, name), height in zip(sorted(crowded), heights, strict=True):
        ax.annotate(
            name,
            labels[name],
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            fontsize=7,
            color=colors[name],
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": GREY, "relpos": (0, 0.5)},
            zorder=1,
        )


def _spaced(positions: Sequence[float], gap: float) -> list[float]:
    """Return ascending positions in [0, 1], moved until ``gap`` lies between any two.

    Example:
        >>> _spaced([0.2, 0.5, 0.5], 0.25)
        [0.2, 0.5, 0.75]
    """
    spaced: list[float] = []
    for position in positions:
        spaced.append(max(position, spaced[-1] + gap) if spaced else position)
    highest = 1.0
    for i in reversed(range(len(spaced))):
        spaced[i] = min(spaced[i], highest)
        highest = spaced[i] - gap
    return spaced
