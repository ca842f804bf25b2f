"""What is around a command: rights, places, standard output, surroundings, names."""

from __future__ import annotations

import os
import random
import resource
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from attack import faults
from attack.core import Case, Outcome, Verdict, fork, judge, process
from attack.faults import Before, Disk
from attack.ground import (
    COMPARE,
    EXPORT,
    LIGHT,
    MERGE,
    QUIET,
    REPORT,
    RUN,
    Ground,
    Told,
    attack,
    with_run,
)

# Rights --------------------------------------------------------------------------------------


_SHUT = (
    ("run in a folder that may not be written", QUIET, ".", 0o555),
    ("demo in a folder that may not be written", ("demo",), ".", 0o555),
    ("report of a run that may not be written", REPORT, "run", 0o555),
    ("report where figures may not be written", REPORT, "figures", 0o555),
    ("report where events may not be written", REPORT, "tensorboard", 0o555),
    ("export into a folder that may not be written", EXPORT, ".", 0o555),
    ("merge into a folder that may not be written", MERGE, ".", 0o555),
    ("a figure of compare that may not be written", COMPARE, ".", 0o555),
    ("report of a run whose configuration may not be read", REPORT, "run/config.yaml", 0),
    ("report of a run whose scores may not be read", REPORT, "scores.csv", 0),
    ("report of a run whose stream may not be read", REPORT, "stream.json", 0),
    ("report of a run whose coefficients may not be read", REPORT, "coefficients.csv", 0),
    ("report of a run whose adapters may not be read", REPORT, "training.json", 0),
    ("compare with a run whose configuration may not be read", COMPARE, "run/config.yaml", 0),
    ("compare with a run whose scores may not be read", COMPARE, "scores.csv", 0),
    ("compare with a run that may not be entered", COMPARE, "run", 0),
    ("export of adapters that may not be read", EXPORT, "adapter_model.safetensors", 0),
    ("export of an adapter that may not be entered", EXPORT, "00-photo", 0),
    ("merge of adapters that may not be read", MERGE, "adapter_model.safetensors", 0),
    ("merge of a configuration that may not be read", MERGE, "adapter_config.json", 0),
)
"""(name, command, pattern of what is shut, mode): to succeed then would be wrong."""

_SHUT_AGAIN = (
    ("a run again whose scores may not be read", QUIET, "scores.csv", 0),
    ("a run again whose configuration may not be read", QUIET, "run/config.yaml", 0),
    ("a run again whose adapter may not be read", QUIET, "*.safetensors", 0),
    ("a run again whose adapter may not be entered", QUIET, "00-photo", 0),
    ("a run again into a folder that may not be written", QUIET, "run", 0o555),
    ("report of a run whose hits may not be read", REPORT, "*.npz", 0),
)
"""The same of commands over a finished run, which may succeed."""


def _rights(ground: Ground, seed: int) -> list[Case]:
    """Take the right to write a folder, or to read a file."""
    del seed
    cases = [
        *(Case(of[0], partial(_shut, ground, *of[1:], True)) for of in _SHUT),
        *(Case(of[0], partial(_shut, ground, *of[1:], False)) for of in _SHUT_AGAIN),
        Case("a cache that may not be written", partial(_cache, ground, 0o555)),
        Case("a cache that may not be read", partial(_cache, ground, 0)),
        Case("umask 777", partial(_masked, ground, 0o777)),
        Case("umask 077", partial(_masked, ground, 0o077)),
    ]
    for arguments in (QUIET, REPORT, COMPARE, EXPORT, LIGHT[3]):
        name = f"{arguments[0]}{' with a figure' if arguments == COMPARE else ''}"
        run = partial(_read_only, ground, arguments)
        cases.append(Case(f"{name} on a disk that is read only", run))
    return cases


def _shut(
    ground: Ground, arguments: Sequence[str], pattern: str, mode: int, never: bool, where: Path
) -> Told:
    """Give a command to nobody, who may not do something with what a pattern matches."""
    with_run(ground, where, arguments)
    if not never and arguments == QUIET:
        ground.copy(where)
    _give(where)
    paths = [where] if pattern == "." else [p for p in where.rglob("*") if p.match(pattern)]
    before = {path: path.stat().st_mode for path in paths}
    for path in paths:
        path.chmod(mode)

    def mend() -> None:
        for path, old in before.items():
            if path.exists():
                path.chmod(old)

    try:
        return attack(ground, where, arguments, faults.nobody, mend=mend, never=never)
    finally:
        mend()


