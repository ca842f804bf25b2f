"""Interference: what merging two by two does to every task, beside how alike the adapters are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cl_lora.evaluation.continual import FloatArray
from cl_lora.evaluation.interference import Relatedness
from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.figures.labels import label_points
from cl_lora.reporting.figures.marks import see, tell
from cl_lora.reporting.figures.registry import figure
from cl_lora.reporting.figures.style import OKABE_ITO, ON_HEAT
from cl_lora.reporting.multitask import MEASURES, Analysis, analysis_of
from cl_lora.reporting.tables import shorten
from cl_lora.run_folder.reader import RunFolder

SECTION = "interference"
HARM_TITLE = "Change in units of what training brought (below 0 is worse)"

_ACROSS = 3
_MOST_ARMS = 4  # that the scatter shows
_FULL = 1.5  # change at which colours are full, at most


@figure(
    "interference",
    "Interference",
    "Above: task (rows) merged with another (columns), change against its single task in units of "
    "what training brought over the trivial predictor, mean over seeds; −1: all of it is gone. "
    "Below: how alike two adapters are. Hatched: single tasks that failed.",
    position=70,
    open=True,
    whole=True,
    section=SECTION,
)
def interference(run: RunFolder, metric: Metric) -> Figure | None:
    """Draw the harm of every arm, and the similarities of the adapters below.

    Returns:
        The figure; None where the run did not merge pairs.
    """
    del metric  # each task has its own
    found = analysis_of(run)
    if found is None or not found.arms:
        return None
    n = len(found.names)
    side = max(2.2, 0.42 * n + 1.0)
    across = min(_ACROSS, len(found.arms))
    rows = -(-len(found.arms) // across)
    heights = [rows * (side + 0.25) + 0.3] + [side + 0.45] * bool(found.similarity)
    columns = min(_ACROSS, max(len(found.arms), len(found.similarity)))
    fig = Figure(figsize=(columns * (side + 0.15) + 1.2, sum(heights)), layout="constrained")
    parts = fig.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    axes = parts[0].subplots(rows, across, squeeze=False).ravel()
    limit = _limit([i.healthy for i in found.arms.values()])
    image = None
    for k, ax in enumerate(axes):
        if k >= len(found.arms):
            ax.set_visible(False)
            continue
        arm = list(found.arms)[k]
        labels = (k % across == 0, k + across >= len(found.arms))
        image = draw_harm(ax, found, arm, limit, labels)
        ax.set_title(shorten(list(found.arms), 26)[k], fontsize=9, weight="normal")
    bar = parts[0].colorbar(image, ax=list(axes), shrink=0.8, aspect=25, pad=0.01)
    bar.set_label("change (below 0 is worse)", fontsize=9)
    if found.failed:
        parts[0].suptitle(f"hatched, failed: {', '.join(found.failed)}", fontsize=9)
    parts[0].supylabel("task", fontsize=9)
    parts[0].supxlabel("merged with", fontsize=9)
    see(fig, _seen(found))
    if found.similarity:
        below = parts[1].subplots(1, columns, squeeze=False)[0]
        for k, ax in enumerate(below):
            if k >= len(found.similarity):
                ax.set_visible(False)
                continue
            measure = list(found.similarity)[k]
            _draw_similarity(ax, found, measure, k == 0)
            ax.set_title(MEASURES.get(measure, measure), fontsize=9, weight="normal")
    return fig


def _seen(found: Analysis) -> str:
    """Say for the first arms which pair suffers most."""
    told = []
    for arm, of_arm in list(found.arms.items())[:_MOST_ARMS]:
        if np.isfinite(of_arm.harm).any():
            j, i = np.unravel_index(int(np.nanargmin(of_arm.harm)), of_arm.harm.shape)
            worst = _cell(float(of_arm.harm[j, i]))
            pair = f"{found.names[j]} loses most when merged with {found.names[i]}"
            told.append(f"under {arm} {pair}, {worst}")
    return f"{'; '.join(told)}." if told else ""


@figure(
    "harm_and_similarity",
    "Harm against similarity",
    "A point is a pair, named where there is room: the mean change of its two tasks against how "
    "alike their adapters are, means over seeds, failed tasks left out. ρ: Spearman's rank "
    "correlation, below 0 where alike adapters hurt each other more; p: relabelling the adapters, "
    "as pairs share them; in brackets the interval over seeds of each seed's own ρ. The first "
    f"{_MOST_ARMS} arms; all are in the table.",
    position=72,
    whole=True,
    section=SECTION,
)
def harm_and_similarity(run: RunFolder, metric: Metric) -> Figure | None:
    """Draw the harm of pairs against each similarity, a row for each arm.

    Returns:
        The figure; None where pairs were not merged or adapters not compared.
    """
    del metric
    found = analysis_of(run)
    if found is None or not found.arms or not found.similarity:
        return None
    arms = list(found.arms)[:_MOST_ARMS]
    shape = (len(arms), len(found.similarity))
    fig = Figure(figsize=(3.2 * shape[1] + 0.4, 2.7 * shape[0] + 0.3), layout="constrained")
    axes = fig.subplots(*shape, squeeze=False, sharex="col", sharey="row")
    points: dict[Axes, dict[str, tuple[float, float]]] = {}
    for i, arm in enumerate(arms):
        for k, measure in enumerate(found.similarity):
            ax = axes[i, k]
            points[ax] = _draw_pairs(ax, found, arm, measure)
            ax.set_title(correlation_in_words(found.related(arm, measure)), fontsize=9)
            if k == 0:
                ax.set_ylabel(shorten(arms, 26)[i], fontsize=9)
            if i == len(arms) - 1:
                ax.set_xlabel(MEASURES.get(measure, measure), fontsize=9)
    fig.supylabel("change of both tasks, mean (below 0 is worse)", fontsize=9)
    for ax, named in points.items():
        label_points(fig, ax, named, list(named.values()), set(), margin=False)
    return fig


def harm_figure(found: Analysis, arm: str) -> Figure:
    """Draw the harm of one arm alone, as shown in TensorBoard."""
    side = max(2.4, 0.46 * len(found.names) + 1.4)
    fig = Figure(figsize=(side + 0.8, side), layout="constrained")
    ax = fig.add_subplot()
    image = draw_harm(ax, found, arm, _limit([found.arms[arm].healthy]), (True, True))
    ax.set_title(arm)
    ax.set_ylabel("task")
    ax.set_xlabel("merged with")
    fig.colorbar(image, ax=ax).set_label("change (below 0 is worse)", fontsize=9)
    return fig


def similarity_figure(found: Analysis, measure: str) -> Figure:
    """Draw one similarity of the adapters alone, as shown in TensorBoard."""
    side = max(2.2, 0.42 * len(found.names) + 1.2)
    fig = Figure(figsize=(side, side), layout="constrained")
    ax = fig.add_subplot()
    _draw_similarity(ax, found, measure, True)
    ax.set_title(MEASURES.get(measure, measure), fontsize=9)
    return fig


def draw_harm(ax: Axes, found: Analysis, arm: str, limit: float, labels: tuple[bool, bool]) -> Any:
    """Draw h (n, n) with its numbers, red for worse, and return the image.

    Args:
        ax: where to draw.
        found: the analysis.
        arm: whose.
        limit: the change at which colours are full, to either side.
        labels: whether rows and columns are named.
    """
    harm = found.arms[arm].harm
    image = _heat(ax, found, harm, "RdBu", (-limit, limit), labels)
    for j, failed in enumerate(found.tasks.failed):
        if failed:
            n = len(harm)
            for corner, width, height in (((-0.5, j - 0.5), n, 1), ((j - 0.5, -0.5), 1, n)):
                ax.add_patch(
                    Rectangle(corner, width, height, fill=False, hatch="////", lw=0, ec="#555555")
                )
    return image


def p_in_words(p: float) -> str:
    """Return a p value in three digits."""
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"


def correlation_in_words(found: Relatedness) -> str:
    """Return rho, the p value of the permutation test and the interval over seeds.

    Example:
        >>> correlation_in_words(Relatedness(-0.5, 0.04, 120, True, 5, 10, -0.4, -0.9, 0.1, 3))
        'ρ = −0.50, p = 0.040\\nper seed −0.40 [−0.90, 0.10]'
    """
    if math.isnan(found.rho):
        return "ρ not defined"
    text = f"ρ = {found.rho:.2f}, {p_in_words(found.p)}"
    if not math.isnan(found.low):
        text += f"\nper seed {found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"
    return text.replace("-", "−")


def _draw_similarity(ax: Axes, found: Analysis, measure: str, labelled: bool) -> None:
    values = found.similarity[measure].mean(axis=0)
    known = values[np.isfinite(values)]
    limits = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    _heat(ax, found, values, "cividis", limits, (labelled, True))


def _heat(
    ax: Axes,
    found: Analysis,
    values: FloatArray,
    colors: str,
    limits: tuple[float, float],
    labels: tuple[bool, bool],
) -> Any:
    palette = mpl.colormaps[colors].with_extremes(bad="#eeeeee")
    image = ax.imshow(values, cmap=palette, vmin=limits[0], vmax=limits[1], aspect="equal")
    ax.grid(visible=False)
    names = _names(found)
    ax.set_xticks(range(len(names)), names if labels[1] else [], rotation=90)
    ax.set_yticks(range(len(names)), names if labels[0] else [])
    ax.tick_params(length=0, labelsize=9)
    for spine in ax.spines.values():
        spine.set_visible(False)
    if len(names) <= 10:
        shades: Any = image.cmap(image.norm(values))  # (n, n, 4)
        for i, j in np.ndindex(values.shape):
            value = values.item(i, j)
            if math.isfinite(value):
                red, green, blue, _ = shades[i, j]
                dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
                ax.text(
                    j,
                    i,
                    _cell(value),
                    ha="center",
                    va="center",
                    fontsize=9,
                    color=ON_HEAT[int(dark)],
                )
    return image


def _draw_pairs(
    ax: Axes, found: Analysis, arm: str, measure: str
) -> dict[str, tuple[float, float]]:
    """Draw a point for each pair, and return them by name."""
    harm = found.arms[arm].healthy
    both, alike = (harm + harm.T) / 2, found.similarity[measure].mean(axis=0)
    names = _abbreviations(found.names)
    rows, columns = np.triu_indices(len(names), 1)
    ax.axhline(0, color="#999999", lw=0.7, zorder=1)
    x, y = alike[rows, columns], both[rows, columns]
    known = np.isfinite(x) & np.isfinite(y)
    (line,) = ax.plot(x[known], y[known], "o", color=OKABE_ITO[0], ms=4, zorder=3)
    pairs = [
        f"{found.names[i]} and {found.names[j]}: change {_cell(float(both[i, j]))}, "
        f"{MEASURES.get(measure, measure).lower()} {_cell(float(alike[i, j]))}"
        for i, j in zip(rows[known], columns[known], strict=True)
    ]
    tell(line, *pairs)
    ax.margins(x=0.18, y=0.12)
    points = {
        f"{names[i]}+{names[j]}": (float(alike[i, j]), float(both[i, j]))
        for i, j in zip(rows, columns, strict=True)
    }
    return {name: point for name, point in points.items() if np.isfinite(point).all()}


def _names(found: Analysis, width: int = 8) -> tuple[str, ...]:
    return shorten(found.names, width, words=True)


def _abbreviations(names: Sequence[str]) -> list[str]:
    """Return the shortest starts, of three letters or more, that tell names apart."""
    found = []
    for name in names:
        lengths = range(3, len(name) + 1)
        others = [other for other in names if other != name]
        alone = (n for n in lengths if not any(o.startswith(name[:n]) for o in others))
        found.append(name[: next(alone, len(name))])
    return found


def _limit(harms: Sequence[FloatArray]) -> float:
    """Return the change at which colours are full: the largest there is, within reason."""
    values = np.abs(np.concatenate([h.ravel() for h in harms]))
    known = values[np.isfinite(values)]
    return float(np.clip(known.max(), 0.1, _FULL)) if len(known) else 1.0


def _cell(value: float) -> str:
    text = f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
    return ("0.00" if text == "-0.00" else text).replace("-", "−")
