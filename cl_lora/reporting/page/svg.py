"""Figures of matplotlib as part of a page: in its colours, with the words of every mark.

The SVG is parsed and written anew: what only a file needs goes, identifiers become those of one
page, colours of the palette become variables of the page's style, so that light and dark are the
style's affair, and marks carry the words that a script shows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree

from matplotlib.figure import Figure

from cl_lora.reporting.figures.marks import marks_of
from cl_lora.reporting.figures.style import (
    GREY,
    GRID,
    GROUND,
    OKABE_ITO,
    PALE,
    STRIPE,
    render,
)

_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_GONE = {f"{_SVG}metadata", f"{_SVG}style"}
_PIXELS = 96 / 72  # of a point
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_COLOR = re.compile(r"(fill|stroke): ?(#[0-9a-fA-F]{6})")
_FONT = re.compile(r"font: ?(?:(?:italic|oblique|normal) )?(?:(bold|[1-9]00) )?([\d.]+px)[^;]*")

VARIABLES: Mapping[str, str] = {
    **{color: f"--c{k}" for k, color in enumerate(OKABE_ITO)},
    "#000000": "--ink",
    GREY: "--muted",
    PALE: "--pale",
    GRID: "--grid",
    GROUND: "--ground",
    STRIPE: "--stripe",
}
"""Colour of a figure -> the variable of the page that stands for it."""

_NAMED = {color.lower(): name for color, name in VARIABLES.items()}


def inline(figure: Figure, name: str) -> str:
    """Return a figure as an ``svg`` element whose identifiers begin with ``name``.

    It is named by the elements ``NAME-title``, which the page has, and ``NAME-seen``.
    """
    root = ElementTree.fromstring(render(figure, "svg", outlines=False))
    words = marks_of(figure)
    _drop(root)
    used = _references(root)
    for element in root.iter():
        _restyle(element)
        _rename(element, name, used, words)
        element.tag = element.tag.removeprefix(_SVG)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-seen")
    root.set("style", f"width: {pixels(figure)}px")
    root.tail = None
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)


def pixels(figure: Figure) -> int:
    """Return how wide a figure is on a screen at its own size."""
    return round(72 * figure.get_figwidth() * _PIXELS)


def _drop(element: ElementTree.Element) -> None:
    for child in list(element):
        if child.tag in _GONE:
            element.remove(child)
        else:
            _drop(child)
    # Line ends between elements are a tenth of the file.
    if len(element) and not (element.text or "").strip():
        element.text = None
    if not (element.tail or "").strip():
        element.tail = None


def _references(root: ElementTree.Element) -> set[str]:
    found = set()
    for element in root.iter():
        for key, value in element.attrib.items():
            found.update(_REFERENCE.findall(value))
            if key == _LINK:
                found.add(value.removeprefix("#"))
    return found


def _restyle(element: ElementTree.Element) -> None:
    style = element.get("style")
    if style is None:
        return
    text = element.tag == f"{_SVG}text"

    def colored(match: re.Match[str]) -> str:
        what, color = match[1], match[2].lower()
        # White text is on a map, whose colours stay.
        if color not in _NAMED or (text and color == GROUND.lower()):
            return match[0]
        return f"{what}: var({_NAMED[color]})"

    # The page names the fonts once.
    style = _FONT.sub(lambda m: f"font-size: {m[2]}" + f"; font-weight: {m[1]}" * bool(m[1]), style)
    element.set("style", _COLOR.sub(colored, style))


def _rename(
    element: ElementTree.Element, name: str, used: set[str], words: Mapping[str, tuple[str, ...]]
) -> None:
    given = element.attrib.pop("id", "")
    if given in words:
        _name_marks(element, words[given])
    if given in used:
        element.set("id", f"{name}-{given}")
    for key, value in list(element.attrib.items()):
        if key == _LINK:
            del element.attrib[key]
            # Images are embedded in the link; others lead to an element.
            element.set("href", f"#{name}-{value[1:]}" if value.startswith("#") else value)
        elif "url(#" in value:
            element.set(key, _REFERENCE.sub(lambda m: f"url(#{name}-{m[1]})", value))


def _name_marks(element: ElementTree.Element, texts: tuple[str, ...]) -> None:
    """Give every point of a line its own words, and any other mark its only ones."""
    points = list(element.iter(f"{_SVG}use"))
    if len(points) == len(texts):
        for point, text in zip(points, texts, strict=True):
            point.set("data-tip", text)
    else:
        element.set("data-tip", texts[0] if len(texts) == 1 else f"{texts[0]} ... {texts[-1]}")
