"""Fabricates the folders of runs that merge everything once and say what each way needs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from fabricate import fabricate_run, variant_of

from cl_lora.evaluation.metrics import ACCURACY, F1, METRICS, RELATIVE, relative
from cl_lora.evaluation.scores import Score, ScoreTable
from cl_lora.run_folder.records import ExperienceRecord, StageRecord, StreamRecord, TaskRecord

TASKS = ("mnist", "gtsrb", "svhn", "sun397", "eurosat", "dtd")
CLASSES = (
    "crop",
    "forest",
    "herb",
    "highway",
    "factory",
    "pasture",
    "perm",
    "home",
    "river",
    "sea",
)
BACKBONE = 5_526_346
M, Q = (1.0, 5.0, 10.0), (4, 8, 16)

TA = {"method": "task_arithmetic", "coefficients": 0.3}
MERGES = {
    "task_arithmetic": TA,
    "fisher": {"method": "fisher", "coefficients": "uniform"},
    "regmean": {"method": "regmean", "coefficients": "uniform"},
    "ties": {"method": "ties", "coefficients": 1.0, "density": 0.2},
}


def _arms():
    """Return name -> (settings, parameters, level): as the paper's table, in small."""
    sparse, low = {"name": "sparse", "scope": "model"}, {"name": "low_rank"}
    levels = {"task_arithmetic": 0.646, "fisher": 0.657, "regmean": 0.727, "ties": 0.632}
    found = {name: (s, BACKBONE, levels[name]) for name, s in MERGES.items()}
    for q, level in zip(Q, (0.830, 0.866, 0.885), strict=True):
        size = BACKBONE + len(TASKS) * 24 * q * (192 * 3 + 1)
        found[f"peru_lora_q{q}"] = ({"residual": {**low, "q": q}}, size, level)
    for name, s in MERGES.items():
        shift = {"task_arithmetic": 0.05, "fisher": 0.04, "regmean": -0.003, "ties": 0.087}[name]
        found[f"{name}_full"] = ({**s, "bank": "full"}, BACKBONE, levels[name] + shift)
    for m, pruned, peru in zip(M, (0.551, 0.781, 0.875), (0.757, 0.849, 0.884), strict=True):
        size = BACKBONE + round(len(TASKS) * 2 * m / 100 * BACKBONE)
        residual = {"bank": "full", "residual": {**sparse, "m": m}}
        found[f"post_pruning_{m:g}"] = (residual, size, pruned)
        found[f"peru_fft_{m:g}"] = ({**TA, **residual}, size, peru)
    return found


ARMS = _arms()
ROWS = {
    "base": ("", "", BACKBONE, 0.481),
    "single": ("single", "", BACKBONE + len(TASKS) * 24 * 32 * 576, 0.897),
    "single_full": ("single_full", "full", len(TASKS) * BACKBONE, 0.905),
}


def reuse_variant(settings):
    """Return what a run records of an arm with a bank, a residual or neither."""
    more = {k: settings[k] for k in ("bank", "residual") if k in settings}
    plain = {k: v for k, v in settings.items() if k not in more}
    if plain:
        return {**variant_of(plain), **more}
    merge = dict.fromkeys(("method", "space", "scaling", "scale", "scale_title", "spc", "head"))
    return {**merge, "options": {}, "coefficients": {"name": ""}, "tune_head": False, **more}


