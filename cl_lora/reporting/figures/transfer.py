"""How well each task of a stream is learned from K samples, as more was learned before it."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.faces import by_shots, downstream
from cl_lora.reporting.figures.axes import axis_title, draw_spread
from cl_lora.reporting.figures.marks import points, tell
from cl_lora.reporting.figures.numbers import score_matrix
from cl_lora.reporting.figures.registry import figure
from cl_lora.reporting.figures.style import color_of, line_of, marker_of
from cl_lora.reporting.tables import shorten
from cl_lora.run_folder.reader import RunFolder


@figure(
    "transfer",
    "Transfer as the stream goes on",
    "Score on each task from K samples per class, before its own adapter is trained: compositions "
    "have the adapters of the tasks to its left. Tasks differ in difficulty, so that lines are "
    "compared with one another rather than from left to right. Bands: one standard deviation over "
    "seeds, of means over support draws.",
    ordered=True,
    few_shot="only",
    position=7,
)
def transfer_over_tasks(run: RunFolder, metric: Metric) -> Figure | None:
    """Draw the score of every arm on each task from K samples, a panel for each K.

    Returns:
        The figure; None if a single task is adapted to, or the metric was not scored.
    """
    face = by_shots(run)
    tasks = [j for j in downstream(run) if j in run.stream.scored_by(metric.name)]
    if len(tasks) < 2 or metric.name not in face.scores.metrics:
        return None
    stages = face.stream.trained_stages
    columns = min(3, len(stages))
    rows = -(-len(stages) // columns)
    few = len(tasks) <= 4
    across = 4
    height = (2.3 if few else 2.7) * rows + 0.19 * -(-len(face.arms) // across) + 0.3
    fig = Figure(figsize=(8.6, height), layout="constrained")
    axes = np.array(fig.subplots(rows, columns, squeeze=False, sharey=True)).ravel()
    for ax in axes[len(stages) :]:
        ax.set_visible(False)
    x = np.arange(1.0, len(tasks) + 1)
    seeds = face.scores.seeds
    for a, arm in enumerate(face.arms):
        matrices = np.array([score_matrix(face, s, arm, metric).values[:, tasks] for s in seeds])
        values = metric.scale * matrices  # (seeds, K, tasks)
        spread = values.std(axis=0, ddof=1) if len(seeds) > 1 else np.full(values[0].shape, np.nan)
        for k, ax in zip(range(len(stages)), axes, strict=False):
            mean, color = values.mean(axis=0)[k], color_of(a)
            style = {"color": color, "marker": marker_of(a), "ls": line_of(a), "lw": 1.2}
            (line,) = ax.plot(x, mean, zorder=3, **style)
            tasks_of = [f"{run.experiences[j]}, {stages[k].name}" for j in tasks]
            tell(
                line, *points(arm, tasks_of, metric, mean / metric.scale, spread[k] / metric.scale)
            )
            draw_spread(ax, x, mean, spread[k], color)
    names = shorten([run.experiences[j] for j in tasks], 10, words=True)
    for ax, stage in zip(axes, stages, strict=False):
        ax.set_title(stage.name)
        ax.set_xticks(x, names, rotation=0 if few else 90)
        ax.set_xlim(0.8, len(tasks) + 0.2)
    fig.supylabel(axis_title(metric), fontsize=9)
    fig.supxlabel("task, in the order of the stream", fontsize=9)
    handles = [
        Line2D([], [], color=color_of(k), marker=marker_of(k), ls=line_of(k), lw=1.2, label=arm)
        for k, arm in enumerate(face.arms)
    ]
    fig.legend(
        handles=handles, loc="outside upper left", ncols=min(across, len(handles)), handlelength=2.6
    )
    return fig
