from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from cl_lora.models.backbones import ModelConfig, input_size, load_backbone
from cl_lora.support.errors import UserError

TINY = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fp16 weights of a ViT-Ti/16 at 224 with a classifier, as timm names them."""
    torch.manual_seed(0)
    model = timm.create_model(TINY, num_classes=10)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    safetensors.torch.save_file({k: v.half() for k, v in model.state_dict().items()}, path)
    return path


def test_checkpoint_gives_timms_own_features(checkpoint: Path) -> None:
    backbone = load_backbone(ModelConfig(TINY, checkpoint=str(checkpoint)))
    reference = timm.create_model(TINY, num_classes=0)
    state = {k: v.float() for k, v in safetensors.torch.load_file(checkpoint).items()}
    reference.load_state_dict({k: v for k, v in state.items() if not k.startswith("head.")})
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    expected = reference.eval()((images / 255 - 0.5) / 0.5)
    torch.testing.assert_close(backbone(images), expected, rtol=1e-4, atol=1e-4)
    assert not any(p.requires_grad for p in backbone.parameters())


def test_torch_file_is_read_like_safetensors(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.pth"
    torch.save(safetensors.torch.load_file(checkpoint), path)
    one = load_backbone(ModelConfig(TINY, checkpoint=str(checkpoint)))
    two = load_backbone(ModelConfig(TINY, checkpoint=str(path)))
    assert one.fingerprint() == two.fingerprint()


def test_position_embedding_is_resampled_as_timm_does(checkpoint: Path) -> None:
    from timm.layers import resample_abs_pos_embed

    backbone = load_backbone(ModelConfig(TINY, checkpoint=str(checkpoint), img_size=112))
    original = safetensors.torch.load_file(checkpoint)["pos_embed"].float()
    expected = resample_abs_pos_embed(original, [7, 7], num_prefix_tokens=1)
    torch.testing.assert_close(backbone.network.pos_embed.detach(), expected)
    assert backbone(torch.zeros(1, 3, 112, 112, dtype=torch.uint8)).shape == (1, 192)


def test_normalisation_comes_from_timm_and_can_be_overridden(checkpoint: Path) -> None:
    plain = load_backbone(ModelConfig(TINY, checkpoint=str(checkpoint)))
    assert plain.normalisation == {"mean": [0.5] * 3, "std": [0.5] * 3}
    other = ModelConfig(TINY, checkpoint=str(checkpoint), mean=(0.1, 0.2, 0.3), std=(1, 2, 4))
    backbone = load_backbone(other)
    white = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    expected = torch.tensor([0.9, 0.4, 0.175]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    torch.testing.assert_close(backbone.normalise(white), expected)


def test_embedded_backbone_loads() -> None:
    config = ModelConfig("embedded")
    backbone = load_backbone(config)
    size = input_size(config)
    images = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    assert backbone(images).shape == (2, backbone.features)


def test_pickle_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "ran",))  # type: ignore[return-value]

    path = tmp_path / "evil.pth"
    torch.save({"x": Evil()}, path)
    with pytest.raises(UserError, match="no checkpoint that can be read safely"):
        load_backbone(ModelConfig(TINY, checkpoint=str(path)))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_file_that_is_no_checkpoint(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"notes{suffix}"
    path.write_text("these are notes, not weights")
    with pytest.raises(UserError, match="no checkpoint"):
        load_backbone(ModelConfig(TINY, checkpoint=str(path)))


def test_checkpoint_of_another_architecture(checkpoint: Path) -> None:
    with pytest.raises(UserError, match="belongs to another architecture"):
        load_backbone(ModelConfig("vit_small_patch16_224", checkpoint=str(checkpoint)))


def test_checkpoint_with_missing_block(checkpoint: Path, tmp_path: Path) -> None:
    state = safetensors.torch.load_file(checkpoint)
    path = tmp_path / "cut.safetensors"
    safetensors.torch.save_file(
        {k: v for k, v in state.items() if not k.startswith("blocks.11.")}, path
    )
    with pytest.raises(UserError, match=r"blocks\.11"):
        load_backbone(ModelConfig(TINY, checkpoint=str(path)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "vit_tiny_patch16_225"}, "did you mean 'vit_tiny_patch16_224'"),
        ({"name": "???"}, "give model.name=NAME"),
        ({"name": "resnet18", "pretrained": False}, "Vision Transformer"),
        ({"name": TINY, "checkpoint": "nowhere.pth"}, "does not exist"),
        ({"name": TINY, "std": (0, 1, 1)}, "above 0"),
        ({"name": TINY, "img_size": 0}, "at least 8"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_backbone(ModelConfig(**settings))  # type: ignore[arg-type]


def test_attention_is_written_out_only_while_gradients_flow(backbone) -> None:
    backbone.spell_out_attention = True
    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    attention = [m for m in backbone.network.modules() if hasattr(m, "fused_attn")]
    assert len(attention) == 2
    with_gradient = backbone(images)
    assert not any(m.fused_attn for m in attention)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), with_gradient)
    assert all(m.fused_attn for m in attention)
