"""Tasks: what is asked of a model, and how an answer is scored. Knows no data and no model."""

from __future__ import annotations

# Importing a kind's module registers it.
from cl_lora.tasks.choices import CHOICE, LETTERS
from cl_lora.tasks.classes import CLASS, class_metric
from cl_lora.tasks.core import (
    KINDS,
    Accumulator,
    Scaling,
    Task,
    TaskKind,
    get_kind,
    register_kind,
)
from cl_lora.tasks.numbers import AngleKind, PointsKind, ScalarKind

__all__ = [
    "CHOICE",
    "CLASS",
    "KINDS",
    "LETTERS",
    "Accumulator",
    "AngleKind",
    "PointsKind",
    "ScalarKind",
    "Scaling",
    "Task",
    "TaskKind",
    "class_metric",
    "get_kind",
    "register_kind",
]
