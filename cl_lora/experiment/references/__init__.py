"""Baselines: what the arms are compared with."""

from __future__ import annotations

# Importing a module registers its rows; they are shown in this order.
from cl_lora.experiment.references import streams, tasks  # noqa: F401
from cl_lora.experiment.references.core import (
    CONTROL,
    REFERENCES,
    Reference,
    get_references,
    register_reference,
)

__all__ = ["CONTROL", "REFERENCES", "Reference", "get_references", "register_reference"]
