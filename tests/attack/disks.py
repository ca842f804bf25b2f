"""Full disks, missing rights, strange surroundings: around every command."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from attack import faults
from attack.around import AROUND
from attack.core import Case, Group, Verdict, fork, leftovers
from attack.faults import Disk
from attack.ground import COMPARE, EXPORT, MERGE, QUIET, REPORT, Ground, Told, attack, with_run

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
        (QUIET, (600, draw.randrange(601, 900), 60_000)),  # the sentence needs room as well
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
        # Where no name can be given or taken away, what was begun waits for the next command.
        tidies = (call, number) not in (("os.rename", 2), ("os.unlink", 1))
        return attack(ground, where, arguments, faults.refusing(call, number, error), tidies=tidies)

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


def cases(seed: int, place: Path) -> list[Case]:
    """Return every case."""
    ground = Ground(place)
    parts = (_full, _cold, _real, _calls, _killed, *AROUND)
    return [case for part in parts for case in part(ground, seed)]


GROUP = Group("disks", "disks and permissions", cases)
