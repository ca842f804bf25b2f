"""The sentences and facts at the top of the report."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.budgets import has_budgets
from cl_lora.reporting.faces import (
    Face,
    downstream,
    draws,
    faces,
    is_few_shot,
    merged_groups,
    merges_subsets,
    upstream,
)
from cl_lora.reporting.multitask import CONTROL, failed_sentence, failed_tasks
from cl_lora.reporting.page.budgets import lead_of_budgets
from cl_lora.reporting.shots import ByShots, best_at, groups_of, lora_from_scratch, scores_by_shots
from cl_lora.reporting.tables import MISSING, Column, ResultTable, run_table
from cl_lora.run_folder.reader import RunFolder
from cl_lora.run_folder.records import TaskRecord


def lead(run: RunFolder, metric: Metric) -> str:
    """Return the sentences that say which arms lead."""
    told = []
    sizes = lead_of_budgets(run, metric) if has_budgets(run) else ""
    if sizes:
        told.append(sizes)
    if merges_subsets(run):
        told.append(_of_groups(run, metric))
    for face in faces(run) if not sizes else ():
        if face.kind == "group" or metric.name not in face.run.scores.metrics:
            continue
        seeds = len(face.run.scores.seeds)
        if face.kind == "shots":
            told.append(_by_shots(face, metric))
        else:
            start = "In time: " if face.kind == "time" else ""
            told.append(start + _of_table(run_table(face.run, metric), metric, seeds))
    if failed_sentence(run):
        told.append(failed_sentence(run))
    if is_few_shot(run) and len(run.scores.seeds) == 1:
        told.append("There is one seed: how much of this is noise of training is unknown.")
    return " ".join(told)


def _of_table(table: ResultTable, metric: Metric, seeds: int) -> str:
    j = next(i for i, c in enumerate(table.columns) if c.key == "average")
    unit = f"\N{NO-BREAK SPACE}{metric.unit}" if metric.unit else ""
    ranked = len(table.rows) - table.references
    # A single arm has none to lead.
    best = [i for i in range(ranked) if ranked == 1 or table.is_best(i, j)]

    def said(i: int) -> str:
        return " ".join(part for part in table.cell(i, j) if part) + unit

    parts = []
    if best:
        which = " and ".join(table.rows[i] for i in best)
        among = f"best of {ranked} arms " if ranked > 1 else ""
        parts.append(f"{metric.title}, average: {among}{which}, {said(best[0])}.")
    rows = [f"{table.rows[i]} {said(i)}" for i in range(ranked, len(table.rows))]
    if rows:
        parts.append(f"For reference: {', '.join(rows)}.")
    if seeds > 1:
        parts.append(f"Mean ± deviation over {seeds} seeds.")
    return " ".join(parts)


def _of_groups(run: RunFolder, metric: Metric) -> str:
    """Say which arm is best in each group of subsets, and whom merging costs most by it."""
    unit = f"\N{NO-BREAK SPACE}{metric.unit}" if metric.unit else ""
    parts = []
    for k, face in enumerate(faces(run)):
        if metric.name not in face.run.scores.metrics or not face.run.arms:
            continue
        table = run_table(face.run, metric)
        j = next(i for i, c in enumerate(table.columns) if c.key == "average")
        ranked = len(table.rows) - table.references
        chosen = [i for i in range(ranked) if run.roles.get(table.rows[i]) != CONTROL]
        best = _leading(table, chosen, j)
        if not best:
            continue
        ranked = len(chosen)
        which = " and ".join(table.rows[i] for i in best)
        among = f"best of {ranked} arms " if ranked > 1 else ""
        group = face.run.stream.trained_stages[0].name
        value = " ".join(part for part in table.cell(best[0], j) if part)
        parts.append(f"{metric.title}, merged in {group}: {among}{which}, {value}{unit}.")
        if k == 0:
            parts += _extremes(table, best[0], unit, failed_tasks(run))
            rows = [
                f"{row} {' '.join(part for part in table.cell(i, j) if part)}{unit}"
                for i, row in enumerate(table.rows)
                if run.roles.get(row) in ("head_only", "trivial")
            ]
            parts += [f"Not merged: {', '.join(rows)}."] if rows else []
    if len(run.scores.seeds) > 1:
        parts.append(f"Mean ± deviation over {len(run.scores.seeds)} seeds.")
    else:
        parts.append("There is one seed: how much of this is noise of training is unknown.")
    return " ".join(parts)


def _leading(table: ResultTable, rows: Sequence[int], j: int) -> list[int]:
    """Return the rows that are best in a column, among some of them that are complete."""
    whole = table.complete
    known = [i for i in rows if not math.isnan(table.mean[i, j]) and (whole is None or whole[i, j])]
    sign = 1.0 if table.columns[j].higher_is_better else -1.0
    top = max((sign * float(table.mean[i, j]) for i in known), default=math.nan)
    return [i for i in known if sign * float(table.mean[i, j]) == top]


def _extremes(table: ResultTable, row: int, unit: str, left_out: Collection[str]) -> list[str]:
    """Say which task keeps least and which most in one row, failed ones left out."""
    values = {
        j: float(table.mean[row, j])
        for j, column in enumerate(table.columns)
        if column.detail and column.title not in left_out
    }
    tasks = [j for j, value in values.items() if not math.isnan(value)]
    if len(tasks) < 2:
        return []
    up = table.columns[tasks[0]].higher_is_better
    ordered = sorted(tasks, key=lambda j: values[j], reverse=bool(up))
    most, least = (
        f"{table.columns[j].title.removesuffix(' ↓')} ({table.cell(row, j)[0]}{unit})"
        for j in (ordered[0], ordered[-1])
    )
    return [f"There {least} keeps least and {most} most."]


def _by_shots(face: Face, metric: Metric) -> str:
    shots = scores_by_shots(face.run, metric)
    sets = len(shots.stages[-1].evaluated)
    arms = [a for a in face.run.arms if a in shots.values]
    unit = f"\N{NO-BREAK SPACE}{metric.unit}" if metric.unit else ""
    column = Column("", "", "", percent=metric.percent)
    best = []
    for k, stage in enumerate(shots.stages):
        arm = best_at(shots, k, arms)
        if arm is None:
            continue
        found = shots.estimates({arm: shots.at(k)[arm]})[arm]
        around = f" ± {column.number(found.deviation)}" if found.seeds > 1 else ""
        best.append(f"at {stage.name} {arm}, {column.number(found.mean)}{around}{unit}")
    over = f", mean over {sets} data sets" if sets > 1 else ""
    among = f"best of {len(arms)} arms: " if len(arms) > 1 else ""
    parts = [f"{metric.title} from K samples per class{over}; {among}{'; '.join(best)}."]
    parts += _against_lora(face.run, shots, metric)
    if len(face.run.scores.seeds) > 1:
        parts.append(f"Mean ± standard deviation over {len(face.run.scores.seeds)} seeds.")
    return " ".join(parts)


def _against_lora(run: RunFolder, shots: ByShots, metric: Metric) -> list[str]:
    """Say at which K the best arm that starts from a composition lies above LoRA from scratch."""
    lora = lora_from_scratch(run)
    bare, *composed = groups_of(run).values()
    composing = [a for group in composed for a in group if a in shots.values]
    if lora not in bare or lora not in shots.values or not composing:
        return []
    column = Column("", "", "", percent=metric.percent, signed=True)
    points = f" {metric.points}" if metric.points else ""
    better: list[str] = []
    worse: list[str] = []
    for k in shots.with_samples:
        arm = best_at(shots, k, composing)
        mine = shots.estimates(shots.at(k))
        if arm is None or not mine[lora].seeds:
            continue
        gain = mine[arm].mean - mine[lora].mean
        told = f"{shots.stages[k].name} ({arm}, {column.number(gain)}{points})"
        above = (gain > 0) if shots.higher_is_better else (gain < 0)
        (better if above else worse).append(told)
    said = []
    if better:
        said.append(f"better than LoRA from scratch ({lora}) at {_listed(better)}")
    if worse:
        than = "" if better else f" than LoRA from scratch ({lora})"
        said.append(f"not better{than} at {_listed(worse)}")
    if not said:
        return []
    return [f"In the mean the best arm that starts from a composition is {', and '.join(said)}."]


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def facts(run: RunFolder) -> list[tuple[str, str]]:
    """Return what the run was made of, as (heading, words)."""
    stream = run.stream
    model = run.config.get("model") or {}
    strategy = run.config.get("strategy") or {}
    return [
        ("Benchmark", stream.name),
        ("Tasks" if len(stream.tasks) > 1 else "Task", "; ".join(map(_task, stream.tasks))),
        *_experiences(run),
        ("Model", str(model.get("name", MISSING))),
        ("Adapters", ", ".join(f"{k} {_plain(v)}" for k, v in strategy.items() if v is not None)),
        ("Seeds", ", ".join(map(str, run.seeds))),
        ("Data fingerprint", stream.fingerprint),
    ]


def _task(task: TaskRecord) -> str:
    labels = f", {len(task.labels)} labels" if task.labels else ""
    return f"{task.name} ({task.kind}{labels})"


def _experiences(run: RunFolder) -> list[tuple[str, str]]:
    every = run.stream.experiences
    words = [f"{e.name} ({e.train} train, {e.test} test)" for e in every]
    if merges_subsets(run):
        merged = [f"{len(stages)} {name}" for name, stages in merged_groups(run).items()]
        return [("Samples", ", ".join(words)), ("Merged", ", ".join(merged))]
    if has_budgets(run):
        return [("Samples", ", ".join(words))]
    if not is_few_shot(run):
        several = len(run.stream.tasks) > 1
        return [("Tasks in order" if several else "Domains in order", ", ".join(words))]
    parts = (upstream(run), downstream(run))
    if set(parts[0]) & set(parts[1]):  # in rounds, or one after another
        told = [("Tasks in order" if run.stream.ordered else "Held out in turn", ", ".join(words))]
    else:
        titles = ("Upstream", "Downstream")
        told = [
            (title, ", ".join(words[j] for j in part))
            for title, part in zip(titles, parts, strict=True)
        ]
    names = [stage.name.removeprefix("K=") for stage in faces(run)[0].run.stream.trained_stages]
    return [*told, ("Samples per class, K", ", ".join(names)), ("Support draws", str(draws(run)))]


def _plain(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "+".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
