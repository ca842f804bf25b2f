"""Names of points that cover neither a point nor one another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from cl_lora.reporting.figures.style import GREY

_LEADER: Mapping[str, Any] = {"arrowstyle": "-", "lw": 0.5, "color": GREY}


def label_points(
    fig: Figure,
    ax: Axes,
    labels: Mapping[str, tuple[float, float]],
    obstacles: Sequence[tuple[float, float]],
    muted: set[str],
    margin: bool = True,
    reach: Sequence[float] = (7.0,),
) -> None:
    """Name points: beside them where that covers no point and no name, else in the right margin.

    Names in the margin stand below one another in the order of their points, so that the lines
    that lead to them hardly cross. Without a ``margin``, as where panels stand abreast, names that
    find no place are left out.

    Args:
        fig: the figure.
        ax: its axes.
        labels: name -> the point, in data.
        obstacles: points that no name may cover, in data.
        muted: names in grey.
        margin: whether the right margin may be used.
        reach: distances of a name from its point that are tried, in points, the nearest first; a
            thin line leads to names that are not at the first.
    """
    fig.draw_without_rendering()  # settles the layout, so that sizes in pixels are final
    pixels = fig.dpi / 72
    dots = [ax.transData.transform(p) for p in obstacles]
    taken = [Bbox.from_extents(x, y, x, y).padded(5 * pixels) for x, y in dots]
    frame = ax.get_window_extent()
    colors = {name: GREY if name in muted else "black" for name in labels}
    crowded: list[tuple[float, float, str]] = []
    widest = 0.0
    for name, point in labels.items():
        probe = ax.text(0, 0, name, fontsize=7)
        size = probe.get_window_extent()
        probe.remove()
        x, y = ax.transData.transform(point)
        angles = np.linspace(0, 2 * math.pi, 16, endpoint=False)
        for away, angle in itertools.product(reach, angles):
            # From the point to the nearest edge of the label, so that wide labels keep close.
            dx = math.cos(angle) * (away * pixels + size.width / 2)
            dy = math.sin(angle) * (away * pixels + size.height / 2)
            box = Bbox.from_bounds(
                x + dx - size.width / 2, y + dy - size.height / 2, size.width, size.height
            )
            inside = frame.contains(box.x0, box.y0) and frame.contains(box.x1, box.y1)
            if not inside or any(box.overlaps(other) for other in taken):
                continue
            taken.append(box.padded(pixels))
            ax.annotate(
                name,
                point,
                xytext=(dx / pixels, dy / pixels),
                textcoords="offset points",
                ha="center",
                va="center",
                fontsize=7,
                color=colors[name],
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},  # over the lines
                arrowprops=None if away == reach[0] else {**_LEADER, "shrinkB": 3},
                zorder=5,
            )
            break
        else:
            if not margin:
                continue
            widest = max(widest, size.width)
            crowded.append(((y - frame.y0) / frame.height, x, name))
    # The margin is added to the figure, so that the points and their names stay where they are.
    fig.set_figwidth(fig.get_figwidth() + (widest + 20 * pixels) / fig.dpi * bool(crowded))
    heights = _spaced([y for y, _, _ in sorted(crowded)], 11 * pixels / frame.height)
    for (_, _, name), height in zip(sorted(crowded), heights, strict=True):
        ax.annotate(
            name,
            labels[name],
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            fontsize=7,
            color=colors[name],
            arrowprops={**_LEADER, "relpos": (0, 0.5)},
            zorder=1,
        )


def _spaced(positions: Sequence[float], gap: float) -> list[float]:
    """Return ascending positions in [0, 1], moved until ``gap`` lies between any two.

    Example:
        >>> _spaced([0.2, 0.5, 0.5], 0.25)
        [0.2, 0.5, 0.75]
    """
    spaced: list[float] = []
    for position in positions:
        spaced.append(max(position, spaced[-1] + gap) if spaced else position)
    highest = 1.0
    for i in reversed(range(len(spaced))):
        spaced[i] = min(spaced[i], highest)
        highest = spaced[i] - gap
    return spaced
