"""CLIP's image tower as a backbone, and heads of texts: beside transformers' own CLIPModel."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_clip import LONGEST, SIDE, WIDTH, write_clip
from torch.nn import functional as F

from cl_lora.adapters.injection import LoRAConfig, extract, inject, remove, target_modules
from cl_lora.models.backbones import Backbone, ModelConfig, input_size, load_backbone
from cl_lora.models.clip import MEAN, STD, CLIPBackbone
from cl_lora.models.heads import CosineHead, head_of
from cl_lora.models.prepare import prepare_backbone
from cl_lora.support.errors import UserError
from cl_lora.tasks import CLASS, Task, get_kind

ANIMALS = Task("animals", CLASS, ("cat", "guide_dog", "bee"))
PROMPTS = ("a photo of a {}.", "a bad sketch of the {}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("models") / "clip")


def config(folder: Path, **settings: Any) -> ModelConfig:
    return ModelConfig("tiny", source="clip", checkpoint=str(folder), **settings)


@pytest.fixture(scope="module")
def clip(folder: Path) -> CLIPBackbone:
    made = load_backbone(config(folder, prompts=PROMPTS))
    assert isinstance(made, CLIPBackbone)
    return made


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(folder).eval()


def images(side: int = SIDE, count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def pixels(raw: torch.Tensor) -> torch.Tensor:
    """Normalise as the preprocessor of the folder says."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7]))
    return (raw / 255 - mean) / std


def tokens(folder: Path, texts: list[str]) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")


@torch.no_grad()
def test_features_are_transformers_own(clip: CLIPBackbone, theirs: Any) -> None:
    expected = theirs.get_image_features(pixel_values=pixels(images())).pooler_output
    torch.testing.assert_close(clip(images()), expected, rtol=1e-5, atol=1e-6)
    assert clip.features == WIDTH
    assert not any(p.requires_grad for p in clip.parameters())
    assert not any("text" in name for name, _ in clip.named_parameters())


@torch.no_grad()
def test_another_size_resamples_the_position_embedding(folder: Path, theirs: Any) -> None:
    large = config(folder, img_size=48)
    assert input_size(large) == 48
    expected = theirs.get_image_features(
        pixel_values=pixels(images(48)), interpolate_pos_encoding=True
    ).pooler_output
    torch.testing.assert_close(load_backbone(large)(images(48)), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_zero_shot_head_gives_transformers_own_logits(folder: Path, theirs: Any) -> None:
    """With one prompt; an underscore is read as a space."""
    backbone = load_backbone(config(folder))
    texts = ["a photo of a cat.", "a photo of a guide dog.", "a photo of a bee."]
    expected = theirs(pixel_values=pixels(images()), **tokens(folder, texts)).logits_per_image
    found = backbone.task_head(ANIMALS)(backbone(images()))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_several_prompts_are_averaged_as_directions(
    clip: CLIPBackbone, folder: Path, theirs: Any
) -> None:
    directions = []
    for label in ("cat", "guide dog", "bee"):
        texts = [prompt.format(label) for prompt in PROMPTS]
        embedded = theirs.get_text_features(**tokens(folder, texts)).pooler_output.double()
        mean = (embedded / embedded.norm(dim=1, keepdim=True)).mean(dim=0)
        directions.append(mean / mean.norm())
    features = clip(images()).double()
    cosines = features / features.norm(dim=1, keepdim=True) @ torch.stack(directions).T
    expected = theirs.logit_scale.double().exp() * cosines
    found = clip.task_head(ANIMALS)(clip(images())).double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_head_of_texts_is_frozen_and_comes_back_from_its_state(clip: CLIPBackbone) -> None:
    head = clip.task_head(ANIMALS)
    assert not any(p.requires_grad for p in head.parameters())
    state = head.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "weight": (3, WIDTH),
        "scale": (),
    }
    back = head_of(state)
    assert isinstance(back, CosineHead)
    features = clip(images())
    assert torch.equal(back(features), head(features))
    expected = state["scale"] * F.cosine_similarity(features[:, None], state["weight"][None], dim=2)
    torch.testing.assert_close(back(features), expected)


