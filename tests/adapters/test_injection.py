from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tqdm import tqdm

from cl_lora.adapters import Adapter, LoRAFactors
from cl_lora.adapters.injection import (
    TARGETS,
    LoRAConfig,
    applied,
    extract,
    inject,
    remove,
    split_qkv,
    target_modules,
)
from cl_lora.models.backbones import Backbone
from cl_lora.strategies.tunings import TUNINGS
from cl_lora.support.errors import UserError


def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=generator)


def random_factors(vit: torch.nn.Module, targets: tuple[str, ...]) -> dict[str, LoRAFactors]:
    generator = torch.Generator().manual_seed(4)
    factors = {}
    for name in target_modules(vit, targets):
        out, into = vit.get_submodule(name).weight.shape
        factors[name] = LoRAFactors(
            torch.randn(3, into, generator=generator), torch.randn(out, 3, generator=generator), 0.1
        )
    return factors


def test_split_attention_computes_the_same_bits(backbone: Backbone) -> None:
    before = backbone(images())
    split_qkv(backbone.network)
    assert torch.equal(backbone(images()), before)


@pytest.mark.parametrize("target", list(TARGETS))
def test_each_target_is_found_by_name_in_every_block(backbone: Backbone, target: str) -> None:
    if target in ("q", "k", "v"):
        split_qkv(backbone.network)
    names = target_modules(backbone.network, [target])
    assert len(names) == 2
    assert all(n.startswith(f"blocks.{i}.") and n.endswith(target) for i, n in enumerate(names))


def test_patch_embedding_is_never_adapted(backbone: Backbone) -> None:
    found = target_modules(backbone.network, ["proj"])
    assert found == ("blocks.0.attn.proj", "blocks.1.attn.proj")


def test_taking_an_adapter_out_starts_no_thread(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its start would never end where the memory is all but used up."""
    monkeypatch.setattr(tqdm, "monitor", None)
    config = LoRAConfig(rank=2, targets=("qkv",), dropout=0.0)
    backbone.network = remove(inject(backbone.network, config, None))
    assert tqdm.monitor is None
    assert tqdm.monitor_interval


def test_below_the_first_block_nothing_is_adapted(backbone: Backbone) -> None:
    config = LoRAConfig(rank=2, targets=("qkv", "fc1"), dropout=0.0, first_block=1)
    backbone.network = inject(backbone.network, config, None)
    found = set(extract(backbone.network))
    backbone.network = remove(backbone.network)
    assert found == {"blocks.1.attn.qkv", "blocks.1.mlp.fc1"}
    assert found == set(TUNINGS["lora"].modules(backbone, config))


def test_a_first_block_that_is_not_there(backbone: Backbone) -> None:
    with pytest.raises(UserError, match=r"first_block to be at most 1, .* but got 2; lower it"):
        target_modules(backbone.network, ["qkv"], first_block=2)
    with pytest.raises(UserError, match="number of a block from 0 but got -1; give 0"):
        LoRAConfig(first_block=-1)
    other = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match="this backbone has the layer '0'; leave first_block out"):
        target_modules(other, ["all"], {"all": ".*"}, first_block=1)


@pytest.mark.parametrize("targets", [("qkv", "fc2"), ("q", "v", "proj")])
def test_fresh_adapter_changes_nothing_and_removal_restores(
    backbone: Backbone, targets: tuple[str, ...]
) -> None:
    config = LoRAConfig(rank=2, targets=targets, dropout=0.0)
    backbone.separate(targets)
    before, fingerprint = backbone(images()), backbone.fingerprint()
    backbone.network = inject(backbone.network, config, None)
    torch.testing.assert_close(backbone(images()), before)
    trainable = [n for n, p in backbone.named_parameters() if p.requires_grad]
    assert len(trainable) == 2 * len(extract(backbone.network))
    backbone.network = remove(backbone.network)
    assert backbone.fingerprint() == fingerprint


@pytest.mark.parametrize("rslora", [False, True])
def test_applied_update_equals_peft_forward(
    backbone: Backbone, make_backbone: Callable[[], Backbone], rslora: bool, tmp_path: Path
) -> None:
    """The oracle is peft itself: the same factors, active inside the wrapped model."""
    config = LoRAConfig(rank=3, lora_alpha=6, targets=("qkv", "fc1"), dropout=0.0, rslora=rslora)
    start = random_factors(backbone.network, config.targets)
    backbone.network = inject(backbone.network, config, start)
    expected = backbone.eval()(images())
    factors = extract(backbone.network)
    backbone.network = remove(backbone.network)
    assert next(iter(factors.values())).scaling == pytest.approx(6 / (3**0.5 if rslora else 3))

    adapter = Adapter("a", factors)
    adapter.save(tmp_path / "a")

    class Alone:
        def modules(self) -> tuple[str, ...]:
            return adapter.modules()

        def delta(self, module: str) -> torch.Tensor:
            return adapter.factors[module].delta()

    with applied(backbone.network, Alone()):
        torch.testing.assert_close(backbone(images()), expected, rtol=1e-3, atol=1e-4)

    # And the folder on disk is one that peft reads.
    again = make_backbone()
    again.network = PeftModel.from_pretrained(again.network, str(tmp_path / "a")).eval()
    torch.testing.assert_close(again(images()), expected, rtol=1e-3, atol=1e-4)


def test_applying_restores_weights_bit_for_bit_even_after_an_error(backbone: Backbone) -> None:
    factors = random_factors(backbone.network, ("qkv",))

    class Broken:
        def modules(self) -> tuple[str, ...]:
            return tuple(factors)

        def delta(self, module: str) -> torch.Tensor:
            return factors[module].delta()

    fingerprint = backbone.fingerprint()

    def fail_inside() -> None:
        with applied(backbone.network, Broken()):
            assert backbone.fingerprint() != fingerprint
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_inside()
    assert backbone.fingerprint() == fingerprint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank to be at least 1"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"dropout": 1.0}, "dropout"),
        ({"targets": ("q", "qkv")}, "fused"),
        ({"targets": ("q", "q")}, "twice"),
        ({"targets": ()}, "at least one"),
    ],
)
def test_bad_adapter_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LoRAConfig(**settings)  # type: ignore[arg-type]


def test_a_target_that_the_backbone_does_not_have(backbone: Backbone) -> None:
    with pytest.raises(UserError, match=r"Unknown LoRA target 'kv': did you mean"):
        target_modules(backbone.network, ["kv"], backbone.targets)
    with pytest.raises(UserError, match=r"Unknown LoRA target 'fc1'.* known: inner"):
        target_modules(backbone.network, ["fc1"], {"inner": r"blocks\.0\.mlp\.fc1"})
    inner = target_modules(backbone.network, ["inner"], {"inner": r"blocks\.0\.mlp\.fc1"})
    assert inner == ("blocks.0.mlp.fc1",)


def test_adapter_of_another_backbone_is_refused(backbone: Backbone) -> None:
    class Foreign:
        def modules(self) -> tuple[str, ...]:
            return ("blocks.9.attn.qkv",)

        def delta(self, module: str) -> torch.Tensor:
            return torch.zeros(48, 16)

    with pytest.raises(UserError, match="another backbone"), applied(backbone.network, Foreign()):
        pass
