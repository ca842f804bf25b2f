"""The score against K, the number of support samples per class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cl_lora.evaluation.continual import FloatArray
from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.faces import by_shots, downstream
from cl_lora.reporting.figures.axes import axis_title, draw_spread
from cl_lora.reporting.figures.marks import points, tell
from cl_lora.reporting.figures.registry import figure
from cl_lora.reporting.figures.shots_axis import K_TITLE, places, ticks
from cl_lora.reporting.figures.style import GREY, LINES, color_of, line_of, marker_of
from cl_lora.reporting.shots import (
    ByShots,
    classifier_arm,
    groups_of,
    lora_from_scratch,
    scores_by_shots,
)
from cl_lora.run_folder.reader import RunFolder

_BANDS = "Bands: one standard deviation over seeds, of means over support draws and data sets."


@figure(
    "shots",
    "Score against K",
    "Score from K support samples per class (log axis; 'all' is the whole pool), mean over the "
    "data sets. A panel for each start; in grey classifier tuning and LoRA from scratch, the same "
    f"in every panel. {_BANDS}",
    few_shot="only",
    position=4,
    open=True,
)
def score_by_shots(run: RunFolder, metric: Metric) -> Figure | None:
    """Draw the score of every arm against K, mean over draws, data sets and seeds.

    One panel for the arms that start from the bare backbone, one for compositions and one for what
    is trained on from a composition, so that lines stay apart.

    Returns:
        The figure; None where the metric was not scored.
    """
    if metric.name not in by_shots(run).scores.metrics:
        return None
    face = by_shots(run)
    shots = scores_by_shots(face, metric)
    panels = {
        title: [a for a in arms if a in shots.values] for title, arms in groups_of(face).items()
    }
    panels = {title: arms for title, arms in panels.items() if arms}
    grey = [a for a in (classifier_arm(face), lora_from_scratch(face)) if a in shots.values]
    lines = max(map(len, panels.values()))
    fig = Figure(figsize=(3.1 * len(panels) + 0.7, 3.1 + 0.19 * lines), layout="constrained")
    axes = fig.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for ax, (title, arms) in zip(axes, panels.items(), strict=True):
        for k, arm in enumerate(a for a in grey if a not in arms and a is not None):
            x, mean, _ = _line(shots, str(arm), metric)
            (line,) = ax.plot(x, mean, color=GREY, lw=1, ls=LINES[1 + k], zorder=1)
            tell(line, str(arm))
        _draw(ax, shots, arms, metric)
        ax.set_title(title)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=1, handlelength=2.6)
    fig.supylabel(axis_title(metric), fontsize=9)
    fig.supxlabel(K_TITLE, fontsize=9)
    handles = [
        Line2D([], [], color=GREY, ls=LINES[1 + k], lw=1, label=str(arm))
        for k, arm in enumerate(grey)
    ]
    if handles and len(panels) > 1:
        fig.legend(handles=handles, loc="outside upper left", ncols=2)
    return fig


@figure(
    "shots_by_data",
    "Score against K on each data set",
    "A panel for each data set that is held out. Bands: one standard deviation over seeds, of "
    "means over support draws.",
    few_shot="only",
    position=5,
)
def score_by_shots_and_data(run: RunFolder, metric: Metric) -> Figure | None:
    """Draw the score of every arm against K, a panel for each downstream experience.

    Returns:
        The figure; None where there is one downstream experience, as :func:`score_by_shots` shows
        it.
    """
    each = [j for j in downstream(run) if j in run.stream.scored_by(metric.name)]
    if len(each) < 2:
        return None
    columns = min(3, len(each))
    rows = -(-len(each) // columns)
    arms = by_shots(run).arms
    across = 4
    below = 0.19 * -(-len(arms) // across) + 0.3
    fig = Figure(figsize=(8.6, 2.3 * rows + below), layout="constrained")
    axes = np.array(fig.subplots(rows, columns, squeeze=False)).ravel()
    for ax in axes[len(each) :]:
        ax.set_visible(False)
    for ax, j in zip(axes, each, strict=False):
        _draw(ax, scores_by_shots(by_shots(run, (j,)), metric), arms, metric)
        ax.set_title(run.experiences[j])
    fig.supylabel(axis_title(metric), fontsize=9)
    fig.supxlabel(K_TITLE, fontsize=9)
    handles = [
        Line2D([], [], color=color_of(k), marker=marker_of(k), ls=line_of(k), lw=1.2, label=arm)
        for k, arm in enumerate(arms)
    ]
    fig.legend(
        handles=handles, loc="outside upper left", ncols=min(across, len(arms)), handlelength=2.6
    )
    return fig


def _draw(ax: Axes, shots: ByShots, arms: Sequence[str], metric: Metric) -> None:
    """Draw a line and a band for each of ``arms``."""
    for k, arm in enumerate(arms):
        if arm not in shots.values:
            continue
        x, mean, spread = _line(shots, arm, metric)
        style: dict[str, Any] = {
            "color": color_of(k),
            "marker": marker_of(k),
            "ls": line_of(k),
            "lw": 1.2,
        }
        (line,) = ax.plot(x, mean, label=arm, zorder=3, **style)
        known = [stage.name for stage, e in zip(shots.stages, _means(shots, arm), strict=True) if e]
        tell(line, *points(arm, known, metric, mean / metric.scale, spread / metric.scale))
        draw_spread(ax, x, mean, spread, color_of(k))
    ticks(ax, shots.stages)


def _means(shots: ByShots, arm: str) -> list[bool]:
    """Return at which K an arm was scored."""
    found = [shots.estimates({arm: shots.at(k)[arm]})[arm] for k in range(len(shots.stages))]
    return [not math.isnan(e.mean) for e in found]


def _line(shots: ByShots, arm: str, metric: Metric) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return places, means and standard deviations over seeds, as shown, where there are any."""
    found = [shots.estimates({arm: shots.at(k)[arm]})[arm] for k in range(len(shots.stages))]
    kept = [k for k, e in enumerate(found) if not math.isnan(e.mean)]
    x = places(shots.stages)
    return (
        np.array([x[k] for k in kept]),
        metric.scale * np.array([found[k].mean for k in kept]),
        metric.scale * np.array([found[k].deviation for k in kept]),
    )
