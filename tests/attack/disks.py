"""Full disks, missing rights, strange surroundings: around every command.

Wherever a command fails it is given again without the fault, and must end with the numbers of a run
that nothing disturbed, byte for byte, without training again what was whole.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from xml.etree import ElementTree

from attack import faults
from attack.core import Case, Group, Outcome, Verdict, fork, judge, leftovers, process
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
LIGHT = (("--help",), ("list", "methods"), ("doctor",), ("compare", "run"))

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
        if arguments[0] in ("run", "report"):
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
            if not path.is_file():
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
    """
    right = partial(ground.made, arguments, where)
    before = everything(where)
    first = fork(arguments, where, {**ground.env, **(env or {})}, fault)
    verdict, shown = Verdict.REFUSED, f"ended by signal {killed}"
    if not killed or first.code != -killed:
        verdict, shown = judge(first, None if never else right, where)
    if not verdict.good:
        return verdict, shown
    mend()
    if verdict == Verdict.RIGHT and arguments[0] in ("export", "merge"):
        return verdict, shown  # given again it would refuse to write over what it made
    if everything(where) == before:
        return verdict, shown  # nothing was touched: given again it is undisturbed
    there = trained(where)
    again = fork(arguments, where, ground.env)
    if again.code:
        return Verdict.UNCLEAR, f"after '{shown}' again: exit code {again.code}: {again.err[-600:]}"
    if left := leftovers(where):
        return Verdict.HALF, f"after '{shown}' again: left {', '.join(left)}"
    if not right():
        return Verdict.WRONG, f"after '{shown}' again: other results"
    after = trained(where)
    if any(after[path] != when for path, when in there.items()):
        return Verdict.UNCLEAR, f"after '{shown}' again: trained once more"
    return verdict, shown


def with_run(ground: Ground, where: Path, arguments: Sequence[str]) -> None:
    """Copy the finished run, for every command but the one that makes it."""
    if (arguments[0] != "run" and "run" in arguments[1:2]) or arguments[0] == "merge":
        ground.copy(where)


# Full disks ----------------------------------------------------------------------------------


def _full(ground: Ground, seed: int) -> list[Case]:
    """Refuse everything from one moment of a command on, or one thing only."""
    draw = random.Random(f"{seed}-full")
    cases = []

    def add(name: str, arguments: Sequence[str], share: float, match: str = "", **how: object):
        def run(where: Path) -> Told:
            with_run(ground, where, arguments)
            number = 1 + int(share * ground.events(arguments, where, match))
            return attack(ground, where, arguments, Disk(number, match=match, **how))

        cases.append(Case(f"{name} at {share:.0%} of what {arguments[0]} writes", run))

    for name, arguments, count in (
        ("the disk is full", QUIET, 8),
        ("the disk is full", REPORT, 3),
        ("the disk is full", COMPARE, 1),
        ("the disk is full", EXPORT, 2),
        ("the disk is full", MERGE, 2),
    ):
        for k in range(count):
            add(name, arguments, (k + draw.random()) / count)
    for k in range(3):
        share = (k + draw.random()) / 3
        add("one write fails", QUIET, share, once=True)
    for what, match in (
        ("an adapter", "/adapters/"),
        ("scores.csv", "scores.csv"),
        ("which samples were right", "hits"),
        ("config.yaml", "config.yaml"),
        ("the log", "log.txt"),
    ):
        add(f"the disk is full for {what}", QUIET, draw.random(), match)
    for what, match in (
        ("events", "events.out"),
        ("figures", "figures"),
        ("the page", "report.html"),
    ):
        add(f"the disk is full for {what}", REPORT, draw.random(), match)
    add("one write of events fails", REPORT, 0.99, "events.out", once=True)
    add("the device is broken", QUIET, draw.random(), error=errno.EIO)
    add("the quota is used up", QUIET, draw.random(), error=errno.EDQUOT)
    return cases


