"""Turns a fabricated run into one of another metric or another protocol."""

from __future__ import annotations

import json
from pathlib import Path

from cl_lora.evaluation.metrics import Metric
from cl_lora.evaluation.scores import Score, ScoreTable

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
