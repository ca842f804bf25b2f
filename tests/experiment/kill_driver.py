"""Kills real runs at many moments and finishes them; prints what came out as JSON.

The heavy imports happen once; each run is a forked process that gets SIGKILL, so nothing of it
can clean up. Run as: python kill_driver.py FOLDER MOMENTS
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cl_lora.benchmarks.avalanche
import cl_lora.configuration.launch
import cl_lora.experiment.pipeline
import cl_lora.strategies.lora  # noqa: F401
from cl_lora.cli import main

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_run import overrides

STAGES = (
    *((n, 0) for n in (1, 3, 5, 6, 7)),
    *((7, n) for n in (2, 60, 110)),
)
"""Adapters and lines of scores at which a run is killed.

After the first and the last adapter of the bank, within and after the sequential one, after the
joint one (the same code goes from each to the next), and early, midway and late among the scores.
"""


def start(run: Path, cache: Path) -> int:
    """Fork a process that runs the command line, and return its number."""
    child = os.fork()
    if child:
        return child
    os.environ["CL_LORA_CACHE"] = str(cache)
    log = os.open(f"{run}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os._exit(main(["run", *overrides(run)]))


def finish(run: Path, cache: Path) -> int:
    """Run to the end and return the exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(start(run, cache), 0)[1])


def adapters(run: Path) -> dict[str, int]:
    """Return the finished adapters and when each was written."""
    return {
        str(p.parent.relative_to(run)): p.stat().st_mtime_ns
        for p in sorted(run.glob("adapters/seed-*/[0-9]*/adapter_config.json"))
    }


def lines(path: Path) -> int:
    """Return how many lines a file has, 0 if it is not there."""
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_for(run: Path, child: int, finished: int, scored: int) -> None:
    """Return once so many adapters and lines of scores are there, or the process has ended."""
    ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while len(adapters(run)) < finished or lines(run / "scores.csv") < scored:
        if os.waitid(os.P_PID, child, ended) is not None:
            return
        time.sleep(0.002)


class Disturbed:
    """A run that is killed and begun again; what it had is looked at whenever it has ended."""

    def __init__(self, folder: Path, name: str) -> None:
        self.run, self.cache = folder / name, folder / f"cache-{name}"
        self.results: list[dict[str, object]] = []
        self._before: dict[str, int] = {}

    def kill(self, wait: Callable[[Path, int], None]) -> None:
        """Begin it or go on with it, and kill it once ``wait`` has returned."""
        child = start(self.run, self.cache)
        wait(self.run, child)
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        self._look()
        self.results.append(
            {
                "killed": os.WIFSIGNALED(status),
                "adapters": len(self._before),
                "scored": lines(self.run / "scores.csv"),
            }
        )

    def finish(self, undisturbed: Path) -> list[dict[str, object]]:
        """Go on to the end and return what came out, for each time it was killed."""
        code = finish(self.run, self.cache)
        self._look()
        ends = {
            "code": code,
            "same": {
                name: (self.run / name).read_bytes() == (undisturbed / name).read_bytes()
                for name in ("scores.csv", "coefficients.csv")
            },
            "leftovers": [str(p) for p in self.run.rglob(".*.*")],
        }
        return [{**result, **ends} for result in self.results]

    def _look(self) -> None:
        after = adapters(self.run)
        if self.results:
            self.results[-1]["retrained"] = [
                name for name, when in self._before.items() if after.get(name) != when
            ]
        self._before = after


def drive(folder: Path, moments: int) -> list[dict[str, object]]:
    """Do one undisturbed run, and others that are killed; return what came out of each moment.

    One run is killed at every one of :data:`STAGES`, and each time goes on with what it finds, so
    that every stage is hit. The other moments are shares of the undisturbed time, so that anything
    can be hit, each in a run of its own.
    """
    undisturbed = folder / "undisturbed"
    begun = time.monotonic()
    results: list[dict[str, object]] = [{"code": finish(undisturbed, folder / "cache-0")}]
    elapsed = time.monotonic() - begun
    staged = Disturbed(folder, "staged")
    for adapters_there, scored in STAGES[:moments]:
        staged.kill(partial(wait_for, finished=adapters_there, scored=scored))
    results += staged.finish(undisturbed)
    others = moments - len(STAGES)
    for number in range(others):
        pause = elapsed * (number + 0.5) / others
        timed = Disturbed(folder, f"timed-{number}")
        timed.kill(lambda run, child, pause=pause: time.sleep(pause))
        results += timed.finish(undisturbed)
    return results


if __name__ == "__main__":
    for late in ("hydra.main", "peft", "timm.models.vision_transformer"):
        importlib.import_module(late)  # only after cl_lora: it makes them loadable beside any torch
    print(json.dumps(drive(Path(sys.argv[1]), int(sys.argv[2]))))