def _cold(ground: Ground, seed: int) -> list[Case]:
    """Fill the disk while images are decoded into the cache."""
    draw = random.Random(f"{seed}-cold")

    def run(share: float, where: Path) -> Told:
        env = {"CL_LORA_CACHE": str(where / "cache")}
        disk = Disk(match=str(where / "cache"))
        fork(("run", "--cfg", "job"), where)
        disk.first = 1 + int(share * 4)
        return attack(ground, where, QUIET, disk, env=env)

    return [
        Case(f"the disk is full at {share:.0%} of the cache", partial(run, share))
        for share in (0.0, draw.uniform(0.3, 0.99))
    ]


def _real(ground: Ground, seed: int) -> list[Case]:
    """Fill disks that are real where they can be mounted, and limit files everywhere."""
    draw = random.Random(f"{seed}-real")
    cases = []

    def mounted(arguments: Sequence[str], share: float, where: Path) -> Told:
        if not faults.can_mount():
            number = 1 + int(share * ground.events(arguments, where))
            with_run(ground, where, arguments)
            return attack(ground, where, arguments, Disk(number))
        room = 1 << 14
        with faults.disk_of(1 << 24, where):
            with_run(ground, where, arguments)
            used = os.statvfs(where)
            used_bytes = (used.f_blocks - used.f_bfree) * used.f_frsize
            most = {"run": 260_000, "report": 100_000}.get(arguments[0], 150_000)
            faults.resize(where, used_bytes + room + int(share * most))
            mend = partial(faults.resize, where, 1 << 24)
            return attack(ground, where, arguments, None, mend=mend)

    for arguments, count in ((QUIET, 3), (REPORT, 1), (EXPORT, 1), (MERGE, 1)):
        for k in range(count):
            share = (k + draw.random()) / count
            name = f"a disk that {arguments[0]} fills, {share:.0%} of what it needs"
            cases.append(Case(name, partial(mounted, arguments, share)))

    def limited(arguments: Sequence[str], most: int, where: Path) -> Told:
        with_run(ground, where, arguments)
        fault = faults.limit(resource.RLIMIT_FSIZE, most)
        return attack(ground, where, arguments, fault)

    for arguments, sizes in (
        (QUIET, (0, draw.randrange(200, 900), 60_000)),
        (REPORT, (30_000,)),
        (EXPORT, (20_000,)),
        (MERGE, (5_000,)),
        (COMPARE, (100,)),
    ):
        for most in sizes:
            name = f"{arguments[0]} where no file may grow beyond {most} bytes"
            cases.append(Case(name, partial(limited, arguments, most)))
    return cases


def _calls(ground: Ground, seed: int) -> list[Case]:
    """Refuse other calls than those that write."""
    del seed

    def run(call: str, number: int, error: int, arguments: Sequence[str], where: Path) -> Told:
        with_run(ground, where, arguments)
        return attack(ground, where, arguments, faults.refusing(call, number, error))

    return [
        Case(
            f"{call} fails from use {number} on ({arguments[0]})",
            partial(run, call, number, error, arguments),
        )
        for call, number, error, arguments in (
            ("os.replace", 1, errno.ENOSPC, QUIET),
            ("os.replace", 4, errno.EIO, QUIET),
            ("os.rename", 1, errno.ENOSPC, QUIET),
            ("os.rename", 2, errno.EIO, REPORT),
            ("os.fsync", 2, errno.EIO, QUIET),
            ("os.chmod", 3, errno.EPERM, QUIET),
            ("os.unlink", 1, errno.EIO, QUIET),
            ("fcntl.flock", 1, errno.ENOLCK, QUIET),
            ("os.rename", 1, errno.ENOSPC, EXPORT),
            ("os.rename", 1, errno.ENOSPC, MERGE),
        )
    ]


