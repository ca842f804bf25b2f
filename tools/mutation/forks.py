"""Tries a mutant: its tests run, cheapest first, in a fork of a process that is ready for them.

Most mutants change the body of a function that nothing calls while modules are imported. Pytest
has then collected all tests once, and the fork gives every living function of that file the
changed code. The others (tables, defaults, registries) run in a fork that has only the libraries
loaded, where pytest starts again. The file on disk is changed too, for what starts a process.
"""

from __future__ import annotations

import contextlib
import difflib
import gc
import os
import shutil
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

from mutation.covered import PYTEST, Covered
from mutation.mutants import Mutant

SLACK_S = 20.0
TIMES = 5.0
FIRST = 4  # files of tests that a first try collects
Place = tuple[int, str]
Tell = Callable[[str], None]


@dataclass
class Outcome:
    """What became of a mutant."""

    mutant: Mutant
    fate: str
    """killed, time, survived, or untested."""
    by: str
    seconds: float
    diff: str
    tests: int


# Code of a file, before and after.


def places(code: CodeType) -> Iterator[tuple[Place, CodeType]]:
    """Yield every function of compiled code in order, the inner ones too."""
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield (inner.co_firstlineno, inner.co_qualname), inner
            yield from places(inner)


def replacements(source: str, changed: str, file: str) -> dict[Place, CodeType] | None:
    """Return the changed code of functions by their place; None where one cannot take it.

    A function keeps the variables of its surroundings that it was made with.
    """
    before = list(places(compile(source, file, "exec")))
    after = list(places(compile(changed, file, "exec")))
    if [place[1] for place, _ in before] != [place[1] for place, _ in after]:
        return None
    times = Counter(place for place, _ in before)
    found = {}
    for (place, old), (_, new) in zip(before, after, strict=True):
        if old == new:
            continue
        if old.co_freevars != new.co_freevars or (times[place] > 1 and "lambda" in place[1]):
            return None
        found[place] = new
    return found


def living(tree: Path) -> dict[tuple[str, Place], list[FunctionType]]:
    """Return the functions of the tree's files that exist now."""
    found = defaultdict(list)
    for each in gc.get_objects():
        if type(each) is FunctionType:  # isinstance would wake what loads lazily
            code = each.__code__
            file = os.path.realpath(code.co_filename)
            if file.startswith(f"{tree}{os.sep}"):
                found[file, (code.co_firstlineno, code.co_qualname)].append(each)
    return found


# Forks.


