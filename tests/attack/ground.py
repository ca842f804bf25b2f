"""What the attacks around commands share: a finished tiny run, and the same command twice.

Wherever a command fails it is given again without the fault, and must end with the numbers of a run
that nothing disturbed, byte for byte, without training again what was whole.
"""

from __future__ import annotations

import hashlib
import importlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

from attack.core import Verdict, fork, judge, leftovers
from attack.faults import Before, Disk

Told = tuple[Verdict, str]

RUN = (
    "run",
    "run_dir=run",
    "benchmark.classes=2",
    "benchmark.styles=[photo,cartoon]",
    "benchmark.samples_per_class=4",
    "benchmark.test_samples_per_class=3",
    "strategy.epochs=1",
    "strategy.batch_size=4",
    "strategy.rank=2",
    "arms=none",
    "+arms.half={method: task_arithmetic, coefficients: 0.5}",
    "references=[last]",
)
QUIET = (*RUN, "report=false")
REPORT = ("report", "run")
COMPARE = ("compare", "run", "--figure", "figure.svg")
EXPORT = ("export", "run", "--arm", "half", "--rank", "2", "--out", "out")
MERGE = (
    "merge",
    "run/adapters/seed-0/00-photo",
    "run/adapters/seed-0/01-cartoon",
    "--out",
    "out",
)
_MADE_ONCE = ("export", "merge")
LIGHT = (("--help",), ("list", "methods"), ("doctor",), ("compare", "run"))

_IMPORTS = (
    "cl_lora.cli",
    "cl_lora.commands.compare",
    "cl_lora.commands.doctor",
    "cl_lora.commands.export",
    "cl_lora.commands.list",
    "cl_lora.configuration.launch",
    "cl_lora.export.push",
    "cl_lora.joining",
    "cl_lora.reporting.compare",
    "cl_lora.reporting.tensorboard.events",
    "cl_lora.reporting.html",
    "cl_lora.reporting.tensorboard",
    "cl_lora.run_folder.freshness",
    # Of the interpreter's own library, which nobody may read where it lies in root's home.
    "encodings.cp437",
    "multiprocessing.pool",
    "multiprocessing.synchronize",
)
"""What the forks need not import, and could not where they have no rights."""

_RUN_FILES = ("*.csv", "hits/**/*.npz", "adapters/**/*.safetensors", "buffers/*.json")
_REPORTS = ("report.html", "figures/*", "tensorboard/**/events*")


class Ground:
    """What the cases share: a finished run, what it holds, and a cache of decoded images.

    Made when the first case asks for it.
    """

    def __init__(self, place: Path) -> None:
        place.chmod(0o755)
        place.parent.chmod(0o755)  # for those who are nobody
        self.place = place
        self.cache = place / "cache"
        self.env = {"CL_LORA_CACHE": str(self.cache)}

    @cached_property
    def run(self) -> Path:
        """A finished run with all its reports, and what follows from it."""
        for name in _IMPORTS:
            importlib.import_module(name)
        self._undisturbed(RUN, self.place)
        for path in (self.cache, *self.cache.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)
        return self.place / "run"

    @cached_property
    def numbers(self) -> Mapping[str, str]:
        """The digest of each file of numbers."""
        return contents(self.run, _RUN_FILES)

    @cached_property
    def reports(self) -> Mapping[str, str]:
        """The digest of each file of the reports."""
        return contents(self.run, _REPORTS)

    def copy(self, where: Path) -> Path:
        """Return a copy of the finished run in a folder."""
        shutil.copytree(self.run, where / "run")
        return where / "run"

    def events(self, arguments: Sequence[str], where: Path, match: str = "") -> int:
        """Return how often a command asks something of the disk; counted once for each."""
        key = (*arguments, match)
        if key not in self._counted:
            counting = where / "counting"
            counting.mkdir()
            if arguments[0] != "run":
                self.copy(counting)
            disk = Disk(match=match)
            fork(arguments, counting, self.env, disk)
            self._counted[key] = disk.events.value
            shutil.rmtree(counting)
        return self._counted[key]

    @cached_property
    def _counted(self) -> dict[tuple[str, ...], int]:
        return {}

    def is_run(self, where: Path) -> bool:
        """Return whether a folder holds the numbers of the undisturbed run."""
        return contents(where / "run", _RUN_FILES) == self.numbers

    def is_reported(self, where: Path) -> bool:
        """Return whether a folder holds the numbers and reports of the undisturbed run."""
        return self.is_run(where) and contents(where / "run", _REPORTS) == self.reports

    def made(self, arguments: Sequence[str], where: Path) -> bool:
        """Return whether a folder holds all that a command makes."""
        if arguments[0] == "run" and "report=false" in arguments:
            return self.is_run(where)
        if arguments[0] == "run":
            # Pages and pictures show milliseconds, which no two runs have alike.
            there = contents(where / "run", _REPORTS)
            return self.is_run(where) and set(there) == set(self.reports)
        if arguments[0] == "report":
            return self.is_reported(where)
        if arguments[0] not in ("export", "merge") and "--figure" not in arguments:
            return True
        there = self.place / arguments[0]
        if not there.exists():
            there.mkdir()
            self.copy(there)
            self._undisturbed(arguments, there)
        patterns = (arguments[-1], f"{arguments[-1]}/**/*")
        return contents(where, patterns) == contents(there, patterns)

    def _undisturbed(self, arguments: Sequence[str], where: Path) -> None:
        done = fork(arguments, where, self.env)
        if done.code:
            raise RuntimeError(f"{arguments[0]} fails without any fault: {done.err}")