def _killed(ground: Ground, seed: int) -> list[Case]:
    """End a command by a signal at a drawn moment, and see that nothing is left of it."""
    draw = random.Random(f"{seed}-killed")

    def run(arguments: Sequence[str], number: int, share: float, where: Path) -> Told:
        with_run(ground, where, arguments)
        first = 1 + int(share * ground.events(arguments, where))
        ends = Disk(first, act=lambda: os.kill(os.getpid(), number))
        # Where this runs in the background Ctrl-C is ignored.
        hears = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
        disk = faults.both(hears, ends)
        if number == signal.SIGKILL:
            return attack(ground, where, arguments, disk, killed=number)
        if number == signal.SIGPIPE:
            return attack(ground, where, arguments, disk)
        outcome = fork(arguments, where, ground.env, disk)
        shown = f"exit code {outcome.code}: {outcome.err[-300:]}"
        if outcome.code == 0 and ground.made(arguments, where):
            return Verdict.RIGHT, ""  # it came when all was done
        lines = outcome.err.strip().splitlines()
        told = bool(lines) and lines[-1].startswith("cl-lora: ")
        if outcome.code != 128 + number or not told or "Traceback" in outcome.err:
            return Verdict.UNCLEAR, shown
        if left := leftovers(where):
            return Verdict.HALF, f"left {', '.join(left)}"
        return attack(ground, where, arguments, None)

    kinds = (
        (REPORT, signal.SIGKILL, 2),
        (QUIET, signal.SIGKILL, 1),
        (QUIET, signal.SIGTERM, 2),
        (REPORT, signal.SIGTERM, 1),
        (QUIET, signal.SIGINT, 1),
        (QUIET, signal.SIGHUP, 1),
        (QUIET, signal.SIGPIPE, 1),
    )
    cases = []
    for arguments, number, count in kinds:
        for k in range(count):
            share = (k + draw.random()) / count
            name = f"{signal.Signals(number).name} at {share:.0%} of what {arguments[0]} writes"
            cases.append(Case(name, partial(run, arguments, number, share)))
    return cases


# Rights --------------------------------------------------------------------------------------


