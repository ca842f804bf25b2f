"""Tables of unlike tasks: each by its own metric, and each beside every partner of a merge."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cl_lora.evaluation.aggregate import Estimate, estimate
from cl_lora.evaluation.continual import (
    FloatArray,
    ScoreMatrix,
    backward_transfer_by_experience,
    forgetting_by_experience,
    forward_transfer_by_experience,
)
from cl_lora.evaluation.metrics import RELATIVE, Metric
from cl_lora.reporting.budgets import headline
from cl_lora.reporting.describe import at_the_end, heading, in_unit, over_seeds, unit_of_difference
from cl_lora.reporting.faces import alone_stages, faces, merged_groups
from cl_lora.reporting.multitask import is_multitask, own_metric
from cl_lora.reporting.ranking import ranking_of
from cl_lora.reporting.tables.column import Column
from cl_lora.reporting.tables.names import shorten
from cl_lora.reporting.tables.ranked import in_order
from cl_lora.reporting.tables.table import ResultTable
from cl_lora.run_folder.reader import RunFolder

_BASELINES = ("single", "head_only", "trivial")
"""The roles of the rows that stand below a task's partners."""

_NOTHING = Estimate(math.nan, math.nan, 0, True)


@dataclass(frozen=True)
class _Measure:
    """A number of every task of one arm and seed.

    Attributes:
        title: what it is.
        of: the scores by the task's metric, and its index -> the number.
        higher_is_better: the direction; None for that of the metric.
    """

    title: str
    of: Callable[[ScoreMatrix, int], float]
    higher_is_better: bool | None = None


def _entry(values: FloatArray, j: int) -> float:
    return float(values[j]) if 0 <= j < len(values) else math.nan


_FINAL = _Measure("Final score", lambda m, j: float(m.values[-1, j]))
_IN_TIME = (
    _Measure(
        "Forgetting",
        lambda m, j: _entry(forgetting_by_experience(m.values, m.higher_is_better), j),
        False,
    ),
    _Measure(
        "Backward transfer",
        lambda m, j: _entry(backward_transfer_by_experience(m.values, m.higher_is_better), j),
        True,
    ),
    _Measure(
        "Forward transfer",
        lambda m, j: _entry(
            forward_transfer_by_experience(m.values, m.baseline, m.higher_is_better), j - 1
        ),
        True,
    ),
)


def tables_by_task(run: RunFolder) -> list[ResultTable]:
    """Return tables with a column for each task, in the unit of its own metric.

    One of final scores for each face of the run; and where stages follow one another in time one of
    forgetting, of backward and of forward transfer. None for a run whose tasks have one metric, or
    whose main table is by it already.
    """
    if not is_multitask(run) or headline(run).name != RELATIVE.name:
        return []
    tables = []
    for face in faces(run):
        if not len(face.run.scores):
            continue
        tables.append(_by_task(face.run, _FINAL))
        if face.run.stream.shape(RELATIVE.name).in_time:
            tables += [_by_task(face.run, measure) for measure in _IN_TIME]
    return tables


def partner_tables(run: RunFolder) -> Iterator[tuple[str, list[ResultTable]]]:
    """Yield each task with a table for each of its metrics: a row per partner, a column per arm.

    Below stand the single task, the head alone and the trivial predictor, as Kesim and Helli 2024
    show their merges. Nothing for a run that does not merge subsets.
    """
    if not merged_groups(run):
        return
    for j, name in enumerate(run.experiences):
        task = next(t for t in run.stream.tasks if t.name == run.stream.experiences[j].task)
        scored = [m for m in task.metrics if m.name in run.scores.metrics]
        own = [m for m in scored if m.name != RELATIVE.name] or scored
        yield name, [_with_partners(run, j, metric) for metric in own]


