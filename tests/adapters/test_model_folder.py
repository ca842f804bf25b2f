"""Folders of fully fine-tuned models: whole or not at all, read a tensor at a time."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from cl_lora.adapters import Adapter, AdapterBank, LoRAFactors
from cl_lora.adapters.model_folder import is_model_folder, is_whole_model, write_statistic
from cl_lora.adapters.tensor_file import LazyTensors
from cl_lora.support.errors import UserError


def deltas(value: float = 1.0) -> dict[str, torch.Tensor]:
    fused = torch.arange(24.0).reshape(6, 4) * value
    return {
        "blocks.0.fc": fused[:3],  # both are parts of one tensor
        "blocks.0.q": fused[3:],
        "blocks.0.fc.bias": torch.tensor([1.0, -2.0, 3.0]) * value,
        "conv": torch.ones(2, 3, 1, 1).double() * value,
        "half": torch.full((2, 2), value).to(torch.bfloat16),
        "scale": torch.tensor(value),
        "turned": fused.T,
    }


def model(value: float = 1.0, **more: Any) -> Adapter:
    head = {"weight": torch.full((3, 4), value), "bias": torch.zeros(3)}
    settings = {"head": head, "training": {"seed": 3, "loss": [{"loss": value}]}, **more}
    return Adapter("x", {}, deltas=deltas(value), **settings)


def lora(value: float = 1.0) -> Adapter:
    return Adapter("x", {"m": LoRAFactors(torch.full((1, 2), value), torch.ones(2, 1))})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model().save(tmp_path / "whole")
    return tmp_path / "whole"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all tensors that are read from now on."""
    found: list[str] = []
    original = LazyTensors.__getitem__

    def spy(file: LazyTensors, name: str) -> torch.Tensor:
        found.append(name)
        return original(file, name)

    monkeypatch.setattr(LazyTensors, "__getitem__", spy)
    return found


# There and back -----------------------------------------------------------------------------------


def test_what_is_written_is_read_bit_for_bit(saved: Path) -> None:
    again = Adapter.load(saved)
    assert again.name == "whole"
    assert not again.factors
    assert again.modules() == tuple(again.deltas)
    assert set(again.deltas) == set(deltas())
    for name, delta in deltas().items():
        assert again.deltas[name].dtype == delta.dtype
        assert torch.equal(again.deltas[name], delta)
        assert torch.equal(again.entries[name], delta)
    assert {k: v.tolist() for k, v in again.head.items()} == {
        k: v.tolist() for k, v in model().head.items()
    }
    assert again.training == model().training
    assert again.statistics == {}


def test_the_files_are_plain_safetensors_and_json(saved: Path) -> None:
    names = sorted(p.name for p in saved.iterdir())
    assert names == ["delta.safetensors", "head.safetensors", "training.json"]
    stored = safetensors.torch.load_file(saved / "delta.safetensors")
    assert all(torch.equal(stored[name], delta) for name, delta in deltas().items())
    assert json.loads((saved / "training.json").read_text())["seed"] == 3


def test_a_model_without_a_head(tmp_path: Path) -> None:
    model(head={}).save(tmp_path / "m")
    assert not (tmp_path / "m" / "head.safetensors").exists()
    assert Adapter.load(tmp_path / "m").head == {}
    assert is_whole_model(tmp_path / "m")


