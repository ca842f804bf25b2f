"""The average final score of every arm."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from cl_lora.evaluation.aggregate import ALL_EXPERIENCES, FINAL
from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.describe import at_the_end
from cl_lora.reporting.figures.axes import axis_title
from cl_lora.reporting.figures.bars import BAR, BASELINE_BAR, Bar, draw_bars, marker
from cl_lora.reporting.figures.marks import number
from cl_lora.reporting.figures.numbers import Numbers, by_average, numbers_of
from cl_lora.reporting.figures.registry import figure
from cl_lora.run_folder.reader import RunFolder


@figure(
    "final",
    "Final score by arm",
    "Bars: average over experiences, whiskers: one standard deviation over seeds, markers: the "
    "experiences. Arms by their average, baselines below.",
    few_shot="never",
    position=10,
)
def final_scores(run: RunFolder, metric: Metric) -> Figure:
    """Draw the average final score of every arm, with its standard deviation over seeds, best
    first.

    A bar is the measure ``average`` (``mean_j R[T, j]``), its whisker one standard deviation over
    seeds to either side, and a marker the score on one experience. The baselines stand below, in
    grey.
    """
    numbers = numbers_of(run, metric)
    groups = [by_average(numbers, run.arms), by_average(numbers, run.references)]
    rows = [a for group in groups for a in group]
    scored = run.stream.shape(metric.name).final
    fig = Figure(figsize=(7.2, 1.5 + 0.24 * len(rows)), layout="constrained")
    ax = fig.add_subplot()
    bars = [
        [
            Bar(
                arm,
                metric.scale * numbers[(arm, "average", ALL_EXPERIENCES)].mean,
                metric.scale * numbers[(arm, "average", ALL_EXPERIENCES)].deviation,
                {j: metric.scale * numbers[(arm, FINAL, j)].mean for j in scored},
                _text(run, numbers, arm, metric),
            )
            for arm in group
        ]
        for group in groups
    ]
    draw_bars(ax, bars, (BAR, BASELINE_BAR))
    if metric.low >= 0:
        ax.set_xlim(left=0)
    ax.set_xlabel(axis_title(metric, at_the_end(run)))
    handles: list[Any] = [Patch(color=BAR, label="average")]
    if any(run.references):
        handles.append(Patch(color=BASELINE_BAR, label="average, baseline"))
    handles += [Line2D([], [], label=run.experiences[j], **marker(j)) for j in scored]
    fig.legend(handles=handles, loc="outside upper left", ncols=min(5, len(handles)))
    return fig


def _text(run: RunFolder, numbers: Numbers, arm: str, metric: Metric) -> str:
    average = numbers[(arm, "average", ALL_EXPERIENCES)]
    each = (
        f"{run.experiences[j]} {number(metric, numbers[(arm, FINAL, j)].mean)}"
        for j in run.stream.shape(metric.name).final
    )
    return f"{arm}: {number(metric, average.mean, average.deviation)}; {', '.join(each)}"
