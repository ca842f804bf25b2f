"""What an attack is made of: cases, the command line they run, and the judge of what came of it.

A case damages, starves or misleads cl-lora in one way and says what became of it. Commands run in
forks of a process that has imported everything, so that thousands of them take minutes; those that
need an interpreter of their own (another locale, ``-OO``) use :func:`process`.
"""

from __future__ import annotations

import enum
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LONGEST_S = 120.0
"""A command that takes longer hangs."""


class Verdict(enum.Enum):
    """What became of an attack."""

    RIGHT = "right numbers"
    REFUSED = "one clear sentence"
    WRONG = "a wrong number with exit code 0"
    TRACEBACK = "a traceback"
    HALF = "something half-written"
    HANG = "a hang"
    UNCLEAR = "another exit code, or no clear sentence"

    @property
    def good(self) -> bool:
        """Whether that is what should happen."""
        return self in (Verdict.RIGHT, Verdict.REFUSED)


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Attributes:
        code: its exit code; negative for a signal.
        out: standard output.
        err: standard error.
        seconds: wall time.
        hung: whether it was stopped for taking too long.
    """

    code: int
    out: str
    err: str
    seconds: float
    hung: bool = False


@dataclass(frozen=True)
class Case:
    """One attack.

    Attributes:
        name: what is done, in words that tell it from every other case of its group.
        run: does it in an empty folder of its own, and returns the verdict and what shows it.
    """

    name: str
    run: Callable[[Path], tuple[Verdict, str]]


@dataclass(frozen=True)
class Group:
    """Attacks of one kind.

    Attributes:
        name: of the group.
        title: what is attacked, in words.
        cases: (seed, folder to prepare something in) -> the cases.
    """

    name: str
    title: str
    cases: Callable[[int, Path], Sequence[Case]]


def fork(
    arguments: Sequence[str],
    cwd: Path,
    env: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
    longest_s: float = LONGEST_S,
) -> Outcome:
    """Run ``cl-lora ARGUMENTS`` in a fork; ``before`` is called in it first (limits, signals)."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begun = time.monotonic()
        child = os.fork()
        if child == 0:
            _become(arguments, cwd, env or {}, before, out.fileno(), err.fileno())
        code, hung = _wait(child, begun + longest_s)
        seconds = time.monotonic() - begun
        out.seek(0)
        err.seek(0)
        told = (out.read().decode(errors="replace"), err.read().decode(errors="replace"))
    return Outcome(code, *told, seconds, hung)


def _become(
    arguments: Sequence[str],
    cwd: Path,
    env: Mapping[str, str],
    before: Callable[[], None] | None,
    out: int,
    err: int,
) -> None:
    """Be the command, and end; never returns."""
    code = 70
    try:
        os.setsid()
        os.chdir(cwd)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for there, number in ((nothing, 0), (out, 1), (err, 2)):
            os.dup2(there, number)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        os.environ.update(env)
        sys.argv = ["cl-lora", *arguments]
        if before is not None:
            before()
        from cl_lora.cli import main

        code = main(arguments)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                if stream is not None:  # as where it was closed
                    stream.flush()
            except BaseException:
                code = code or 120  # as an interpreter that cannot write its last words
        os._exit(code)


def _wait(child: int, until: float) -> tuple[int, bool]:
    pause = 0.002
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), False
        if time.monotonic() > until:
            os.killpg(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), True
        time.sleep(pause)
        pause = min(0.05, pause * 1.5)


def process(
    arguments: Sequence[str],
    cwd: Path,
    env: Mapping[str, str] | None = None,
    python: Sequence[str] = (),
    longest_s: float = LONGEST_S,
    stdout: int | None = None,
) -> Outcome:
    """Run ``cl-lora ARGUMENTS`` in an interpreter of its own.

    Args:
        arguments: of cl-lora.
        cwd: where.
        env: the whole environment; None for that of this process.
        python: flags of the interpreter.
        longest_s: after which it hangs.
        stdout: a file descriptor to write to, instead of what is captured.
    """
    begun = time.monotonic()
    command = [sys.executable, *python, "-m", "cl_lora", *arguments]
    child = subprocess.Popen(
        command,
        cwd=cwd,
        env=None if env is None else dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if stdout is None else stdout,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = child.communicate(timeout=longest_s)
        hung = False
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        out, err = child.communicate()
        hung = True
    told = ((out or b"").decode(errors="replace"), err.decode(errors="replace"))
    return Outcome(child.returncode, *told, time.monotonic() - begun, hung)


def judge(
    outcome: Outcome, right: Callable[[], bool] | None, where: Path | None = None
) -> tuple[Verdict, str]:
    """Return what a command's outcome amounts to, and what shows it.

    Args:
        outcome: of the command.
        right: whether what it made is right, asked where it ended with 0; None where ending with 0
            is wrong in itself.
        where: a folder in which nothing hidden may be left.
    """
    shown = outcome.err.strip()[-600:]
    if outcome.hung:
        return Verdict.HANG, f"stopped after {outcome.seconds:.0f} s"
    if "Traceback (most recent call last)" in outcome.err + outcome.out:
        return Verdict.TRACEBACK, shown
    if where is not None and (left := leftovers(where)):
        return Verdict.HALF, f"left {', '.join(left)}"
    if outcome.code == 0:
        good = right is not None and right()
        return (Verdict.RIGHT, "") if good else (Verdict.WRONG, shown)
    refused = outcome.code == 2 and is_sentence(outcome.err)
    verdict = Verdict.REFUSED if refused else Verdict.UNCLEAR
    return verdict, shown if refused else f"exit code {outcome.code}: {shown}"


def is_sentence(err: str) -> bool:
    """Return whether the last line of standard error is one of cl-lora's own, with a remedy."""
    lines = [line for line in err.splitlines() if line.strip()]
    if not lines:
        return False
    last = lines[-1]
    printable = all(c.isprintable() for c in last)
    remedy = any(sign in last for sign in (";", "did you mean ", "known: "))
    return last.startswith("cl-lora: ") and remedy and printable and len(last) < 1500


def leftovers(where: Path) -> list[str]:
    """Return the names of hidden files and folders below ``where``: what was not finished."""
    found = (p for p in where.rglob(".*") if p.name not in (".lock", ".run.lock"))
    return sorted(str(p.relative_to(where)) for p in found)
