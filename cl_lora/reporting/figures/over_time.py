"""The score on what was seen so far, stage after stage."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.describe import arm_settings
from cl_lora.reporting.figures.axes import axis_title, draw_spread, legend_columns, stage_ticks
from cl_lora.reporting.figures.marks import number, points, tell
from cl_lora.reporting.figures.numbers import averages_over_stages
from cl_lora.reporting.figures.registry import figure
from cl_lora.reporting.figures.style import GREY, LINES, color_of, line_of, marker_of
from cl_lora.run_folder.reader import RunFolder

_SHORT_NAME = 14


@figure(
    "over_time",
    "Score over time",
    "Mean over the domains seen so far, after each of them. A panel per merge method; in grey the "
    "baselines, the same in every panel. Bands: one standard deviation over seeds.",
    ordered=True,
    position=20,
    open=True,
)
def score_over_time(run: RunFolder, metric: Metric) -> Figure:
    """Draw ``mean_{j<=t} R[t, j]``, the mean over what was seen, after each stage t.

    One panel per merge method, so that lines stay apart; the baselines are repeated in each
    panel, in grey. Bands are one standard deviation over seeds.
    """
    panels: dict[str, list[str]] = {}
    for arm in run.arms:
        panels.setdefault(arm_settings(run, arm).merge, []).append(arm)
    panels = panels or {f"baseline{'s' * (len(run.references) != 1)}": []}
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    lines_max = max(map(len, panels.values()))
    across = 2 if max(map(len, run.arms), default=0) <= _SHORT_NAME else 1
    height = 2.6 + 0.17 * -(-lines_max // across)
    fig = Figure(figsize=(3.05 * columns, rows * height + 0.5), layout="constrained")
    axes = np.array(fig.subplots(rows, columns, squeeze=False, sharey=True)).ravel()
    stages = [stage.name for stage in run.stream.trained_stages]
    x = np.arange(1.0, len(stages) + 1)
    below = -0.12 if len(x) <= 5 else -0.34
    references = {r: metric.scale * averages_over_stages(run, r, metric)[0] for r in run.references}
    # A row that was scored at the end only is a single point there.
    single = {r for r, mean in references.items() if np.isfinite(mean).sum() == 1}
    for ax, (title, arms) in zip(axes, panels.items(), strict=False):
        for k, (reference, mean) in enumerate(references.items()):
            marker = "x" if reference in single else None
            style: dict[str, Any] = {"ls": LINES[k % len(LINES)], "marker": marker}
            (line,) = ax.plot(x, mean, color=GREY, lw=1, zorder=1, **style)
            known = np.flatnonzero(np.isfinite(mean))
            text = number(metric, mean[known[-1]] / metric.scale) if len(known) else ""
            tell(line, f"{reference}, at the end: {text}")
        for k, arm in enumerate(arms):
            mean, spread = (metric.scale * v for v in averages_over_stages(run, arm, metric))
            style = {"color": color_of(k), "marker": marker_of(k), "ls": line_of(k), "lw": 1.4}
            (line,) = ax.plot(x, mean, label=arm, zorder=3, **style)
            tell(line, *points(arm, stages, metric, mean / metric.scale, spread / metric.scale))
            draw_spread(ax, x, mean, spread, color_of(k))
        ax.set_title(title)
        stage_ticks(ax, stages, 9)
        if arms:
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, below), ncols=across)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    fig.supylabel(axis_title(metric, "on the domains seen so far"), fontsize=9)
    fig.supxlabel("after training on", fontsize=9)
    handles = [
        Line2D([], [], color=GREY, ls="", marker="x", label=name)
        if name in single
        else Line2D([], [], color=GREY, ls=LINES[k % len(LINES)], lw=1, label=name)
        for k, name in enumerate(references)
    ]
    if handles:
        fig.legend(
            handles=handles, loc="outside upper left", ncols=legend_columns(fig, list(references))
        )
    return fig
