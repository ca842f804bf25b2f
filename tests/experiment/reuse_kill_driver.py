"""Kills a real run of whole backbones at a few moments and finishes it; prints what came out.

As kill_driver.py, whose imports it shares. Run as:
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

import kill_driver  # noqa: F401  its imports, done once

from cl_lora.cli import main

MOMENTS = ((1, 0), (2, 1))
"""Whole models and statistics that are there when a run is killed."""


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


def drive(folder: Path, given: list[str]) -> dict[str, object]:
    """Kill one run at each moment, then finish it."""
    run = folder / "killed"
    made: dict[str, int] = {}
    killed: list[bool] = []
    there: list[tuple[int, int]] = []
    for wanted in MOMENTS:
        child = start(run, given)
        while len(models(run)) < wanted[0] or len(statistics(run)) < wanted[1]:
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        killed.append(os.WIFSIGNALED(os.waitpid(child, 0)[1]))
        there.append((len(models(run)), len(statistics(run))))
        made = {**models(run), **statistics(run), **made}
    code = os.waitstatus_to_exitcode(os.waitpid(start(run, given), 0)[1])
    after = {**models(run), **statistics(run)}
    return {
        "folder": str(run),
        "code": code,
        "killed": killed,
        "there": there,
        "made_again": [name for name, when in made.items() if after[name] != when],
        "leftovers": [str(p) for p in run.rglob(".*.*")],
    }


if __name__ == "__main__":
    for late in ("hydra.main", "peft", "timm.models.vision_transformer"):
        importlib.import_module(late)
    print(json.dumps(drive(Path(sys.argv[1]), json.loads(sys.argv[2]))))
