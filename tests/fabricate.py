"""Fabricates finished run folders, with numbers drawn to look like a run's."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from cl_lora.evaluation.metrics import ACCURACY, F1
from cl_lora.evaluation.scores import Score, ScoreTable
from cl_lora.run_folder.hits import write_hits
from cl_lora.run_folder.layout import FORMAT, hits_file
from cl_lora.run_folder.records import (
    ExperienceRecord,
    StageRecord,
    StreamRecord,
    TaskRecord,
)

DOMAINS = ("photo", "art_painting", "cartoon", "sketch")
CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
REFERENCES = ("base", "last", "oracle", "sequential", "joint")
ARMS = {
    "ta_w1": {"method": "task_arithmetic", "coefficients": 1},
    "ta_adaptive_b3": {
        "method": "task_arithmetic",
        "coefficients": {"name": "adaptive", "b_max": 3},
        "spc": 1,
    },
    "ties_w1": {"method": "ties", "density": 0.2, "coefficients": 1.0},
}
OF_ARMS = ("method", "space", "coefficients", "spc", "head", "tune_head")
SCALES = {"fixed": ("value", "W"), "adaptive": ("b_max", "b_max")}


def many_arms(methods=("task_arithmetic", "ties", "dare_ties", "linear")):
    """Return 24 arms: each method with fixed W and adaptive b_max."""
    arms = {}
    for method in methods:
        for value in (1, 3, 5):
            arms[f"{method}_w{value}"] = {"method": method, "coefficients": value}
            rule = {"name": "adaptive", "b_max": value}
            arms[f"{method}_adaptive_b{value}"] = {"method": method, "coefficients": rule}
    return arms


def fabricate_scores(arms, references=REFERENCES, domains=DOMAINS, seeds=(0, 1, 2)):
    """Return scores for the arms and reference rows, as a run would have measured them."""
    T = len(domains)
    table = ScoreTable()
    hardness = np.random.default_rng(7).uniform(0.55, 0.95, T)
    for a, arm in enumerate((*arms, *references)):
        # A method's quality is smooth in the scale of its coefficients, as in real runs.
        draw = np.random.default_rng(100 + a // 6)
        best, width = draw.uniform(0.5, 5), draw.uniform(2, 6)
        quality = draw.uniform(0.7, 1.0) * float(np.exp(-(((a % 6 - best) / width) ** 2)))
        for seed in seeds:
            noise = np.random.default_rng([a, seed])
            steps = [-1, T - 1] if arm == "joint" else range(-1, T)
            for t in steps:
                rows = []
                for j in range(T):
                    seen = t >= 0 and arm != "base" and (j <= t or arm in ("oracle", "joint"))
                    level = hardness[j] * (quality if seen else 0.3) * 0.97 ** max(0, t - j)
                    value = float(np.clip(level + noise.normal(0, 0.015), 0, 1))
                    rows.append(Score(seed, arm, t, j, "accuracy", value))
                    rows.append(Score(seed, arm, t, j, "f1", value * 0.96))
                table.append(rows)
    return table


def variant_of(settings, spc=5):
    """Return what a run records of an arm: short forms written out, defaults filled in."""
    rule = settings.get("coefficients", "uniform")
    if not isinstance(rule, dict):
        rule = {"name": rule} if isinstance(rule, str) else {"name": "fixed", "value": rule}
    learned = rule["name"] not in ("fixed", "uniform")
    scale, symbol = SCALES.get(rule["name"], (None, None))
    defaults = {"name": rule["name"]}
    if learned:
        defaults |= {"granularity": "adapter", "steps": 100, "lr": 0.05}
    return {
        "method": settings["method"],
        "space": settings.get("space", "delta"),
        "scaling": "alpha * s * B A",
        "options": {
            "rank": None,
            **({"density": 0.2, "trim": "tensor"} if "ties" in settings["method"] else {}),
            **{k: v for k, v in settings.items() if k not in OF_ARMS},
        },
        "coefficients": {**defaults, **rule},
        "scale": scale,
        "scale_title": symbol,
        "spc": settings.get("spc", spc) if learned else None,
        "buffer_batch_size": 32 if learned else None,
        "head": settings.get("head"),
        "tune_head": settings.get("tune_head", False),
    }


def describe(name, settings):
    """Return sentences as the trunk composes them."""
    if settings is None:
        return f"Reference row: what {name} is."
    variant = variant_of(settings)
    return f"The method {variant['method']}. Coefficients: {variant['coefficients']}."


def fabricate_hits(folder, seeds, arms, metric="accuracy", samples=300):
    """Write right and wrong bits that agree with the scores.

    Scores are rounded to whole numbers of samples in ``scores.csv``, as a real run's are.
    """
    table = ScoreTable.read(folder / "scores.csv")
    rounded = [
        replace(s, value=round(s.value * samples) / samples) if s.metric == metric else s
        for s in table
    ]
    ScoreTable(rounded).write(folder / "scores.csv")
    for s in rounded:
        if s.metric == metric and s.seed in seeds and s.arm in arms:
            draw = np.random.default_rng([s.evaluated, 5])  # hard samples are hard for all arms
            noise = np.random.default_rng([s.stage + 1, s.evaluated, len(s.arm)])
            hard = draw.uniform(0, 1, samples) + 0.3 * noise.uniform(0, 1, samples)
            right = np.zeros(samples, dtype=bool)
            right[np.argsort(hard)[: round(s.value * samples)]] = True
            path = hits_file(folder, s.seed, s.arm)
            write_hits(path, {(s.stage, s.evaluated): right})


def fabricate_run(
    folder: Path,
    *,
    arms=None,
    references=REFERENCES,
    domains=DOMAINS,
    seeds=(0, 1),
    name="pacs_trial",
    fingerprint="f00d",
):
    """Write a finished run folder and return its path."""
    arms = ARMS if arms is None else arms
    folder.mkdir(parents=True, exist_ok=True)
    T = len(domains)
    config = {
        "format": FORMAT,
        "name": name,
        "seeds": list(seeds),
        "identity": {
            "data": fingerprint,
            "backbone": {"fingerprint": "beef", "input_size": 112},
            "strategy": {"rank": 8, "epochs": 2, "lr": 1e-4, "head": "shared"},
            "protocol": "prefixes",
            "precision": "fp32",
            "device": "cpu",
        },
        "arms": arms,
        "variants": {arm: variant_of(settings) for arm, settings in arms.items()},
        "descriptions": {
            **{arm: describe(arm, settings) for arm, settings in arms.items()},
            **{row: describe(row, None) for row in references},
        },
        "references": list(references),
        "identity_defaults": {"rank": 8},
        "strategy": {"name": "lora", "rank": 8, "epochs": 2, "lr": 1e-4, "head": "shared"},
        "spc": 5,
        "model": {"name": "vit_tiny_patch16_224", "img_size": 112},
        "benchmark": {"name": "pacs", "order": list(domains)},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    environment = {"python": "3.11", "torch": "2.13.0", "git_commit": "abc123", "cpu": "x"}
    (folder / "environment.json").write_text(json.dumps(environment))
    everything = tuple(range(T))
    stages = [StageRecord(-1, "untrained", (), everything, ())]
    stages += [
        StageRecord(t, domains[t], everything[: t + 1], everything, everything[: t + 1])
        for t in range(T)
    ]
    stream = StreamRecord(
        name="pacs",
        experiences=tuple(ExperienceRecord(n, "pacs", 1000, 0, 300) for n in domains),
        tasks=(TaskRecord("pacs", "class", CLASSES, (ACCURACY, F1)),),
        fingerprint=fingerprint,
        protocol="prefixes",
        ordered=True,
        stages=tuple(stages),
        backbone={"fingerprint": "beef"},
    )
    (folder / "stream.json").write_text(json.dumps(stream.record()))
    fabricate_scores(arms, references, domains, seeds).write(folder / "scores.csv", list(arms))
    fabricate_coefficients(arms, T, seeds).to_csv(folder / "coefficients.csv", index=False)
    for s in seeds:
        banks = {f"seed-{s}": domains, f"seed-{s}-sequential": domains, f"seed-{s}-joint": ["all"]}
        for bank, members in banks.items():
            for i, member in enumerate(members):
                fabricate_adapter(folder / "adapters" / bank / f"{i:02d}-{member}", i + 7 * s)
    return folder


def fabricate_adapter(folder, salt):
    """Write the part of an adapter's folder that reports read."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    draw = np.random.default_rng(salt)
    loss = [
        {
            "epoch": e,
            "loss": float(1.5 * 0.5**e + draw.uniform(0, 0.1)),
            "accuracy": float(1 - 0.5 * 0.6**e),
        }
        for e in range(5)
    ]
    (folder / "training.json").write_text(
        json.dumps({"metric": "accuracy", "loss": loss, "seconds": 12.5})
    )


