"""What all figures share: colours, markers, lines, the style, and figures as bytes.

Colours are near those of Okabe and Ito (2008) for kinds and cividis for amounts: both survive
colour blindness and, with markers and line styles beside them, a grey printer.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import partial
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import Formatter

from cl_lora.support.errors import printable

OKABE_ITO = (
    "#0072B2",
    "#C07A00",
    "#008F68",
    "#B8558C",
    "#2A8FC7",
    "#D55E00",
    "#000000",
    "#8F8200",
)
"""Their hues, darkened where they would have less than three times the contrast of white."""

PALE = "#8C8C8C"
"""Bars of baselines."""

GRID, GROUND, STRIPE = "#DDDDDD", "#FFFFFF", "#F4F6F8"

ON_HEAT = ("#101010", "#FFFFFF")
"""Numbers on the light and on the dark cells of a map, whatever the ground of the page."""


MARKERS = "osD^vPX*"
LINES = ("-", "--", "-.", ":")
GREY = "#757575"

DPI = 160
"""Dots per inch of the files."""

STYLE: Mapping[str, Any] = {
    # No text is smaller than 9 points.
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.title_fontsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "figure.labelsize": 9,
    "lines.markersize": 4,
    "figure.dpi": 100,
    # Names hold what they like: $x^$ is one, and no formula.
    "text.parse_math": False,
    # Text as outlines: the report shows it alike everywhere. The salt makes the ids repeatable.
    "svg.fonttype": "path",
    "svg.hashsalt": "cl-lora",
}


def color_of(k: int) -> str:
    """Return the colour of the k-th kind; after the last the first comes again."""
    return OKABE_ITO[k % len(OKABE_ITO)]


def marker_of(k: int) -> str:
    """Return the marker of the k-th kind; after the last the first comes again."""
    return MARKERS[k % len(MARKERS)]


def line_of(k: int) -> str:
    """Return the line style of the k-th line: the next one each time the colours are used up."""
    return LINES[k // len(OKABE_ITO) % len(LINES)]


def render(figure: Figure, kind: str, outlines: bool = True, dpi: float = DPI) -> bytes:
    """Return a figure as the bytes of a ``png`` or ``svg`` file, without a date.

    Args:
        figure: which.
        kind: ``png`` or ``svg``.
        outlines: whether the text of an SVG is drawn as outlines; as text, if not.
        dpi: dots per inch of a PNG.
    """
    buffer = io.BytesIO()
    metadata = {"svg": {"Date": None}, "png": {"Software": None}}[kind]
    _escape(figure)
    with mpl.rc_context({**STYLE, "svg.fonttype": "path" if outlines else "none"}):
        _lay_out(figure)
        figure.savefig(buffer, format=kind, metadata=metadata, dpi=dpi)
    return buffer.getvalue()


def _lay_out(figure: Figure) -> None:
    """Put everything in its place, once: to measure all texts again costs more than to draw."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)


def _escape(figure: Figure) -> None:
    """Escape what is not printable: an SVG file with such characters is not well-formed."""
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            # Names at ticks are made anew by every drawing.
            formatter = axis.get_major_formatter()
            formatter.format_ticks = partial(_ticks, type(formatter), formatter)  # type: ignore[method-assign]
    for text in figure.findobj(Text):
        text.set_text(_printable(text.get_text()))


def _ticks(kind: type[Formatter], formatter: Formatter, values: Any) -> list[str]:
    return [_printable(text) for text in kind.format_ticks(formatter, values)]


def _printable(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))
