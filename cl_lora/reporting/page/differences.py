"""How far every arm lies from the one that the report measures by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cl_lora.evaluation.aggregate import averages
from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.budgets import has_budgets
from cl_lora.reporting.differences import Differences, Source, differences_to
from cl_lora.reporting.faces import Face, faces
from cl_lora.reporting.page.cells import Cell, sortable
from cl_lora.reporting.shots import scores_by_shots
from cl_lora.reporting.tables import Column
from cl_lora.run_folder.reader import RunFolder


def differences(run: RunFolder, metric: Metric) -> Iterator[dict[str, Any]]:
    """Yield a section for each face: of a few-shot run over K, and at the smallest K."""
    for face in faces(run):
        reference = face.run.yardstick
        if reference not in face.run.scores.arms or metric.name not in face.run.scores.metrics:
            continue
        for where, source in _sources(run, face, metric):
            arms = (*face.run.arms, *face.run.references)
            others = [a for a in arms if a in source.averages and a != reference]
            found = differences_to(source, others, source, reference, metric)
            shots = face.kind == "shots"
            over, about = (f" {where}", "data sets") if shots else ("", "domains")
            about = "tasks" if has_budgets(face.run) else about
            if face.kind == "group":
                over, about = f" {where}", "tasks"
            yield {
                "heading": f"Differences to {reference}" + (f", {where}" if where else ""),
                "reference": reference,
                "note": f"Compared with {reference}. " + found.explained(reference, over, about),
                **_table(face.run, found, metric),
            }


def _sources(run: RunFolder, face: Face, metric: Metric) -> Iterator[tuple[str, Source]]:
    """Yield where numbers are taken, in words, with the numbers."""
    if face.kind != "shots":
        shape = face.run.stream.shape(metric.name)
        found = averages(face.run.scores, metric.name, shape)
        where = "in time" if face.kind == "time" else ""
        if face.kind == "group":  # of one seed no interval: partners are no draws of new images
            yield f"in {face.run.stream.trained_stages[0].name}", Source((), found)
            return
        yield where, Source((face.run,), found, face.stages[-1][-1])
        return
    # Draws of one query set are no draws of new images: one seed has no interval.
    shots = scores_by_shots(face.run, metric)
    if len(shots.with_samples) > 1:
        yield "over K", Source((), shots.average())
    if shots.smallest is not None:
        yield f"at {shots.stages[shots.smallest].name}", Source((), shots.at(shots.smallest))


def _table(run: RunFolder, found: Differences, metric: Metric) -> dict[str, Any]:
    column = Column("", "", "", percent=metric.percent, signed=True)
    p, n = Column("", "", "", form="p"), Column("", "", "", form="count")
    rows = []
    for arm, d in found.found.items():
        numbers = [(column, d.mean), (column, d.low), (column, d.high), (n, float(d.n))]
        numbers += [] if found.over_images else [(p, d.p), (p, d.holm)]
        rows.append(
            {
                "name": arm,
                "kind": "reference" if arm in run.references else "",
                "cells": [Cell(sortable(value), shown.number(value)) for shown, value in numbers],
            }
        )
    points = f", {metric.points}" if metric.points else ""
    headings = [f"Difference{points}", "Low", "High", f"n ({found.unit})"]
    headings += [] if found.over_images else ["p", "p, Holm"]
    return {"headings": headings, "rows": rows}
