"""Which tests run which line, and what each test costs: measured once for a state of the code."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CODE = ("cl_lora", "benchmarks", "strategies", "tests")
PACKAGES = ("cl_lora/merging", "cl_lora/evaluation", "strategies", "cl_lora/experiment")
PYTEST = (
    "-n",
    "0",
    "-q",
    "-s",
    "-p",
    "no:cacheprovider",
    "--disable-warnings",
    "--hypothesis-seed=0",
)
CASES = 20
TOOL = "tools/mutate.py"
# Workers have caches of images of their own, and share this.
PLACE = Path(
    os.environ.get("MUTATE_PLACE") or Path(os.environ.get("CL_LORA_CACHE", ".cache")) / "mutate"
).absolute()


@dataclass
class Covered:
    """The tests of an undisturbed run."""

    seconds: dict[str, float]
    """Of each test that passes, its fixtures included."""
    shared: dict[str, list[str]]
    """Fixtures of a module or more that a test uses."""
    lines: dict[str, dict[int, list[str]]]
    """Tests by the file and line they run; an empty name is an import."""
    failed: list[str]

    def of(self, path: str, lines: tuple[int, int], around: tuple[int, int]) -> list[str]:
        """Return the tests of a statement, or else of what is around it."""
        found = self.lines.get(path, {})
        tests, imported = self._within(found, lines)
        direct = self.by_cost(tests)
        if direct and not imported:
            return direct
        around_it = self.by_cost(self._within(found, around)[0])
        in_file = self.by_cost({name for names in found.values() for name in names} - {""})
        return list(dict.fromkeys([*direct, *around_it, *in_file]))

    @staticmethod
    def _within(found: dict[int, list[str]], lines: tuple[int, int]) -> tuple[set[str], bool]:
        tests = {t for line in range(lines[0], lines[1] + 1) for t in found.get(line, ())}
        return tests - {""}, "" in tests

    def imports(self, path: str, lines: tuple[int, int]) -> bool:
        """Return whether a statement runs while modules are imported."""
        return self._within(self.lines.get(path, {}), lines)[1]

    def functions(self, tests: Iterable[str]) -> list[str]:
        """Return the parametrised functions of tests that have more cases, all quick."""
        cases: dict[str, list[float]] = defaultdict(list)
        for test in tests:
            name, bracket, _ = test.partition("[")
            if bracket:
                cases[name].append(self.seconds[test])
        return [name for name, costs in cases.items() if self.cases[name] == CASES > sum(costs)]

    @functools.cached_property
    def cases(self) -> Counter[str]:
        """How many cases of each function were measured."""
        return Counter(test.partition("[")[0] for test in self.seconds)

    def by_cost(self, tests: Iterable[str]) -> list[str]:
        """Return tests that pass, cheapest first."""
        return sorted((t for t in tests if t in self.seconds), key=lambda t: (self.seconds[t], t))


class _Recorder:
    """A plugin of pytest that tells coverage which test runs and notes what each costs."""

    def __init__(self, coverage: Any) -> None:
        self.coverage = coverage
        self.seconds: dict[str, float] = defaultdict(float)
        self.fixtures: dict[str, float] = defaultdict(float)
        self.shared: dict[str, list[str]] = {}
        self.failed: set[str] = set()
        self.test = ""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        """Keep a few cases of each parametrised test, evenly: a mutant seldom needs them all."""
        cases: dict[str, list[Any]] = defaultdict(list)
        for item in items:
            cases[item.nodeid.partition("[")[0]].append(item)
        kept = {
            id(of_it[len(of_it) * i // n])
            for of_it in cases.values()
            for n in [min(len(of_it), CASES)]
            for i in range(n)
        }
        config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
        items[:] = [item for item in items if id(item) in kept]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any, nextitem: Any) -> Iterator[Any]:
        self.test = item.nodeid
        self.coverage.switch_context(self.test)
        found = item._fixtureinfo.name2fixturedefs.values()
        names = {_shared(each) for all_of_it in found for each in all_of_it}
        self.shared[self.test] = sorted(names - {""})
        result = yield
        self.coverage.switch_context("")
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[Any]:
        """Count what a module's fixture runs for itself: the tests that use it run it all."""
        name = _shared(fixturedef)
        if not name:
            return (yield)
        self.coverage.switch_context(name)
        begun = time.perf_counter()
        try:
            return (yield)
        finally:
            seconds = time.perf_counter() - begun
            self.fixtures[name] += seconds
            self.seconds[self.test] -= seconds
            self.coverage.switch_context(self.test)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] += report.duration
        if not report.passed:
            self.failed.add(report.nodeid)


def _shared(fixture: Any) -> str:
    """Return the name of a fixture of a module; empty for others.

    Those of conftest.py make data, and would join everything with everything.
    """
    own = fixture.scope != "function" and ".py" in fixture.baseid
    return f"{fixture.baseid}::{fixture.argname}" if own else ""