def _by_task(face: RunFolder, measure: _Measure) -> ResultTable:
    final = face.stream.trained_stages[-1].evaluated
    rows = [a for a in (*face.arms, *face.references) if a in face.scores.arms]
    found = [[_over_seeds(face, arm, j, measure) for j in final] for arm in rows]
    there = [i for i, row in enumerate(found) if any(e.seeds for e in row)]
    rows, found = [rows[i] for i in there], [found[i] for i in there]
    short = shorten([face.experiences[j] for j in final], 8, words=True)
    columns = []
    difference = measure.higher_is_better is not None
    for j, name in zip(final, short, strict=True):
        metric = own_metric(face, j)
        better = metric.higher_is_better
        better = better if measure.higher_is_better is None else measure.higher_is_better
        unit = unit_of_difference(metric) if difference else metric.unit
        told = ", ".join([metric.title, unit] if unit else [metric.title])
        columns.append(
            Column(
                f"{face.experiences[j]} {metric.name}",
                heading(face.experiences[j], told, better),
                name + ("" if better else " ↓"),
                better,
                metric.percent,
                detail=True,
                signed=difference,
            )
        )
    metrics = "; ".join(
        f"{face.experiences[j]} {in_unit(own_metric(face, j))}"
        + ("" if c.higher_is_better or difference else ", lower is better")
        for j, c in zip(final, columns, strict=True)
    )
    title = f"{measure.title} of each task by its own metric"
    if measure is _FINAL:
        title += f" {at_the_end(face)}"
    table = _table(
        rows,
        [row in face.references for row in rows],
        columns,
        found,
        f"{title}, {over_seeds(face.scores.seeds)}",
        "Arm",
        (f"{metrics}.",),
        len(face.scores.seeds),
    )
    ranking = ranking_of(face, next(iter(face.stream.metrics.values())))
    return in_order(table, (*ranking.arms, *ranking.baselines))


def _over_seeds(face: RunFolder, arm: str, j: int, measure: _Measure) -> Estimate:
    metric = own_metric(face, j)
    if metric.name not in face.scores.metrics:
        return _NOTHING
    shape = face.stream.shape(metric.name)
    return estimate(
        [
            measure.of(face.scores.matrix(seed, arm, metric.name, shape), j)
            for seed in face.scores.seeds
        ]
    )


def _with_partners(run: RunFolder, j: int, metric: Metric) -> ResultTable:
    stages = [s for group in merged_groups(run).values() for s in group if j in s.evaluated]
    values: dict[tuple[str, int], list[float]] = {}
    for s in run.scores:
        if s.evaluated == j and s.metric == metric.name:
            values.setdefault((s.arm, s.stage), []).append(s.value)
    arms = [a for a in run.arms if any((a, s.index) in values for s in stages)]
    rows = ["+ " + " + ".join(run.experiences[m] for m in s.members if m != j) for s in stages]
    found = [[estimate(values.get((arm, s.index), [])) for arm in arms] for s in stages]
    alone = alone_stages(run).get(j)
    below = [(role, run.row_of(role)) for role in _BASELINES]
    for _, row in below:
        if row is not None and alone is not None and (row, alone.index) in values:
            rows.append(row)
            found.append([estimate(values[row, alone.index])] * len(arms))
    apart = [i >= len(stages) for i in range(len(rows))]
    up = metric.higher_is_better
    columns = [Column(a, a, a, up, metric.percent, detail=True) for a in arms]
    lower = "" if up else ", lower is better"
    over = over_seeds(run.scores.seeds)
    title = f"{run.experiences[j]}: {in_unit(metric)} when merged with{lower}, {over}"
    return _table(rows, apart, columns, found, title, "Merged with", (), len(run.scores.seeds))


def _table(
    rows: Sequence[str],
    apart: Sequence[bool],
    columns: Sequence[Column],
    found: Sequence[Sequence[Estimate]],
    title: str,
    row_title: str,
    notes: tuple[str, ...],
    seeds: int,
) -> ResultTable:
    mean, spread, n = (
        np.array([[getattr(e, part) for e in row] for row in found], dtype=np.float64).reshape(
            len(rows), len(columns)
        )
        for part in ("mean", "deviation", "seeds")
    )
    return ResultTable(
        rows=tuple(rows),
        references=sum(apart),
        columns=tuple(columns),
        mean=mean,
        spread=spread,
        title=title,
        row_title=row_title,
        notes=notes,
        complete=n == seeds,
    )
