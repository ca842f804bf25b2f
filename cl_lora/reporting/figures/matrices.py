"""Score matrices, of all arms in one figure and of one arm alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cl_lora.evaluation.continual import FloatArray
from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.budgets import has_budgets
from cl_lora.reporting.figures.axes import axis_title
from cl_lora.reporting.figures.marks import number, see
from cl_lora.reporting.figures.numbers import mean_matrix, scored_arms
from cl_lora.reporting.figures.registry import figure
from cl_lora.reporting.figures.style import ON_HEAT
from cl_lora.reporting.tables import shorten
from cl_lora.run_folder.reader import RunFolder

_EVALUATED = "evaluated on"
_TOLD = 3  # matrices that are told in words


@figure(
    "matrices",
    "Score matrices",
    "Mean over seeds: a row is a stage, a column the experience that was scored. Where stages "
    "follow one another, the rows are time.",
    few_shot="never",
    position=60,
)
def score_matrices(run: RunFolder, metric: Metric) -> Figure | None:
    """Draw R (S, T) of every arm, mean over seeds: a row per stage, a column per experience.

    Returns:
        The figure; None for means over a group of subsets, which have no stages, and where all
        is merged once: each would be a single row, which the table has.
    """
    if run.stream.trained_stages[-1].group or has_budgets(run):
        return None
    arms = scored_arms(run)
    columns = min(4, len(arms))
    rows = -(-len(arms) // columns)
    stages, experiences, scored = _stages(run), *_experiences(run, metric)
    S, T = len(stages), len(experiences)
    side = 1.9 if max(S, T) <= 6 else 2.7
    # Cells are square: a panel of few stages is low, and its labels need room of their own.
    height = rows * (side * S / T + 0.28) + 0.7 + _labels_room(S, T) * min(2, rows)
    fig = Figure(figsize=(columns * side + 0.9, height), layout="constrained")
    axes = np.atleast_1d(np.array(fig.subplots(rows, columns, squeeze=False))).ravel()
    matrices = [mean_matrix(run, arm, metric)[:, scored] for arm in arms]
    limits = _limits(matrices, metric)
    image = None
    for i, ax in enumerate(axes):
        if i >= len(arms):
            ax.set_visible(False)
            continue
        # Labels at the outer edge only; a row's last panel may have nothing below it.
        lowest = i + columns >= len(arms)
        image = draw_matrix(
            ax,
            matrices[i],
            stages if i % columns == 0 else None,
            experiences if lowest else None,
            metric,
            limits,
        )
        ax.set_title(shorten(arms, 22 if T <= 6 else 36)[i], fontsize=9, weight="normal")
    assert image is not None
    bar = fig.colorbar(image, ax=axes.tolist(), shrink=min(1.0, 2.0 / rows), aspect=25, pad=0.01)
    bar.set_label(axis_title(metric))
    see(fig, _seen(run, arms, matrices, metric))
    fig.supylabel(_rows_title(run), fontsize=9)
    fig.supxlabel(_EVALUATED, fontsize=9)
    return fig


def _seen(
    run: RunFolder, arms: Sequence[str], matrices: Sequence[FloatArray], metric: Metric
) -> str:
    """Return the last row of the first matrices in words."""
    _, scored = _experiences(run, metric)
    rows = [
        f"{arm}, last row: "
        + ", ".join(
            f"{run.experiences[j]} {number(metric, float(value))}"
            for j, value in zip(scored, matrix[-1], strict=True)
            if math.isfinite(value)
        )
        for arm, matrix in list(zip(arms, matrices, strict=True))[:_TOLD]
    ]
    more = f"; and {len(arms) - _TOLD} more" if len(arms) > _TOLD else ""
    return f"{'; '.join(rows)}{more}."


def matrix_figure(run: RunFolder, arm: str, metric: Metric) -> Figure:
    """Draw the score matrix of one arm alone, as shown in TensorBoard."""
    stages, experiences, scored = _stages(run), *_experiences(run, metric)
    S, T = len(stages), len(experiences)
    sides = (1.4 + 0.5 * T, 1.4 + 0.5 * S + _labels_room(S, T))
    fig = Figure(figsize=sides, layout="constrained")
    ax = fig.add_subplot()
    matrix = mean_matrix(run, arm, metric)[:, scored]
    draw_matrix(ax, matrix, stages, experiences, metric, _limits([matrix], metric))
    ax.set_title(arm)
    ax.set_ylabel(_rows_title(run))
    ax.set_xlabel(_EVALUATED)
    return fig


def draw_matrix(
    ax: Axes,
    matrix: FloatArray,
    rows: Sequence[str] | None,
    columns: Sequence[str] | None,
    metric: Metric,
    limits: tuple[float, float],
) -> Any:
    """Draw R (S, T) into ``ax`` with its numbers, bright for good, and return the image.

    Args:
        ax: where to draw.
        matrix: R; NaN where nothing was scored.
        rows: names of the S stages; None to leave them out.
        columns: names of the T experiences; None to leave them out.
        metric: what was scored.
        limits: the ends of the colour scale, as shown.

    Returns:
        The image, for a colour bar.
    """
    values = metric.scale * matrix
    map_name = "cividis" if metric.higher_is_better else "cividis_r"
    colors = mpl.colormaps[map_name].with_extremes(bad="#eeeeee")
    image = ax.imshow(values, cmap=colors, aspect="equal", vmin=limits[0], vmax=limits[1])
    ax.grid(visible=False)
    ax.set_xticks(
        range(values.shape[1]), shorten(columns, 8, words=True) if columns else [], rotation=90
    )
    ax.set_yticks(range(values.shape[0]), shorten(rows, 8, words=True) if rows else [])
    ax.tick_params(length=0, labelsize=9)
    for spine in ax.spines.values():
        spine.set_visible(False)
    if max(values.shape) <= 10:
        shades = np.asarray(image.norm(values))
        brightness = shades if metric.higher_is_better else 1 - shades
        for s, j in np.ndindex(values.shape):
            value = values.item(s, j)
            if math.isfinite(value):
                # White on the dark half of the map, black on the light half.
                color = ON_HEAT[int(brightness[s, j] < 0.48)]
                ax.text(
                    j, s, _cell(value, metric), ha="center", va="center", fontsize=9, color=color
                )
    return image


def _limits(matrices: Sequence[FloatArray], metric: Metric) -> tuple[float, float]:
    """Return the ends of one colour scale for all ``matrices``.

    Percentages share theirs, so that the figures of two runs can be compared.
    """
    if metric.percent:
        return 0.0, 100.0
    values = metric.scale * np.concatenate([m.ravel() for m in matrices])
    found = values[np.isfinite(values)]
    return (float(found.min()), float(found.max())) if len(found) else (0.0, 1.0)


def _cell(value: float, metric: Metric) -> str:
    """Return a shown value in few characters: two digits, more before the point only."""
    return f"{value:.0f}" if metric.percent or abs(value) >= 10 else f"{value:.2g}"


def _stages(run: RunFolder) -> tuple[str, ...]:
    return tuple(stage.name for stage in run.stream.trained_stages)


def _experiences(run: RunFolder, metric: Metric) -> tuple[tuple[str, ...], list[int]]:
    """Return names and indices of the experiences that ``metric`` scores at any stage."""
    stages = run.stream.shape(metric.name).evaluated or ()
    scored = sorted({j for evaluated in stages for j in evaluated})
    return tuple(run.experiences[j] for j in scored), scored


def _labels_room(S: int, T: int) -> float:
    """Return the inches that a panel which is wider than high needs below it for its labels."""
    return 0.4 if S < T else 0.0


def _rows_title(run: RunFolder) -> str:
    return "after training on" if run.stream.ordered else "stage"