def fabricate_coefficients(arms, T, seeds):
    """Return the coefficients of every arm after every experience."""
    rows = []
    for seed in seeds:
        for arm, settings in arms.items():
            for t in range(T):
                for i in range(t + 1):
                    value = settings["coefficients"]
                    if isinstance(value, dict):
                        draw = np.random.default_rng([seed, t, i])
                        value = value["b_max"] * float(draw.uniform(0.1, 0.9))
                    rows.append((seed, arm, t, "all", i, value))
    return pd.DataFrame(rows, columns=["seed", "arm", "stage", "group", "adapter", "value"])


FEW_SHOT_ARMS = {
    "classifier": {"adapt": "head"},
    "full": {"adapt": "full"},
    "lora": {"adapt": "lora"},
    "uniform": {"method": "task_arithmetic", "coefficients": "uniform", "adapt": "head"},
    "learned": {"method": "task_arithmetic", "coefficients": "softmax", "adapt": "coefficients"},
    "lora_from_learned": {
        "method": "task_arithmetic",
        "coefficients": "softmax",
        "adapt": "lora",
    },
}
MODULES = tuple(f"blocks.{layer}.attn.qkv.{part}" for layer in range(4) for part in "qkv")


def few_shot_variant(settings):
    """Return what a run records of an arm that is adapted to support sets."""
    if "method" in settings:
        merge = variant_of({k: v for k, v in settings.items() if k != "adapt"})
        merge["buffer_batch_size"] = merge["spc"] = None
    else:
        merge = dict.fromkeys(("method", "space", "scaling", "scale", "scale_title", "spc", "head"))
        merge |= {"options": {}, "coefficients": {"name": ""}, "buffer_batch_size": None}
        merge["tune_head"] = False
    adapt = settings["adapt"]
    return {
        **merge,
        "adapt": adapt,
        "start": "merge" if "method" in settings else "base",
        "head_start": "zero",
        **({"truncate": False} if adapt == "lora" else {}),
        "adaptation": {"lr": 0.01, "steps": 100} if adapt != "none" else {},
    }


