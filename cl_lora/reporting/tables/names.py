"""Names in little room, still told apart."""

from __future__ import annotations

import re
from collections.abc import Sequence


def shorten(names: Sequence[str], width: int, *, words: bool = False) -> tuple[str, ...]:
    """Return ``names`` in at most ``width`` characters each, still distinct.

    A name that is too long becomes its start with an ellipsis, and where names start alike also
    its end.

    Args:
        names: distinct.
        width: at most so many characters, at least 4 where a name is longer.
        words: rather take the first words without an ellipsis where those identify the name
            (``art_painting`` -> ``art``). Meant for domains and tasks: the first words of an arm
            would read as another arm.

    Raises:
        ValueError: if ``width`` is under 4 or the names are not distinct.

    Example:
        >>> shorten(["art_painting", "photo"], 8)
        ('art_pai…', 'photo')
        >>> shorten(["art_painting", "photo"], 8, words=True)
        ('art', 'photo')
    """
    if width < 4 and any(len(n) > width for n in names):
        raise ValueError(f"Expected a width of at least 4 but got {width}")
    if len(set(names)) != len(names):
        raise ValueError(f"Expected distinct names but got {list(names)}")
    taken = {n for n in names if len(n) <= width}
    short = {n: n for n in taken}
    for name in names:
        if name in short:
            continue
        starts = [name[: m.start()] for m in re.finditer(r"[_\-\s./]", name)]
        alone = [
            s
            for s in starts
            if words
            and 2 < len(s) <= width
            and len(s) * 3 >= min(width, len(name))
            and not any(other != name and other.startswith(s) for other in names)
        ]
        candidates: list[str] = alone[-1:]
        # The end of a name often tells siblings apart (..._b1, ..._b3): keep some of it then.
        alike = sum(other.startswith(name[: width - 1]) for other in names) > 1
        candidates += [
            name[: width - 1 - end] + "…" + name[len(name) - end :]
            for end in (width // 3 if alike else 0, *range(width - 2, -1, -1))
        ]
        candidates += [f"{name[: width - len(str(k)) - 1]}~{k}" for k in range(len(names))]
        short[name] = next(c for c in candidates if c not in taken)
        taken.add(short[name])
    return tuple(short[n] for n in names)
