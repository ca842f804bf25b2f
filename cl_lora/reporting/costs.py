"""What rows cost in a run that says it: to serve them, and to take in another experience."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cl_lora.reporting.budgets import has_budgets
from cl_lora.run_folder.reader import RunFolder
from cl_lora.run_folder.records import (
    ADAPTERS,
    BUFFER,
    DATA,
    MILLISECONDS,
    PASSES,
    STATISTICS,
    TO_SERVE,
)

KINDS = ("nothing", "statistics", "buffer", "statistics, buffer", "all data")
"""What may be kept of the data, by what it tells of it."""


@dataclass(frozen=True)
class Cost:
    """What a row costs after the last experience; sizes in bytes, means over seeds.

    Attributes:
        passes: forward passes of the backbone an input needs.
        milliseconds: what an input takes, the quickest seed; NaN where no time is known.
        to_serve: what stands beside the backbone to serve every experience.
        adapters: adapters and heads that must be kept to take in another experience.
        statistics: statistics that must be.
        buffer: samples that must be, where not all.
        data: all train samples, where they must be.
    """

    passes: float
    milliseconds: float
    to_serve: float
    adapters: float
    statistics: float
    buffer: float
    data: float

    @property
    def of_data(self) -> float:
        """What is kept of the data."""
        return self.statistics + self.buffer + self.data

    @property
    def kept(self) -> float:
        """All that must be kept: adapters, and what is kept of the data."""
        return self.adapters + self.of_data

    @property
    def kind(self) -> int:
        """What is kept of the data: an index of :data:`KINDS`."""
        return len(KINDS) - 1 if self.data else bool(self.statistics) + 2 * bool(self.buffer)


_PARTS: Mapping[str, str] = {
    "passes": PASSES,
    "to_serve": TO_SERVE,
    "adapters": ADAPTERS,
    "statistics": STATISTICS,
    "buffer": BUFFER,
    "data": DATA,
}


def costs_of(run: RunFolder) -> dict[str, Cost]:
    """Return the cost of every arm and baseline that has one on record.

    Runs of earlier versions have none, and runs that merge all at once tell parameters instead.
    """
    if has_budgets(run) or not run.stream.ordered:
        return {}
    means: Any = run.accounts.groupby(["arm", "quantity"])["value"].mean()
    times = run.times[run.times["quantity"] == MILLISECONDS]
    quickest: Any = times.groupby("arm")["value"].min()
    found = {}
    for row in (*run.arms, *run.references):
        parts = {part: means.get((row, q), math.nan) for part, q in _PARTS.items()}
        if not any(map(math.isnan, parts.values())):
            found[row] = Cost(milliseconds=float(quickest.get(row, math.nan)), **parts)
    return found
