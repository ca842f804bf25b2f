"""Figures as the page shows them: as SVG with words, or as an image where that is too large."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

from matplotlib.figure import Figure

from cl_lora.reporting.figures.marks import seen_in
from cl_lora.reporting.figures.registry import FIGURES
from cl_lora.reporting.figures.style import render
from cl_lora.reporting.page.svg import inline, pixels

_LARGEST_SVG = 300_000
"""Bytes over which a figure is embedded as PNG: a browser draws many outlines slowly."""

_HIGHEST = 800  # pixels of a figure that is seen at once
_DPI = 110  # of images in a page: its figures/ have them in more detail


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Attributes:
        name: what its identifiers begin with.
        title: heading.
        caption: how it is read.
        seen: what is seen in it, for those who do not see it.
        svg: the figure as an element; empty where it is an image.
        source: the image as an address with its data; empty where it is SVG.
        width: in pixels, at its own size.
        section: of the page it stands in.
        open: whether it is seen at once.
    """

    name: str
    title: str
    caption: str
    seen: str
    svg: str
    source: str
    width: int
    section: str = ""
    open: bool = True


def picture(
    figure: Figure,
    name: str,
    title: str,
    caption: str,
    section: str = "",
    open: bool = True,
) -> Picture:
    """Return a figure as a page shows it.

    Args:
        figure: as matplotlib draws it.
        name: what its identifiers begin with, ``fig-`` before it.
        title: heading.
        caption: how it is read.
        section: of the page it stands in.
        open: whether it is seen at once.
    """
    name = f"fig-{name}"
    svg, source = inline(figure, name), ""
    if len(svg) > _LARGEST_SVG:
        data = base64.b64encode(render(figure, "png", dpi=_DPI)).decode()
        svg, source = "", f"data:image/png;base64,{data}"
    seen = seen_in(figure) or caption
    return Picture(name, title, caption, seen, svg, source, pixels(figure), section, open)


def _is_low(figure: Figure) -> bool:
    """Return whether a figure takes no more than a screen: higher ones are folded."""
    return figure.get_figheight() * 96 <= _HIGHEST


def pictures(drawn: Mapping[str, Figure]) -> list[Picture]:
    """Return registered figures as the page shows them."""
    return [
        picture(
            *(figure, name, FIGURES[name].title, FIGURES[name].caption),
            section=FIGURES[name].section,
            open=FIGURES[name].open and (FIGURES[name].section == "first" or _is_low(figure)),
        )
        for name, figure in drawn.items()
    ]