class Told:
    """What a fork says about its tests; a plugin of pytest in it, which also stops what hangs."""

    def __init__(self, file: Path, seconds: dict[str, float]) -> None:
        self.file = file
        self.seconds = seconds
        self.failed = False
        self._out: int | None = None

    def begin(self) -> None:
        """Say from now on what happens (in the fork)."""
        self._out = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        # The signal ends the process, even within a loop in C.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, 6 * SLACK_S)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Start the clock of a test."""
        if self._out is not None:
            os.write(self._out, f"run {nodeid}\n".encode())
            limit = SLACK_S + TIMES * self.seconds.get(nodeid, 0.0)
            signal.setitimer(signal.ITIMER_REAL, limit)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Name a test that fails."""
        if self._out is not None and report.failed:
            os.write(self._out, f"fail {report.nodeid}\n".encode())
            self.failed = True

    def read(self) -> tuple[list[str], list[str]]:
        """Return what ran and what failed."""
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        ran, failed = (
            [line.removeprefix(word) for line in lines if line.startswith(word)]
            for word in ("run ", "fail ")
        )
        return ran, failed


def forked(work: Callable[[], int], told: Told, log: Path) -> tuple[str, str]:
    """Do work in a fork; return killed, time or survived, and the test that decided."""
    told.file.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.setsid()
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            told.begin()
            code = work()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(status)
    ran, failed = told.read()
    if code == 0:
        return "survived", ""
    if code == -signal.SIGALRM:
        return "time", ran[-1] if ran else "import"
    return "killed", failed[0] if failed else ran[-1] if ran else "import"


class Bench:
    """A copy of the tree in which mutants are tried, one after another."""

    def __init__(self, tree: Path, covered: Covered, seconds: float) -> None:
        self.tree = tree.resolve()
        self.covered = covered
        self.seconds = seconds
        self.log = tree.parent / f"{tree.name}.log"
        self.told = Told(tree.parent / f"{tree.name}.told", covered.seconds)
        self.sound: dict[tuple[str, ...], bool] = {}

    def needs_import(self, mutant: Mutant) -> bool:
        """Return whether a mutant matters while its module is imported, or must be imported."""
        if self.covered.imports(mutant.path, mutant.lines):
            return True
        source, changed = self._texts(mutant)
        return not replacements(source, changed, str(self.tree / mutant.path))

    def imported(self, mutants: Sequence[Mutant], tell: Callable[[Outcome], None]) -> None:
        """Try mutants in forks that import everything again."""

        def run(tests: Sequence[str], _mutant: Mutant | None) -> tuple[str, str]:
            def work() -> int:
                more = ("--collect-only",) if tests == ["import"] else ()
                names = self.covered.by_cost(self.covered.seconds) if more else tests
                return int(pytest.main([*PYTEST, "-x", *more, *names], plugins=[self.told]))

            return forked(work, self.told, self.log)

        def staged(tests: Sequence[str], mutant: Mutant | None) -> tuple[str, str]:
            # Each file that is collected costs its imports.
            files = list(dict.fromkeys(t.partition("::")[0] for t in tests))[:FIRST]
            first = [t for t in tests if t.partition("::")[0] in files]
            rest = [t for t in tests if t.partition("::")[0] not in files]
            fate, by = run(first, mutant)
            return run(rest, mutant) if fate == "survived" and rest else (fate, by)

        for mutant in mutants:
            tell(self._attempt(mutant, staged))

    def collected(
        self, mutants: Sequence[Mutant], tests: Sequence[str], tell: Callable[[Outcome], None]
    ) -> None:
        """Collect all tests once and try mutants in forks of that."""
        bench = self

        class Loop:
            """In the place of pytest's own loop over the tests."""

            def pytest_runtestloop(self, session: pytest.Session) -> bool:
                items = {item.nodeid: item for item in session.items}
                cases = defaultdict(list)
                for name, item in items.items():
                    cases[name.partition("[")[0]].append(item)
                functions = living(bench.tree)
                # A mutant's compiled code would be taken for that of another of the same second.
                sys.dont_write_bytecode = True
                gc.freeze()

                def run(names: Sequence[str], mutant: Mutant | None) -> tuple[str, str]:
                    def work() -> int:
                        if mutant is not None:
                            bench.change(mutant, functions)
                        # A function's name stands for all its cases.
                        chosen = [i for name in names for i in cases.get(name) or [items[name]]]
                        for item, following in zip(chosen, [*chosen[1:], None], strict=True):
                            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                            if bench.told.failed:
                                return 1
                        return 0

                    return forked(work, bench.told, bench.log)

                for mutant in mutants:
                    tell(bench._attempt(mutant, run))
                return True

        if mutants:
            pytest.main([*PYTEST, *tests], plugins=[Loop(), self.told])

    def change(
        self, mutant: Mutant, functions: dict[tuple[str, Place], list[FunctionType]]
    ) -> None:
        """Give the living functions of the mutant's file the changed code."""
        file = str(self.tree / mutant.path)
        was = mutant.undone(Path(file).read_text(encoding="utf-8"))
        new = replacements(was, mutant.applied(was), file)
        assert new is not None
        for place, code in new.items():
            for function in functions.get((file, place), ()):
                function.__code__ = code

    def _texts(self, mutant: Mutant) -> tuple[str, str]:
        source = (self.tree / mutant.path).read_text(encoding="utf-8")
        return source, mutant.applied(source)

    def _attempt(
        self,
        mutant: Mutant,
        run: Callable[[Sequence[str], Mutant | None], tuple[str, str]],
    ) -> Outcome:
        begun = time.monotonic()
        path = self.tree / mutant.path
        times = path.stat()
        source, changed = self._texts(mutant)
        diff = "\n".join(
            difflib.unified_diff(
                source.splitlines(), changed.splitlines(), mutant.path, mutant.where, "", "", 1, ""
            )
        )
        unsound: set[str] = set()
        fate, by = "untested", ""
        while chosen := self._chosen(mutant, unsound):
            try:
                path.write_text(changed, encoding="utf-8")
                fate, by = run(chosen, mutant)
                more = self.covered.functions(chosen) if fate == "survived" else []
                if more:
                    fate, by = run(more, mutant)
            finally:
                path.write_text(source, encoding="utf-8")
                os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            shutil.rmtree(self.tree / ".hypothesis", ignore_errors=True)
            if fate == "survived" or self._sound(by, run):
                break
            fate = "untested"
            if by not in chosen:
                break
            unsound.add(by)
        return Outcome(mutant, fate, by, time.monotonic() - begun, diff, len(chosen))

    def _chosen(self, mutant: Mutant, unsound: set[str]) -> list[str]:
        """Return the tests of a mutant, the quick ones first, and those of one file together."""
        chosen: list[str] = []
        left = self.seconds
        for test in self.covered.of(mutant.path, mutant.lines, mutant.around):
            left -= self.covered.seconds[test]
            if chosen and left < 0:
                break
            if test not in unsound:
                chosen.append(test)
        files = list(dict.fromkeys(t.partition("::")[0] for t in chosen))
        return sorted(
            chosen,
            key=lambda t: (self.covered.seconds[t] > 1, files.index(t.partition("::")[0])),
        )

    def _sound(
        self, by: str, run: Callable[[Sequence[str], Mutant | None], tuple[str, str]]
    ) -> bool:
        """Return whether the test that killed passes on the code as it is."""
        if by == "import":
            return True  # that of the tree as it is was measured
        if (by,) not in self.sound:
            self.sound[by,] = run([by], None)[0] == "survived"
        return self.sound[by,]
