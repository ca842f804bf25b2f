"""Saving over a folder: an adapter of ours is swapped, anything else is left alone."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import warm
from torch import nn

from cl_lora.adapters import Adapter, AdapterBank, LoRAFactors
from cl_lora.merging import merge
from cl_lora.support.errors import UserError

MOMENTS = range(1, 11)

# For each moment: a child saves another adapter over the one that is there, and kills itself
# before a given os.rename, os.unlink or os.replace: while it writes, between the two renames,
# while it deletes the old one. Prints how each child ended.
KILLED = """
import json, os, signal, sys
import torch
from cl_lora.adapters import AdapterBank, Adapter, LoRAFactors
import peft

calls = 0

def counted(function, before):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == before:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call

def save(bank, before):
    adapter = Adapter("x", {"m": LoRAFactors(torch.full((1, 2), 2.0), torch.ones(2, 1))},
                      {"weight": torch.full((3, 2), 2.0)}, {"value": 2.0})
    for name in ("rename", "replace", "unlink"):
        setattr(os, name, counted(getattr(os, name), before))
    AdapterBank(bank).save(0, "task", adapter)

ends = {}
for bank, before in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        save(bank, before)
        os._exit(0)
    ends[before] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(ends))
"""


def _adapter(value: float = 1.0) -> Adapter:
    factors = {"m": LoRAFactors(torch.full((1, 2), value), torch.ones(2, 1))}
    return Adapter("x", factors, {"weight": torch.full((3, 2), value)}, {"value": value})


def _value(adapter: Adapter) -> float:
    """Return the one value that everything of the adapter is made of."""
    values = {float(v) for f in adapter.factors.values() for v in f.A.flatten()}
    values |= {float(v) for v in adapter.head["weight"].flatten()} | {adapter.training["value"]}
    assert len(values) == 1
    return values.pop()


def test_a_kill_while_an_adapter_is_replaced_loses_neither(tmp_path: Path) -> None:
    banks = {before: AdapterBank(tmp_path / str(before)) for before in MOMENTS}
    for bank in banks.values():
        bank.save(0, "task", _adapter(1.0))
    given = json.dumps([[str(bank.folder), before] for before, bank in banks.items()])
    done = subprocess.run(
        [*warm.python(), "-c", KILLED, given], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    # Two JSON files, three renames and four deletions: the tenth moment is after them.
    assert list(json.loads(done.stdout).values()) == [-9] * 9 + [0]
    for before, bank in banks.items():
        assert bank.has(0, "task")
        assert _value(bank.load(0, "task")) == (1.0 if before <= 4 else 2.0)
        assert len(bank) == 1
        bank.save(0, "task", _adapter(3.0))
        assert _value(bank.load(0, "task")) == 3.0


def test_every_reader_gives_an_adapter_back_that_was_put_aside(tmp_path: Path) -> None:
    bank = AdapterBank(tmp_path)
    readers: list[Callable[[], object]] = [
        lambda: bank.has(0, "task"),
        lambda: len(bank),
        lambda: bank.load(0, "task"),
        lambda: Adapter.load(bank.path(0, "task")),
    ]
    bank.save(0, "task", _adapter())
    for read in readers:
        bank.path(0, "task").rename(tmp_path / ".00-task.old-0123456789abcdef")
        assert read()
        assert [p.name for p in tmp_path.iterdir()] == ["00-task"]


FOREIGN: dict[str, Callable[[Path], object]] = {
    "thesis.tex": lambda f: (f / "thesis.tex").write_text("mine"),
    "training.json": lambda f: (f / "training.json").write_text("{}"),
    "adapters": lambda f: _adapter().save(f / "adapters"),
    ".hidden": lambda f: (f / ".hidden").write_text("mine"),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("kind", ["adapter", "update"])
@pytest.mark.parametrize("beside", [False, True])
def test_a_folder_of_something_else_is_refused_and_left_alone(
    tmp_path: Path, name: str, kind: str, beside: bool
) -> None:
    folder = tmp_path / "there"
    if beside and name != "training.json":
        _adapter().save(folder)  # an adapter, and something that somebody laid there
    folder.mkdir(exist_ok=True)
    FOREIGN[name](folder)
    if beside and name == "training.json":
        (folder / "notes").write_text("mine")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    thing = _adapter(2.0) if kind == "adapter" else merge([_adapter(2.0)])
    with pytest.raises(UserError, match=r"no adapter of ours .* choose another folder"):
        thing.save(folder)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="it is a file"):
        _adapter().save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_the_home_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").write_text("mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="'mine'"):
        merge([_adapter()]).save(".")
    assert (tmp_path / "mine").read_text() == "mine"


def test_an_adapter_of_peft_is_somebody_elses(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = nn.Sequential(nn.Linear(2, 2))
    get_peft_model(model, LoraConfig(target_modules=["0"])).save_pretrained(tmp_path / "theirs")
    with pytest.raises(UserError, match=r"README\.md"):
        _adapter().save(tmp_path / "theirs")


def test_an_empty_folder_and_an_update_of_ours_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    for value in (1.0, 2.0):
        merge([_adapter(value)]).save(tmp_path / "new")
        assert float(Adapter.load(tmp_path / "new").factors["m"].delta()[0, 0]) == value
    assert os.listdir(tmp_path) == ["new"]


DAMAGES: dict[str, Callable[[Path], object]] = {
    "only the config": lambda f: [
        (f / n).unlink() for n in ("adapter_model.safetensors", "head.safetensors", "training.json")
    ],
    "no config": lambda f: (f / "adapter_config.json").unlink(),
    "bad config": lambda f: (f / "adapter_config.json").write_text("{"),
    "no weights": lambda f: (f / "adapter_model.safetensors").unlink(),
    "cut weights": lambda f: os.truncate(
        f / "adapter_model.safetensors", (f / "adapter_model.safetensors").stat().st_size - 1
    ),
    "empty weights": lambda f: (f / "adapter_model.safetensors").write_bytes(b""),
    "no head": lambda f: (f / "head.safetensors").unlink(),
    "cut head": lambda f: os.truncate(f / "head.safetensors", 20),
    "bad training": lambda f: (f / "training.json").write_text("{"),
    "a strange list": lambda f: (f / "training.json").write_text('{"files": ["../x"]}'),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_adapter_is_not_there_and_is_trained_again(tmp_path: Path, name: str) -> None:
    bank = AdapterBank(tmp_path)
    bank.save(0, "task", _adapter())
    assert bank.has(0, "task")
    DAMAGES[name](bank.path(0, "task"))
    assert not bank.has(0, "task")
    with pytest.raises(UserError):
        bank.load(0, "task")
    with pytest.raises(UserError, match="00-task is damaged"):
        bank.paths()
    bank.save(0, "task", _adapter(2.0))
    assert _value(bank.load(0, "task")) == 2.0


def test_an_adapter_from_before_files_were_listed_is_whole(tmp_path: Path) -> None:
    bank = AdapterBank(tmp_path)
    bank.save(0, "task", _adapter())
    path = bank.path(0, "task") / "training.json"
    path.write_text(json.dumps({"value": 1.0}))
    assert bank.has(0, "task")
    assert _value(bank.load(0, "task")) == 1.0
    path.unlink()
    assert bank.has(0, "task")
    assert set(bank.load(0, "task").head) == {"weight"}


def test_an_adapter_of_somebody_else_is_never_replaced(tmp_path: Path) -> None:
    """Weights that cannot be made again: without our training.json they are not ours."""
    folder = tmp_path / "downloaded"
    _adapter().save(folder)
    (folder / "training.json").unlink()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match=r"has no training\.json"):
        _adapter().save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
