"""What each row costs beside what it reaches, and how well routed arms find the right adapter."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from cl_lora.evaluation.aggregate import ALL_EXPERIENCES, AVERAGE, Estimate, estimates
from cl_lora.evaluation.continual import MEASURES
from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.costs import KINDS, Cost, costs_of
from cl_lora.reporting.describe import at_the_end, heading, in_unit, unit_of_difference
from cl_lora.reporting.ranking import ranking_of
from cl_lora.reporting.routing import accuracy_of_routing
from cl_lora.reporting.tables.column import Column, N
from cl_lora.reporting.tables.ranked import ranked
from cl_lora.reporting.tables.table import ResultTable
from cl_lora.run_folder.reader import RunFolder

_FORGETTING = "forgetting"
_RIGHT = Column("routed_right", "Routed right", "Routed", None)

_COSTS: Mapping[Column, Callable[[Cost], float]] = {
    Column("passes", "Passes", "Passes", None, False, form="digits"): lambda c: c.passes,
    Column("milliseconds", "ms per image", "ms", None, False, form="digits"): (
        lambda c: c.milliseconds
    ),
    Column("to_serve", "To serve, kB", "serve", None, False, form="kilo"): lambda c: c.to_serve,
    Column("kept", "Kept, kB", "kept", None, False, form="kilo"): lambda c: c.kept,
    Column("of_data", "Of it data, kB", "data", None, False, form="kilo"): lambda c: c.of_data,
    Column("kind", "Data kept", "kind", None, False, form="word", words=KINDS): lambda c: c.kind,
}

_NOTES = (
    "To serve: what stands beside the backbone to serve every experience: the merged update or the "
    "adapters, heads, the router. Kept: what must be kept to take in another experience: adapters "
    "and their heads, and of the data statistics, a buffer or all train samples (images as bytes "
    "at the size that the model sees).",
    "ms per image: wall time in a batch of the evaluation's size, the quickest of a few passes; it "
    "depends on the machine and on what else it did.",
)


def costs_table(run: RunFolder, metric: Metric) -> ResultTable | None:
    """Return what every row costs beside its average and its forgetting.

    Returns:
        The table; None where the run tells no costs.
    """
    costs = costs_of(run)
    if not costs:
        return None
    numbers = estimates(run.scores, metric.name, run.stream.shape(metric.name))
    rows = [row for row in costs if (row, AVERAGE, ALL_EXPERIENCES) in numbers]
    if not rows:
        return None
    right = accuracy_of_routing(run)

    def estimate(row: str, measure: str) -> Estimate:
        nothing = Estimate(math.nan, math.nan, 0, False)
        return numbers.get((row, measure, ALL_EXPERIENCES), nothing)

    up = metric.higher_is_better
    title = heading(f"Average {metric.in_text}", metric.unit, up)
    average = Column(AVERAGE, title, "Avg", up, metric.percent)
    lost = MEASURES[_FORGETTING]
    forgotten = Column(
        _FORGETTING,
        heading(lost.title, unit_of_difference(metric), False),
        f"{lost.short} ↓",
        False,
        metric.percent,
        signed=True,
    )
    of_scores = [[estimate(row, m) for m in (AVERAGE, _FORGETTING)] for row in rows]
    of_costs = [[told(costs[row]) for told in _COSTS.values()] for row in rows]
    routes = [[right.get(row, math.nan)] for row in rows]
    shown = [_RIGHT] if right else []
    columns = (average, forgotten, *shown, *_COSTS, N)
    mean = np.array(
        [
            [*(e.mean for e in scores), *(route if shown else ()), *cost, scores[0].seeds]
            for scores, route, cost in zip(of_scores, routes, of_costs, strict=True)
        ],
        dtype=np.float64,
    )
    spread = np.full(mean.shape, np.nan)
    spread[:, :2] = [[e.deviation for e in scores] for scores in of_scores]
    complete = np.ones(mean.shape, dtype=np.bool_)
    complete[:, :2] = [[e.seeds == len(run.scores.seeds) for e in scores] for scores in of_scores]
    table = ResultTable(
        rows=tuple(rows),
        references=sum(row in run.references for row in rows),
        columns=columns,
        mean=mean,
        spread=spread,
        title=f"{in_unit(metric)} {at_the_end(run)}, and what it costs",
        notes=(*_NOTES, *routing_notes(run)),
        complete=complete,
    )
    return ranked(table, ranking_of(run, metric))


def with_routing(table: ResultTable, run: RunFolder) -> ResultTable:
    """Return a table of a run with a note on how well its routed arms find the right adapter."""
    notes = routing_notes(run)
    return replace(table, notes=(*table.notes, *notes)) if notes else table


def routing_notes(run: RunFolder) -> tuple[str, ...]:
    """Return the sentence that says it; none where nothing is routed."""
    told: dict[str, list[str]] = {}
    for arm, share in accuracy_of_routing(run).items():
        told.setdefault(_RIGHT.number(share), []).append(arm)
    if not told:
        return ()
    words = (f"{share} % of test samples by {', '.join(arms)}" for share, arms in told.items())
    return (
        f"Routed right, to the adapter of their own experience: {'; '.join(words)} (soft routes: "
        "its mean weight).",
    )
