"""Turns a fabricated run into one of another metric or another protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd

from cl_lora.evaluation.metrics import Metric
from cl_lora.evaluation.scores import Score, ScoreTable
from cl_lora.run_folder.records import StageRecord

RMSE = Metric("rmse", "RMSE", "px", higher_is_better=False, low=0.0)
"""A metric that is no percentage, and less of it is better."""


def as_errors(path: Path, metric: Metric = RMSE, offset: float = 0.0) -> Path:
    """Turn every accuracy a into the metric's ``offset + 20 (1 - a)``, or a if more is better."""
    rows = [
        Score(
            s.seed,
            s.arm,
            s.stage,
            s.evaluated,
            metric.name,
            offset + (s.value if metric.higher_is_better else 20 * (1 - s.value)),
            metric.higher_is_better,
        )
        for s in ScoreTable.read(path / "scores.csv")
        if s.metric == "accuracy"
    ]
    ScoreTable(rows).write(path / "scores.csv")
    stream = json.loads((path / "stream.json").read_text())
    for task in stream["tasks"]:
        task.update(kind="scalar", labels=[], metrics=[metric.record()])
    (path / "stream.json").write_text(json.dumps(stream))
    return path


def as_stages(path: Path, stages: Mapping[str, float | None]) -> Path:
    """Turn the run into one of unordered stages: name -> x, what the protocol counts.

    Each stage merges and evaluates all experiences. The last of them has the scores and the
    coefficients of the old run's last stage, the one before those of the stage before, and so on.
    """
    stream = json.loads((path / "stream.json").read_text())
    T = len(stream["experiences"])
    everything = tuple(range(T))
    records = [StageRecord(-1, "untrained", (), everything, ())]
    records += [
        StageRecord(s, name, everything, everything, everything, x)
        for s, (name, x) in enumerate(stages.items())
    ]
    stream["stages"] = [vars(record) for record in records]
    stream["protocol"] = {"name": "a_protocol", "ordered": False}
    (path / "stream.json").write_text(json.dumps(stream))
    first = T - len(stages)
    scores = [
        s if s.stage < 0 else replace(s, stage=s.stage - first)
        for s in ScoreTable.read(path / "scores.csv")
        if s.stage < 0 or s.stage >= first
    ]
    ScoreTable(scores).write(path / "scores.csv")
    frame = pd.read_csv(path / "coefficients.csv")
    frame = frame[frame["stage"] >= first]
    frame.assign(stage=frame["stage"] - first).to_csv(path / "coefficients.csv", index=False)
    return path
