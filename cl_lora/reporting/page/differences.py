"""How far every arm lies from the one that the report measures by."""

from __future__ import annotations

from collections.abc import Iterator

from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.budgets import has_budgets
from cl_lora.reporting.differences import Differences, Source, differences_to
from cl_lora.reporting.faces import Face, faces
from cl_lora.reporting.page.grid import Cell, Grid, heads, sortable
from cl_lora.reporting.ranking import ranking_of_face, source_of
from cl_lora.reporting.shots import scores_by_shots
from cl_lora.reporting.tables import Column
from cl_lora.run_folder.reader import RunFolder


def differences(run: RunFolder, metric: Metric) -> Iterator[Grid]:
    """Yield a table for each face: of a few-shot run over K, and at the smallest K.

    Differences are taken to the best arm, and to the row that the run measures by.
    """
    for face in faces(run):
        if metric.name not in face.run.scores.metrics:
            continue
        best = ranking_of_face(face, metric).best
        for reference in dict.fromkeys((best, face.run.yardstick)):
            if reference is None or reference not in face.run.scores.arms:
                continue
            for where, source in _sources(face, metric):
                if reference in source.averages:
                    yield _to(face, reference, where, source, metric)


def _to(face: Face, reference: str, where: str, source: Source, metric: Metric) -> Grid:
    arms = (*face.run.arms, *face.run.references)
    others = [a for a in arms if a in source.averages and a != reference]
    found = differences_to(source, others, source, reference, metric)
    over, about = (f" {where}", "data sets") if face.kind == "shots" else ("", "domains")
    about = "tasks" if has_budgets(face.run) else about
    if face.kind == "group":
        over, about = f" {where}", "tasks"
    return _grid(
        face.run,
        found,
        metric,
        f"Differences to {reference}" + (f", {where}" if where else ""),
        found.explained(reference, over, about),
    )


def _sources(face: Face, metric: Metric) -> Iterator[tuple[str, Source]]:
    """Yield where numbers are taken, in words, with the numbers."""
    source, where = source_of(face, metric)
    yield where, source
    if face.kind != "shots":
        return
    shots = scores_by_shots(face.run, metric)
    if len(shots.with_samples) > 1 and shots.smallest is not None:
        yield f"at {shots.stages[shots.smallest].name}", Source((), shots.at(shots.smallest))


def _grid(run: RunFolder, found: Differences, metric: Metric, caption: str, note: str) -> Grid:
    column = Column("", "", "", percent=metric.percent, signed=True)
    p, n = Column("", "", "", form="p"), Column("", "", "", form="count")
    rows = []
    for arm, d in found.found.items():
        numbers = [(column, d.mean), (column, d.low), (column, d.high), (n, float(d.n))]
        numbers += [] if found.over_images else [(p, d.p), (p, d.holm)]
        cells = [Cell(sortable(value), shown.number(value)) for shown, value in numbers]
        rows.append((arm, cells))
    points = f", {metric.points}" if metric.points else ""
    titles = ["Arm", f"Difference{points}", "Low", "High", f"n ({found.unit})"]
    titles += [] if found.over_images else ["p", "p, Holm"]
    return Grid(
        caption,
        heads(titles, ("Arm",)),
        [row for row in rows if row[0] not in run.references],
        [row for row in rows if row[0] in run.references],
        (note,),
    )
