"""Kills the shards of a real run, while they train, score and are joined; prints what came out.

As kill_driver.py, whose imports it shares. Run as:
python shard_kill_driver.py FOLDER OVERRIDES, the second a list in JSON.
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

from kill_driver import adapters, lines

from cl_lora.cli import main

PATIENCE_S = 120.0


class Runs:
    """Processes of one run: shards, and the command that joins them."""

    def __init__(self, run: Path, given: list[str]) -> None:
        self.run, self.given = run, given
        self.killed: list[bool] = []
        self.codes: list[int] = []
        self.trained: dict[str, int] = {}
        self.again: list[str] = []
        self.scored: set[str] = set()
        self.lost: list[str] = []

    def start(self, *flags: str, log: str = "run") -> int:
        """Fork a process that runs the command line, and return its number."""
        child = os.fork()
        if child:
            return child
        out = os.open(self.run.parent / f"{log}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os._exit(main(["run", f"run_dir={self.run}", *self.given, *flags]))

    def kill(self, moments: dict[int, Callable[[], bool]]) -> None:
        """Kill each process as soon as its moment has come, in whatever order they come."""
        until = time.monotonic() + PATIENCE_S
        while moments:
            for child, come in list(moments.items()):
                if come() or time.monotonic() > until:
                    del moments[child]
                    os.kill(child, signal.SIGKILL)
                    self.killed.append(os.WIFSIGNALED(os.waitpid(child, 0)[1]))
            time.sleep(0.001)
        self.look()

    def finish(self, child: int) -> int:
        """Wait for a process and return its exit code."""
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        self.look()
        return code

    def look(self) -> None:
        """Note what is there, and what is not any more."""
        there = adapters(self.run)
        self.again += [name for name, when in self.trained.items() if there.get(name) != when]
        self.trained = there
        tables = [*self.run.glob("parts/*/scores.csv"), self.run / "scores.csv"]
        scored = {row for t in tables if t.exists() for row in t.read_text().splitlines()}
        self.lost += sorted(self.scored - scored)
        self.scored = scored

    def reached(self, number: int, trained: int, scored: int) -> bool:
        """Return whether so many adapters are there, and lines of scores of a part."""
        part = self.run / "parts" / f"shard-{number}-of-2" / "scores.csv"
        return len(adapters(self.run)) >= trained and lines(part) >= scored


def drive(folder: Path, given: list[str]) -> dict[str, object]:
    """Kill both shards while they train and while they score, and then what joins them."""
    runs = Runs(folder / "run", given)
    shard = {number: f"--shard={number}/2" for number in (1, 2)}
    for trained, scored in ((1, 0), (0, 2)):
        least = len(adapters(runs.run)) + trained
        runs.kill(
            {
                runs.start(flag): partial(runs.reached, number, least, scored)
                for number, flag in shard.items()
            }
        )
    # A shard keeps its own double, and the command for all of it, from writing beside it.
    child = runs.start(shard[1])
    lock = runs.run / "parts" / "shard-1-of-2" / "environment.json"
    before = lock.stat().st_mtime_ns
    while lock.stat().st_mtime_ns == before:
        time.sleep(0.001)
    os.kill(child, signal.SIGSTOP)
    in_use = [runs.finish(runs.start(*flags, log="in_use")) for flags in ((shard[1],), ())]
    os.kill(child, signal.SIGCONT)
    runs.codes += [runs.finish(child), runs.finish(runs.start(shard[2]))]
    hits, main_scores = runs.run / "hits", runs.run / "scores.csv"
    runs.kill({runs.start(): hits.exists})
    runs.kill({runs.start(): main_scores.exists})
    runs.codes.append(runs.finish(runs.start()))
    return {
        "run": str(runs.run),
        "killed": runs.killed,
        "codes": runs.codes,
        "trained_again": runs.again,
        "lost": runs.lost,
        "in_use": in_use,
    }


if __name__ == "__main__":
    for late in ("hydra.main", "peft", "timm.models.vision_transformer"):
        importlib.import_module(late)
    print(json.dumps(drive(Path(sys.argv[1]), json.loads(sys.argv[2]))))
