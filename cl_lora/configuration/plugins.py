"""A user's own modules, which register methods, rules, kinds, metrics, figures, ... on import."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

from cl_lora.support.errors import UserError, shown

ENTRY_POINTS = "cl_lora.plugins"
"""The group of entry points that installed packages name their modules in."""


def load_plugins(names: Any = ()) -> None:
    """Import every installed plugin, and the modules ``names``; what is imported is so once.

    Modules are looked for in the current folder first, as ``python -m`` does.

    Args:
        names: dotted names of modules, as ``plugins`` of the configuration gives them.

    Raises:
        UserError: ``names`` is no list of texts, or a module cannot be imported.
    """
    for point in entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except Exception as error:
            origin = f" of {point.dist.name}" if point.dist else ""
            raise UserError(
                f"The installed plugin {point.value!r}{origin} cannot be imported: "
                f"{_said(error)}; correct or uninstall it"
            ) from error
    for name in _checked(names):
        _import(name)


def _checked(names: Any) -> Sequence[str]:
    listed = isinstance(names, Sequence) and not isinstance(names, str)
    if not listed or not all(isinstance(name, str) and name for name in names):
        raise UserError(
            f"Expected plugins to be a list like [my.module] but got {shown(names)}; name modules, "
            "or leave it out"
        )
    return list(names)


def _import(name: str) -> None:
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
        importlib.invalidate_caches()
    try:
        importlib.import_module(name)
    except Exception as error:
        raise UserError(
            f"The plugin {name!r} cannot be imported: {_said(error)}; expected a module, as "
            "my.module for my/module.py in the current folder, that imports without error"
        ) from error


def _said(error: Exception) -> str:
    """Return an error in one line, as Python prints it."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
