"""Learned coefficients, stage after stage."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.figures.axes import draw_spread, stage_ticks
from cl_lora.reporting.figures.registry import figure
from cl_lora.reporting.figures.style import GREY, color_of, marker_of
from cl_lora.reporting.tables import shorten
from cl_lora.run_folder.reader import RunFolder


@figure(
    "coefficients",
    "Coefficients over time",
    "Mean over seeds (and layers or modules, where each has its own), bands: one deviation. "
    "Dashed: 1, the weight with which an adapter was trained.",
    ordered=True,
    position=50,
)
def coefficients_over_time(run: RunFolder, metric: Metric) -> Figure | None:
    """Draw how the learned coefficients evolve as experiences arrive.

    One panel per arm with learned coefficients, a line per adapter: its coefficient after each
    merge, mean over seeds (and over layers or modules where each has its own), band: one deviation
    over all of them. The dashed line marks 1, where an adapter has the weight it was trained with.

    Returns:
        The figure; None if no arm has learned coefficients.
    """
    del metric  # all figures are called alike
    frame = run.coefficients
    # Only what is learned has batches to learn from.
    arms = [
        a
        for a in run.arms
        if run.variant(a).get("buffer_batch_size") is not None and (frame["arm"] == a).any()
    ]
    if not arms:
        return None
    columns = min(3, len(arms))
    rows = -(-len(arms) // columns)
    fig = Figure(figsize=(2.6 * columns + 0.5, 2.1 * rows + 0.8), layout="constrained")
    axes = np.array(fig.subplots(rows, columns, squeeze=False)).ravel()
    stages = [stage.name for stage in run.stream.trained_stages]
    for i, ax in enumerate(axes):
        if i >= len(arms):
            ax.set_visible(False)
            continue
        of_arm = frame[frame["arm"] == arms[i]]
        ax.axhline(1, color=GREY, lw=0.8, ls="--", zorder=1)
        for j in range(len(run.experiences)):
            values = of_arm[of_arm["adapter"] == j].groupby("stage")["value"]
            mean = values.mean().to_numpy(dtype=np.float64)
            spread = np.asarray(values.std(), dtype=np.float64)
            x = np.array(list(values.groups), dtype=np.float64) + 1
            ax.plot(x, mean, color=color_of(j), marker=marker_of(j), lw=1.4, zorder=3)
            draw_spread(ax, x, mean, spread, color_of(j))
        ax.set_title(shorten(arms, 30)[i], fontsize=8, weight="normal")
        stage_ticks(ax, stages, 8)
        ax.set_ylim(bottom=min(0.0, float(of_arm["value"].min())))
    handles = [
        Line2D([], [], color=color_of(j), marker=marker_of(j), lw=1.4, label=name)
        for j, name in enumerate(run.experiences)
    ]
    fig.legend(
        handles=handles,
        loc="outside upper left",
        ncols=min(len(handles), 5),
        title="adapter trained on",
        alignment="left",
    )
    fig.supylabel("coefficient", fontsize=8.5)
    fig.supxlabel("after training on", fontsize=8.5)
    return fig
