"""Learned coefficients, stage after stage and against K."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cl_lora.evaluation.continual import FloatArray
from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.faces import by_shots, few_shot_stages, upstream
from cl_lora.reporting.figures.axes import draw_spread, legend_columns, stage_ticks
from cl_lora.reporting.figures.marks import tell
from cl_lora.reporting.figures.registry import figure
from cl_lora.reporting.figures.shots_axis import K_TITLE, places, ticks
from cl_lora.reporting.figures.style import GREY, color_of, marker_of
from cl_lora.reporting.tables import shorten
from cl_lora.run_folder.reader import RunFolder

_EQUAL = 1e-6  # coefficients of one stage that differ by less are one value


@figure(
    "coefficients",
    "Coefficients over time",
    "Mean over seeds (and layers or modules, where each has its own), bands: one standard "
    "deviation. Dashed: 1, the weight with which an adapter was trained.",
    ordered=True,
    position=50,
)
def coefficients_over_time(run: RunFolder, metric: Metric) -> Figure | None:
    """Draw how the learned coefficients evolve as experiences arrive.

    One panel per arm with learned coefficients, a line per adapter: its coefficient after each
    merge, mean over seeds (and over layers or modules where each has its own), band: one standard
    deviation over all of them. The dashed line marks 1, where an adapter has the weight it was
    trained with.

    Returns:
        The figure; None if no arm has learned coefficients.
    """
    del metric  # all figures are called alike
    frame = run.coefficients
    arms = [a for a in run.arms if _is_learned(run.variant(a)) and (frame["arm"] == a).any()]
    if not arms:
        return None
    stages = [stage.name for stage in run.stream.trained_stages]

    def draw(ax: Axes, arm: str) -> None:
        of_arm = frame[frame["arm"] == arm]
        ax.axhline(1, color=GREY, lw=0.8, ls="--", zorder=1)
        for j in range(len(run.experiences)):
            values = of_arm[of_arm["adapter"] == j].groupby("stage")["value"]
            mean = values.mean().to_numpy(dtype=np.float64)
            spread = np.asarray(values.std(), dtype=np.float64)
            x = np.array(list(values.groups), dtype=np.float64) + 1
            (line,) = ax.plot(x, mean, color=color_of(j), marker=marker_of(j), lw=1.4, zorder=3)
            after = [stages[int(str(stage))] for stage in values.groups]
            tell(line, *_texts(arm, run.experiences[j], after, mean))
            draw_spread(ax, x, mean, spread, color_of(j))
        stage_ticks(ax, stages, 8)
        ax.set_ylim(bottom=min(0.0, float(of_arm["value"].min())))

    return _panels(run, arms, range(len(run.experiences)), draw, "after training on")


@figure(
    "coefficients_by_shots",
    "Learned coefficients against K",
    "Mean over modules, support draws and the data sets for which an adapter is upstream. Bands: "
    "one standard deviation over seeds. Dashed: the same weight for every adapter of one data set.",
    few_shot="only",
    position=50,
)
def coefficients_by_shots(run: RunFolder, metric: Metric) -> Figure | None:
    """Draw the coefficients of every arm that learns them, against K, a line per adapter.

    Returns:
        The figure; None if no arm's coefficients differ, or if not every data set has as many
        upstream adapters, so that means over data sets say nothing.
    """
    del metric  # all figures are called alike
    face = by_shots(run)
    stages = face.stream.trained_stages
    at = places(stages)
    adapting = few_shot_stages(run)
    sizes = {len(s.members) for s in adapting}
    rows = run.coefficients[run.coefficients["stage"].isin({s.index for s in adapting})]
    ranges: Any = rows.groupby(["arm", "stage"])["value"].agg(np.ptp)
    learned = {arm for (arm, _), value in ranges.items() if value > _EQUAL}
    arms = [a for a in face.arms if a in learned]
    if not arms or len(sizes) > 1:
        return None

    def draw(ax: Axes, arm: str) -> None:
        of_arm = face.coefficients[face.coefficients["arm"] == arm]
        ax.axhline(1 / min(sizes), color=GREY, lw=0.8, ls="--", zorder=1)
        for k, j in enumerate(upstream(run)):
            of_adapter = of_arm[of_arm["adapter"] == j]
            values = of_adapter.groupby(["stage", "seed"])["value"].mean().groupby("stage")
            mean = values.mean().to_numpy(dtype=np.float64)
            spread = np.asarray(values.std(), dtype=np.float64)
            x = np.array([at[int(str(stage))] for stage in values.groups])
            (line,) = ax.plot(x, mean, color=color_of(k), marker=marker_of(k), lw=1.4, zorder=3)
            known = [stages[int(str(stage))].name for stage in values.groups]
            tell(line, *_texts(arm, run.experiences[j], known, mean))
            draw_spread(ax, x, mean, spread, color_of(k))
        ticks(ax, stages)

    return _panels(run, arms, upstream(run), draw, K_TITLE)


def _is_learned(variant: Mapping[str, Any]) -> bool:
    """Only what is learned, by whatever solver, has a granularity."""
    rule = variant.get("coefficients")
    return isinstance(rule, Mapping) and "granularity" in rule


def _texts(arm: str, adapter: str, places: Sequence[str], values: FloatArray) -> list[str]:
    return [
        f"{arm}, adapter of {adapter}, {place}: {value:.3f}"
        for place, value in zip(places, values, strict=True)
    ]


def _panels(
    run: RunFolder,
    arms: Sequence[str],
    adapters: Sequence[int],
    draw: Callable[[Axes, str], None],
    below: str,
) -> Figure:
    """Return a figure with a panel for each arm and a legend of the adapters."""
    columns = min(3, len(arms))
    rows = -(-len(arms) // columns)
    fig = Figure(figsize=(2.6 * columns + 0.5, 2.1 * rows + 0.8), layout="constrained")
    axes = np.array(fig.subplots(rows, columns, squeeze=False)).ravel()
    titles = shorten(arms, 30)
    for i, ax in enumerate(axes):
        if i >= len(arms):
            ax.set_visible(False)
            continue
        draw(ax, arms[i])
        ax.set_title(titles[i], fontsize=9, weight="normal")
    handles = [
        Line2D([], [], color=color_of(k), marker=marker_of(k), lw=1.4, label=run.experiences[j])
        for k, j in enumerate(adapters)
    ]
    fig.legend(
        handles=handles,
        loc="outside upper left",
        ncols=legend_columns(fig, [run.experiences[j] for j in adapters], 5),
        title="adapter trained on",
        alignment="left",
    )
    fig.supylabel("coefficient", fontsize=9)
    fig.supxlabel(below, fontsize=9)
    return fig