def _rights(ground: Ground, seed: int) -> list[Case]:
    """Take the right to write a folder, or to read a file."""
    del seed
    cases = []

    def run(
        arguments: Sequence[str], shut: Sequence[str], mode: int, where: Path, never: bool = True
    ) -> Told:
        with_run(ground, where, arguments)
        _give(where)
        paths = [
            path
            for pattern in shut
            for path in (where, *where.rglob("*"))
            if path.match(pattern) or (pattern == "." and path == where)
        ]
        before = {path: path.stat().st_mode for path in paths}
        for path in paths:
            path.chmod(mode)
        assert paths, shut

        def mend() -> None:
            for path, old in before.items():
                if path.exists():
                    path.chmod(old)

        try:
            return attack(ground, where, arguments, faults.nobody, mend=mend, never=never)
        finally:
            mend()

    def add(name: str, arguments: Sequence[str], shut: Sequence[str], mode: int, never=True):
        cases.append(Case(name, partial(run, arguments, shut, mode, never=never)))

    add("run in a folder that may not be written", QUIET, ["."], 0o555)
    add("demo in a folder that may not be written", ("demo",), ["."], 0o555)
    add("report of a run that may not be written", REPORT, ["run"], 0o555)
    add("report where figures may not be written", REPORT, ["figures"], 0o555)
    add("report where events may not be written", REPORT, ["tensorboard"], 0o555)
    add("export into a folder that may not be written", EXPORT, ["."], 0o555)
    add("merge into a folder that may not be written", MERGE, ["."], 0o555)
    add("a figure of compare that may not be written", COMPARE, ["."], 0o555)
    for name in ("config.yaml", "scores.csv", "stream.json"):
        add(f"report of a run whose {name} may not be read", REPORT, [f"run/{name}"], 0)
        add(f"compare with a run whose {name} may not be read", COMPARE, [f"run/{name}"], 0)
    add("report of a run whose coefficients may not be read", REPORT, ["coefficients.csv"], 0)
    add("report of a run whose adapters may not be read", REPORT, ["training.json"], 0)
    add("report of a run whose hits may not be read", REPORT, ["*.npz"], 0, False)
    add("compare with a run that may not be entered", COMPARE, ["run"], 0)
    add("export of adapters that may not be read", EXPORT, ["adapter_model.safetensors"], 0)
    add("export of an adapter that may not be entered", EXPORT, ["00-photo"], 0)
    add("merge of adapters that may not be read", MERGE, ["adapter_model.safetensors"], 0)
    add("merge of a configuration that may not be read", MERGE, ["adapter_config.json"], 0)

    def again(name: str, pattern: str, mode: int) -> None:
        """Give the run again over a finished one that may not be read or written."""

        def run_again(where: Path) -> Told:
            ground.copy(where)
            _give(where)
            paths = [path for path in where.rglob("*") if path.match(pattern)]
            before = {path: path.stat().st_mode for path in paths}
            for path in paths:
                path.chmod(mode)

            def mend() -> None:
                for path, old in before.items():
                    path.chmod(old)

            return attack(ground, where, QUIET, faults.nobody, mend=mend)

        cases.append(Case(name, run_again))

    again("a run again whose scores may not be read", "scores.csv", 0)
    again("a run again whose configuration may not be read", "run/config.yaml", 0)
    again("a run again whose adapter may not be read", "*.safetensors", 0)
    again("a run again whose adapter may not be entered", "00-photo", 0)
    again("a run again into a folder that may not be written", "run", 0o555)

    def cache(mode: int, where: Path) -> Told:
        (where / "cache").mkdir()
        if mode == 0:
            shutil.copytree(ground.cache, where / "cache", dirs_exist_ok=True)
            for path in (where / "cache").iterdir():
                path.chmod(0)
        _give(where)
        (where / "cache").chmod(0o555)
        env = {"CL_LORA_CACHE": str(where / "cache")}
        _ = ground.run
        return attack(ground, where, QUIET, faults.nobody, env=env)

    cases.append(Case("a cache that may not be written", partial(cache, 0o555)))
    cases.append(Case("a cache that may not be read", partial(cache, 0)))

    def read_only(arguments: Sequence[str], where: Path) -> Told:
        if not faults.can_mount():
            return run(arguments, ["."], 0o555, where)
        with faults.disk_of(1 << 24, where):
            with_run(ground, where, arguments)
            faults.resize(where, 1 << 24, read_only=True)
            mend = partial(faults.resize, where, 1 << 24)
            return attack(ground, where, arguments, None, mend=mend, never=arguments != LIGHT[3])

    for arguments in (QUIET, REPORT, COMPARE, EXPORT, LIGHT[3]):
        words = " ".join(arguments[:1])
        figure = " with a figure" if arguments == COMPARE else ""
        cases.append(
            Case(f"{words}{figure} on a disk that is read only", partial(read_only, arguments))
        )

    def masked(mask: int, where: Path) -> Told:
        _give(where)
        fault = faults.both(faults.nobody, partial(os.umask, mask))  # type: ignore[arg-type]
        before = {p: p.stat().st_mode for p in where.rglob("*")}

        def mend() -> None:
            for path in where.rglob("*"):
                if path not in before:
                    path.chmod(0o755 if path.is_dir() else 0o644)

        return attack(ground, where, QUIET, fault, mend=mend)

    cases.append(Case("umask 777", partial(masked, 0o777)))
    cases.append(Case("umask 077", partial(masked, 0o077)))
    return cases


def _give(where: Path) -> None:
    """Give a folder with all that is in it to nobody, where this is root."""
    for path in (where, *where.rglob("*")):
        if os.getuid() == 0:
            os.chown(path, faults.NOBODY, faults.NOBODY)


# Things in the place of others ---------------------------------------------------------------