def test_the_text_tower_is_loaded_once_a_task(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cl_lora.models import clip as module

    backbone = load_backbone(config(folder))
    asked = []
    monkeypatch.setattr(
        module, "_whole", lambda where, own=module._whole: asked.append(where) or own(where)
    )
    first, second = backbone.task_head(ANIMALS), backbone.task_head(ANIMALS)
    backbone.task_head(Task("same labels", CLASS, ANIMALS.labels))
    assert len(asked) == 1
    assert torch.equal(first.weight, second.weight)  # type: ignore[arg-type]
    backbone.task_head(Task("others", CLASS, ("a", "b")))
    assert len(asked) == 2


@pytest.mark.parametrize("target", ["q", "k", "v", "proj", "fc1", "fc2"])
def test_each_target_is_found_in_every_layer(clip: CLIPBackbone, target: str) -> None:
    names = target_modules(clip.network, [target], clip.targets)
    ends = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "proj": "out_proj"}
    end = ends.get(target, target)
    assert [name.rpartition(".")[2] for name in names] == [end] * 2
    assert len({name.split(".")[3] for name in names}) == 2


def test_lora_trains_and_leaves_the_backbone_as_it_was(folder: Path) -> None:
    lora = LoRAConfig(rank=2, lora_alpha=4, dropout=0.0, targets=("q", "v"))
    backbone, modules = prepare_backbone(config(folder), lora, torch.device("cpu"), bf16=False)
    before, fingerprint = backbone(images()), backbone.fingerprint()
    head, labels = backbone.task_head(ANIMALS), torch.tensor([0, 1, 2])
    backbone.network = inject(backbone.network, lora, None, backbone.targets)
    torch.testing.assert_close(backbone(images()), before)
    trained = [p for p in backbone.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(head(backbone(images())), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    factors = extract(backbone.network)
    backbone.network = remove(backbone.network)
    assert losses[-1] < losses[0] - 0.05
    assert tuple(factors) == modules
    assert all(f.B.abs().max() > 0 for f in factors.values())
    assert backbone.fingerprint() == fingerprint
    assert torch.equal(backbone(images()), before)


def test_without_a_preprocessor_the_model_says_the_size(tmp_path: Path) -> None:
    folder = write_clip(tmp_path / "clip", preprocessor=False)
    backbone = load_backbone(config(folder))
    assert input_size(config(folder)) == SIDE
    assert backbone.record()["mean"] == list(MEAN)
    assert backbone.record()["std"] == list(STD)


def test_the_record_is_of_both_towers_and_the_prompts(folder: Path, tmp_path: Path) -> None:
    record = load_backbone(config(folder)).record()
    assert record["prompts"] == ["a photo of a {}."]
    assert (record["img_size"], record["mean"]) == (SIDE, [0.1, 0.2, 0.3])
    assert load_backbone(config(folder, prompts=("{}",))).record() == {**record, "prompts": ["{}"]}
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    state = load_file(other / "model.safetensors")
    state["text_projection.weight"] += 1
    save_file(state, other / "model.safetensors", metadata={"format": "pt"})
    changed = load_backbone(config(other)).record()
    assert {key for key in record if record[key] != changed[key]} == {"text"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"img_size": 40}, "model.img_size to be a multiple of 16"),
        ({"pretrained": False}, "model.pretrained means nothing to models of source 'clip'"),
        ({"prompts": ["a photo"]}, r"one \{\} each, .* but got 'a photo'"),
        ({"prompts": []}, r"one \{\} each"),
        ({"task_prompts": {"a": "a {}"}}, r"model\.task_prompts\.a to be a list .* got 'a \{\}'"),
        ({"task_prompts": {"a": ["a {}", "b"]}}, r"model\.task_prompts\.a .* but got 'b'"),
        ({"source": "clop"}, "Unknown model.source 'clop': did you mean 'clip'"),
    ],
)
def test_bad_settings_of_clip(folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_backbone(
            ModelConfig(**{"name": "tiny", "source": "clip", "checkpoint": str(folder), **settings})
        )


def test_a_task_may_have_prompts_of_its_own(folder: Path) -> None:
    own = {"signs": ["a sign, {}"]}
    backbone = load_backbone(config(folder, task_prompts=own))
    assert backbone.record()["task_prompts"] == own
    signs, others = (Task(name, CLASS, ("stop", "yield")) for name in ("signs", "others"))
    expected = load_backbone(config(folder, prompts=own["signs"])).task_head(others)
    assert torch.equal(backbone.task_head(signs).weight, expected.weight)  # type: ignore[arg-type]
    assert not torch.equal(backbone.task_head(others).weight, expected.weight)  # type: ignore[arg-type]


def test_prompts_mean_nothing_to_timm() -> None:
    with pytest.raises(UserError, match=r"model.prompts means nothing to models of source 'timm'"):
        input_size(ModelConfig("embedded", prompts=PROMPTS))


@pytest.mark.parametrize("name", ["???", ""])
def test_no_name(name: str) -> None:
    with pytest.raises(UserError, match=r"give model.name=NAME"):
        input_size(ModelConfig(name, source="clip"))


def test_a_file_in_place_of_a_folder(folder: Path) -> None:
    with pytest.raises(UserError, match=r"the folder of a CLIP model but .* has no config.json"):
        load_backbone(config(folder / "model.safetensors"))


def test_a_model_of_another_kind(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(
        UserError, match="a CLIP model of transformers but its model_type is 'bert'"
    ):
        load_backbone(config(tmp_path))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("text_model.encoder.layers.1.mlp.fc1.weight", "there is no 'text_model.encoder"),
        ("visual_projection.weight", "there is no 'visual_projection.weight'"),
    ],
)
def test_weights_that_are_missing(folder: Path, tmp_path: Path, part: str, message: str) -> None:
    shutil.copytree(folder, tmp_path / "cut")
    state = load_file(folder / "model.safetensors")
    del state[part]
    save_file(state, tmp_path / "cut" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=message):
        load_backbone(config(tmp_path / "cut"))


