"""Kills real runs of whole backbones at a few moments and finishes them; prints what came out.

As kill_driver.py, whose imports and forks it shares. Run as:
python reuse_kill_driver.py FOLDER OVERRIDES, the second a list in JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import kill_driver

from cl_lora.cli import main

MOMENTS = ((1, 0, 0), (2, 1, 0))
"""Whole models, statistics and lines of scores at which a run is killed."""


def start(run: Path, given: list[str]) -> int:
    """Fork a process that runs the command line, and return its number."""
    child = os.fork()
    if child:
        return child
    log = os.open(f"{run}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os._exit(main(["run", f"run_dir={run}", *given]))


def stamps(run: Path, pattern: str) -> dict[str, int]:
    """Return when each file was written."""
    return {str(path): path.stat().st_mtime_ns for path in sorted(run.glob(pattern))}


def models(run: Path) -> dict[str, int]:
    """Return the whole models that are there."""
    return stamps(run, "adapters/seed-*/[0-9]*/delta.safetensors")


def statistics(run: Path) -> dict[str, int]:
    """Return the statistics that are there."""
    return stamps(run, "adapters/seed-*/[0-9]*/statistics/[a-z]*.safetensors")


def drive(folder: Path, given: list[str]) -> list[dict[str, object]]:
    """Kill and finish one run for each moment."""
    results: list[dict[str, object]] = []
    for number, wanted in enumerate(MOMENTS):
        run = folder / f"killed-{number}"
        child = start(run, given)
        while any(
            there < least
            for there, least in zip(
                (len(models(run)), len(statistics(run)), kill_driver.lines(run / "scores.csv")),
                wanted,
                strict=True,
            )
        ):
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        before = {**models(run), **statistics(run)}
        scored = kill_driver.lines(run / "scores.csv")
        code = os.waitstatus_to_exitcode(os.waitpid(start(run, given), 0)[1])
        after = {**models(run), **statistics(run)}
        results.append(
            {
                "folder": str(run),
                "code": code,
                "killed": os.WIFSIGNALED(status),
                "models": sum("delta" in name for name in before),
                "statistics": sum("statistics" in name for name in before),
                "lines": scored,
                "made_again": [name for name, when in before.items() if after[name] != when],
                "leftovers": [str(p) for p in run.rglob(".*.*")],
            }
        )
    return results


if __name__ == "__main__":
    for late in ("hydra.main", "peft", "timm.models.vision_transformer"):
        importlib.import_module(late)
    print(json.dumps(drive(Path(sys.argv[1]), json.loads(sys.argv[2]))))