def test_the_same_model_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        model().save(tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_model_without_entries_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'x' to have modules but it has none"):
        Adapter("x", {}).save(tmp_path / "m")
    assert not (tmp_path / "m").exists()


# Only when it is asked for ------------------------------------------------------------------------


def test_a_tensor_is_read_when_it_is_asked_for_and_not_before(saved: Path, reads: list) -> None:
    again = Adapter.load(saved)
    assert sorted(reads) == ["bias", "weight"]  # the head, which is small
    reads.clear()
    assert "conv" in again.deltas
    assert len(again.deltas) == len(deltas())
    assert again.modules()
    assert list(again.entries)
    assert again.deltas.shape("conv") == (2, 3, 1, 1)
    assert not reads
    first = again.deltas["conv"]
    assert reads == ["conv"]
    assert again.deltas["conv"] is not first  # nothing is kept
    assert reads == ["conv", "conv"]


def test_whether_it_is_whole_reads_no_delta(saved: Path, reads: list) -> None:
    bank = AdapterBank(saved.parent)
    saved.rename(saved.parent / "00-task")
    assert bank.has(0, "task")
    assert len(bank.paths()) == 1
    assert not set(reads) & set(deltas())


def test_a_tensor_that_is_not_there_is_a_key_error(saved: Path) -> None:
    lazy = LazyTensors(saved / "delta.safetensors")
    with pytest.raises(KeyError):
        lazy["other"]
    assert "other" not in lazy
    assert 3 not in lazy


def test_a_file_that_is_lost_meanwhile_says_so(saved: Path) -> None:
    again = Adapter.load(saved)
    (saved / "delta.safetensors").unlink()
    with pytest.raises(UserError, match=r"delta.safetensors but it is missing"):
        again.deltas["conv"]


# Damage ---------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, emptied])
@pytest.mark.parametrize("name", ["delta.safetensors", "head.safetensors", "training.json"])
def test_a_damaged_file_is_named_and_the_model_is_not_whole(
    saved: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(saved / name)
    with pytest.raises(UserError, match=rf"{name} (is no readable|cannot be read)"):
        Adapter.load(saved)
    assert is_model_folder(saved)
    assert not is_whole_model(saved)


@pytest.mark.parametrize("name", ["head.safetensors", "training.json"])
def test_a_file_that_is_lost_is_missed(saved: Path, name: str) -> None:
    (saved / name).unlink()
    assert not is_whole_model(saved)
    with pytest.raises(UserError, match=name):
        Adapter.load(saved)


def test_training_that_is_no_object(saved: Path) -> None:
    (saved / "training.json").write_text("[1]")
    with pytest.raises(UserError, match=r"JSON object in .*training\.json but got list"):
        Adapter.load(saved)


def test_a_damaged_model_in_a_bank(tmp_path: Path) -> None:
    """It is not in the bank, is never left out silently, and can be trained again."""
    bank = AdapterBank(tmp_path)
    bank.save(0, "a", model())
    bank.save(1, "b", model(2.0))
    cut(tmp_path / "00-a" / "delta.safetensors")
    assert not bank.has(0, "a")
    assert bank.has(1, "b")
    with pytest.raises(UserError, match="00-a is damaged"):
        list(bank)
    bank.save(0, "a", model(5.0))
    assert [float(a.deltas["scale"]) for a in bank] == [5.0, 2.0]


def test_a_model_whose_deltas_are_lost_can_be_trained_again(tmp_path: Path) -> None:
    bank = AdapterBank(tmp_path)
    bank.save(0, "a", model())
    (tmp_path / "00-a" / "delta.safetensors").unlink()
    assert not bank.has(0, "a")
    bank.save(0, "a", model(3.0))
    assert float(bank.load(0, "a").deltas["scale"]) == 3.0


class Explodes:
    """Reading a pickle of it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["delta.safetensors", "head.safetensors", "statistics/a"])
def test_a_pickle_is_never_loaded(saved: Path, tmp_path: Path, name: str) -> None:
    write_statistic(saved, "a", {"m": torch.ones(1)})
    path = saved / (name if "/" not in name else f"{name}.safetensors")
    path.write_bytes(pickle.dumps(Explodes(tmp_path / "exploded")))
    with pytest.raises(UserError, match="is no readable safetensors file"):
        Adapter.load(saved)
    assert not (tmp_path / "exploded").exists()


def test_a_folder_of_pickles_is_no_model(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    for name in ("pytorch_model.bin", "delta.bin", "delta.pt"):
        (folder / name).write_bytes(pickle.dumps(Explodes(tmp_path / "exploded")))
    assert not is_model_folder(folder)
    with pytest.raises(UserError):
        Adapter.load(folder)
    assert not (tmp_path / "exploded").exists()


# Writing over something ---------------------------------------------------------------------------


def test_one_of_ours_is_replaced_and_its_statistics_with_it(saved: Path) -> None:
    """They are those of the old one."""
    bank = AdapterBank(saved.parent / "bank")
    bank.save(0, "t", model())
    bank.add_statistic(0, "t", "gram", {"blocks.0.fc": torch.eye(4)})
    bank.save(0, "t", model(2.0))
    again = bank.load(0, "t")
    assert float(again.deltas["scale"]) == 2.0
    assert again.statistics == {}


@pytest.mark.parametrize("name", ["notes.txt", "adapter_config.json", "model.safetensors"])
def test_a_folder_of_something_else_is_left_alone(saved: Path, name: str) -> None:
    (saved / name).write_text("{}")
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    with pytest.raises(UserError, match=rf"holds '{name}', so it is no model of ours"):
        model(2.0).save(saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


def test_a_lora_and_a_model_never_replace_one_another(tmp_path: Path) -> None:
    lora().save(tmp_path / "lora")
    model().save(tmp_path / "model")
    with pytest.raises(UserError, match="no model of ours"):
        model().save(tmp_path / "lora")
    with pytest.raises(UserError, match="no adapter of ours"):
        lora().save(tmp_path / "model")
    assert Adapter.load(tmp_path / "lora").factors
    assert Adapter.load(tmp_path / "model").deltas


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("x")
    with pytest.raises(UserError, match="it is a file"):
        model().save(tmp_path / "m")
    assert (tmp_path / "m").read_text() == "x"


def test_what_fails_half_way_leaves_the_old_one(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    monkeypatch.setattr("cl_lora.adapters.model_folder.files.write_json", full)
    with pytest.raises(UserError, match="No space left"):
        model(2.0).save(saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    assert [p.name for p in saved.parent.iterdir()] == ["whole"]


def test_a_model_that_a_killed_process_put_aside_is_given_back(saved: Path) -> None:
    saved.rename(saved.parent / f".whole.old-{'0' * 16}")
    assert is_model_folder(saved)
    assert float(Adapter.load(saved).deltas["scale"]) == 1.0


# Statistics ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [model(), lora()], ids=["model", "lora"])
def test_statistics_lie_beside_an_adapter_and_are_read_when_asked_for(
    tmp_path: Path, adapter: Adapter, reads: list
) -> None:
    bank = AdapterBank(tmp_path)
    bank.save(0, "t", adapter)
    gram, squares = torch.eye(4), torch.rand(3, 4, dtype=torch.float64)
    bank.add_statistic(0, "t", "gram", {"m": gram, "other": gram})
    one = sorted(p.name for p in (tmp_path / "00-t").rglob("*") if p.is_file())
    bank.add_statistic(0, "t", "fisher_data", {"m": squares[:2]})
    reads.clear()
    again = bank.load(0, "t")
    assert not set(reads) - {"weight", "bias"}
    assert set(again.statistics) == {"gram", "fisher_data"}
    assert set(again.statistics["gram"]) == {"m", "other"}
    assert torch.equal(again.statistics["gram"]["m"], gram)
    assert torch.equal(again.statistics["fisher_data"]["m"], squares[:2])
    assert "gram.safetensors" in one
    assert bank.has(0, "t")


def test_what_a_killed_process_left_of_a_statistic_is_none(tmp_path: Path) -> None:
    bank = AdapterBank(tmp_path)
    bank.save(0, "t", model())
    bank.add_statistic(0, "t", "gram", {"m": torch.eye(4)})
    (tmp_path / "00-t" / "statistics" / ".fisher_data.safetensors.a1b2c3").write_bytes(b"half")
    assert set(bank.load(0, "t").statistics) == {"gram"}


def test_a_statistic_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = AdapterBank(tmp_path)
    bank.save(0, "t", model())
    bank.add_statistic(0, "t", "gram", {"m": torch.eye(4)})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cl_lora.support.files.os.replace", full)
    with pytest.raises(UserError, match="No space left"):
        bank.add_statistic(0, "t", "gram", {"m": torch.zeros(4, 4)})
    assert torch.equal(bank.load(0, "t").statistics["gram"]["m"], torch.eye(4))
    assert [p.name for p in (tmp_path / "00-t" / "statistics").iterdir()] == ["gram.safetensors"]


# Banks --------------------------------------------------------------------------------------------


def test_a_bank_may_hold_both_kinds(tmp_path: Path) -> None:
    bank = AdapterBank(tmp_path)
    bank.save(10, "whole", model())
    bank.save(2, "low", lora())
    bank.save(3, "whole", model(2.0))
    (tmp_path / "04-half").mkdir()
    assert len(bank) == 3
    assert [(a.name, bool(a.factors), bool(a.deltas)) for a in bank] == [
        ("02-low", True, False),
        ("03-whole", False, True),
        ("10-whole", False, True),
    ]
    assert bank.has(3, "whole")
    assert not bank.has(3, "low")


def test_a_copied_model_is_the_same(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "copy")
    one, other = Adapter.load(saved), Adapter.load(tmp_path / "copy")
    assert all(torch.equal(one.deltas[m], other.deltas[m]) for m in one.deltas)
