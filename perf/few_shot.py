"""The embedded few-shot experiment by part: drawing, training, comparing, adapting, reports.

One seed of ``experiment=few_shot_shapes`` with an empty cache, as a user runs it, CPU and wall
seconds of each part. What is left is composing the configuration, imports and small files.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cl_lora.commands.report import write_reports
from cl_lora.configuration.compose import compose_config
from cl_lora.experiment import pipeline
from cl_lora.experiment.evaluator import Evaluator
from cl_lora.run_folder.reader import RunFolder
from perf.common import report


class Clock:
    """Adds up the seconds of functions."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = {}
        self.wall: dict[str, float] = {}

    def measured(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            cpu, wall = time.process_time(), time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.cpu[part] = self.cpu.get(part, 0.0) + time.process_time() - cpu
                self.wall[part] = self.wall.get(part, 0.0) + time.perf_counter() - wall

        return timed


def main() -> None:
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            "experiment=few_shot_shapes",
            "seeds=[0]",
            f"run_dir={folder}/run",
            f"benchmark.cache_dir={folder}/cache",
        ]

        def run() -> Path:
            return pipeline.execute(compose_config(overrides))

        places: tuple[tuple[str, Any, str], ...] = (
            ("drawing the images", pipeline, "make_benchmark"),
            ("training the adapters", pipeline, "train_banks"),
            ("comparing features", pipeline.Run, "_compare_features"),
            ("adapting", pipeline, "adapt_arm"),
            ("scoring", Evaluator, "score"),
        )
        with ExitStack() as patches:
            for part, owner, name in places:
                timed = clock.measured(part, getattr(owner, name))
                patches.enter_context(patch.object(owner, name, timed))
            finished = clock.measured("the run", run)()
        clock.measured("reports", write_reports)(finished)
        accounts = RunFolder.read(finished).accounts
        seconds = accounts[accounts["quantity"] == "seconds"].groupby("arm")["value"].sum()
        arms = json.loads(seconds.round(2).to_json())
    other = {
        "cpu": clock.cpu["the run"] - sum(clock.cpu[p] for p, _, _ in places),
        "wall": clock.wall["the run"] - sum(clock.wall[p] for p, _, _ in places),
    }
    rows = [
        {"part": part, "cpu_s": round(clock.cpu[part], 2), "wall_s": round(clock.wall[part], 2)}
        for part in (*(part for part, _, _ in places), "reports")
    ]
    rows.append(
        {"part": "the rest", "cpu_s": round(other["cpu"], 2), "wall_s": round(other["wall"], 2)}
    )
    rows.append({"part": "wall seconds of adapting by arm", **arms})
    report("few_shot", "experiment=few_shot_shapes, one seed, by part", rows)


if __name__ == "__main__":
    main()
