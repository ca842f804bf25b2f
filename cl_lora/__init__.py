"""cl-lora: train every LoRA adapter of a continual stream once, merge it every way.

The public names are loaded on first use, so that light commands (``cl-lora --help``) never pay
for importing torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cl_lora.support import compat

__version__ = "0.1.0"
__all__ = ["Adapter", "AdapterBank", "LoRAFactors", "Update", "__version__", "merge"]

if TYPE_CHECKING:
    from cl_lora.adapters import Adapter, AdapterBank, LoRAFactors
    from cl_lora.merging import Update, merge

compat.prepare()

_HOME = {
    "Adapter": "cl_lora.adapters",
    "AdapterBank": "cl_lora.adapters",
    "LoRAFactors": "cl_lora.adapters",
    "Update": "cl_lora.merging",
    "merge": "cl_lora.merging",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its home module on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
