"""Folders of transformers with weights that are no finite numbers, or with code, are refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny_clip import write_clip
from tiny_t5 import save_t5

from cl_lora.models.backbones import ModelConfig, load_backbone
from cl_lora.support.errors import UserError

MODELS: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    "CLIP": ("clip", write_clip, "vision_model.encoder.layers.0.mlp.fc1.weight"),
    "T5": ("seq2seq", save_t5, "encoder.block.0.layer.0.SelfAttention.q.weight"),
}


@pytest.fixture(params=MODELS)
def model(request, tmp_path) -> tuple[Path, str, str]:
    source, make, weight = MODELS[request.param]
    (tmp_path / "model").mkdir()
    return Path(make(tmp_path / "model")), source, weight


def change(folder: Path, name: str, value: torch.Tensor) -> None:
    path = folder / "model.safetensors"
    state = safetensors.torch.load(path.read_bytes())
    assert name in state
    safetensors.torch.save_file({**state, name: value}, path, {"format": "pt"})


def refused(folder: Path, source: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_backbone(ModelConfig("model", checkpoint=str(folder), source=source))
    assert str(folder) in str(error.value)
    assert "learning rate" not in str(error.value)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite(model, value):
    folder, source, weight = model
    state = safetensors.torch.load((folder / "model.safetensors").read_bytes())
    change(folder, weight, torch.full_like(state[weight], value))
    refused(folder, source, "'.*weight' .* NaN")


def test_weights_that_are_integers(model):
    folder, source, weight = model
    state = safetensors.torch.load((folder / "model.safetensors").read_bytes())
    change(folder, weight, (state[weight] * 9).to(torch.int8))
    refused(folder, source, f"'{weight}' .* holds int8")


def test_a_configuration_that_is_no_object(model):
    folder, source, _ = model
    (folder / "config.json").write_text("[]")
    refused(folder, source, "; give the (name|folder)")


def test_nobody_is_asked_whether_code_may_run(model, monkeypatch):
    folder, source, _ = model
    auto = dict.fromkeys(("AutoConfig", "AutoModelForSeq2SeqLM"), "odd.Odd")
    path = folder / "config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "model_type": "odd", "auto_map": auto})
    )
    (folder / "odd.py").write_text(f"open({str(folder / 'was_run')!r}, 'w')\n")

    def asked(*_: object) -> str:
        pytest.fail("a question")

    monkeypatch.setattr("builtins.input", asked)
    monkeypatch.setattr(sys, "stdin", None)
    refused(folder, source, "odd|custom code")
    assert not (folder / "was_run").exists()
