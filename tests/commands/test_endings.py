"""How a command ends: its exit code, and the one sentence on standard error."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cl_lora import cli
from cl_lora.cli import main
from cl_lora.commands.terminal import console
from cl_lora.support.errors import UserError

Ends = Callable[[Callable[[], Any]], tuple[int, str]]


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ends:
    """Return a function that lets a command do something, and says how it ended."""

    def ended(do: Callable[[], Any]) -> tuple[int, str]:
        monkeypatch.setattr(cli, "_dispatch", lambda given: do() or 0)
        return main([]), capsys.readouterr().err

    return ended


def raises(error: BaseException) -> Callable[[], Any]:
    def do() -> None:
        raise error

    return do


def test_a_full_disk_is_a_sentence(ends: Ends) -> None:
    code, told = ends(raises(OSError(errno.ENOSPC, "No space left on device", "runs/x")))
    assert code == 2
    assert told.startswith("cl-lora: runs/x: No space left on device; free some space")
    assert told.count("\n") == 1


def test_what_a_name_holds_does_not_reach_the_terminal(ends: Ends) -> None:
    code, told = ends(raises(UserError("No \x1b[31mred\nname; give\nanother")))
    assert code == 2
    assert told == "cl-lora: No \\x1b[31mred name; give another\n"


def test_mistakes_of_ours_keep_their_traceback(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        ends(lambda: 1 / 0)
    monkeypatch.setenv("CL_LORA_TRACEBACK", "1")
    with pytest.raises(OSError, match="full"):
        ends(raises(OSError(errno.ENOSPC, "full")))


@pytest.fixture(params=[signal.SIGTERM, signal.SIGHUP])
def number(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """A signal that ends a process, also where the tests run below nohup."""
    found: signal.Signals = request.param
    before = signal.signal(found, signal.SIG_DFL)
    yield found
    signal.signal(found, before)


def test_a_signal_ends_in_order(number: signal.Signals, ends: Ends) -> None:
    cleaned = []

    def do() -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            cleaned.append(signal.getsignal(number))

    code, told = ends(do)
    assert code == 128 + number
    assert told.splitlines()[-1].startswith("cl-lora: ended by a signal; what is finished is kept")
    assert cleaned == [signal.SIG_DFL]  # a second one ends it at once
    assert signal.getsignal(number) == signal.SIG_DFL


def test_a_signal_that_is_ignored_stays_so(ends: Ends) -> None:
    """As SIGHUP below nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert ends(lambda: os.kill(os.getpid(), signal.SIGHUP))[0] == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_says_what_is_kept(ends: Ends) -> None:
    assert ends(raises(KeyboardInterrupt())) == (
        130,
        "\ncl-lora: interrupted; what is finished is kept, the same command goes on from there\n",
    )
    assert "; nothing was written" in ends(raises(KeyboardInterrupt("nothing was written")))[1]


def test_a_console_whose_reader_has_gone_does_not_end_the_process() -> None:
    reads, writes = os.pipe()
    os.close(reads)
    with open(writes, "w") as pipe:
        with pytest.raises(BrokenPipeError):
            console(file=pipe).print("a line")
        os.dup2(os.open(os.devnull, os.O_WRONLY), writes)


@pytest.mark.parametrize(
    ("redirected", "code", "told"),
    [
        ("> /dev/full", 2, "cl-lora: Cannot write to standard output: No space left on device; "),
        ("| head -0; exit ${PIPESTATUS[0]}", 0, ""),
        (">&-", 0, ""),
        (">&- 2>&-", 0, ""),
    ],
)
def test_output_that_goes_nowhere(redirected: str, code: int, told: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m cl_lora --help {redirected}"],
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"},
        check=False,
    )
    assert done.returncode == code
    assert done.stderr.startswith(told)
    assert done.stderr.count("\n") == (1 if told else 0)


def test_lists_are_shown_in_an_ascii_locale() -> None:
    poor = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "cl_lora", "list", "methods"],
        capture_output=True,
        env={**os.environ, **poor, "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"ties" in done.stdout
    assert done.stdout.isascii()


@pytest.mark.parametrize("place", ["missing/figure.png", "file/figure.svg"])
def test_a_figure_of_compare_makes_no_folder(
    place: str, run_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    there = set(tmp_path.rglob("*"))
    assert main(["compare", str(run_path), "--figure", str(tmp_path / place)]) == 2
    assert "in a folder that exists but" in capsys.readouterr().err
    assert set(tmp_path.rglob("*")) == there