def _places(ground: Ground, seed: int) -> list[Case]:
    """Put files where folders belong, and take folders away."""
    del seed
    cases = []

    def file_there(arguments: Sequence[str], where: Path) -> Told:
        name = {"run": "run", "report": "run", "compare": "run"}.get(arguments[0], arguments[-1])
        if name != "run":
            with_run(ground, where, arguments)
        (where / name).write_text("something else\n")
        outcome = fork(arguments, where, ground.env)
        if (where / name).read_text() != "something else\n":
            return Verdict.WRONG, "the file is gone"
        return judge(outcome, None, where)

    for arguments in (QUIET, REPORT, COMPARE, EXPORT, MERGE):
        name = f"a file where {arguments[0]} expects a folder"
        cases.append(Case(name, partial(file_there, arguments)))

    def deleted(arguments: Sequence[str], where: Path) -> Told:
        gone = where / "gone"
        gone.mkdir()
        arguments = [word.replace("run_dir=run", f"run_dir={where}/run") for word in arguments]
        if arguments[0] in ("report", "compare"):
            arguments[1] = str(ground.copy(where))
        outcome = fork(arguments, gone, ground.env, lambda: os.rmdir(gone))
        shown = judge(outcome, lambda: ground.made(arguments, where), where)
        return shown

    for arguments in (*LIGHT, QUIET, REPORT, ("demo",)):
        name = f"{arguments[0]} in a folder that was deleted"
        cases.append(Case(name, partial(deleted, arguments)))

    def vanishing(arguments: Sequence[str], share: float, where: Path) -> Told:
        with_run(ground, where, arguments)
        first = 1 + int(share * ground.events(arguments, where))
        disk = Disk(first, act=lambda: os.rename(where / "run", where / "elsewhere"))
        outcome = fork(arguments, where, ground.env, disk)
        return judge(outcome, lambda: ground.made(arguments, where))

    for arguments, share in ((QUIET, 0.3), (QUIET, 0.8), (REPORT, 0.5)):
        name = f"the run folder is taken away at {share:.0%} of {arguments[0]}"
        cases.append(Case(name, partial(vanishing, arguments, share)))

    def figure(place: str, where: Path) -> Told:
        ground.copy(where)
        (where / "file").write_text("")
        there = set(where.rglob("*"))
        outcome = fork(["compare", "run", "--figure", place], where, ground.env)
        made = {str(p.relative_to(where)) for p in set(where.rglob("*")) - there}
        if made:
            return Verdict.WRONG, f"made {sorted(made)}"
        return judge(outcome, None, where)

    for place in ("missing/folders/figure.png", "file/figure.png", "run", "."):
        cases.append(Case(f"--figure {place}", partial(figure, place)))
    return cases


# Output --------------------------------------------------------------------------------------


def _output(ground: Ground, seed: int) -> list[Case]:
    """Let standard output and error go nowhere."""
    del seed
    cases = []

    def run(arguments: Sequence[str], fault: Before, right: int | None, where: Path) -> Told:
        with_run(ground, where, arguments)
        outcome = fork(arguments, where, ground.env, fault)
        makes = arguments[0] != "demo" and "--cfg" not in arguments
        if makes and not ground.made(arguments, where):
            return Verdict.WRONG, f"exit code {outcome.code}, not made: {outcome.err[-300:]}"
        if right is None:
            return judge(outcome, None, where)
        if outcome.code != right or "Traceback" in outcome.err or "Exception" in outcome.err:
            return Verdict.UNCLEAR, f"exit code {outcome.code}: {outcome.err[-300:]}"
        return Verdict.RIGHT, ""

    every = (*LIGHT, QUIET, REPORT, EXPORT, MERGE, ("demo", "--help"), ("run", "--cfg", "job"))
    for arguments in every:
        name = arguments[0] + (" --cfg job" if "--cfg" in arguments else "")
        full = faults.output(1, "/dev/full")
        cases.append(Case(f"{name} > /dev/full", partial(run, arguments, full, None)))
        if arguments in (*LIGHT, QUIET, REPORT):
            cases.append(Case(f"{name} | head -0", partial(run, arguments, faults.unread(1), 0)))
            cases.append(Case(f"{name} >&-", partial(run, arguments, faults.closed(1), 0)))
    for name, fault in (
        ("2> /dev/full", faults.output(2, "/dev/full")),
        ("2>&-", faults.closed(2)),
        ("2> of a pipe that nobody reads", faults.unread(2)),
        ("with no standard stream at all", faults.both(faults.closed(2), faults.closed(1))),
    ):
        cases.append(Case(f"run {name}", partial(run, QUIET, fault, 0)))

    def head(arguments: Sequence[str], where: Path) -> Told:
        """Read one line in a real pipe, of a process of its own."""
        with_run(ground, where, arguments)
        reads, writes = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(writes)
            while os.read(reads, 1) not in (b"\n", b""):
                pass
            os._exit(0)
        os.close(reads)
        try:
            outcome = process(arguments, where, {**os.environ, **ground.env}, stdout=writes)
        finally:
            os.close(writes)
            os.waitpid(child, 0)
        if outcome.code or outcome.err:
            return Verdict.UNCLEAR, f"exit code {outcome.code}: {outcome.err[-300:]}"
        return Verdict.RIGHT, ""

    cases.append(Case("doctor | head -1", partial(head, ("doctor",))))
    return cases


