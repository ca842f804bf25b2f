"""Peak memory of a piece of work."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from cl_lora.support import memory
from cl_lora.support.memory import peak_memory

CPU = torch.device("cpu")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel tells on Linux only")
def test_what_was_held_only_meanwhile_counts() -> None:
    """100 MiB that are given back before the end."""
    with peak_memory(CPU) as peak:
        held = torch.ones(100 * 2**20, dtype=torch.uint8)
        del held
    assert peak.mb == pytest.approx(100, abs=20)


def test_what_is_held_already_does_not(tmp_path: Path) -> None:
    held = torch.ones(100 * 2**20, dtype=torch.uint8)
    with peak_memory(CPU) as peak:
        pass
    assert peak.mb is None or peak.mb < 20
    assert len(held)


def test_where_nothing_tells_there_is_no_number(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "missing" / "clear_refs")
    with peak_memory(CPU) as peak:
        pass
    assert peak.mb is None
