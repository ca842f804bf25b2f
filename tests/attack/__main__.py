"""Attack cl-lora: damaged files, hostile data, wrong settings, full disks.

    PYTHONPATH=tests python -m attack [--group NAME]... [--seed N] [--slice N] [--json FILE]

Every case ends with right numbers or one clear sentence; anything else is printed, and the exit
code is 1. ``--slice N`` takes about N cases of every group, spread over it.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from attack.core import Case, Group, Verdict

GROUPS = ("folders", "settings", "images", "checkpoints", "peft_folders", "disks")
"""Modules of this package; each has a ``GROUP``."""

_IMPORTS = (
    "cl_lora.experiment.pipeline",
    "cl_lora.strategies.lora",
    "cl_lora.benchmarks.avalanche",
    "cl_lora.commands.run",
    "cl_lora.commands.report",
    "cl_lora.commands.merge",
    "timm.models.vision_transformer",
    "hydra",
)
"""What the forks need not import again."""


def main() -> int:
    """Run the attack and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--group", action="append", choices=GROUPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slice", type=int, help="about this many cases of each group")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--json", type=Path, help="write counts and flaws there")
    given = parser.parse_args()
    for name in _IMPORTS:
        importlib.import_module(name)
    results = {}
    with tempfile.TemporaryDirectory(prefix="attack-") as place:
        for name in given.group or GROUPS:
            group: Group = importlib.import_module(f"attack.{name}").GROUP
            results[name] = run_group(group, given.seed, given.slice, given.only, Path(place))
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")
    return int(any(result["flaws"] for result in results.values()))


def run_group(
    group: Group, seed: int, size: int | None, only: str, place: Path
) -> dict[str, object]:
    """Run the cases of a group and print what became of them."""
    begun = time.monotonic()
    prepared = place / group.name
    prepared.mkdir()
    cases = [case for case in group.cases(seed, prepared) if only in case.name]
    chosen = sliced(cases, size, seed)
    counts: Counter[str] = Counter()
    flaws = []
    for number, case in enumerate(chosen):
        where = place / f"{group.name}-{number}"
        where.mkdir()
        verdict, shown = case.run(where)
        counts[verdict.value] += 1
        if not verdict.good:
            flaws.append({"case": case.name, "verdict": verdict.value, "shown": shown})
            print(f"{group.name}: {case.name}: {verdict.value}\n    {shown}", file=sys.stderr)
    seconds = time.monotonic() - begun
    told = ", ".join(f"{counts[v.value]} {v.value}" for v in Verdict if counts[v.value])
    print(f"{group.title}: {len(chosen)} of {len(cases)} cases in {seconds:.0f} s: {told}")
    sys.stdout.flush()
    return {"cases": len(chosen), "counts": dict(counts), "flaws": flaws, "seconds": seconds}


def sliced(cases: list[Case], size: int | None, seed: int) -> list[Case]:
    """Return about ``size`` cases spread over all: one, drawn, of each of as many stretches."""
    if size is None or size >= len(cases):
        return cases
    draw = random.Random(seed)
    edges = [round(i * len(cases) / size) for i in range(size + 1)]
    return [cases[draw.randrange(a, b)] for a, b in itertools.pairwise(edges)]


if __name__ == "__main__":
    sys.exit(main())
