"""Digests beside an adapter: any changed byte shows, and folders without them are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cl_lora.adapters import Adapter, AdapterBank, LoRAFactors, seals
from cl_lora.adapters.seals import TRAINING_FILE
from cl_lora.support.errors import UserError


@pytest.fixture
def bank(tmp_path: Path) -> AdapterBank:
    bank = AdapterBank(tmp_path)
    factors = {"m": LoRAFactors(torch.randn(2, 4), torch.randn(3, 2), 2.0)}
    bank.save(0, "x", Adapter("x", factors, {"weight": torch.ones(2, 3)}, {"seed": 3}))
    bank.add_statistic(0, "x", "gram", {"m": torch.eye(4)})
    return bank


FILES = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "head.safetensors",
    "statistics/gram.safetensors",
    TRAINING_FILE,
)


@pytest.mark.parametrize("name", FILES)
def test_every_changed_byte_is_found(bank: AdapterBank, name: str) -> None:
    path = bank.path(0, "x") / name
    right = path.read_bytes()
    bank.verify(0, "x")
    for place in range(0, len(right), max(1, len(right) // 60)):
        if right[place : place + 1].isspace():
            continue  # between the values of a record it says nothing
        path.write_bytes(right[:place] + bytes([right[place] ^ 1]) + right[place + 1 :])
        with pytest.raises(UserError, match="damaged"):
            bank.verify(0, "x")
    path.write_bytes(right)
    assert bank.verify(0, "x").training == {"seed": 3}


def test_what_is_told_of_the_training_holds_nothing_of_files(bank: AdapterBank) -> None:
    adapter = bank.load(0, "x")
    assert adapter.training == {"seed": 3}
    bank.save(1, "y", adapter)  # as a bank that begins like another
    assert bank.verify(1, "y").training == {"seed": 3}
    assert not bank.verify(1, "y").statistics


def test_a_statistic_without_a_digest_is_gathered_again(bank: AdapterBank) -> None:
    folder = bank.path(0, "x")
    (folder / "statistics/fisher.safetensors").write_bytes(
        (folder / "statistics/gram.safetensors").read_bytes()
    )
    assert set(bank.load(0, "x").statistics) == {"gram"}
    seals.add(
        folder,
        "statistics/fisher.safetensors",
        (folder / "statistics/fisher.safetensors").read_bytes(),
    )
    assert set(bank.verify(0, "x").statistics) == {"gram", "fisher"}


def test_a_folder_without_digests_is_read_as_it_is(bank: AdapterBank) -> None:
    path = bank.path(0, "x") / TRAINING_FILE
    record = json.loads(path.read_text())
    path.write_text(json.dumps({key: record[key] for key in ("seed", "files")}))
    assert set(bank.verify(0, "x").statistics) == {"gram"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    bank = AdapterBank(tmp_path)
    factors = LoRAFactors(torch.ones(1, 2), torch.tensor([[1.0], [value]]))
    bank.save(0, "bad", Adapter("bad", {"m": factors}))
    with pytest.raises(UserError, match="module 'm' of the adapter in"):
        bank.verify(0, "bad")
    head = {"bias": torch.tensor([value])}
    good = LoRAFactors(torch.ones(1, 2), torch.ones(2, 1))
    bank.save(1, "head", Adapter("head", {"m": good}, head))
    with pytest.raises(UserError, match="tensor 'bias' of the head of the adapter in"):
        bank.verify(1, "head")
