"""Runs side by side: what may be joined, the statistics, and the drawing."""

from __future__ import annotations

from collections.abc import Callable

from cl_lora.reporting.compare.drawing import comparison_figure, comparison_table
from cl_lora.reporting.compare.joining import Condition, conditions_of, require_poolable, why_apart
from cl_lora.reporting.compare.statistics import Comparison, compare_runs

RENDERERS: dict[str, Callable[[Comparison], str]] = {
    "markdown": lambda comparison: comparison_table(comparison).markdown(),
    "latex": lambda comparison: comparison_table(comparison).latex(),
    "csv": Comparison.csv,
}
"""The renderings for files, by name."""

__all__ = [
    "RENDERERS",
    "Comparison",
    "Condition",
    "compare_runs",
    "comparison_figure",
    "comparison_table",
    "conditions_of",
    "require_poolable",
    "why_apart",
]
