"""Mutation testing: does a test fail when the code is changed by a little?

mutmut's operators make the mutants (tools/mutants.py). Each is written into a copy of the working
tree, and the tests that run its lines, by coverage's contexts, run in a fork of a process that has
the libraries loaded, cheapest first, until one fails. mutmut's own runner leaves out decorated
functions and cannot draw a sample, so only its operators are used.

    python tools/mutate.py                      # 400 mutants, the same ones for the same seed
    python tools/mutate.py --mutants all --packages cl_lora/merging
    python tools/mutate.py --only cl_lora/merging/ties.py --mutants all
    python tools/mutate.py --again outcomes.jsonl    # the same sample; only what survived then

The sample is half *logic* (numbers, comparisons, operators, keywords, strings, conditions) and
half *passing* (an argument that is dropped or None, an assignment of None), and as large in each
package. Of a parametrised test 20 cases, evenly over all, are tried first; what survives meets
the others where they are quick. A mutant that no test runs,
survives. The tests that each mutant may cost are limited to those of --seconds by the clock of an
undisturbed run; a test that takes 5 times as long as it does undisturbed, and 20 seconds more, is
stopped, and the mutant counts as killed by time. Every test that kills passes alone on the code
as it is, or its kills do not count.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import math
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mutation.covered import PACKAGES, PLACE, TOOL, covered, environment, measure

ROOT = Path(__file__).resolve().parents[1]
TESTS = (
    "tests/merging",
    "tests/evaluation",
    "tests/strategies",
    "tests/experiment",
    "tests/test_docstrings.py",
)
KINDS = ("logic", "passing")
LEAST = 0.9
# Imported once, before the forks: what costs most and never changes.
LIBRARIES = (
    "avalanche.benchmarks avalanche.evaluation.metrics avalanche.training hydra hypothesis jinja2 "
    "matplotlib.pyplot pandas peft safetensors.torch scipy.stats sklearn.metrics timm torchmetrics "
    "torchvision transformers"
)


def make_tree(place: Path) -> Path:
    """Copy the files that git knows or could know; return the copy's folder."""
    shutil.rmtree(place, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True,
    ).stdout.decode().split("\0")  # fmt: skip
    for name in filter(None, listed):
        if not (ROOT / name).is_symlink() and not (ROOT / name).exists():
            continue
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, place / name, follow_symlinks=False)
    return place


def draw(root: Path, options: argparse.Namespace) -> list[Any]:
    """Return the mutants to try: as many of each package and kind, by the seed."""
    from mutation.mutants import Mutant, compiles, mutants_of

    sample: list[Mutant] = []
    for package in options.packages:
        files = sorted((root / package).rglob("*.py"))
        if options.only:
            files = [f for f in files if options.only in f.relative_to(root).as_posix()]
        found = [m for file in files for m in mutants_of(file, root)]
        for kind in KINDS:
            ordered = sorted(
                (m for m in found if m.kind == kind), key=lambda m: m.order(options.seed)
            )
            texts = {m.path: (root / m.path).read_text(encoding="utf-8") for m in ordered}
            usable = (m for m in ordered if compiles(m, texts[m.path]))
            size = (
                None
                if options.mutants == "all"
                else round(int(options.mutants) / len(options.packages) / len(KINDS))
            )
            drawn = [m for m, _ in zip(usable, range(size or len(ordered)), strict=False)]
            print(f"{package}: {len(drawn)} of {len(ordered)} mutants of {kind}", flush=True)
            sample += drawn
    if options.again:
        rows = [json.loads(line) for line in Path(options.again).read_text().splitlines()]
        left = {row["key"] for row in rows if row["fate"] in {"survived", "untested"}}
        sample = [m for m in sample if m.order(0) in left]
    # Cut short, a run has seen some of everything.
    return sorted(sample, key=lambda m: m.order(options.seed))


def work(options: argparse.Namespace) -> None:
    """Try every JOBS-th mutant in this tree and tell the outcomes, a line each."""
    tree = Path.cwd()
    from mutation.forks import Bench, Outcome

    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # pytest and libraries greet
    bench = Bench(tree, covered(tree, options.tests), options.seconds)
    sample = draw(tree, options)[options.worker :: options.jobs]
    import cl_lora

    if not Path(cl_lora.__file__).is_relative_to(tree):
        raise SystemExit(f"Expected cl_lora of {tree} but got {cl_lora.__file__}.")
    for name in LIBRARIES.split():
        importlib.import_module(name)

    def tell(outcome: Outcome) -> None:
        mutant = outcome.mutant
        line = {
            "package": next(p for p in PACKAGES if mutant.path.startswith(p + "/")),
            "key": mutant.order(0),
            "kind": mutant.kind, "path": mutant.path, "line": mutant.lines[0],
            "where": mutant.where, "fate": outcome.fate, "by": outcome.by,
            "seconds": round(outcome.seconds, 2), "tests": outcome.tests, "diff": outcome.diff,
        }  # fmt: skip
        out.write(json.dumps(line) + "\n")

    by_import = [mutant for mutant in sample if bench.needs_import(mutant)]
    child = os.fork()
    if child == 0:
        try:
            bench.collected([m for m in sample if m not in by_import], options.tests, tell)
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise SystemExit("Pytest did not collect the tests; its message is above.")
    sys.dont_write_bytecode = True
    bench.imported(by_import, tell)


