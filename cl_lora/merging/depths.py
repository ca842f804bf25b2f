"""How deep in a network a module lies, read from its name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def depths(names: Iterable[str]) -> dict[str, float | None]:
    """Return how deep in the network each tensor is: 0 in the first layer, 1 in the last.

    The layer is the first number in a name; layers of one prefix, such as ``encoder.block``, are
    counted together, up to the highest that there is. None for a name without a number.

    >>> depths(["layers.0.q", "layers.1.q", "layers.2.q", "norm"])
    {'layers.0.q': 0.0, 'layers.1.q': 0.5, 'layers.2.q': 1.0, 'norm': None}
    """
    places = {name: _place(name.split(".")) for name in names}
    last: dict[tuple[str, ...], int] = {}
    for place in places.values():
        if place is not None:
            prefix, layer = place
            last[prefix] = max(last.get(prefix, 0), layer)
    return {
        name: None if place is None else _depth(place[1], last[place[0]])
        for name, place in places.items()
    }


def _place(parts: Sequence[str]) -> tuple[tuple[str, ...], int] | None:
    for i, part in enumerate(parts):
        if part.isdecimal():
            return tuple(parts[:i]), int(part)
    return None


def _depth(layer: int, last: int) -> float:
    return layer / last if last else 1.0