def measure(tests: Sequence[str], into: Sequence[str]) -> None:
    """Run files of tests under coverage and write what each runs (in a process of its own)."""
    import coverage

    watch = coverage.Coverage(data_file=None, config_file=False, include=_patterns())
    recorder = _Recorder(watch)
    watch.start()
    code = pytest.main([*PYTEST, *tests], plugins=[recorder])
    watch.stop()
    if code not in {0, 1}:
        raise SystemExit(int(code))
    data = watch.get_data()
    root = Path.cwd().resolve()
    lines = {
        Path(file).resolve().relative_to(root).as_posix(): data.contexts_by_lineno(file)
        for file in data.measured_files()
    }
    for file, where in zip(tests, into, strict=True):

        def mine(test: str, file: str = file) -> bool:
            return test.startswith(f"{file}::") or not test

        part = {
            "seconds": {
                test: round(seconds, 4)
                for test, seconds in recorder.seconds.items()
                if mine(test) and test not in recorder.failed
            },
            "shared": {test: found for test, found in recorder.shared.items() if mine(test)},
            "fixtures": {name: s for name, s in recorder.fixtures.items() if mine(name)},
            "failed": sorted(filter(mine, recorder.failed)),
            "lines": {
                path: {
                    line: kept for line, names in of_it.items() if (kept := [*filter(mine, names)])
                }
                for path, of_it in lines.items()
            },
        }
        Path(where).write_text(json.dumps(part))


def _patterns() -> list[str]:
    here = Path.cwd().resolve()
    return [f"{here}/{package}/*" for package in (*PACKAGES, "cl_lora/strategies")]


def covered(tree: Path, tests: Sequence[str]) -> Covered:
    """Return what the tests run; measured again where they or the code have changed."""
    common = hashlib.sha256()
    files = []
    for path in sorted(p for top in CODE for p in (tree / top).rglob("*.py")):
        name = path.relative_to(tree).as_posix()
        if path.name.startswith("test_"):
            if any(name == each or name.startswith(f"{each}/") for each in tests):
                files.append(name)
        else:
            common.update(name.encode() + path.read_bytes())
    into = {}
    for name in files:
        own = common.copy()
        own.update(name.encode() + (tree / name).read_bytes())
        into[name] = PLACE / "tests" / f"{Path(name).stem}-{own.hexdigest()[:16]}.json"
    _measure(tree, {name: where for name, where in into.items() if not where.exists()})
    found: dict[str, Any] = {"seconds": {}, "shared": {}, "fixtures": {}, "failed": [], "lines": {}}
    for where in into.values():
        part = json.loads(where.read_text())
        found["seconds"] |= part["seconds"]
        found["shared"] |= part["shared"]
        found["fixtures"] |= part["fixtures"]
        found["failed"] += part["failed"]
        for file, of_file in part["lines"].items():
            for line, names in of_file.items():
                found["lines"].setdefault(file, {}).setdefault(line, []).extend(names)
    return _joined(found)


def _measure(tree: Path, missing: dict[str, Path]) -> None:
    if not missing:
        return
    (PLACE / "tests").mkdir(parents=True, exist_ok=True)
    print(f"measuring which lines {len(missing)} files of tests run ...", flush=True)
    begun = time.monotonic()
    command = [sys.executable, str(tree / TOOL), "--tests", *missing]
    command += ["--measure", *map(str, missing.values())]
    log = (PLACE / "measure.log").open("w")
    done = subprocess.run(command, cwd=tree, env=environment(tree), check=False, stdout=log)
    if not all(where.exists() for where in missing.values()):
        raise SystemExit(f"The tests did not run, exit code {done.returncode}; see {log.name}.")
    print(f"measured in {time.monotonic() - begun:.0f} s", flush=True)


def _joined(found: dict[str, Any]) -> Covered:
    lines = {
        file: {int(line): names for line, names in of_file.items()}
        for file, of_file in found["lines"].items()
    }
    shared: dict[str, list[str]] = found["shared"]
    users: dict[str, list[str]] = defaultdict(list)
    for test, fixtures in shared.items():
        for fixture in fixtures:
            users[fixture].append(test)
    for of_file in lines.values():
        for line, names in of_file.items():
            of_file[line] = sorted({test for name in names for test in users.get(name, [name])})
    # Alone, each test would pay for its fixtures.
    made: dict[str, float] = found["fixtures"]
    seconds = {
        test: own + sum(made.get(fixture, 0.0) for fixture in shared.get(test, ()))
        for test, own in found["seconds"].items()
    }
    return Covered(seconds, shared, lines, found["failed"])


def environment(tree: Path) -> dict[str, str]:
    """Return the environment in which the code of a tree is imported."""
    paths = [str(tree), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "CL_LORA_CACHE": str(PLACE / "images"),
        "MUTATE_PLACE": str(PLACE),
    }
