"""``cl-lora doctor`` says when torch and torchvision do not fit each other."""

from __future__ import annotations

import pytest

from cl_lora.commands import doctor
from cl_lora.support import compat


@pytest.mark.parametrize("fits", [True, False])
def test_torch_and_torchvision_of_different_builds_are_named(
    fits: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compat, "library_loads", lambda: fits)
    doctor.run([])
    said = "torch and torchvision are of different builds" in capsys.readouterr().out
    assert said != fits