def contents(folder: Path, patterns: Sequence[str]) -> dict[str, str]:
    """Return the digest of every file that matches; of events, which have times, the size."""
    found = {}
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            if not path.is_file() or path.name == "times.csv":
                continue
            name = str(path.relative_to(folder))
            if path.name.startswith("events"):
                # The name of the file has the time and the process.
                found[str(Path(name).parent)] = str(path.stat().st_size)
            else:
                found[name] = hashlib.blake2b(path.read_bytes()).hexdigest()
    return found


def everything(where: Path) -> dict[str, tuple[int, int]]:
    """Return when each file was written, and its size; of folders only that they are there."""
    found = {}
    for path in where.rglob("*"):
        stat = path.lstat()
        found[str(path)] = (0, 0) if path.is_dir() else (stat.st_mtime_ns, stat.st_size)
    return {name: of for name, of in found.items() if not name.endswith(".lock")}


def trained(where: Path) -> dict[str, int]:
    """Return when each adapter that is whole was written."""
    files = where.glob("run/adapters/*/[0-9]*/*.safetensors")
    return {str(path): path.stat().st_mtime_ns for path in files}


def attack(
    ground: Ground,
    where: Path,
    arguments: Sequence[str],
    fault: Before | None,
    *,
    env: Mapping[str, str] | None = None,
    killed: int = 0,
    mend: Callable[[], None] = lambda: None,
    never: bool = False,
    tidies: bool = True,
) -> Told:
    """Run a command under a fault, then without it.

    Args:
        ground: what cases share.
        where: the folder of the case.
        arguments: the command.
        fault: what disturbs it.
        env: of the command under the fault, beside that of all.
        killed: the signal that ends it, if one does: then it may leave something behind.
        mend: takes back what the fault did outside the process.
        never: whether to succeed under the fault is wrong in itself.
        tidies: whether it can take away what it has begun; else the next command does.
    """
    right = partial(ground.made, arguments, where)
    before = everything(where)
    first = fork(arguments, where, {**ground.env, **(env or {})}, fault)
    verdict, shown = Verdict.REFUSED, f"ended by signal {killed}"
    if not killed or first.code != -killed:
        verdict, shown = judge(first, None if never else right, where)
    if verdict is Verdict.HALF and not tidies:
        verdict = Verdict.REFUSED
    if not verdict.good:
        return verdict, shown
    mend()
    # What was made is not written over; where nothing was touched, given again it is undisturbed.
    if everything(where) == before or (verdict == Verdict.RIGHT and arguments[0] in _MADE_ONCE):
        return verdict, shown
    flaw = again(ground, where, arguments)
    return (flaw[0], f"after '{shown}' again: {flaw[1]}") if flaw else (verdict, shown)


def again(ground: Ground, where: Path, arguments: Sequence[str]) -> Told | None:
    """Run a command without a fault; return what is wrong with what it makes."""
    there = trained(where)
    outcome = fork(arguments, where, ground.env)
    if outcome.code:
        return Verdict.UNCLEAR, f"exit code {outcome.code}: {outcome.err[-600:]}"
    if left := leftovers(where):
        return Verdict.HALF, f"left {', '.join(left)}"
    if not ground.made(arguments, where):
        return Verdict.WRONG, "other results"
    after = trained(where)
    if any(after[path] != when for path, when in there.items()):
        return Verdict.UNCLEAR, "trained once more"
    return None


def with_run(ground: Ground, where: Path, arguments: Sequence[str]) -> None:
    """Copy the finished run, for every command but the one that makes it."""
    if arguments[0] == "merge" or (arguments[0] != "run" and "run" in arguments[1:2]):
        ground.copy(where)
    elif arguments[0] in ("run", "demo"):
        _ = ground.run  # with its cache
