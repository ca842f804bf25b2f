"""Merges that overflow, or whose adapters do, are refused by module and adapter."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from cl_lora.adapters import Adapter, LoRAFactors
from cl_lora.cli import main
from cl_lora.joining.sizes import fits

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def save(folder: Path, seed: int, scale_a: float = 1.0, scale_b: float = 1.0) -> Path:
    """Write an adapter as somebody else's, without digests."""
    draw = torch.Generator().manual_seed(seed)
    factors = {
        name: LoRAFactors(
            torch.randn(2, 4, generator=draw) * scale_a,
            torch.randn(5, 2, generator=draw) * scale_b,
            3.0,
        )
        for name in ("blocks.0.q", "blocks.1.q")
    }
    Adapter(folder.name, factors).save(folder)
    (folder / "training.json").unlink()
    return folder


def delta(folder: Path, module: str) -> np.ndarray:
    """Return what a folder adds to a layer, in float64 by the definition of LoRA."""
    state = safetensors.torch.load((folder / WEIGHTS).read_bytes())
    A, B = (
        state[f"base_model.model.{module}.lora_{side}.weight"].double().numpy() for side in "AB"
    )
    return json.loads((folder / CONFIG).read_text())["lora_alpha"] / len(A) * (B @ A)


def config(folder: Path, **changes: object) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    return [save(tmp_path / name, i) for i, name in enumerate("ab")]


def merge(*arguments: object) -> int:
    return main(["merge", *map(str, arguments)])


def test_balanced_factors_of_any_size_are_merged_exactly(two, tmp_path):
    c = save(tmp_path / "c", 5, 1e-25, 1e25)
    assert merge(two[0], c, "--weights", "0.5,-2", "--out", tmp_path / "o") == 0
    for module in ("blocks.0.q", "blocks.1.q"):
        expected = 0.5 * delta(two[0], module) - 2 * delta(c, module)
        np.testing.assert_allclose(delta(tmp_path / "o", module), expected, rtol=1e-5, atol=1e-5)
    recorded = json.loads((tmp_path / "o" / "training.json").read_text())
    assert recorded["relative_error"] == 0


def test_what_double_precision_stores_is_merged_in_it(two, tmp_path):
    for folder in two:
        state = safetensors.torch.load((folder / WEIGHTS).read_bytes())
        doubled = {k: v.double() + 1e-12 for k, v in state.items()}
        safetensors.torch.save_file(doubled, folder / WEIGHTS)
    assert merge(*two, "--weights", "1,1", "--out", tmp_path / "o") == 0
    found = delta(tmp_path / "o", "blocks.0.q")
    expected = sum(delta(folder, "blocks.0.q") for folder in two)
    np.testing.assert_allclose(found, expected, rtol=1e-13)


@pytest.mark.parametrize(
    "options",
    [
        ("--weights", "1,1e38"),
        ("--weights", "1,1e38", "--rank", "1"),
        ("--weights", "1,1e38", "--method", "ties", "--dense"),
        ("--weights", "1,1e200"),
    ],
)
def test_a_weight_that_is_too_large(two, tmp_path, capsys, options):
    config(two[1], lora_alpha=1000)
    assert merge(*two, *options, "--out", tmp_path / "o") == 2
    error = capsys.readouterr().err
    assert "'blocks.0.q'" in error
    assert "'b'" in error
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("command", [("--info",), ("--out", "o")])
def test_an_adapter_that_is_too_large(two, tmp_path, capsys, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    huge = save(tmp_path / "huge", 3, 1e20, 1e20)
    assert merge(two[0], huge, *command) == 2
    error = capsys.readouterr().err
    assert "'blocks.0.q' in adapter 'huge'" in error
    assert not (tmp_path / "o").exists()


def test_a_head_that_overflows(two, tmp_path, capsys):
    for folder in two:
        state = safetensors.torch.load((folder / WEIGHTS).read_bytes())
        state["base_model.model.head.bias"] = torch.full((3,), 3e38)
        safetensors.torch.save_file(state, folder / WEIGHTS)
        config(folder, modules_to_save=["head"])
    assert merge(*two, "--weights", "1,1", "--out", tmp_path / "o") == 2
    assert "'head.bias'" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_our_own_adapters_are_compared_with_their_digests(tmp_path, capsys):
    factors = {"q": LoRAFactors(torch.ones(1, 2), torch.ones(2, 1))}
    Adapter("a", factors).save(tmp_path / "a")
    config(tmp_path / "a", lora_alpha=2)
    assert merge(tmp_path / "a", "--out", tmp_path / "o") == 2
    assert "restore the folder, or delete its training.json" in capsys.readouterr().err
    (tmp_path / "a" / "training.json").unlink()
    assert merge(tmp_path / "a", "--out", tmp_path / "o") == 0


@pytest.mark.parametrize("name", ["loop", "x" * 300, "loop/out"])
def test_an_out_that_no_folder_can_be(two, tmp_path, capsys, name):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert merge(*two, "--out", tmp_path / name) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_pipes_are_never_read(two, tmp_path, capsys, name):
    (two[1] / name).unlink()
    os.mkfifo(two[1] / name)
    assert merge(*two, "--out", tmp_path / "o") == 2
    assert name in capsys.readouterr().err


def test_fits_is_exact_where_the_bound_is_not():
    small = LoRAFactors(torch.full((1, 2), 1e20), torch.full((3, 1), 1e18))
    assert fits(small)
    assert not fits(small, 10.0)
    # The largest of A and of B never meet, so that the product is small.
    apart = LoRAFactors(torch.tensor([[1e30], [0.0]]), torch.tensor([[0.0, 1e30]]))
    assert fits(apart)
    assert not fits(LoRAFactors(torch.ones(1, 1), torch.ones(1, 1), 1e39))
    assert not fits(torch.tensor([1.0, torch.nan]))
    assert not fits(torch.tensor([3e38]), 2.0)
