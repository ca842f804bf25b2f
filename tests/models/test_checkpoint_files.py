"""Weights from anybody's file: the same numbers in any form are taken, all else is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from cl_lora.models.images import check_features
from cl_lora.models.timm_vits import TimmBackbone, load_checkpoint
from cl_lora.support.errors import UserError

State = dict[str, Tensor]
QKV, PLACES, PATCHES = "blocks.0.attn.qkv.weight", "pos_embed", "patch_embed.proj.weight"


def vit(**options: Any) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    settings = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return VisionTransformer(**{**settings, "num_classes": 0, **options}).eval()


@pytest.fixture
def state() -> State:
    torch.manual_seed(3)
    return {k: torch.randn_like(v) for k, v in vit().state_dict().items()}


def loaded(content: Any, path: Path) -> State:
    """Write a checkpoint, and return what a network has that was given it."""
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    network = vit()
    load_checkpoint(network, path)
    return network.state_dict()


SAME: dict[str, tuple[str, Callable[[State], Any]]] = {
    "safetensors": ("w.safetensors", dict),
    "torch": ("w.pth", dict),
    "fp64": ("w.safetensors", lambda s: {k: v.double() for k, v in s.items()}),
    "nested": ("w.pth", lambda s: {"model": {"state_dict": s}, "epoch": 3}),
    "averaged": (
        "w.pth",
        lambda s: {"state_dict": {k: v + 1 for k, v in s.items()}, "model_ema": s},
    ),
    "wrapped": ("w.pth", lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()}),
    "classifier": ("w.safetensors", lambda s: {**s, "head.weight": torch.full((3, 16), torch.nan)}),
    "parameters": ("w.pth", lambda s: {k: nn.Parameter(v) for k, v in s.items()}),
    "a linear layer of patches": ("w.pth", lambda s: {**s, PATCHES: s[PATCHES].flatten(1)}),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_numbers_in_another_form(state, tmp_path, name):
    file, change = SAME[name]
    found = loaded(change(dict(state)), tmp_path / file)
    assert set(found) == set(state)
    assert all(torch.equal(found[k], state[k]) for k in state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised(state, tmp_path, dtype):
    found = loaded({k: v.to(dtype) for k, v in state.items()}, tmp_path / "w.safetensors")
    assert all(torch.equal(found[k], state[k].to(dtype).float()) for k in state)


def test_places_of_another_grid_are_resampled(state, tmp_path):
    """One place for all is the same everywhere, and a slope keeps its direction."""
    one = state[PLACES][:, :2].clone()
    found = loaded({**state, PLACES: one}, tmp_path / "w.safetensors")[PLACES]
    torch.testing.assert_close(found, torch.cat([one[:, :1], one[:, 1:].repeat(1, 4, 1)], 1))
    slope = torch.arange(16.0).view(1, 16, 1).expand(1, 16, 16)
    places = torch.cat([state[PLACES][:, :1], slope], 1)
    found = loaded({**state, PLACES: places}, tmp_path / "w.safetensors")[PLACES]
    rows = found[0, 1:, 0].view(2, 2).numpy()
    assert np.all(np.diff(rows, axis=0) > 4)
    assert np.all(np.diff(rows, axis=1) > 1)
    assert rows.mean() == pytest.approx(7.5)


def put(name: str, value: float) -> Callable[[State], State]:
    def change(state: State) -> State:
        state[name] = state[name].clone()
        state[name].view(-1)[3] = value
        return state

    return change


def swap(name: str, make: Callable[[Tensor], Any]) -> Callable[[State], Any]:
    return lambda state: {**state, name: make(state[name])}


REFUSED: dict[str, tuple[str, Callable[[State], Any], str]] = {
    "NaN": ("w.safetensors", put(QKV, torch.nan), f"'{QKV}' .* NaN"),
    "infinity": ("w.pth", put("norm.bias", torch.inf), "'norm.bias' .* infinity"),
    "NaN in places of another grid": (
        "w.safetensors",
        swap(PLACES, lambda v: torch.full((1, 10, 16), torch.nan)),
        "'pos_embed' .* NaN",
    ),
    "beyond fp32": ("w.pth", swap(QKV, lambda v: v.double() * 1e300), "beyond single precision"),
    "sparse places": ("w.pth", swap(PLACES, lambda v: v.to_sparse()), "'pos_embed' .* not dense"),
    "places in one dimension": (
        "w.pth",
        swap(PLACES, lambda v: v.flatten()),
        r"'pos_embed' is \(80",
    ),
    "no square of places": ("w.pth", swap(PLACES, lambda v: v[:, :-1]), "another square"),
    "no places": ("w.pth", swap(PLACES, lambda v: v[:, :0]), "another square"),
    "no data": ("w.pth", swap(QKV, lambda v: v.to("meta")), "no data"),
    "one number over all": ("w.pth", swap(QKV, lambda v: torch.ones(1).expand(10**12)), "larger"),
    "integers": ("w.safetensors", swap(QKV, lambda v: (v * 9).to(torch.int8)), "holds int8"),
    "complex": ("w.pth", swap(QKV, lambda v: torch.complex(v, v)), "holds complex64"),
    "eight bits": ("w.pth", swap(QKV, lambda v: v.to(torch.float8_e5m2)), "holds float8_e5m2"),
    "a block more": (
        "w.pth",
        lambda s: {**s, **{k.replace("blocks.1", "blocks.2"): v for k, v in s.items()}},
        r"has 'blocks\.2\..*', which this model lacks",
    ),
    "patches of another size": (
        "w.pth",
        swap(PATCHES, lambda v: v.repeat(1, 1, 2, 2)),
        "'patch_embed.proj.weight' is",
    ),
    "a key missing": ("w.pth", lambda s: {k: v for k, v in s.items() if k != QKV}, "it has no"),
    "a key twice": ("w.pth", lambda s: {**s, f"module.{QKV}": s[QKV] + 1}, "twice"),
    "a list": ("w.pth", lambda s: list(s.values()), "a list"),
    "a tensor": ("w.pth", lambda s: s[QKV], "a Tensor"),
    "numbers for names": ("w.pth", lambda s: dict(enumerate(s.values())), "'0' is a Tensor"),
    "nothing": ("w.pth", lambda s: {}, "nothing"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_numbers_are_refused_by_name(state, tmp_path, name):
    file, change, message = REFUSED[name]
    with pytest.raises(UserError, match=message) as refused:
        loaded(change(dict(state)), tmp_path / file)
    assert file in str(refused.value)
    assert "learning rate" not in str(refused.value)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [pipe, folder, device])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_what_is_no_file_is_never_opened(tmp_path, make, name):
    make(tmp_path / name)
    with pytest.raises(UserError, match="give the file"):
        load_checkpoint(vit(), tmp_path / name)


class Code:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_no_pickle_is_executed(state, tmp_path, zipped):
    content = {**state, "x": Code(tmp_path / "was_run")}
    path = tmp_path / "w.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="read safely"):
        load_checkpoint(vit(), path)
    assert not (tmp_path / "was_run").exists()


def test_finite_weights_whose_features_are_not():
    network = vit()
    with torch.no_grad():
        network.blocks[0].mlp.fc1.weight.fill_(3e38)
        network.blocks[0].mlp.fc2.weight.fill_(3e38)
    made = TimmBackbone(network, 16, [0.5] * 3, [0.5] * 3)
    with pytest.raises(UserError, match=r"w\.pth overflow"):
        check_features(made, "w.pth")
    check_features(TimmBackbone(vit(), 16, [0.5] * 3, [0.5] * 3), "w.pth")
