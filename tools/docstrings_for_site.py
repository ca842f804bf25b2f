"""An extension of griffe: docstrings of this project as the documentation site shows them.

They are written for the reader of the code, with roles such as ``:func:`name``` and a section
``Example:``; the site knows code in backticks, and ``Examples:``.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":(?:func|class|meth|mod|data|attr|exc):`~?(?:[\w.]+\.)?(\w+)`")
_EXAMPLE = re.compile(r"^(\s*)Example:$", re.MULTILINE)


def for_site(text: str) -> str:
    """Return a docstring with plain code in the place of roles, and sections as griffe knows them.

    Example:
        >>> for_site("See :func:`~cl_lora.merging.plan.merge`, :attr:`modules`.")
        'See `merge`, `modules`.'
    """
    return _EXAMPLE.sub(r"\1Examples:", _ROLE.sub(r"`\1`", text))


class Docstrings(Extension):
    """Rewrites every docstring before it is parsed."""

    def on_instance(self, *, obj: Object, **arguments: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = for_site(obj.docstring.value)