def few_shot_stages(count, held, shots, draws, in_time=False):
    """Return the stages as the trunk makes them; ``in_time`` for a stream of few-shot tasks."""
    stages = []

    def add(*parts):
        stages.append(StageRecord(len(stages), *parts))

    def adaptations(j, members):
        for k in shots:
            for draw in range(1 if k in (0, "all") else draws):
                x = 40.0 + j if k == "all" else float(k)
                add(f"K={k}", members, (j,), () if k == 0 else (j,), x, draw)

    if in_time:
        for t in range(count):
            so_far = tuple(range(t + 1))
            if t:
                adaptations(t, so_far[:-1])
            add(f"e{t}", so_far, so_far, ())
        return stages
    for j in held:
        adaptations(
            j, tuple(i for i in range(count) if i != j and (len(held) > 2 or i not in held))
        )
    return stages


def fabricate_few_shot(
    folder: Path,
    *,
    arms=None,
    names=("photo", "cartoon", "sketch", "art_painting"),
    held=(3,),
    shots=(1, 5, "all"),
    draws=2,
    seeds=(0, 1, 2),
    references=(),
    in_time=False,
    name="few_shot",
    similarity=True,
):
    """Write the folder of a finished few-shot run and return its path.

    Scores grow with K; compositions lead at small K and LoRA from scratch at the largest.
    """
    arms = FEW_SHOT_ARMS if arms is None else arms
    fabricate_run(folder, references=references, domains=names, seeds=seeds, name=name)
    stages = few_shot_stages(len(names), held, shots, draws, in_time)
    if in_time:
        stages = [replace(s, name=names[s.members[-1]]) if s.x is None else s for s in stages]
    stream = json.loads((folder / "stream.json").read_text())
    stream["stages"] = [vars(s) for s in stages]
    protocol = "few_shot_stream" if in_time else "shots"
    stream["protocol"] = {"name": protocol, "ordered": in_time}
    (folder / "stream.json").write_text(json.dumps(stream))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["identity"]["protocol"] = protocol
    config["arms"] = arms
    config["variants"] = {arm: few_shot_variant(settings) for arm, settings in arms.items()}
    config["descriptions"] = {
        **{arm: f"Adapts {settings['adapt']}." for arm, settings in arms.items()},
        **{row: describe(row, None) for row in references},
    }
    config["yardstick"] = "lora"
    ends = _fabricate_few_shot_rows(folder, arms, references, stages, seeds)
    config["last_stages"] = ends
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    if similarity:
        draw = np.random.default_rng(3)
        rows = [
            (seed, j, group, i, float(draw.uniform(0.3, 1)))
            for seed in seeds
            for j in sorted({j for s in stages if s.x is not None for j in s.evaluated})
            for group in MODULES
            for i in sorted({i for s in stages if s.evaluated == (j,) for i in s.members})
        ]
        columns = ["seed", "evaluated", "group", "adapter", "value"]
        pd.DataFrame(rows, columns=columns).to_csv(folder / "similarity.csv", index=False)
    return folder