# Surroundings --------------------------------------------------------------------------------


def _surroundings(ground: Ground, seed: int) -> list[Case]:
    """Take home, locale, memory, files or the clock away."""
    del seed
    cases = []

    def homeless(arguments: Sequence[str], fault: Before, home: str | None, where: Path) -> Told:
        with_run(ground, where, arguments)
        where.chmod(0o777)
        for path in where.rglob("*"):
            path.chmod(0o777)

        def before() -> None:
            fault()
            os.environ.pop("CL_LORA_CACHE", None)
            if home is not None:
                os.environ["HOME"] = home

        never = arguments[0] == "demo"
        outcome = fork(arguments, where, None, before)
        right = partial(ground.made, arguments, where)
        verdict, shown = judge(outcome, None if never else right, where)
        if verdict.good and arguments == QUIET:
            return attack(ground, where, arguments, None)
        return verdict, shown

    for arguments in (QUIET, LIGHT[1], LIGHT[2], REPORT, COMPARE, ("demo",)):
        name = f"{arguments[0]} of a user without a home"
        cases.append(Case(name, partial(homeless, arguments, faults.without_user, None)))
    for home in ("/nonexistent", "/proc/none", "/dev/null"):
        nobody = faults.both(faults.nobody, lambda: os.environ.pop("XDG_CACHE_HOME", None) and None)
        cases.append(Case(f"run with HOME={home}", partial(homeless, QUIET, nobody, home)))

    def plain(arguments: Sequence[str], fault: Before, env: Mapping[str, str], where: Path) -> Told:
        with_run(ground, where, arguments)
        return attack(ground, where, arguments, fault, env=env)

    def add(name: str, arguments: Sequence[str], fault: Before, **env: str) -> None:
        cases.append(Case(name, partial(plain, arguments, fault, env)))

    for arguments in (*LIGHT, QUIET, REPORT, EXPORT, MERGE):
        add(f"{arguments[0]} in ASCII", arguments, faults.ascii_only)
    for more in (20, 100):
        add(f"run with {more} MB of memory", QUIET, faults.little_memory(more << 20))
    add("report with 20 MB of memory", REPORT, faults.little_memory(20 << 20))
    add("list with 1 MB of memory", LIGHT[1], faults.little_memory(1 << 20))
    for most in (4, 12, 40):
        add(f"run with {most} open files", QUIET, faults.limit(resource.RLIMIT_NOFILE, most))
    add("report with 10 open files", REPORT, faults.limit(resource.RLIMIT_NOFILE, 10))
    add("list with 4 open files", LIGHT[1], faults.limit(resource.RLIMIT_NOFILE, 4))
    nothing = "/nonexistent/folder"
    add("run with a TMPDIR that is missing", QUIET, lambda: None, TMPDIR=nothing, TEMP=nothing)
    for seconds in (-1e9, 1e9):
        clock = faults.clock(seconds)
        add(f"report with a clock {seconds:+.0e} s off", REPORT, clock)

    def stale(where: Path) -> Told:
        """Add an arm after the clock was set back by a day."""
        run = ground.copy(where)
        later = time.time() + 86_400
        for path in run.rglob("*"):
            os.utime(path, (later, later))
        arguments = [*RUN, "+arms.third={method: ties, coefficients: 0.25}"]
        outcome = fork(arguments, where, ground.env)
        new = "third" in (run / "report.html").read_text()
        return judge(outcome, lambda: new, where)

    cases.append(Case("an arm more after the clock was set back", stale))

    def own(arguments: Sequence[str], python: Sequence[str], where: Path, **env: str) -> Told:
        """Run in an interpreter of its own."""
        with_run(ground, where, arguments)
        compiled = str(ground.place / "compiled")  # not beside the libraries
        every = {**os.environ, **ground.env, "PYTHONPYCACHEPREFIX": compiled, **env}
        outcome = process(arguments, where, every, python, longest_s=400)
        return judge(outcome, lambda: ground.made(arguments, where), where)

    poor = {
        "LC_ALL": "C",
        "LANG": "C",
        "PYTHONIOENCODING": "ascii",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    for arguments in (QUIET, LIGHT[1]):
        cases.append(Case(f"{arguments[0]}, LC_ALL=C", partial(own, arguments, (), **poor)))
    for arguments in (QUIET, LIGHT[2], REPORT):
        cases.append(Case(f"{arguments[0]}, python -OO", partial(own, arguments, ("-OO",))))
    return cases


# Names ---------------------------------------------------------------------------------------

_NAMES = (
    ("$x^$", r"$\frac$"),
    ("\\", r"\alpha{", "x_$_"),
    ("party \U0001f389", "snow \u2603 \u5b57", "\u202eright"),
    ("two\nlines", "tab\tbed", "\x1b[31mred\x1b[0m", "\x9b1m"),
    ("<b>&amp;", "<script>alert(1)</script>", "]]>--"),
    ("%s{0}", "-rf", "#", "'\"`", "[bold]y"),
    ("a b", "a_b", "a.b", "x" * 200),
)


def _names(ground: Ground, seed: int) -> list[Case]:
    """Call domains and classes what no figure, table or page expects."""

    def run(names: Sequence[str], where: Path) -> Told:
        tree = where / "tree"
        draw = random.Random(f"{seed}-{names}")
        _draw_tree(tree, names, draw)
        arguments = [
            *RUN[:2],
            "benchmark=domains",
            f"benchmark.root={tree}",
            "benchmark.test_fraction=0.4",
            *RUN[6:],
        ]
        for command in (
            arguments,
            ["compare", "run", "--figure", "figure.svg"],
            ["compare", "run", "--format", "markdown"],
            ["compare", "run", "--format", "latex"],
            ["export", "run", "--arm", "half", "--rank", "2", "--out", "out"],
        ):
            outcome = fork(command, where, {"CL_LORA_CACHE": str(where / "cache")})
            told = f"{' '.join(command[:4])}: "
            verdict, shown = judge(outcome, lambda: True, where)
            if not verdict.good or (verdict == Verdict.REFUSED and command is not arguments):
                return verdict, told + shown
            if strange := _strange(outcome):
                return Verdict.WRONG, f"{told}{strange!r} reaches the terminal"
            if verdict == Verdict.REFUSED:
                return verdict, told + shown
        for path in where.rglob("*.svg"):
            ElementTree.parse(path)
        return _whole_report(where / "run", len(names))

    return [
        Case(f"domains called {' and '.join(map(ascii, names))[:70]}", partial(run, names))
        for names in _NAMES
    ]


def _draw_tree(tree: Path, names: Sequence[str], draw: random.Random) -> None:
    from PIL import Image

    for name in names:
        for label in names[:2]:
            folder = tree / name / label
            folder.mkdir(parents=True)
            for k in range(5):
                color = tuple(draw.randrange(256) for _ in range(3))
                Image.new("RGB", (48, 48), color).save(folder / f"{k}.png")


def _strange(outcome: Outcome) -> str:
    return "".join(c for c in outcome.out + outcome.err if not c.isprintable() and c != "\n")


def _whole_report(run: Path, count: int) -> Told:
    """See that each domain has curves of its own in TensorBoard, and that the page is there."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(run / "tensorboard" / "half"))
    accumulator.Reload()
    tags = [tag for tag in accumulator.Tags()["scalars"] if tag.startswith("accuracy/")]
    if len(tags) != count + 1:
        return Verdict.WRONG, f"TensorBoard has {tags}"
    if not (run / "report.html").is_file() or not list((run / "figures").glob("*.png")):
        return Verdict.WRONG, "no report"
    return Verdict.RIGHT, ""


def cases(seed: int, place: Path) -> list[Case]:
    """Return every case."""
    ground = Ground(place)
    parts = (_full, _cold, _real, _calls, _killed, _rights, _places, _output, _surroundings, _names)
    return [case for part in parts for case in part(ground, seed)]


GROUP = Group("disks", "disks and permissions", cases)
