"""Parts of axes that several figures draw: titles, ticks, spreads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cl_lora.evaluation.continual import FloatArray
from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.tables import shorten

_HANDLE, _LETTER = 0.65, 0.077
"""Inches of the line before an entry of a legend with the room around it, and of a letter."""


def axis_title(metric: Metric, what: str = "") -> str:
    """Return the title of an axis that shows ``metric``: its unit, and whether lower is better.

    Example:
        >>> axis_title(Metric("rmse", "RMSE", "px", higher_is_better=False), "at the end")
        'RMSE at the end (px, lower is better)'
    """
    notes = [metric.unit] if metric.unit else []
    if not metric.higher_is_better:
        notes.append("lower is better")
    words = [metric.title, what, f"({', '.join(notes)})" if notes else ""]
    return " ".join(word for word in words if word)


def draw_spread(ax: Axes, x: FloatArray, mean: FloatArray, spread: FloatArray, color: str) -> None:
    """Draw one standard deviation to each side: a band, or a whisker of a single point."""
    if len(x) == 1:
        ax.errorbar(x, mean, yerr=np.nan_to_num(spread), color=color, capsize=2, lw=1, zorder=2)
    elif np.isfinite(spread).any():
        low, high = mean - spread, mean + spread
        ax.fill_between(x, low, high, color=color, alpha=0.15, lw=0, zorder=2)


def legend_columns(figure: Figure, names: Sequence[str], most: int = 99) -> int:
    """Return how many entries of a legend, 1 or more, stand abreast in the width of a figure."""
    widest = _HANDLE + _LETTER * max(map(len, names), default=0)
    return max(1, min(len(names), most, int(figure.get_figwidth() // widest)))


def stage_ticks(ax: Axes, names: Sequence[str], width: int) -> None:
    """Write the stages below x = 1..S, upright where there are too many to stand abreast."""
    S = len(names)
    few = S <= 5
    ax.set_xticks(np.arange(1, S + 1), shorten(names, width, words=True), rotation=0 if few else 90)
    ax.set_xlim(0.85, S + 0.15)
