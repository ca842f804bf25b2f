"""Runs with heads of texts, from the command line to the scores, beside transformers' CLIPModel."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_clip import SIDE, write_clip
from whole_runs import rows, stamps

from cl_lora.cli import main
from cl_lora.configuration.compose import compose_config
from cl_lora.experiment.pipeline import execute
from cl_lora.experiment.settings import read_settings
from cl_lora.models.backbones import ModelConfig, load_backbone
from cl_lora.run_folder.reader import RunFolder
from cl_lora.support.errors import UserError
from cl_lora.tasks import CLASS, Task

TASKS = {"animals": ("bee", "cat", "guide_dog"), "colours": ("dark_red", "sky_blue")}
PROMPTS = {"colours": ["the colour {}", "all in {}."]}
ARMS = ("arms=none", "+arms.half={method: task_arithmetic, coefficients: 0.5}")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks of noise in colours: six train and four test images a class."""
    root = tmp_path_factory.mktemp("tasks")
    generator = np.random.default_rng(0)
    for task, classes in TASKS.items():
        for label, name in enumerate(classes):
            for side, count in (("train", 6), ("test", 4)):
                folder = root / task / side / name
                folder.mkdir(parents=True)
                for number in range(count):
                    pixels = generator.integers(0, 100, (SIDE, SIDE, 3), dtype=np.uint8)
                    pixels[..., label] += 150
                    Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("models") / "clip")


def settings(data: Path, clip: Path, folder: Path, *more: str) -> list[str]:
    return [
        *("benchmark=task_folders", f"benchmark.root={data}", f"run_dir={folder}"),
        *(f"benchmark.cache_dir={data.parent / 'cache'}", "benchmark.val_fraction=0.2"),
        *("model=clip_b32", f"model.checkpoint={clip}", "protocol=subsets", "strategy.head=text"),
        *("strategy.epochs=3", "strategy.rank=2", "strategy.batch_size=6", "strategy.lr=1.0e-2"),
        *("model.task_prompts={colours: ['the colour {}', 'all in {}.']}", "report=false"),
        *("precision=fp32", "device=cpu", "references=[base,single]", *ARMS, *more),
    ]


@pytest.fixture(scope="module")
def run(data: Path, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "clip"
    assert main(["run", *settings(data, clip, folder)]) == 0
    return folder


def head_of(run: Path, task: str) -> dict[str, torch.Tensor]:
    (file,) = run.glob(f"adapters/**/*{task}*/head.safetensors")
    return load_file(file)


@torch.no_grad()
def predicted(model: Any, clip: Path, images: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
    from transformers import CLIPTokenizer

    tokens = CLIPTokenizer.from_pretrained(clip)(list(texts), padding=True, return_tensors="pt")
    logits: torch.Tensor = model(pixel_values=images, **tokens).logits_per_image
    return logits.argmax(dim=1)


def test_the_bare_backbone_scores_what_transformers_model_does(
    run: Path, data: Path, clip: Path
) -> None:
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(clip).eval()
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.6, 0.7])
    images, labels = [], []
    for label, name in enumerate(TASKS["animals"]):
        for file in sorted((data / "animals" / "test" / name).iterdir()):
            pixels = (np.asarray(Image.open(file)) / 255 - mean) / std
            images.append(torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1))
            labels.append(label)
    texts = [f"a photo of a {name.replace('_', ' ')}." for name in TASKS["animals"]]
    found = predicted(model, clip, torch.stack(images), texts)
    expected = (found == torch.tensor(labels)).double().mean().item()
    (score,) = {
        float(row["value"])
        for row in rows(run)
        if row["arm"] == "base" and row["metric"] == "accuracy" and row["evaluated"] == "0"
    }
    assert score == pytest.approx(expected)


def test_heads_are_those_of_the_texts_and_do_not_train(run: Path, clip: Path) -> None:
    config = ModelConfig("tiny", source="clip", checkpoint=str(clip), task_prompts=PROMPTS)
    backbone = load_backbone(config)
    for name, labels in TASKS.items():
        expected = backbone.task_head(Task(name, CLASS, labels)).state_dict()
        there = head_of(run, name)
        assert set(there) == set(expected) == {"weight", "scale"}
        for key, value in expected.items():
            torch.testing.assert_close(there[key], value)


def test_the_loss_falls_under_a_head_of_texts(run: Path) -> None:
    for file in run.glob("adapters/**/training.json"):
        losses = [epoch["loss"] for epoch in json.loads(file.read_text())["loss"]]
        assert losses[-1] < losses[0]


def test_the_record_names_the_prompts(run: Path, data: Path, clip: Path) -> None:
    backbone = RunFolder.read(run).identity["backbone"]
    assert backbone["prompts"] == ["a photo of a {}."]
    assert backbone["task_prompts"] == PROMPTS
    other = settings(data, clip, run, "model.prompts=['a {}']")
    with pytest.raises(UserError, match=r"backbone's weights changed|use a new run_dir"):
        execute(compose_config(other))


def test_a_run_is_resumed_with_heads_of_texts(run: Path, data: Path, clip: Path) -> None:
    before = stamps(run)
    execute(compose_config(settings(data, clip, run, "+arms.mean={method: task_arithmetic}")))
    assert stamps(run) == before
    assert {row["arm"] for row in rows(run)} >= {"base", "single", "half", "mean"}


def test_numbers_are_refused_before_training(clip: Path, tmp_path: Path) -> None:
    given = [
        *("experiment=multitask_shapes", "model=clip_b32", f"model.checkpoint={clip}"),
        *("strategy.head=text", f"run_dir={tmp_path / 'run'}", "benchmark.samples_per_class=2"),
        *("benchmark.test_samples_per_class=1", f"benchmark.cache_dir={tmp_path / 'cache'}"),
        *("benchmark.val_fraction=0", "strategy.patience=null"),
    ]
    with pytest.raises(UserError, match="a task with classes, whose names make the head"):
        execute(compose_config(given))
    assert not (tmp_path / "run").exists()


def test_a_model_without_texts_makes_no_heads_of_texts(data: Path, tmp_path: Path) -> None:
    given = [
        *("benchmark=task_folders", f"benchmark.root={data}", "strategy.head=text"),
        *("protocol=subsets", f"run_dir={tmp_path / 'run'}", "model.img_size=16", "arms=none"),
        "references=[single]",
    ]
    with pytest.raises(UserError, match=r"makes no head of a task's labels"):
        execute(compose_config(given))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["strategy.targets=[qkv]"], "Unknown LoRA target 'qkv': "),
        (["strategy.targets=[q,w]"], "Unknown LoRA target 'w'"),
        (
            ["+model.pretrained=false"],
            r"model\.pretrained means nothing to .* source 'clip'",
        ),
    ],
)
def test_what_a_clip_has_not_is_said_early(
    data: Path, tmp_path: Path, clip: Path, given: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        execute(compose_config(settings(data, clip, tmp_path / "run", *given)))


def test_a_hub_name_makes_no_folder_within_a_folder(data: Path, clip: Path) -> None:
    raw = compose_config([*settings(data, clip, data)[:2], "model=clip_b32", "strategy=lora"])
    folder = read_settings(raw).folder({"strategy": {}})
    assert folder.parent == Path("runs")
    assert folder.name.startswith("task_folders-clip-vit-base-patch32-")
