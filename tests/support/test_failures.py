"""What the system refuses is a sentence with a remedy; our own mistakes are none."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cl_lora.support.failures import sentence_of


def refused(number: int, *names: str) -> OSError:
    return OSError(number, os.strerror(number), *names)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (refused(errno.ENOSPC, "a"), "a: No space left on device; free some space"),
        (refused(errno.EACCES, "a\x1bb"), r"a\x1bb: Permission denied; check its permissions"),
        (refused(errno.EMFILE), "The system refuses: Too many open files; raise the limit"),
        (refused(errno.EXDEV, "a"), "a: Invalid cross-device link; check it"),
        (MemoryError(), "The memory does not suffice; close other programs"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"),
            "The memory does not suffice",
        ),
        (RuntimeError("could not create a primitive"), "The memory does not suffice"),
        (RuntimeError("can't start new thread"), "The system starts no more threads; close"),
        (RuntimeError("Could not determine home directory."), "Could not .*; set HOME"),
    ],
)
def test_refusals_have_a_remedy(error: Exception, said: str) -> None:
    sentence = sentence_of(error)
    assert sentence is not None
    assert sentence.startswith(said.split(" .*", maxsplit=1)[0])
    assert said.rsplit("; ", maxsplit=1)[-1] in sentence


def test_errors_that_a_library_wraps_are_found() -> None:
    wrapped = RuntimeError("failed")
    wrapped.__cause__ = refused(errno.ENOSPC, "file")
    assert (sentence_of(wrapped) or "").startswith("file: No space left")
    raised_beside = ValueError("no number")
    raised_beside.__context__ = MemoryError()
    raised_beside.__suppress_context__ = True
    assert sentence_of(raised_beside) is None


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("x"), KeyError("x"), OSError("x")])
def test_mistakes_of_ours_are_no_refusals(error: Exception) -> None:
    assert sentence_of(error) is None


def test_a_deleted_current_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(FileNotFoundError) as raised:
        os.getcwd()
    assert (sentence_of(raised.value) or "").startswith("The current folder does not exist")
