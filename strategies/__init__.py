"""Training strategies: Avalanche templates that know no merge formula, and a plugin that merges.

The public names are loaded on first use, as Avalanche takes seconds to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["LoRAConfig", "LoRAMergePlugin"]

if TYPE_CHECKING:
    from cl_lora.adapters.injection import LoRAConfig
    from cl_lora.strategies.plugin import LoRAMergePlugin

_HOME = {
    "LoRAConfig": "cl_lora.adapters.injection",
    "LoRAMergePlugin": "cl_lora.strategies.plugin",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its home module on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
