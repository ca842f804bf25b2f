"""The tables that lead, and those of a few-shot run: a column per K, and what adapting costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cl_lora.evaluation.aggregate import Estimate
from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.describe import heading, in_unit, over_seeds
from cl_lora.reporting.faces import Face, by_shots, downstream, draws, faces
from cl_lora.reporting.multitask import failed_sentence
from cl_lora.reporting.ranking import by_shots as by_k
from cl_lora.reporting.ranking import ranking_of_face
from cl_lora.reporting.shots import cost_of, scores_by_shots
from cl_lora.reporting.tables.column import Column, N
from cl_lora.reporting.tables.of_run import run_table
from cl_lora.reporting.tables.ranked import ranked
from cl_lora.reporting.tables.table import ResultTable
from cl_lora.run_folder.reader import RunFolder
from cl_lora.run_folder.records import StageRecord

THETA, SECONDS, MEMORY = "trainable_parameters", "seconds", "peak_memory_mb"

COSTS = {
    THETA: Column(THETA, "|Θ|", "|Θ|", None, percent=False, priority=-3, form="amount"),
    SECONDS: Column(SECONDS, "seconds", "s", None, percent=False, priority=-2, form="amount"),
    MEMORY: Column(MEMORY, "peak MB", "MB", None, percent=False, priority=-1, form="amount"),
}
"""The accounts that stand in the table, by quantity."""

_NOTHING = Estimate(math.nan, math.nan, 0, True)


def main_tables(run: RunFolder, metric: Metric) -> list[ResultTable]:
    """Return the tables that lead: of a few-shot run by K and then in time, of one that merges
    subsets for each group, else the one there is.

    Faces without a score of the metric have no table. A single task that failed is named below.
    """
    tables: list[ResultTable] = []
    for face in faces(run):
        if metric.name in face.run.scores.metrics:
            if face.kind == "shots":
                tables.append(shots_table(run, metric))
            else:
                tables.append(run_table(face.run, metric, ranking_of_face(face, metric)))
    failed = failed_sentence(run)
    return [replace(t, notes=(*t.notes, failed)) for t in tables] if failed else tables


def tables_by_experience(run: RunFolder, metric: Metric) -> list[ResultTable]:
    """Return a table by K for each downstream experience, where there are several."""
    each = downstream(run)
    return [shots_table(run, metric, (j,)) for j in each] if len(each) > 1 else []


def shots_table(
    run: RunFolder, metric: Metric, evaluated: Sequence[int] | None = None
) -> ResultTable:
    """Return the table of a few-shot run: a row per arm, a column per K.

    Rows are sorted by their average over K; see :func:`ranked`. After the columns by K: this
    average, over all K of at least 1; the trainable parameters without the head, seconds and peak
    memory of an adaptation; n, the seeds behind the average.

    Args:
        run: the run.
        metric: which metric.
        evaluated: downstream experiences that are averaged; all if not given.

    Raises:
        UserError: if the metric was not scored.
    """
    face = by_shots(run, evaluated)
    shots = scores_by_shots(face, metric)
    rows = (*(a for a in face.arms if a in shots.values), *(a for a in face.references))
    columns = [_column(stage, metric) for stage in shots.stages]
    parts = [shots.estimates(shots.at(k)) for k in range(len(columns))]
    if len(shots.with_samples) > 1:
        up = metric.higher_is_better
        title = heading(f"Average {metric.in_text}", metric.unit, up)
        short = "Avg" if up else "Avg ↓"
        columns.append(Column("average", title, short, up, percent=metric.percent))
        parts.append(shots.estimates(shots.average()))
    found = [[part.get(arm, _NOTHING) for part in parts] for arm in rows]
    costs = {q: [cost_of(face, arm, q) for arm in rows] for q in COSTS}
    costs = {q: values for q, values in costs.items() if not np.isnan(values).all()}
    seeds = [len(shots.values.get(arm, {})) for arm in rows]
    count = len(face.scores.seeds)
    mean, spread, n = (
        np.array([[getattr(e, part) for e in row] for row in found], dtype=np.float64)
        for part in ("mean", "deviation", "seeds")
    )
    others = np.array([*costs.values(), seeds], dtype=np.float64).T
    none = np.full(others.shape, np.nan)
    table = ResultTable(
        rows=rows,
        references=len(face.references),
        columns=(*columns, *(COSTS[q] for q in costs), N),
        mean=np.hstack([mean, others]),
        spread=np.hstack([spread, none]),
        title=_title(face, metric, evaluated),
        notes=tuple(_notes(run, face, bool(costs), seeds, rows, count)),
        complete=np.hstack([n == count, np.isnan(none)]),
    )
    of_face = Face("shots", face, ())
    by_column = {
        stage.name: ranking
        for stage, ranking in zip(shots.stages, by_k(of_face, metric), strict=True)
    }
    key = "average" if len(shots.with_samples) > 1 else shots.stages[shots.smallest or 0].name
    return ranked(table, ranking_of_face(of_face, metric), key, by_column)


def _column(stage: StageRecord, metric: Metric) -> Column:
    return Column(
        stage.name,
        stage.name,
        stage.name,
        metric.higher_is_better,
        metric.percent,
        detail=True,
    )


def _title(face: RunFolder, metric: Metric, evaluated: Sequence[int] | None) -> str:
    names = [face.experiences[j] for j in face.stream.trained_stages[-1].evaluated]
    on = f" on {names[0]}" if len(names) == 1 else ""
    what = f"{in_unit(metric)}{on} from K samples per class"
    if len(names) > 1:
        what += f", mean over {len(names)} data sets"
    return f"{what}, {over_seeds(face.scores.seeds)}"


def _notes(
    run: RunFolder,
    face: RunFolder,
    costs: bool,
    seeds: Sequence[int],
    rows: Sequence[str],
    count: int,
) -> list[str]:
    stages = face.stream.trained_stages
    notes = []
    several = draws(run) > 1
    if several or len(stages[-1].evaluated) > 1:
        first = [f"{draws(run)} draws of the support set"] * several
        first += ["the data sets"] * (len(stages[-1].evaluated) > 1)
        notes.append(f"Within a seed, the mean over {' and then '.join(first)}.")
    if sum(bool(s.x) for s in stages) > 1 and any(s.x == 0 for s in stages):
        notes.append("Average: over every K but 0.")
    if costs:
        notes.append(
            "|Θ|: trainable parameters without the head. Seconds and peak MB: of one adaptation, "
            "beyond what was computed and held before; the mean over every K, of which the "
            "largest takes longest."
        )
    fewer = [f"{a} ({n})" for a, n in zip(rows, seeds, strict=True) if n < count]
    if fewer:
        notes.append(
            f"Finished on fewer than {count} seeds, so never marked as best: {', '.join(fewer)}."
        )
    return notes
