"""Names that data brings along: of domains, classes and tasks."""

from __future__ import annotations

from collections.abc import Iterable

from cl_lora.benchmarks.cache import shortened
from cl_lora.support.errors import UserError, printable


def require_printable(names: Iterable[str], what: str) -> None:
    """Raise ``UserError`` unless all names are printable: tables, reports and files show them.

    Args:
        names: of domains, classes or tasks.
        what: what has these names, for the error.
    """
    odd = [name for name in names if not name.isprintable()]
    if odd:
        raise UserError(
            f"Expected {printable(what)} to have printable names in UTF-8 but got "
            f"{shortened([repr(name) for name in odd])}; rename or remove them"
        )