def test_a_file_that_was_cut_short(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "cut")
    file = tmp_path / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(UserError, match="could not be read as a CLIP model"):
        load_backbone(config(tmp_path / "cut"))


def test_a_pickle_is_not_run(folder: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return (Path.touch, (tmp_path / "ran",))

    shutil.copytree(folder, tmp_path / "evil")
    (tmp_path / "evil" / "model.safetensors").unlink()
    torch.save({"x": Evil()}, tmp_path / "evil" / "pytorch_model.bin")
    with pytest.raises(UserError, match="could not be read as a CLIP model"):
        load_backbone(config(tmp_path / "evil"))
    assert not (tmp_path / "ran").exists()


def test_numbers_have_no_head_of_texts(clip: CLIPBackbone) -> None:
    with pytest.raises(UserError, match="classes, whose names make the head, but 'age' is of"):
        clip.task_head(Task("age", get_kind("scalar")))
    points = Task("face", get_kind("points"), ("eye", "nose"), normaliser=(0, 1))
    with pytest.raises(UserError, match=r"of the kind 'points'; set strategy.head=own"):
        clip.task_head(points)


def test_a_label_that_is_too_long(clip: CLIPBackbone) -> None:
    with pytest.raises(UserError, match=rf"at most {LONGEST} tokens but .* shorten the label"):
        clip.task_head(Task("long", CLASS, ("bee", "z" * LONGEST)))


def test_a_label_that_the_tokenizer_does_not_know(clip: CLIPBackbone) -> None:
    with pytest.raises(UserError, match=r"does not know all of 'a photo of a #.'"):
        clip.task_head(Task("signs", CLASS, ("bee", "#")))


def test_a_folder_without_a_tokenizer(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "bare", ignore=lambda *_: ["vocab.json", "merges.txt"])
    backbone = load_backbone(config(tmp_path / "bare"))
    with pytest.raises(UserError, match=r"tokenizer|could not be read as a CLIP model"):
        backbone.task_head(ANIMALS)


def test_other_backbones_make_no_head_of_labels(backbone: Backbone) -> None:
    with pytest.raises(UserError, match=r"makes no head .* strategy.head=text .*strategy.head=own"):
        backbone.task_head(ANIMALS)
