"""Fabricates the folders of runs of unlike tasks: subsets that are merged, or one after another."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from fabricate import fabricate_run

from cl_lora.evaluation.metrics import ACCURACY, F1, METRICS, NME, RELATIVE, relative
from cl_lora.evaluation.scores import Score, ScoreTable
from cl_lora.run_folder.records import ExperienceRecord, StageRecord, StreamRecord, TaskRecord

TASKS = {
    "age_class": ("class", (ACCURACY, F1)),
    "age": ("scalar", (METRICS["rmse"], METRICS["mae"])),
    "emotion": ("class", (ACCURACY, F1)),
    "landmarks": ("points", (NME,)),
}
NAMES = tuple(TASKS)
ARMS = {
    "cat": {"method": "cat", "coefficients": 1},
    "mean": {"method": "task_arithmetic", "coefficients": "uniform"},
}
ROLES = {
    "single": "single",
    "head_only": "head_only",
    "trivial": "trivial",
    "single_x0.5": "control",
    "other_seed": "control",
}
# What each task reaches by itself, under a head alone, and trivially; by its first metric.
LEVELS = {
    "age_class": (0.8, 0.6, 0.2),
    "age": (8.0, 12.0, 20.0),
    "emotion": (0.6, 0.5, 0.25),
    "landmarks": (0.08, 0.25, 0.28),
}
GROUPS = {1: "alone", 2: "pairs", 3: "triples"}


def subset_stages(triples=((0, 1, 3), (1, 2, 3))):
    """Return the stages of each adapter alone, of all pairs, and of some triples."""
    n = range(len(NAMES))
    members = [*((t,) for t in n), *itertools.combinations(n, 2), *triples]
    return [
        StageRecord(i, " + ".join(NAMES[m] for m in of), of, of, of, group=GROUPS[len(of)])
        for i, of in enumerate(members)
    ]


def in_time_stages():
    """Return a stage after each task, the untrained one first."""
    every = tuple(range(len(NAMES)))
    stages = [StageRecord(t, NAMES[t], every[: t + 1], every, every[: t + 1]) for t in every]
    return [StageRecord(-1, "untrained", (), every, ()), *stages]


def kept(arm, j, members, seed):
    """Return which share of what training brought is left of task j in a merge, by formula."""
    shares = {"cat": 0.15, "mean": 0.08}
    lost = shares[arm] * sum((1 + m) * 0.7 for m in members if m != j)
    return 1 - lost * (1 + 0.2 * j) - 0.01 * seed


def fabricate_multitask(
    folder: Path, *, arms=None, seeds=(0, 1), failed=(), in_time=False, relations=True, rows=ROLES
):
    """Write the folder of a finished run of four unlike tasks and return its path.

    ``failed``: tasks whose single adapter is as good as the trivial predictor, features collapsed.
    """
    arms = ARMS if arms is None else arms
    fabricate_run(folder, arms=arms, references=tuple(rows), domains=NAMES, seeds=seeds, name="mt")
    stages = in_time_stages() if in_time else subset_stages()
    stream = StreamRecord(
        name="mt",
        experiences=tuple(ExperienceRecord(n, n, 1000, 100, 300) for n in NAMES),
        tasks=tuple(
            TaskRecord(n, kind, ("a", "b") if kind == "class" else (), (RELATIVE, *metrics))
            for n, (kind, metrics) in TASKS.items()
        ),
        fingerprint="f00d",
        protocol="prefixes" if in_time else "subsets",
        ordered=in_time,
        stages=tuple(stages),
        backbone={"fingerprint": "beef"},
    )
    (folder / "stream.json").write_text(json.dumps(stream.record()))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    alone = [s for s in stages if s.group == "alone"] or stages[-1:]
    config["roles"] = dict(rows)
    config["last_stages"] = {} if in_time else dict.fromkeys(rows, alone[-1].index)
    config["yardstick"] = next(iter(rows), None)
    config["identity"]["protocol"] = stream.protocol
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    table = ScoreTable()
    for seed in seeds:
        for arm in arms:
            merged = stages if in_time else [s for s in stages if len(s.members) > 1]
            for s in merged:
                table.append(_scores(seed, arm, s, failed))
        for row in rows:
            for s in alone:
                table.append(_scores(seed, row, s, failed))
    table.write(folder / "scores.csv", list(arms))
    coefficients = [
        (seed, arm, s.index, "all", m, 1.0 if arm == "cat" else 1 / len(s.members))
        for seed in seeds
        for arm in arms
        for s in stages
        for m in s.members
        if in_time or len(s.members) > 1
    ]
    columns = ["seed", "arm", "stage", "group", "adapter", "value"]
    pd.DataFrame(coefficients, columns=columns).to_csv(folder / "coefficients.csv", index=False)
    if relations and not in_time:
        _write_relations(folder, seeds, failed)
    return folder


def _scores(seed, row, stage, failed):
    found = []
    for j in stage.evaluated:
        name = NAMES[j]
        single, head, trivial = LEVELS[name]
        if name in failed:
            single = trivial
        wobble = 1 + 0.01 * seed
        if row in ARMS:
            come = stage.index >= 0 and (j in stage.members)
            share = kept(row, j, stage.members, seed) if come else 0.0
            value = trivial + share * (single * wobble - trivial)
        else:
            share = {"single": 1, "trivial": 0, "single_x0.5": 0.7, "other_seed": 0.9}.get(row)
            value = head if share is None else trivial + share * (single * wobble - trivial)
        if name in failed and row == "single":
            value = trivial
        metric, *others = TASKS[name][1]
        told = {RELATIVE: relative(value, single * wobble, metric), metric: value}
        told |= dict.fromkeys(others, value * 0.9)
        found += [
            Score(seed, row, stage.index, j, m.name, v, m.higher_is_better) for m, v in told.items()
        ]
    return found


def _write_relations(folder, seeds, failed):
    draw = np.random.default_rng(4)
    pairs = list(itertools.combinations(range(len(NAMES)), 2))
    rows = [
        (seed, measure, a, b, float(draw.uniform(low, 1) - 0.2 * (measure == "cosine")))
        for seed in seeds
        for a, b in pairs
        for measure, low in (("cosine", 0.0), ("subspace", 0.1), ("cka", 0.3))
    ]
    columns = ["seed", "measure", "first", "second", "value"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "relations.csv", index=False)
    facts = [
        (seed, j, quantity, value)
        for seed in seeds
        for j, name in enumerate(NAMES)
        for quantity, value in {
            "norm": 5.0 + j + seed,
            "stable_rank": 2.0 + 0.1 * j,
            "share_k": 0.6,
            "share_v": 0.4,
            "feature_variance_share": 0.001 if name in failed else 0.5,
        }.items()
    ]
    columns = ["seed", "adapter", "quantity", "value"]
    pd.DataFrame(facts, columns=columns).to_csv(folder / "adapter_facts.csv", index=False)


def frame(run):
    """Return every score of a run as a frame, with name and members of its stage."""
    stages = {s.index: s for s in run.stream.stages}
    return pd.DataFrame(
        [
            {**vars(s), "group": stages[s.stage].group, "members": stages[s.stage].members}
            for s in run.scores
        ]
    )
