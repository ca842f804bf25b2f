"""What the baselines of a run stand for."""

from __future__ import annotations

from cl_lora.reporting.budgets import SINGLES
from cl_lora.run_folder.reader import RunFolder

LAST, SEQUENTIAL, JOINT, ORACLE = "last", "sequential", "joint", "oracle"
"""The registered names of baselines of a stream; a run records no role for them."""

SINGLE, SINGLE_FULL = SINGLES

_BOUNDS = (JOINT, *SINGLES, ORACLE)

_WORDS = {
    LAST: "the last adapter alone",
    SEQUENTIAL: "sequential training",
    JOINT: "joint training",
    ORACLE: "each domain's own adapter",
    SINGLE: "one adapter per task",
    SINGLE_FULL: "one fully tuned model per task",
}


def baseline_of(run: RunFolder, role: str) -> str | None:
    """Return the baseline that stands for a role, or is registered by that name; None if none."""
    named = role if role in run.references and run.roles.get(role, role) == role else None
    return run.row_of(role) or named


def bounds_of(run: RunFolder) -> dict[str, str]:
    """Return the baselines that say how good it could be, joint and single tasks -> in words."""
    found = {baseline_of(run, role): _WORDS[role] for role in _BOUNDS}
    return {row: words for row, words in found.items() if row is not None}


def forgetful_of(run: RunFolder) -> tuple[str, str] | None:
    """Return the baseline that merges nothing and forgets, with its words; None if none."""
    for role in (LAST, SEQUENTIAL):
        row = baseline_of(run, role)
        if row is not None and row in run.scores.arms:
            return row, _WORDS[role]
    return None
