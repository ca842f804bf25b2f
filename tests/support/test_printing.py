"""What reaches the terminal, in any locale, and where nobody reads it."""

from __future__ import annotations

import io
import logging
import os
import sys

import pytest

from cl_lora.support import printing


class Full(io.StringIO):
    """A stream on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_what_is_told_never_stops_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (Full(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        printing.tell("seed 0: trained photo")


def test_names_are_escaped_in_all_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    name = "\x1b[31mred\nline"
    printing.tell(name)
    printing.say(name)
    record = logging.makeLogRecord({"msg": "trained %s", "args": (name,)})
    told = capsys.readouterr()
    shown = r"\x1b[31mred\nline"
    assert (told.out, told.err) == (f"{shown}\n", f"{shown}\n")
    assert printing.Lines("%(message)s").format(record) == f"trained {shown}"


def test_our_characters_have_plain_ones_in_ascii() -> None:
    shown = "0.5 ± 0.1 ↓ … Käse"
    assert shown.encode("ascii", "cl_lora.plain") == rb"0.5 +/- 0.1 v ... K\xe4se"
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("ascii", "cl_lora.plain")


def test_output_that_cannot_be_written_is_a_sentence_and_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with open(os.open("/dev/full", os.O_WRONLY), "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        print("a table")
        with pytest.raises(printing.OutputError, match=r"standard output: No space .*; what"):
            printing.finish_output()
        printing.finish_output()  # nothing is left that the interpreter would try to write


def test_what_cannot_be_told_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.open("/dev/full", os.O_WRONLY), "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        printing.tell("seed 0: trained photo")
        printing.finish_errors()
        full.flush()  # as the interpreter does when it ends


def test_streams_that_were_closed_take_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    printing.prepare_streams()
    with sys.stdout, sys.stderr:
        assert not sys.stderr.isatty()
        printing.say("a table")
        printing.tell("seed 0: trained photo")


def test_a_closed_stream_is_held_by_the_null_device() -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(1)
            printing.prepare_streams()
            with open(os.devnull, "rb") as other:
                code = 0 if os.readlink("/proc/self/fd/1") == os.devnull else 2
                code = code or int(other.fileno() == 1)
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
