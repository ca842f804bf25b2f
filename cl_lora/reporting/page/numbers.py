"""Every score and coefficient of a run, row by row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cl_lora.evaluation.scores import UNTRAINED
from cl_lora.reporting.faces import by_shots, downstream, faces, few_shot_stages, is_few_shot
from cl_lora.reporting.page.grid import Cell, Grid, heads, number_cells
from cl_lora.reporting.tables import MISSING
from cl_lora.run_folder.reader import RunFolder

_MOST_ROWS = 3_000
"""Coefficients of a few-shot run over which modules are averaged: the page would be too large."""


def scores(run: RunFolder) -> Grid:
    """Return a row for each arm, seed, metric and stage; of a few-shot run, for each K and draw."""
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
    found = []
    for (arm, seed, metric, stage, draw, name), values in rows.items():
        cells = [Cell(str(seed), str(seed)), Cell("", metric), Cell(str(stage), name)]
        if adapting:
            cells.append(
                Cell("" if draw is None else str(draw), str(MISSING if draw is None else draw))
            )
        found.append((arm, [*cells, *number_cells(values, len(run.experiences))]))
    titles = ["Arm", "Seed", "Metric", "Stage", *(["Draw"] if adapting else []), *run.experiences]
    stages = (
        "Stage is K, the support samples per class, and draw the number of the support set; of a "
        "stage in time it is the last task that was merged."
        if adapting
        else "Stage is what was merged then; “–” is before any training."
    )
    what = "K and draw" if adapting else "time"
    return Grid(
        f"All {len(run.scores)} scores, by arm, seed, metric and {what}",
        heads(titles, ("Arm", "Metric", "Stage")),
        found,
        notes=(
            "Values as in scores.csv, in columns by the experience they were measured on. "
            + stages,
        ),
    )


def coefficients(run: RunFolder) -> Grid | None:
    """Return a row for each arm, seed, stage and group that was merged with coefficients.

    Of a few-shot run the rows are means over seeds and draws, one for each downstream experience
    and K; where they are too many, means over all modules too. None without coefficients.
    """
    few_shot = is_few_shot(run)
    rows = list(_few_shot_coefficients(run) if few_shot else _coefficients(run))
    if not rows:
        return None
    of = "Data set" if few_shot else "Seed"
    return Grid(
        "Coefficients by arm, data set and K"
        if few_shot
        else "All coefficients, by arm, seed, group and time",
        heads(
            ["Arm", of, "Stage", "Group", *run.experiences], ("Arm", "Data set", "Stage", "Group")
        ),
        rows,
        notes=("Means over seeds and support draws; every value is in coefficients.csv.",)
        if few_shot
        else (),
    )


def _coefficients(run: RunFolder) -> Iterator[tuple[str, list[Cell]]]:
    rows: dict[tuple[str, int, int, str], dict[int, float]] = {}
    for row in run.coefficients.itertuples(index=False):
        r: Any = row
        rows.setdefault((r.arm, r.seed, r.stage, r.group), {})[r.adapter] = r.value
    names = {s.index: s.name for s in run.stream.stages}
    for (arm, seed, stage, group), values in rows.items():
        before = [Cell(str(seed), str(seed)), Cell(str(stage), names[stage]), Cell("", group)]
        yield arm, [*before, *number_cells(values, len(run.experiences))]


def _few_shot_coefficients(run: RunFolder) -> Iterator[tuple[str, list[Cell]]]:
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
            shown = group[0] if group else "mean"
            before = [Cell("", name), Cell(str(stage), stages[stage].name), Cell("", shown)]
            yield arm, [*before, *number_cells(values, len(run.experiences))]