def _scored_at(stage, arm, settings):
    """Return whether the trunk scores a row there: only a shared merge and references in time."""
    if stage.x is None:
        return settings is None or arm == "uniform"
    return settings is not None


def _fabricate_few_shot_rows(folder, arms, references, stages, seeds):
    """Write scores, coefficients and accounts; return the last stage of every row."""
    ends = {}
    table, coefficients, accounts = ScoreTable(), [], []
    for a, (arm, settings) in enumerate({**arms, **dict.fromkeys(references)}.items()):
        merges = settings is not None and "method" in settings
        for seed, stage in itertools.product(seeds, stages):
            if not _scored_at(stage, arm, settings):
                continue
            ends[arm] = stage.index
            noise = np.random.default_rng([a, seed, stage.index])
            rows = []
            for j in stage.evaluated:
                level = 0.55 + 0.03 * j + 0.01 * a
                if stage.x is not None:
                    low = 0.45 if merges else 0.25
                    high = 0.8 + 0.01 * a - 0.05 * merges
                    level = low + (high - low) * np.log2(1 + stage.x) / np.log2(50)
                value = float(np.clip(level + noise.normal(0, 0.02), 0, 1))
                rows += [Score(seed, arm, stage.index, j, "accuracy", value)]
                rows += [Score(seed, arm, stage.index, j, "f1", 0.96 * value)]
            table.append(rows)
            unit = (seed, arm, stage.index)
            if stage.x is not None and settings["adapt"] != "none":
                theta = {"head": 0, "coefficients": 48, "lora": 73_728, "full": 5_526_346}
                accounts += [
                    (*unit, "trainable_parameters", theta[settings["adapt"]]),
                    (*unit, "seconds", 0.2 + 0.1 * a + stage.x / 10),
                    (*unit, "peak_memory_mb", 40.0 + 10 * a),
                ]
            if merges:
                learned = settings["coefficients"] != "uniform" and stage.x is not None
                for group in MODULES if learned else ("all",):
                    weights = noise.dirichlet([3.0] * len(stage.members))
                    for i, w in zip(stage.members, weights, strict=True):
                        value = float(w) if learned else 1 / len(stage.members)
                        coefficients.append((*unit, group, i, value))
    table.write(folder / "scores.csv", list(arms))
    columns = ["seed", "arm", "stage", "group", "adapter", "value"]
    pd.DataFrame(coefficients, columns=columns).to_csv(folder / "coefficients.csv", index=False)
    columns = ["seed", "arm", "stage", "quantity", "value"]
    pd.DataFrame(accounts, columns=columns).to_csv(folder / "accounts.csv", index=False)
    return ends
