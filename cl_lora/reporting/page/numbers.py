"""Every score and coefficient of a run, row by row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cl_lora.evaluation.scores import UNTRAINED
from cl_lora.reporting.faces import by_shots, downstream, faces, few_shot_stages, is_few_shot
from cl_lora.reporting.page.cells import number_cells
from cl_lora.reporting.tables import MISSING
from cl_lora.run_folder.reader import RunFolder

_MOST_ROWS = 3_000
"""Coefficients of a few-shot run over which modules are averaged: the page would be too large."""


def scores(run: RunFolder) -> Iterator[dict[str, Any]]:
    """Yield a row for each arm, seed, metric and stage; of a few-shot run, for each K and draw."""
    adapting = {s.index: s for s in few_shot_stages(run)}
    names = {s.index: s.name for s in run.stream.stages}
    # Sorted by K rather than by the order in which stages were added.
    order = [s.name for s in faces(run)[0].run.stream.trained_stages] if adapting else []
    rows: dict[tuple[Any, ...], dict[int, float]] = {}
    for s in run.scores:
        shots = adapting.get(s.stage)
        # The stages of one K and draw score one experience each: they share a row.
        place = (order.index(shots.name), shots.draw) if shots else (len(order) + s.stage, None)
        name = MISSING if s.stage == UNTRAINED else names[s.stage]
        rows.setdefault((s.arm, s.seed, s.metric, *place, name), {})[s.evaluated] = s.value
    for (arm, seed, metric, stage, draw, name), values in rows.items():
        yield {
            "arm": arm,
            "seed": seed,
            "metric": metric,
            "stage": stage,
            "draw": MISSING if draw is None else str(draw),
            "after": name,
            "cells": number_cells(values, len(run.experiences)),
        }


def coefficients(run: RunFolder) -> Iterator[dict[str, Any]]:
    """Yield a row for each arm, seed, stage and group that was merged with coefficients.

    Of a few-shot run the rows are means over seeds and draws, one for each downstream experience
    and K; where they are too many, means over all modules too.
    """
    if is_few_shot(run):
        yield from _few_shot_coefficients(run)
        return
    rows: dict[tuple[str, int, int, str], dict[int, float]] = {}
    for row in run.coefficients.itertuples(index=False):
        r: Any = row
        rows.setdefault((r.arm, r.seed, r.stage, r.group), {})[r.adapter] = r.value
    names = {s.index: s.name for s in run.stream.stages}
    for (arm, seed, stage, group), values in rows.items():
        yield {
            "arm": arm,
            "seed": seed,
            "stage": stage,
            "after": names[stage],
            "group": group,
            "cells": number_cells(values, len(run.experiences)),
        }


def _few_shot_coefficients(run: RunFolder) -> Iterator[dict[str, Any]]:
    each = [(run.experiences[j], by_shots(run, (j,))) for j in downstream(run)]
    keys = ["arm", "stage", "group"]
    count = sum(len(face.coefficients.groupby(keys)) for _, face in each)
    if count > _MOST_ROWS:
        keys.remove("group")
    for name, face in each:
        stages = face.stream.trained_stages
        means: Any = face.coefficients.groupby([*keys, "adapter"], sort=False)["value"].mean()
        rows: dict[tuple[Any, ...], dict[int, float]] = {}
        for (*key, adapter), value in means.items():
            rows.setdefault(tuple(key), {})[adapter] = value
        for (arm, stage, *group), values in rows.items():
            yield {
                "arm": arm,
                "seed": name,
                "stage": stage,
                "after": stages[stage].name,
                "group": group[0] if group else "mean",
                "cells": number_cells(values, len(run.experiences)),
            }
