"""Names of points that cover neither a point nor one another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from cl_lora.reporting.figures.style import GREY

_GAP = 16  # points between a column of points and their names

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
    """Name points: beside them where that covers no point and no text, else in the right margin.

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
    taken += [Text.get_window_extent(text) for text in ax.texts]  # without the lines of some
    frame = ax.get_window_extent()
    colors = {name: GREY if name in muted else "black" for name in labels}
    crowded: list[tuple[float, float, str]] = []
    widest = 0.0
    for name, point in labels.items():
        probe = ax.text(0, 0, name, fontsize=9)
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
                fontsize=9,
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
    heights = _spaced([y for y, _, _ in sorted(crowded)], 13 * pixels / frame.height)
    for (_, _, name), height in zip(sorted(crowded), heights, strict=True):
        ax.annotate(
            name,
            labels[name],
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            color=colors[name],
            arrowprops={**_LEADER, "relpos": (0, 0.5)},
            zorder=1,
        )


def label_column(
    fig: Figure, ax: Axes, labels: Mapping[str, tuple[float, float]], muted: set[str]
) -> None:
    """Name points of one x, at the left of them, below one another in the order of the points.

    The axis, which is logarithmic, is widened at its left to make room. Points that lie in a heap
    are told apart by lines that lead to them.

    Args:
        fig: the figure, with everything else that takes room on it.
        ax: its axes.
        labels: name -> the point, in data; all have one x.
        muted: names in grey.
    """
    fig.draw_without_rendering()
    pixels, frame = fig.dpi / 72, ax.get_window_extent()
    probes = [ax.text(0, 0, name, fontsize=9) for name in labels]
    widest = max(probe.get_window_extent().width for probe in probes)
    for probe in probes:
        probe.remove()
    share = (widest + (_GAP + 8) * pixels) / frame.width  # of the frame, at the left of the points
    (x,) = {point[0] for point in labels.values()}
    low, high = (math.log(v) for v in ax.get_xlim())
    ax.set_xlim(left=math.exp(min(low, (math.log(x) - share * high) / (1 - share))))
    ordered = sorted(labels, key=lambda name: labels[name][1])
    places = [(ax.transData.transform(labels[n])[1] - frame.y0) / frame.height for n in ordered]
    gap = 12.5 * pixels / frame.height
    # Spread to both sides: as far up as the heap needs, and half of that down again.
    up = _spaced(places, gap)
    down = [1 - y for y in reversed(_spaced([1 - y for y in reversed(places)], gap))]
    middle = _spaced([(a + b) / 2 for a, b in zip(up, down, strict=True)], gap)
    left = (ax.transData.transform((x, 0))[0] - frame.x0 - _GAP * pixels) / frame.width
    for name, height in zip(ordered, middle, strict=True):
        ax.annotate(
            name,
            labels[name],
            xytext=(left, height),
            textcoords="axes fraction",
            ha="right",
            va="center",
            fontsize=9,
            color=GREY if name in muted else "black",
            arrowprops={**_LEADER, "relpos": (1, 0.5), "shrinkA": 0, "shrinkB": 3},
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
