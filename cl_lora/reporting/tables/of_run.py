"""The table of a run: a row per arm, a column per experience and measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cl_lora.evaluation.aggregate import ALL_EXPERIENCES, AVERAGE, FINAL, estimates
from cl_lora.evaluation.continual import MEASURES
from cl_lora.evaluation.metrics import ACCURACY, Metric
from cl_lora.evaluation.scores import ScoreTable
from cl_lora.evaluation.shape import Shape
from cl_lora.reporting.budgets import headline
from cl_lora.reporting.describe import at_the_end, heading, in_unit, over_seeds, unit_of_difference
from cl_lora.reporting.ranking import Ranking, ranking_of
from cl_lora.reporting.tables.budgets import with_sizes
from cl_lora.reporting.tables.column import LATE, Column, N
from cl_lora.reporting.tables.costs import with_routing
from cl_lora.reporting.tables.names import shorten
from cl_lora.reporting.tables.ranked import ranked
from cl_lora.reporting.tables.table import ResultTable
from cl_lora.run_folder.reader import RunFolder


def run_table(
    run: RunFolder, metric: Metric | None = None, ranking: Ranking | None = None
) -> ResultTable:
    """Return the table of one metric of a run; of the one that leads its report, if not given.

    Rows are sorted by their average, the baselines in a block of their own; see :func:`ranked`.
    Before the scores stands what each row needs to serve all tasks, where the run says so. Below
    the metric that leads stands how well routed arms find the right adapter.
    """
    leads = metric is None or metric == headline(run)
    metric = metric or headline(run)
    table = result_table(
        run.scores,
        metric,
        shape=run.stream.shape(metric.name),
        experiences=run.experiences,
        references=run.references,
        arms=run.arms,
        when=at_the_end(run),
    )
    table = with_sizes(ranked(table, ranking or ranking_of(run, metric)), run)
    return with_routing(table, run) if leads else table


def result_table(
    scores: ScoreTable,
    metric: Metric = ACCURACY,
    *,
    shape: Shape | None = None,
    experiences: Sequence[str] = (),
    references: Sequence[str] = (),
    arms: Sequence[str] = (),
    when: str = "after the last domain",
) -> ResultTable:
    """Return the table that ``cl-lora run`` prints: one row per arm, mean ± standard
    deviation over seeds.

    Columns: the final score on each experience that the last stage evaluates; every measure of
    :data:`~cl_lora.evaluation.continual.MEASURES` that exists for the stages and is defined for at
    least one arm; n, the number of seeds behind the average.

    Args:
        scores: the run's scores.
        metric: which metric.
        shape: what the stages are; what occurs in the scores if not given.
        experiences: their names in order; their numbers if not given.
        references: arms that are set apart and not ranked, such as ``base`` and ``joint``.
        arms: order of the rows; arms not named follow in order of appearance.
        when: when final scores are measured, in words.

    Raises:
        UserError: if the metric does not occur, or a score lies outside the shape.
    """
    up = scores.higher_is_better(metric.name)
    shape = shape or scores.shape()
    names = tuple(experiences) or tuple(f"exp {j}" for j in range(shape.experiences))
    present = [a for a in dict.fromkeys((*arms, *scores.arms)) if a in scores.arms]
    apart = [a for a in references if a in present]
    rows = (*(a for a in present if a not in references), *apart)

    columns = _columns(metric, up, shape, names)
    numbers = estimates(scores, metric.name, shape)
    of_rows = [[numbers[(arm, *key)] for key in columns] for arm in rows]
    mean, spread, counts = (
        np.array([[getattr(e, part) for e in row] for row in of_rows], dtype=np.float64).reshape(
            len(rows), len(columns)
        )
        for part in ("mean", "deviation", "seeds")
    )
    seeds = np.array([numbers[(a, AVERAGE, ALL_EXPERIENCES)].seeds for a in rows], dtype=np.float64)
    defined = [
        j for j, c in enumerate(columns.values()) if c.detail or not np.isnan(mean[:, j]).all()
    ]
    shown = [list(columns.values())[j] for j in defined]
    count = len(scores.seeds)
    title = f"{in_unit(metric)} {when}, {over_seeds(scores.seeds)}"
    notes = [c.note for c in shown if c.key == "forgetting"]
    fewer = [f"{a} ({n:.0f})" for a, n in zip(rows, seeds, strict=True) if n < count]
    if fewer:
        notes.append(
            f"Finished on fewer than {count} seeds, so never marked as best: {', '.join(fewer)}."
        )
    none = np.full((len(rows), 1), np.nan)
    # Where all rows have the n of the title, its column may go rather than parts of names.
    n = N if fewer else replace(N, priority=LATE)
    return ResultTable(
        rows=rows,
        references=len(apart),
        columns=(*shown, n),
        mean=np.hstack([mean[:, defined], seeds[:, None]]),
        spread=np.hstack([spread[:, defined], none]),
        title=title,
        notes=tuple(notes),
        complete=np.hstack([counts[:, defined] == count, np.isnan(none)]),
    )


def _columns(
    metric: Metric, up: bool, shape: Shape, names: Sequence[str]
) -> dict[tuple[str, int], Column]:
    """Return (measure, experience) -> its column."""
    short = shorten(names, 8, words=True)
    columns: dict[tuple[str, int], Column] = {
        (FINAL, j): Column(
            f"{FINAL} {names[j]}", names[j], short[j], up, metric.percent, detail=True
        )
        for j in shape.final
    }
    priorities = {"backward_transfer": 2, "forward_transfer": 3, "average_incremental": 4}
    for name, measure in MEASURES.items():
        if not measure.exists(shape):
            continue
        better = measure.direction(up)
        # A measure with a direction of its own is a difference of scores.
        difference = measure.higher_is_better is not None
        title = f"{measure.title} {metric.in_text}" if not difference else measure.title
        unit = unit_of_difference(metric) if difference else metric.unit
        columns[name, ALL_EXPERIENCES] = Column(
            name,
            heading(title, unit, better),
            measure.short + ("" if better else " ↓"),
            better,
            metric.percent,
            priorities.get(name, 0),
            signed=difference,
            note=f"{measure.title} = {measure.formula} ({measure.paper}).",
        )
    return columns
