"""What a run was made of, and how it is made again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from cl_lora.reporting.budgets import has_budgets
from cl_lora.reporting.faces import (
    downstream,
    draws,
    faces,
    is_few_shot,
    merged_groups,
    merges_subsets,
    upstream,
)
from cl_lora.reporting.tables import MISSING
from cl_lora.run_folder.layout import FIGURES, SCORES_FILE
from cl_lora.run_folder.reader import RunFolder
from cl_lora.run_folder.records import TaskRecord

_COMMAND = "run"


def summary(run: RunFolder) -> str:
    """Return in one line what a run was made of."""
    names = run.experiences
    model = (run.config.get("model") or {}).get("name", "")
    shown = ", ".join(names[:_MOST]) + (f" and {len(names) - _MOST} more" * (len(names) > _MOST))
    seeds = ", ".join(map(str, run.scores.seeds))
    parts = [
        f"{run.stream.name}: {shown}",
        model,
        f"seed{'s' * (len(run.scores.seeds) != 1)} {seeds}",
    ]
    return " · ".join(part for part in parts if part)


_MOST = 6


def commands(run: RunFolder) -> list[str]:
    """Return the commands that make the run again, the first one first; none where none is known.

    They are those that were given, as recorded; commands through Python are left out.
    """
    records = [*(run.environment.get("earlier") or []), run.environment]
    found = []
    for record in records:
        given = record.get("command") if isinstance(record, dict) else None
        words = [str(word) for word in given] if isinstance(given, list) else []
        if _COMMAND in words:
            found.append(shlex.join(["cl-lora", *words[words.index(_COMMAND) :]]))
    return list(dict.fromkeys(found))


def links(run: RunFolder) -> Iterator[tuple[str, str]]:
    """Yield what lies beside the page, as (address, words)."""
    if (run.path / SCORES_FILE).is_file():
        yield SCORES_FILE, SCORES_FILE
    yield f"{FIGURES}/", f"{FIGURES}/"


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
