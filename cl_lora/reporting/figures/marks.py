"""What a figure says of itself: the name and the numbers of every mark, and what is seen.

The report shows the words of a mark under the pointer, and reads out what is seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from weakref import WeakKeyDictionary

from matplotlib.artist import Artist
from matplotlib.figure import Figure

from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.tables.column import Column
from cl_lora.support.errors import printable

_MARKS: WeakKeyDictionary[Figure, dict[str, tuple[str, ...]]] = WeakKeyDictionary()
_SEEN: WeakKeyDictionary[Figure, str] = WeakKeyDictionary()

_MOST = 5


def tell(artist: Artist, *texts: str) -> None:
    """Give a mark its words: one text, or one for each point of a line with markers.

    Raises:
        ValueError: if the mark is in no figure yet.
    """
    figure = artist.get_figure(root=True)
    if figure is None:
        raise ValueError(f"Expected a mark in a figure but got {artist}")
    marks = _MARKS.setdefault(figure, {})
    name = f"mark-{len(marks) + 1}"
    artist.set_gid(name)
    marks[name] = tuple(map(printable, texts))


def see(figure: Figure, text: str) -> None:
    """Say in a sentence what is seen in a figure, for those who do not see it."""
    _SEEN[figure] = printable(text)


def marks_of(figure: Figure) -> Mapping[str, tuple[str, ...]]:
    """Return the words of the marks of a figure, by the id that they have in its SVG file."""
    return _MARKS.get(figure, {})


def seen_in(figure: Figure) -> str:
    """Return what is seen in a figure: as said, or else the words of its first marks."""
    if figure in _SEEN:
        return _SEEN[figure]
    texts = [text for told in marks_of(figure).values() for text in told]
    if not texts:
        return ""
    more = f"; and {len(texts) - _MOST} more" if len(texts) > _MOST else ""
    return f"{'; '.join(texts[:_MOST])}{more}."


def number(metric: Metric, value: float, spread: float = math.nan) -> str:
    """Return a value as read, with its standard deviation and its unit.

    Example:
        >>> from cl_lora.evaluation.metrics import ACCURACY
        >>> number(ACCURACY, 0.807, 0.012)
        '80.7 ± 1.2 %'
    """
    column = Column("", "", "", percent=metric.percent)
    around = "" if math.isnan(spread) else f" ± {column.number(spread)}"
    return f"{column.number(value)}{around}{f' {metric.unit}' if metric.unit else ''}"


def points(
    name: str,
    places: Sequence[object],
    metric: Metric,
    means: Iterable[float],
    spreads: Iterable[float],
) -> list[str]:
    """Return a text for each point of a line: its name, where it is, and its number.

    Args:
        name: of the line.
        places: where each point is.
        metric: what the numbers are of.
        means: as recorded, not as shown.
        spreads: standard deviations; NaN where there are none.
    """
    return [
        f"{name}, {place}: {number(metric, float(mean), float(spread))}"
        for place, mean, spread in zip(places, means, spreads, strict=True)
    ]
