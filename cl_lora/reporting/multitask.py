"""The numbers of a run of unlike tasks: each task's own metric, which failed, and interference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from cl_lora.evaluation.continual import FloatArray
from cl_lora.evaluation.interference import (
    Interference,
    Relatedness,
    SingleTasks,
    relatedness,
    square,
)
from cl_lora.evaluation.metrics import RELATIVE, Metric
from cl_lora.reporting.faces import alone_stages, merged_groups
from cl_lora.run_folder.reader import RunFolder

MEASURES: Mapping[str, str] = {
    "cosine": "Cosine of the updates",
    "subspace": "Overlap of the top singular subspaces",
    "cka": "Linear CKA of the features",
}
"""What tells how alike two adapters are, by its name in ``relations.csv``, with its title."""

CONTROL = "control"
"""The role of rows that change one thing of a single task."""


def own_metric(run: RunFolder, j: int) -> Metric:
    """Return the metric that experience ``j`` is judged by, in its own unit."""
    name = run.stream.experiences[j].task
    task = next(t for t in run.stream.tasks if t.name == name)
    return next((m for m in task.metrics if m.name != RELATIVE.name), task.metrics[0])


def is_multitask(run: RunFolder) -> bool:
    """Return whether scores are also told as shares of the single task's, to average them."""
    return RELATIVE.name in run.stream.metrics and RELATIVE.name in run.scores.metrics


@dataclass(frozen=True, eq=False)
class Analysis:
    """Interference within one run.

    Attributes:
        names: of the n tasks (experiences).
        metrics: (n) the own metric of each.
        seeds: of the run, S of them.
        tasks: what each task reaches by itself.
        arms: arm -> what merging two by two did; arms without a score of any pair have none.
        controls: row -> (S, n) scores.
        similarity: measure -> (S, n, n).
    """

    names: tuple[str, ...]
    metrics: tuple[Metric, ...]
    seeds: tuple[int, ...]
    tasks: SingleTasks
    arms: Mapping[str, Interference]
    controls: Mapping[str, FloatArray]
    similarity: Mapping[str, FloatArray]
    _related: dict[tuple[str, str], Relatedness] = field(default_factory=dict)

    @cached_property
    def failed(self) -> dict[str, str]:
        """Name of each failed task -> why."""
        return failures(self.names, self.tasks)

    def related(self, arm: str, measure: str) -> Relatedness:
        """Return how far the harm of an arm's pairs goes with a similarity."""
        if (arm, measure) not in self._related:
            self._related[arm, measure] = relatedness(
                self.arms[arm].per_seed,
                self.similarity[measure],
                self.seeds[0],
                list(self.tasks.failed),
            )
        return self._related[arm, measure]


def analysis_of(run: RunFolder) -> Analysis | None:
    """Return the interference of a run that merged pairs.

    Returns:
        The analysis; None where no pair was merged, or there is no row of single tasks or of the
        trivial predictor to measure by.
    """
    pairs = [s for stages in merged_groups(run).values() for s in stages if len(s.members) == 2]
    tasks = single_tasks(run)
    if not pairs or tasks is None:
        return None
    n, seeds = len(run.experiences), run.scores.seeds
    metrics = tuple(own_metric(run, j) for j in range(n))
    place = {seed: s for s, seed in enumerate(seeds)}
    of_stage = {s.index: s.members for s in pairs}
    merged = {arm: np.full((len(seeds), n, n), np.nan) for arm in run.arms}
    for s in run.scores:
        if s.arm in merged and s.stage in of_stage and s.metric == metrics[s.evaluated].name:
            (partner,) = set(of_stage[s.stage]) - {s.evaluated}
            merged[s.arm][place[s.seed], s.evaluated, partner] = s.value
    return Analysis(
        names=run.experiences,
        metrics=metrics,
        seeds=seeds,
        tasks=tasks,
        arms={
            arm: Interference(tasks, values)
            for arm, values in merged.items()
            if not np.isnan(values).all()
        },
        controls={row: by_itself(run, row) for row in run.references if _is_control(run, row)},
        similarity=_similarity(run, seeds),
    )


def single_tasks(run: RunFolder) -> SingleTasks | None:
    """Return what every task reaches by itself; None without the rows that say so."""
    single, trivial = run.row_of("single"), run.row_of("trivial")
    if single is None or trivial is None or not run.scores.seeds:
        return None
    facts = run.adapter_facts
    facts = facts[facts["quantity"] == "feature_variance_share"]
    shares = facts.groupby("adapter")["value"].min()
    n = len(run.experiences)
    return SingleTasks(
        single=by_itself(run, single),
        trivial=by_itself(run, trivial),
        higher_is_better=np.array([own_metric(run, j).higher_is_better for j in range(n)]),
        variance_share=np.array([float(shares.get(j, math.nan)) for j in range(n)]),
    )


def by_itself(run: RunFolder, row: str) -> FloatArray:
    """Return (S, n) scores of a row on each task alone, or at the last stage in time."""
    seeds, n = run.scores.seeds, len(run.experiences)
    alone = {j: s.index for j, s in alone_stages(run).items()}
    last = run.stream.trained_stages[-1].index
    found = np.full((len(seeds), n), np.nan)
    for s in run.scores:
        there = s.stage == alone.get(s.evaluated, last)
        if s.arm == row and there and s.metric == own_metric(run, s.evaluated).name:
            found[seeds.index(s.seed), s.evaluated] = s.value
    return found


def failures(names: tuple[str, ...], tasks: SingleTasks) -> dict[str, str]:
    """Return the name of each failed task -> why it is called so."""
    found = {}
    for j, name in enumerate(names):
        if tasks.failed[j]:
            where = " on some seed" if len(tasks.single) > 1 else ""
            reasons = [f"its features have collapsed{where}"] * bool(tasks.collapsed[j])
            reasons += [f"it does not beat the trivial predictor{where}"] * bool(tasks.beaten[j])
            found[name] = " and ".join(reasons)
    return found


def failed_tasks(run: RunFolder) -> dict[str, str]:
    """Return the name of each task whose single adapter failed -> why; empty if none is known."""
    tasks = single_tasks(run) if is_multitask(run) else None
    return {} if tasks is None else failures(run.experiences, tasks)


def failed_sentence(run: RunFolder) -> str:
    """Say which single tasks failed; empty if none did."""
    failed = failed_tasks(run)
    if not failed:
        return ""
    told = ", ".join(f"{name} ({why})" for name, why in failed.items())
    return f"Failed single tasks, whose numbers say nothing about merging: {told}."


def _is_control(run: RunFolder, row: str) -> bool:
    return run.roles.get(row) == CONTROL and row in run.scores.arms


def _similarity(run: RunFolder, seeds: tuple[int, ...]) -> dict[str, FloatArray]:
    there = run.relations
    known = [m for m in MEASURES if m in set(there["measure"])]
    found = {}
    for measure in [*known, *sorted({*there["measure"]} - {*known})]:
        rows = there[there["measure"] == measure]
        values = {
            (int(r.seed), int(r.first), int(r.second)): float(r.value)
            for r in rows.itertuples(index=False)
        }
        found[measure] = square(values, seeds, len(run.experiences))
    return found