def _cache(ground: Ground, mode: int, where: Path) -> Told:
    """Give nobody a cache that may not be written, and with mode 0 what is in it not be read."""
    (where / "cache").mkdir()
    if mode == 0:
        shutil.copytree(ground.run.parent / "cache", where / "cache", dirs_exist_ok=True)
        for path in (where / "cache").iterdir():
            path.chmod(0)
    _give(where)
    (where / "cache").chmod(0o555)
    env = {"CL_LORA_CACHE": str(where / "cache")}
    return attack(ground, where, QUIET, faults.nobody, env=env)


def _read_only(ground: Ground, arguments: Sequence[str], where: Path) -> Told:
    """Put all that a command finds on a disk that is read only."""
    never = "--figure" in arguments or arguments[0] != "compare"
    if not faults.can_mount():
        return _shut(ground, arguments, ".", 0o555, never, where)
    with faults.disk_of(_ROOM, where):
        with_run(ground, where, arguments)
        faults.resize(where, _ROOM, read_only=True)
        mend = partial(faults.resize, where, _ROOM)
        return attack(ground, where, arguments, None, mend=mend, never=never)


def _masked(ground: Ground, mask: int, where: Path) -> Told:
    """Let nobody make files and folders that others, or nobody himself, may not use."""
    _give(where)
    fault = faults.both(faults.nobody, partial(os.umask, mask))

    def mend() -> None:
        for path in where.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)

    return attack(ground, where, QUIET, fault, mend=mend)


_ROOM = 1 << 24


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

    for arguments in (QUIET, LIGHT[1], LIGHT[2], REPORT, COMPARE, ("demo",)):
        name = f"{arguments[0]} of a user without a home"
        cases.append(Case(name, partial(_homeless, ground, arguments, faults.without_user, None)))
    for home in ("/nonexistent", "/proc/none", "/dev/null"):
        cases.append(
            Case(f"run with HOME={home}", partial(_homeless, ground, QUIET, faults.nobody, home))
        )

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

    for arguments in (QUIET, LIGHT[1]):
        cases.append(Case(f"{arguments[0]}, LC_ALL=C", partial(_own, ground, arguments, (), _POOR)))
    for arguments in (QUIET, LIGHT[2], REPORT):
        cases.append(
            Case(f"{arguments[0]}, python -OO", partial(_own, ground, arguments, ("-OO",), {}))
        )
    return cases


_POOR = {
    "LC_ALL": "C",
    "LANG": "C",
    "PYTHONIOENCODING": "ascii",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
}


def _homeless(
    ground: Ground, arguments: Sequence[str], fault: Before, home: str | None, where: Path
) -> Told:
    """Give a command to a user without a home, or with one that is none, and then to root."""
    with_run(ground, where, arguments)
    for path in (where, *where.rglob("*")):
        path.chmod(0o777)

    def before() -> None:
        fault()
        for name in ("CL_LORA_CACHE", "XDG_CACHE_HOME"):
            os.environ.pop(name, None)
        if home is not None:
            os.environ["HOME"] = home

    never = arguments[0] == "demo"
    outcome = fork(arguments, where, None, before)
    verdict, shown = judge(outcome, None if never else partial(ground.made, arguments, where))
    if verdict.good and arguments == QUIET:
        flaw, told = attack(ground, where, arguments, None)
        return (verdict, shown) if flaw.good else (flaw, told)
    return verdict, shown


def _own(
    ground: Ground,
    arguments: Sequence[str],
    python: Sequence[str],
    env: Mapping[str, str],
    where: Path,
) -> Told:
    """Run a command in an interpreter of its own."""
    with_run(ground, where, arguments)
    compiled = str(ground.place / "compiled")  # not beside the libraries
    every = {**os.environ, **ground.env, "PYTHONPYCACHEPREFIX": compiled, **env}
    outcome = process(arguments, where, every, python, longest_s=400)
    return judge(outcome, partial(ground.made, arguments, where), where)


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


AROUND = (_rights, _places, _output, _surroundings, _names)
"""What makes these cases."""
