"""What a killed process leaves in a run folder: rubbish goes, a folder put aside comes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from cl_lora.run_folder.layout import bank_folder
from cl_lora.run_folder.lock import locked
from cl_lora.support.errors import UserError


def test_an_adapter_that_was_about_to_be_replaced_is_not_rubbish(tmp_path: Path) -> None:
    bank = bank_folder(tmp_path, 0, "fresh")
    aside = bank / ".00-one.old-0123456789abcdef"
    rubbish = bank / ".01-two.abcdefgh"
    stale = bank / ".02-three.old-0123456789abcdef"
    for folder in (aside, rubbish, stale, bank / "02-three"):
        folder.mkdir(parents=True)
        (folder / "weights").write_text(folder.name)
    (tmp_path / "config.yaml").write_text("format: 2\n")
    with locked(tmp_path):
        assert sorted(p.name for p in bank.iterdir()) == ["00-one", "02-three"]
        assert (bank / "00-one" / "weights").read_text() == aside.name
        assert (bank / "02-three" / "weights").read_text() == "02-three"


@pytest.mark.parametrize("written", [False, True])
def test_what_is_refused_leaves_no_folder_that_was_made_for_it(
    tmp_path: Path, written: bool
) -> None:
    (tmp_path / "old").mkdir()
    folder = tmp_path / "old" / "runs" / "mine"

    def refuse(place: Path) -> None:
        with locked(place):
            if written:
                (folder / "scores.csv").touch()
            raise UserError("no arm")

    with pytest.raises(UserError, match="no arm"):
        refuse(folder)
    assert folder.exists() == written
    assert (tmp_path / "old" / "runs").exists() == written


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no arm"), locked(tmp_path):
        raise UserError("no arm")
    assert tmp_path.exists()
