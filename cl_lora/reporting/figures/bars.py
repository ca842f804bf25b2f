"""Rows of bars with whiskers and markers, as several figures draw them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from cl_lora.reporting.figures.marks import tell
from cl_lora.reporting.figures.style import OKABE_ITO, PALE, color_of, marker_of

BAR = OKABE_ITO[4]
BASELINE_BAR = PALE


@dataclass(frozen=True)
class Bar:
    """One row: a bar to ``value``, a whisker to either side, a marker for each experience.

    Attributes:
        name: of the row.
        value: as shown.
        deviation: half the whisker; none where NaN.
        markers: index of an experience -> its value, as shown.
        text: what is read of it.
    """

    name: str
    value: float
    deviation: float
    markers: Mapping[int, float]
    text: str = ""


def draw_bars(ax: Axes, groups: Sequence[Sequence[Bar]], colors: Sequence[str]) -> None:
    """Draw groups of rows below one another, each group in its colour."""
    y = 0.0
    ticks: list[float] = []
    for group, color in zip(groups, colors, strict=True):
        for bar in group:
            ticks.append(y)
            (patch,) = ax.barh(y, bar.value, height=0.72, color=color, zorder=2)
            tell(patch, bar.text or bar.name)
            if not math.isnan(bar.deviation):
                ax.errorbar(
                    bar.value, y, xerr=bar.deviation, color="black", capsize=2, lw=1, zorder=4
                )
            for j, value in bar.markers.items():
                ax.plot(value, y, mew=0.9, zorder=3, **marker(j))
            y += 1
        y += 0.6
    ax.set_yticks(ticks, [bar.name for group in groups for bar in group])
    ax.set_ylim(y - 0.8, -0.8)
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)


def marker(j: int) -> dict[str, Any]:
    """Return how the score on experience j is drawn, apart from the bars by its colour."""
    return {
        "marker": marker_of(j),
        "color": color_of(j + 5),
        "markerfacecolor": "white",
        "ls": "",
    }
