"""The features of a task under every arm, as t-SNE places them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.figures.marks import see
from cl_lora.reporting.figures.registry import figure
from cl_lora.reporting.figures.style import OKABE_ITO
from cl_lora.reporting.tables import shorten
from cl_lora.run_folder.reader import RunFolder

_ACROSS = 5
_MOST_NAMED = 10  # labels in a legend
_SIDE = 1.7

_QUARTERS = ("lowest quarter", "second quarter", "third quarter", "highest quarter")

_TEN = (*OKABE_ITO, "#8B5A2B", "#999999")
"""Colours that ten classes are told apart by."""


@figure(
    "embedding",
    "Features of one task under each arm",
    "t-SNE of the backbone's features of the same test samples, one for each arm: whether classes "
    "lie apart is what can be seen; distances between groups, directions and sizes mean nothing. "
    "A colour for each class, or quarter of the values. One seed.",
    position=80,
    whole=True,
)
def features_in_the_plane(run: RunFolder, metric: Metric) -> Figure | None:
    """Draw a panel for each arm, side by side; a block of them for each task that was embedded.

    Returns:
        The figure; None where nothing was embedded.
    """
    del metric
    rows = run.embedding
    if rows.empty:
        return None
    tasks = sorted(set(rows["evaluated"]))
    grids = [len(_arms(run, rows[rows["evaluated"] == j])) for j in tasks]
    across = min(_ACROSS, max(grids))
    lines = [-(-n // across) for n in grids]
    heights = [n * (_SIDE + 0.2) + 0.55 for n in lines]
    fig = Figure(figsize=(across * _SIDE + 0.2, sum(heights)), layout="constrained")
    names = (run.experiences[j] for j in tasks)
    see(fig, f"Features of {', '.join(names)} under {max(grids)} rows, a panel for each.")
    parts = fig.subfigures(len(tasks), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, j, count in zip(parts, tasks, lines, strict=True):
        of_task = rows[rows["evaluated"] == j]
        arms = _arms(run, of_task)
        colors = _colors(sorted(set(of_task["label"])))
        axes = part.subplots(count, across, squeeze=False).ravel()
        for ax in axes[len(arms) :]:
            ax.set_visible(False)
        for ax, arm, name in zip(axes, arms, shorten(arms, 20), strict=False):
            draw_places(ax, of_task[of_task["arm"] == arm], colors)
            ax.set_title(name, fontsize=9, weight="normal")
        samples = of_task["sample"].nunique()
        part.suptitle(f"{run.experiences[j]}, {samples} test samples", fontsize=9)
        if len(colors) <= _MOST_NAMED:
            part.legend(
                handles=_legend(run, j, colors),
                loc="outside lower center",
                ncols=min(len(colors), 5),
            )
    return fig


def embedding_figure(run: RunFolder, arm: str, j: int) -> Figure | None:
    """Draw one arm alone, as shown in TensorBoard; None where it was not embedded."""
    of_task = run.embedding[run.embedding["evaluated"] == j]
    rows = of_task[of_task["arm"] == arm]
    if rows.empty:
        return None
    colors = _colors(sorted(set(of_task["label"])))
    fig = Figure(figsize=(3.4, 3.6), layout="constrained")
    ax = fig.add_subplot()
    draw_places(ax, rows, colors)
    ax.set_title(f"{arm}, {run.experiences[j]}")
    if len(colors) <= _MOST_NAMED:
        fig.legend(handles=_legend(run, j, colors), loc="outside lower center", ncols=3)
    return fig


def draw_places(ax: Axes, rows: pd.DataFrame, colors: Mapping[int, str]) -> None:
    """Draw a point for each sample, in the colour of its label; without axes, which say nothing."""
    for label, color in colors.items():
        found = rows[rows["label"] == label]
        ax.plot(found["x"], found["y"], "o", color=color, ms=2.2, mew=0, alpha=0.85)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(visible=False)
    ax.set_box_aspect(1)
    for spine in ax.spines.values():
        spine.set(visible=True, color="#cccccc", lw=0.6)


def _arms(run: RunFolder, rows: pd.DataFrame) -> list[str]:
    there = set(rows["arm"])
    return [row for row in (*run.references, *run.arms) if row in there]


def _colors(labels: Sequence[int]) -> dict[int, str]:
    """Return a colour for each label: distinct ones for ten, else around the circle of hues."""
    if len(labels) <= len(_TEN):
        return dict(zip(labels, _TEN, strict=False))
    wheel = mpl.colormaps["hsv"]
    return {
        label: mpl.colors.to_hex(wheel(k / len(labels)), keep_alpha=False)
        for k, label in enumerate(labels)
    }


def _legend(run: RunFolder, j: int, colors: Mapping[int, str]) -> list[Line2D]:
    name = run.stream.experiences[j].task
    task = next(t for t in run.stream.tasks if t.name == name)
    # Where targets are numbers, and so have a scaling, labels name points and not samples.
    names = task.labels if task.scaling is None and task.labels else _QUARTERS
    return [
        Line2D(
            *([], []),
            color=color,
            marker="o",
            ls="",
            ms=4,
            label=names[label] if label < len(names) else str(label),
        )
        for label, color in colors.items()
    ]
