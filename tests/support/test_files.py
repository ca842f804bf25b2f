"""Folders and files that are written whole: what a kill leaves, what is replaced and what not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from cl_lora.evaluation.scores import ScoreTable
from cl_lora.run_folder.config_file import read_config
from cl_lora.run_folder.hits import read_hits
from cl_lora.run_folder.rows import ACCOUNTS
from cl_lora.support import files
from cl_lora.support.errors import UserError

# Replaces the folder "there" and kills itself before its given call of os.rename or shutil.rmtree.
KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from cl_lora.support import files

path, before = Path(sys.argv[1]), int(sys.argv[2])
calls = 0

def counted(function):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == before:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call

os.rename, shutil.rmtree = counted(os.rename), counted(shutil.rmtree)
os.unlink = counted(os.unlink)  # in the middle of rmtree
with files.whole_folder(path, replace=True) as temporary:
    for name in ("a", "b"):
        (temporary / name).write_text("new")
"""


def _write(path: Path, text: str, replace: bool = False) -> None:
    with files.whole_folder(path, replace=replace) as temporary:
        for name in ("a", "b"):
            (temporary / name).write_text(text)


def _content(path: Path) -> set[tuple[str, str]]:
    return {(p.name, p.read_text()) for p in path.iterdir()}


def test_a_new_folder_and_a_replaced_one_leave_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "there"
    _write(path, "old")
    _write(path, "new", replace=True)
    assert _content(path) == {("a", "new"), ("b", "new")}
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize("replace", [False, True])
def test_an_empty_folder_may_be_filled(tmp_path: Path, replace: bool) -> None:
    (tmp_path / "there").mkdir()
    _write(tmp_path / "there", "new", replace)
    assert _content(tmp_path / "there") == {("a", "new"), ("b", "new")}


def test_what_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "there"
    _write(path, "old")
    with pytest.raises(UserError, match="holds files already"):
        _write(path, "new")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="it is a file"):
        _write(tmp_path / "file", "new", replace=True)
    assert _content(path) == {("a", "old"), ("b", "old")}
    assert (tmp_path / "file").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2


def test_an_error_while_writing_leaves_the_old_folder(tmp_path: Path) -> None:
    path = tmp_path / "there"
    _write(path, "old")

    def fail() -> None:
        with files.whole_folder(path, replace=True) as temporary:
            (temporary / "a").write_text("new")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert _content(path) == {("a", "old"), ("b", "old")}
    assert len(list(tmp_path.iterdir())) == 1


def test_an_error_takes_the_new_folders_above_away(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with (
        pytest.raises(RuntimeError, match="stop"),
        files.whole_folder(tmp_path / "old" / "new" / "deep" / "model"),
    ):
        raise RuntimeError("stop")
    assert list(tmp_path.rglob("*")) == [tmp_path / "old"]


def test_an_error_between_the_two_renames_gives_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "there"
    _write(path, "old")
    rename = os.rename

    def full(source: Path, target: Path) -> None:
        if Path(target) == path and ".old-" not in Path(source).name:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(UserError, match="No space left"):
        _write(path, "new", replace=True)
    assert _content(path) == {("a", "old"), ("b", "old")}
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("before", range(1, 8))
def test_a_kill_at_any_moment_leaves_the_old_or_the_new(tmp_path: Path, before: int) -> None:
    path = tmp_path / "there"
    _write(path, "old")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), str(before)], check=False, capture_output=True
    )
    # Three renames, one deletion, two files in it: the last moment is after all of them.
    assert done.returncode == (-9 if before <= 6 else 0), done.stderr
    assert path.exists() == (before != 2)
    files.restore(path)
    text = "old" if before <= 2 else "new"
    assert _content(path) == {("a", text), ("b", text)}
    # Whatever lies around is hidden, and in nobody's way.
    assert all(p.name.startswith(".") for p in tmp_path.iterdir() if p != path)
    _write(path, "later", replace=True)
    assert _content(path) == {("a", "later"), ("b", "later")}
    assert not [p for p in tmp_path.iterdir() if ".old-" in p.name]


def test_all_folders_below_one_are_given_back(tmp_path: Path) -> None:
    for name in ("one", "two.old-x", "three"):
        _write(tmp_path / name, name)
        (tmp_path / name).rename(tmp_path / f".{name}.old-0123456789abcdef")
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "a").write_text("newer")
    (tmp_path / ".two.abcdefgh").mkdir()  # half written: nobody's
    files.restore_below(tmp_path)
    assert _content(tmp_path / "one") == {("a", "one"), ("b", "one")}
    assert _content(tmp_path / "two.old-x") == {("a", "two.old-x"), ("b", "two.old-x")}
    assert not (tmp_path / "two").exists()
    assert _content(tmp_path / "three") == {("a", "newer")}


def test_a_reader_that_gives_the_old_folder_back_meanwhile_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "there"
    _write(path, "0")
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            files.restore(path)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for i in range(1, 60):
            _write(path, str(i), replace=True)
            files.restore(path)
            assert _content(path) == {("a", str(i)), ("b", str(i))}
    finally:
        stop.set()
        reader.join()


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    _write(tmp_path / "disk" / "there", "old")
    link = tmp_path / "there"
    link.symlink_to(tmp_path / "disk" / "there")
    _write(link, "new", replace=True)
    assert link.is_symlink()
    assert _content(tmp_path / "disk" / "there") == {("a", "new"), ("b", "new")}


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "below" / "file"
    files.write_text(path, "old")
    files.write_json(path, {"b": 1, "a": 2})
    assert path.read_text() == '{\n  "a": 2,\n  "b": 1\n}\n'
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write to"):
        files.write_text(tmp_path / "file" / "below", "x")


def test_a_full_disk_below_safetensors_is_the_same_sentence() -> None:
    # As safetensors 0.8 says it, which raises no OSError.
    said = "Error while serializing: I/O error: No space left on device (os error 28)"
    expected = r"^Cannot write to x: No space left on device; free some space"
    with pytest.raises(UserError, match=expected), files.explain_write_errors(Path("x")):
        raise SafetensorError(said)
    with pytest.raises(SafetensorError), files.explain_write_errors(Path("x")):
        raise SafetensorError("Error while deserializing header: invalid")


READERS: dict[str, Callable[[Path], object]] = {
    "scores.csv": ScoreTable.read,
    "accounts.csv": ACCOUNTS.read,
    "config.yaml": lambda path: read_config(path.parent),
    "hits-seed-0.npz": read_hits,
    "any.json": lambda path: files.read_json(path, "is damaged", "delete it"),
}


@pytest.mark.parametrize("name", READERS)
def test_what_may_not_be_read_is_not_called_damaged(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who deletes a file that was only protected, as is said of damage, loses what it holds."""
    path = tmp_path / name
    path.write_bytes(b"")

    def refuse(of: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(of))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError) as caught:
        READERS[name](path)
    said = f"Cannot read {path}: Permission denied; check its permissions, or choose another folder"
    assert str(caught.value) == said
