"""Kills real sweeps again and again and gives the same command until each is finished.

Three things get SIGKILL, at moments drawn by a seed: the sweep itself, a job, and the process of
the launcher above a job. Afterwards every run folder must hold what an undisturbed sweep makes,
byte for byte; no adapter or image file that was finished may have been made again, and no score
that was written may be gone.

    python tools/kill_sweeps.py FOLDER --kills 20 --seed 0 --launcher joblib
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

SWEEP = (
    "--multirun",
    "seeds=[0],[1]",
    "strategy.rank=1,2",
    "benchmark.classes=3",
    "benchmark.styles=[photo,cartoon,sketch]",
    "benchmark.samples_per_class=6",
    "benchmark.test_samples_per_class=4",
    "strategy.epochs=2",
    "strategy.batch_size=8",
    "report=false",
    "references=[base]",
    "arms=none",
    "+arms.half={method: task_arithmetic, coefficients: 0.5}",
    "+arms.ties={method: ties, coefficients: 0.5}",
)
JOBS = 4
COMPARED = ("scores.csv", "coefficients.csv")
WHAT = ("sweep", "job", "process")
LONGEST_S = 600.0


def start(place: Path, launcher: str) -> subprocess.Popen[bytes]:
    """Begin the sweep in a folder."""
    place.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-P", "-m", "cl_lora", "run", f"hydra/launcher={launcher}", *SWEEP]
    if launcher == "joblib":
        command.append("hydra.launcher.n_jobs=2")
    log = (place / "log.txt").open("ab")
    environment = {**os.environ, "CL_LORA_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=place, env=environment, stdout=log, stderr=log, start_new_session=True
    )


def states(place: Path) -> Iterator[dict[str, object]]:
    """Yield the states of the jobs that run."""
    for path in place.glob(".cl-lora-sweep/jobs-*/*.json"):
        try:
            state = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        if state["phase"] == "running" and state["what"] not in ("", "starting"):
            yield state


def made(place: Path) -> dict[str, int]:
    """Return every finished adapter and decoded image file, and when it was written."""
    files = (*place.glob("runs/*/adapters/seed-*/[0-9]*/adapter_config.json"),)
    files += (*place.glob("cache/*.npy"),)
    return {str(path): path.stat().st_mtime_ns for path in files}


def scored(place: Path) -> set[tuple[str, str]]:
    """Return every line of every table of scores, with the name of its run."""
    tables = place.glob("runs/*/scores.csv")
    return {(path.parent.name, line) for path in tables for line in path.read_text().splitlines()}


def kill(place: Path, sweep: subprocess.Popen[bytes], what: str, draw: random.Random) -> bool:
    """Kill one of the three once a job runs, and return whether there was one to kill."""
    end = time.monotonic() + LONGEST_S
    while sweep.poll() is None and time.monotonic() < end:
        running = list(states(place))
        if running:
            break
        time.sleep(0.01)
    time.sleep(draw.random() * 4)
    running = list(states(place))
    if sweep.poll() is not None or not running:
        return False
    job = int(str(draw.choice(running)["pid"]))
    try:
        if what == "process":
            text = Path(f"/proc/{job}/stat").read_text()
            job = int(text.rpartition(")")[2].split()[1])
        os.kill(sweep.pid if what == "sweep" else job, signal.SIGKILL)
    except (OSError, ValueError):
        return False
    return True


def finished(place: Path) -> bool:
    """Return whether every run folder of the sweep is whole."""
    from cl_lora.run_folder.reader import RunFolder
    from cl_lora.support.errors import UserError

    try:
        runs = [RunFolder.read(path) for path in place.glob("runs/*")]
    except UserError:
        return False
    return len(runs) == JOBS


def main() -> int:
    """Kill, finish, compare, and print what came out as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--launcher", default="joblib")
    given = parser.parse_args()
    draw, place = random.Random(given.seed), given.folder
    whole = place / "undisturbed"
    result: dict[str, object] = {"undisturbed": start(whole, given.launcher).wait()}
    killed: Counter[str] = Counter()
    again: list[str] = []
    differ: list[str] = []
    lost: list[str] = []
    codes: list[int] = []
    starts = sweeps = 0
    while killed.total() < given.kills:
        current = place / f"killed-{sweeps}"
        sweeps += 1
        before: dict[str, int] = {}
        scores: set[tuple[str, str]] = set()
        while True:
            sweep = start(current, given.launcher)
            starts += 1
            for _ in range(draw.randint(1, 3)):
                if killed.total() >= given.kills:
                    break
                what = min(WHAT, key=lambda name: (killed[name], draw.random()))
                if kill(current, sweep, what, draw):
                    killed[what] += 1
                if what == "sweep":
                    break
            code = sweep.wait()
            now = made(current)
            again += [path for path, when in before.items() if now.get(path) != when]
            before = now
            there = scored(current)
            lost += [f"{run}: {line}" for run, line in sorted(scores - there)]
            scores = there
            if code == 0 or (code > 0 and finished(current)):
                codes.append(start(current, given.launcher).wait() if code else code)
                break
        for path in whole.glob("runs/*"):
            for name in COMPARED:
                if (path / name).read_bytes() != (current / "runs" / path.name / name).read_bytes():
                    differ.append(str(current / "runs" / path.name / name))
    result |= {
        "killed": dict(killed),
        "sweeps": sweeps,
        "commands": starts,
        "codes": codes,
        "made again": again,
        "scores lost": lost,
        "differ": differ,
        "left": [str(p) for p in place.rglob("*/runs/*/.*.*")],
    }
    print(json.dumps(result, indent=1))
    return int(bool(again or lost or differ or any(codes)))


if __name__ == "__main__":
    sys.exit(main())
