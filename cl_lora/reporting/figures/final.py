"""The average final score of every arm."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from cl_lora.evaluation.aggregate import ALL_EXPERIENCES, FINAL
from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.describe import at_the_end
from cl_lora.reporting.figures.axes import axis_title
from cl_lora.reporting.figures.numbers import by_average, numbers_of
from cl_lora.reporting.figures.registry import figure
from cl_lora.reporting.figures.style import OKABE_ITO, color_of, marker_of
from cl_lora.run_folder.reader import RunFolder

_BAR = OKABE_ITO[4]
_REFERENCE_BAR = "#c4c4c4"


@figure(
    "final",
    "Final score by arm",
    "Bars: average over experiences, whiskers: one deviation over seeds, markers: the experiences. "
    "Arms by their average, reference rows below.",
    few_shot="never",
    position=10,
)
def final_scores(run: RunFolder, metric: Metric) -> Figure:
    """Draw the average final score of every arm, with its deviation over seeds, best first.

    A bar is the measure ``average`` (``mean_j R[T, j]``), its whisker one deviation over seeds to
    either side, and a marker the score on one experience. The reference rows stand below, in grey.
    """
    numbers = numbers_of(run, metric)
    groups = [by_average(numbers, run.arms), by_average(numbers, run.references)]
    rows = [a for group in groups for a in group]
    scored = run.stream.shape(metric.name).final
    fig = Figure(figsize=(7.2, 1.5 + 0.24 * len(rows)), layout="constrained")
    ax = fig.add_subplot()
    y = 0.0
    ticks: list[float] = []
    for group, color in zip(groups, (_BAR, _REFERENCE_BAR), strict=True):
        for arm in group:
            ticks.append(y)
            average = numbers[(arm, "average", ALL_EXPERIENCES)]
            x, spread = metric.scale * average.mean, metric.scale * average.deviation
            ax.barh(y, x, height=0.72, color=color, zorder=2)
            if not math.isnan(spread):
                ax.errorbar(x, y, xerr=spread, color="black", capsize=2, lw=1, zorder=4)
            for j in scored:
                ax.plot(
                    metric.scale * numbers[(arm, FINAL, j)].mean, y, mew=0.9, zorder=3, **_marker(j)
                )
            y += 1
        y += 0.6
    ax.set_yticks(ticks, rows)
    ax.set_ylim(y - 0.8, -0.8)
    if metric.low >= 0:
        ax.set_xlim(left=0)
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(axis_title(metric, at_the_end(run)))
    handles: list[Any] = [Patch(color=_BAR, label="average")]
    if any(run.references):
        handles.append(Patch(color=_REFERENCE_BAR, label="average, reference row"))
    handles += [Line2D([], [], label=run.experiences[j], **_marker(j)) for j in scored]
    fig.legend(handles=handles, loc="outside upper left", ncols=min(5, len(handles)))
    return fig


def _marker(j: int) -> dict[str, Any]:
    """Return how the score on experience j is drawn, apart from the bars by its colour."""
    return {
        "marker": marker_of(j),
        "color": color_of(j + 5),
        "markerfacecolor": "white",
        "ls": "",
    }
