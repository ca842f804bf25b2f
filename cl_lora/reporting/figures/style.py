"""What all figures share: colours, markers, lines, the style, and figures as bytes.

Colours are those of Okabe and Ito (2008) for kinds and cividis for amounts: both survive colour
blindness and, with markers and line styles beside them, a grey printer.
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
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#000000",
    "#B8A800",  # yellow, darkened to be seen on white
)
MARKERS = "osD^vPX*"
LINES = ("-", "--", "-.", ":")
GREY = "#757575"

STYLE: Mapping[str, Any] = {
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "lines.markersize": 4,
    "figure.dpi": 100,
    "savefig.dpi": 160,
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


def render(figure: Figure, kind: str) -> bytes:
    """Return a figure as the bytes of a ``png`` or ``svg`` file, without a date."""
    buffer = io.BytesIO()
    _escape(figure)
    metadata = {"svg": {"Date": None}, "png": {"Software": None}}[kind]
    with mpl.rc_context(dict(STYLE)):
        figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


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