def fabricate_reuse(
    folder: Path,
    *,
    arms=None,
    rows=None,
    seeds=(0, 1, 2),
    unlike=False,
    backbone=BACKBONE,
    name="reuse",
    extras=True,
):
    """Write the folder of a finished run of six tasks at once and return its path.

    ``unlike``: the second task is a scalar, scored by its RMSE. ``extras``: spectra and embedding.
    """
    arms = ARMS if arms is None else arms
    rows = ROWS if rows is None else rows
    given = {arm: settings for arm, (settings, _, _) in arms.items()}
    plain = dict.fromkeys(arms, TA)
    fabricate_run(folder, arms=plain, references=tuple(rows), domains=TASKS, seeds=seeds, name=name)
    every = tuple(range(len(TASKS)))
    kinds = {
        task: ("scalar", (), (METRICS["rmse"],))
        if unlike and j == 1
        else ("class", CLASSES, (ACCURACY, F1))
        for j, task in enumerate(TASKS)
    }
    stream = StreamRecord(
        name=name,
        experiences=tuple(ExperienceRecord(n, n, 1000, 100, 300) for n in TASKS),
        tasks=tuple(
            TaskRecord(n, kind, labels, (RELATIVE, *metrics), scaling=None if labels else SCALING)
            for n, (kind, labels, metrics) in kinds.items()
        ),
        fingerprint="f00d2" if unlike else "f00d",
        protocol="all_at_once",
        ordered=False,
        stages=(StageRecord(0, "all", every, every, every),),
        backbone={"fingerprint": "beef", **({"parameters": backbone} if backbone else {})},
    )
    (folder / "stream.json").write_text(json.dumps(stream.record()))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["arms"] = given
    config["variants"] = {arm: reuse_variant(s) for arm, s in given.items()}
    config["variants"] |= {row: {"bank": bank} for row, (_, bank, _, _) in rows.items() if bank}
    config["descriptions"] = {row: f"What {row} is." for row in (*arms, *rows)}
    config["roles"] = {row: role for row, (role, *_) in rows.items() if role}
    config["yardstick"] = next((row for row, (role, *_) in rows.items() if role), None)
    config["identity"]["protocol"] = "all_at_once"
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    sizes = {arm: size for arm, (_, size, _) in arms.items()}
    sizes |= {row: size for row, (_, _, size, _) in rows.items()}
    levels = {arm: level for arm, (_, _, level) in arms.items()}
    levels |= {row: level for row, (_, _, _, level) in rows.items()}
    _scores(levels, seeds, kinds).write(folder / "scores.csv", list(arms))
    accounts = [
        (seed, row, 0, "parameters", float(n)) for seed in seeds for row, n in sizes.items()
    ]
    _csv(folder / "accounts.csv", ["seed", "arm", "stage", "quantity", "value"], accounts)
    coefficients = [
        (seed, arm, 0, "all", i, 0.3)
        for seed in seeds
        for arm, s in given.items()
        if "method" in s
        for i in every
    ]
    columns = ["seed", "arm", "stage", "group", "adapter", "value"]
    _csv(folder / "coefficients.csv", columns, coefficients)
    if extras:
        _spectra(folder, seeds)
        _embedding(folder, (*rows, *arms), levels, seeds[0])
    return folder


SCALING = {"mean": (5.0,), "deviation": (2.0,)}


def _scores(levels, seeds, kinds):
    table = ScoreTable()
    hardness = np.linspace(-0.06, 0.06, len(TASKS))
    reached = {}
    for a, (row, level) in enumerate(levels.items()):
        for seed in seeds:
            draw = np.random.default_rng([a, seed])
            for j, task in enumerate(TASKS):
                value = float(np.clip(level + hardness[j] + draw.normal(0, 0.006), 0, 1))
                reached[row, seed, j] = value if kinds[task][1] else 20 * (1 - value)
    single = next((row for row in levels if row == "single"), next(iter(levels)))
    for (row, seed, j), value in reached.items():
        metrics = kinds[TASKS[j]][2]
        share = relative(value, reached[single, seed, j], metrics[0])
        told = {RELATIVE: share, metrics[0]: value} | dict.fromkeys(metrics[1:], 0.96 * value)
        table.append(
            [Score(seed, row, 0, j, m.name, v, m.higher_is_better) for m, v in told.items()]
        )
    return table


def _spectra(folder, seeds):
    rows = []
    for seed in seeds:
        for bank, length in (("fresh", 32), ("full", 192)):
            for i in range(len(TASKS)):
                k = np.arange(1, length + 1)
                values = np.exp(-(k - 1) / (3 + i + 12 * (bank == "full"))) * (1 + 0.001 * seed)
                values[0] = 1.0
                energy = np.cumsum(values**2) / (values**2).sum()
                rows += [
                    (seed, bank, i, int(n), float(v), float(e))
                    for n, v, e in zip(k, values, energy, strict=True)
                ]
    _csv(folder / "spectra.csv", ["seed", "bank", "adapter", "index", "value", "energy"], rows)


def _embedding(folder, names, levels, seed, j=4, count=200):
    rows = []
    draw = np.random.default_rng(9)
    samples = np.sort(draw.permutation(1000)[:count])
    labels = draw.integers(0, len(CLASSES), count)
    for name in names:
        angle = 2 * np.pi * labels / len(CLASSES)
        apart = 30 * (levels[name] - 0.4)
        places = apart * np.stack([np.cos(angle), np.sin(angle)], 1) + draw.normal(0, 2, (count, 2))
        rows += [
            (seed, name, j, int(s), int(label), float(x), float(y))
            for s, label, (x, y) in zip(samples, labels, places, strict=True)
        ]
    _csv(folder / "embedding.csv", ["seed", "arm", "evaluated", "sample", "label", "x", "y"], rows)


def _csv(path, columns, rows):
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)
