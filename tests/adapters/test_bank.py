"""The folder of adapters of one stream."""

import pytest
import torch

from cl_lora.adapters import Adapter, AdapterBank, LoRAFactors
from cl_lora.support.errors import UserError


def _adapter(value):
    return Adapter("x", {"m": LoRAFactors(torch.full((1, 2), value), torch.ones(2, 1))})


def test_adapters_come_in_the_order_of_their_experiences(tmp_path):
    bank = AdapterBank(tmp_path / "adapters")
    for experience in (100, 2, 11, 0, 99):
        assert not bank.has(experience, "task")
        bank.save(experience, "task", _adapter(float(experience)))
        assert bank.has(experience, "task")
    names = ["00-task", "02-task", "11-task", "99-task", "100-task"]
    assert [p.name for p in bank.paths()] == names
    assert [a.name for a in bank] == names
    assert [float(a.factors["m"].A[0, 0]) for a in bank] == [0, 2, 11, 99, 100]
    assert len(bank) == 5
    assert bank.load(11, "task").name == "11-task"


def test_a_slash_in_a_name_makes_no_folder_of_its_own(tmp_path):
    bank = AdapterBank(tmp_path / "adapters")
    bank.save(0, "day/night", _adapter(1.0))
    assert bank.has(0, "day/night")
    assert [a.name for a in bank] == ["00-day_night"]


def test_what_is_not_a_finished_adapter_is_ignored(tmp_path):
    bank = AdapterBank(tmp_path)
    bank.save(0, "task", _adapter(1.0))
    (tmp_path / ".01-task.abc").mkdir()
    (tmp_path / "01-half").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "02-file").write_text("")
    assert [p.name for p in bank.paths()] == ["00-task"]


def test_a_missing_bank_and_a_missing_adapter(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        AdapterBank(tmp_path / "none").paths()
    with pytest.raises(UserError, match="found none in"):
        AdapterBank(tmp_path).load(3, "task")