def outcomes(trees: list[Path], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Start a worker in each tree and yield what they tell as it comes."""
    arguments = [a for a in sys.argv[1:] if a]
    workers = [
        subprocess.Popen(
            [sys.executable, str(tree / TOOL), *arguments, "--worker", str(i)],
            cwd=tree, env=environment(tree), stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if i else None, text=True, start_new_session=True,
        )
        for i, tree in enumerate(trees)
    ]  # fmt: skip
    try:
        ready = selectors.DefaultSelector()
        for worker in workers:
            ready.register(worker.stdout, selectors.EVENT_READ)  # type: ignore[arg-type]
        while ready.get_map():
            for key, _ in ready.select():
                line = key.fileobj.readline()  # type: ignore[union-attr]
                if line.startswith("{"):  # a library may greet
                    yield json.loads(line)
                elif not line:
                    ready.unregister(key.fileobj)
        if any(worker.wait() for worker in workers):
            raise SystemExit("A worker ended early; its message is above.")
    finally:
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)


def wilson(killed: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share."""
    if n == 0:
        return 0.0, 1.0
    z = 1.959964
    p = killed / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)


@dataclass
class Tally:
    """What became of the mutants of one row of the table."""

    fates: Counter[str] = field(default_factory=Counter)

    @property
    def n(self) -> int:
        """How many were tried."""
        return self.fates.total()

    @property
    def share(self) -> float:
        """What was killed, by a test or by time."""
        return (self.fates["killed"] + self.fates["time"]) / max(self.n, 1)

    def row(self, name: str) -> str:
        """Return the row of the table."""
        low, high = wilson(self.fates["killed"] + self.fates["time"], self.n)
        f = self.fates
        return (
            f"| {name} | {self.n} | {f['killed']} | {f['time']} | {f['survived']} | "
            f"{f['untested']} | {100 * self.share:.1f} % | {100 * low:.1f} to {100 * high:.1f} % |"
        )


def report(rows: list[dict[str, Any]], options: argparse.Namespace, seconds: float) -> str:
    """Return the table and the survivors, as Markdown."""
    tallies: dict[str, Tally] = defaultdict(Tally)
    for row in rows:
        for name in (row["package"], f"all, {row['kind']}", "all"):
            tallies[name].fates[row["fate"]] += 1
    names = [*options.packages, *(f"all, {kind}" for kind in KINDS), "all"]
    lines = [
        f"Seed {options.seed}, {len(rows)} mutants, {seconds / 60:.0f} min.",
        "",
        "| package | mutants | killed | by time | survived | no test | share | 95 % interval |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(tallies[name].row(name) for name in names if name in tallies),
        "",
    ]
    for row in sorted(rows, key=lambda row: (row["path"], row["line"])):
        if row["fate"] in {"survived", "untested"}:
            lines += [f"{row['fate']} ({row['tests']} tests): {row['path']}:{row['line']}"]
            lines += ["```diff", row["diff"], "```", ""]
    return "\n".join(lines)


def main() -> int:
    """Run the sample and write the report; return 1 where too many survive."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mutants", default="400", help="how many, or all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60.0, help="of tests a mutant")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at once")
    parser.add_argument("--packages", nargs="+", default=list(PACKAGES), choices=PACKAGES)
    parser.add_argument("--tests", nargs="+", default=list(TESTS))
    parser.add_argument("--only", help="part of a file's path")
    parser.add_argument("--again", type=os.path.abspath, help="outcomes.jsonl: what survived there")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not re.fullmatch(r"all|[1-9]\d*", options.mutants):
        parser.error(f"Expected --mutants a number or all but got {options.mutants}.")
    if options.measure:
        measure(options.tests, options.measure)
        return 0
    if options.worker is not None:
        work(options)
        return 0
    PLACE.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    trees = [make_tree(PLACE / f"tree-{i}") for i in range(options.jobs)]
    covered(trees[0], options.tests)
    rows: list[dict[str, Any]] = []
    log = PLACE / ("again.jsonl" if options.again else "outcomes.jsonl")
    with log.open("w") as file:
        for row in outcomes(trees, options):
            rows.append(row)
            print(json.dumps(row), file=file, flush=True)
            print(
                f"{len(rows)} {row['fate']} {row['path']}:{row['line']} {row['seconds']:.0f} s",
                flush=True,
            )
    text = report(rows, options, time.monotonic() - begun)
    (PLACE / "report.md").write_text(text)
    print(text)
    killed = sum(row["fate"] in {"killed", "time"} for row in rows)
    return int(killed < LEAST * len(rows))


if __name__ == "__main__":
    raise SystemExit(main())
