"""Folders that are tasks: with a split, with a validation part, or with neither."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cl_lora.benchmarks import Experience, found, make_benchmark, validate_benchmark_config
from cl_lora.support.errors import UserError

pytestmark = pytest.mark.usefixtures("cache")

CLASSES = ("bee", "cat")


def write_task(
    folder: Path, sides: Sequence[str] = ("train", "test"), classes: Sequence[str] = CLASSES
) -> Path:
    """Four pictures a class and side; red counts them, green is the class, blue the side."""
    number = 0
    for side, place in enumerate(sides):
        for label, name in enumerate(classes):
            for _ in range(4):
                number += 1
                path = folder / place / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (number, label, side)).save(path)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three tasks: with train and test, with val too, and without any of them."""
    root = tmp_path / "tasks"
    write_task(root / "signs")
    write_task(root / "digits", ("train", "val", "test"), ("one", "two", "three"))
    write_task(root / "flowers", (".",))
    (root / ".hidden").mkdir()
    (root / "README.md").write_text("notes")
    return root


def config(root: Path, **options: Any) -> dict[str, Any]:
    return {"kind": "task_folders", "root": str(root), **options}


def shown(experience: Experience, part: str, channel: int) -> list[int]:
    return experience.inputs[getattr(experience, part)][:, 0, 0, channel].tolist()


def test_every_folder_is_a_task_in_alphabetical_order(root: Path) -> None:
    benchmark = make_benchmark(config(root), 8)
    assert benchmark.names == ("digits", "flowers", "signs")
    assert [e.task.labels for e in benchmark.experiences] == [
        *(("one", "three", "two"), CLASSES, CLASSES)
    ]
    for e in benchmark.experiences:
        assert e.task.name == e.name
        for part in ("train", "val", "test"):
            targets = e.targets[getattr(e, part)]
            assert set(targets) == set(range(len(e.task.labels)))
    signs = benchmark.experiences[2]
    for part in ("train", "val", "test"):
        labels = signs.targets[getattr(signs, part)].tolist()
        assert shown(signs, part, 1) == labels


def test_given_parts_are_the_parts(root: Path) -> None:
    digits, _, signs = make_benchmark(config(root, val_fraction=0.25), 8).experiences
    # Of digits: train 0, val 1, test 2; of signs the validation part is drawn from train.
    assert [set(shown(digits, part, 2)) for part in ("train", "val", "test")] == [{0}, {1}, {2}]
    assert [len(part) for part in (digits.train, digits.val, digits.test)] == [12, 12, 12]
    assert [set(shown(signs, part, 2)) for part in ("train", "val", "test")] == [{0}, {0}, {1}]
    assert [len(part) for part in (signs.train, signs.val, signs.test)] == [6, 2, 8]


def test_without_a_validation_share_only_a_folder_gives_one(root: Path) -> None:
    benchmark = make_benchmark(config(root, val_fraction=0.0), 8)
    assert [len(e.val) for e in benchmark.experiences] == [12, 0, 0]


def test_without_a_test_folder_a_share_of_each_class_is_drawn(root: Path) -> None:
    made = [
        make_benchmark(config(root, only=["flowers"], test_fraction=0.5, split_seed=seed), 8)
        for seed in (0, 0, 2)
    ]
    (flowers,) = made[0].experiences
    assert np.bincount(flowers.targets[flowers.test]).tolist() == [2, 2]
    assert not set(shown(flowers, "train", 0)) & set(shown(flowers, "test", 0))
    assert made[0].fingerprint == made[1].fingerprint != made[2].fingerprint


def test_some_folders_in_another_order(root: Path) -> None:
    some = make_benchmark(config(root, only=["signs", "digits"]), 8)
    assert some.names == ("signs", "digits")
    every = make_benchmark(config(root), 8)
    one, other = some.experiences[0], every.experiences[2]
    assert np.array_equal(one.train, other.train)
    assert np.array_equal(one.inputs, other.inputs)


def test_it_is_a_multitask_stream_of_trees(root: Path) -> None:
    tasks = {name: {"source": "tree", "root": name} for name in ("digits", "flowers", "signs")}
    plain = {"kind": "multitask", "tasks": tasks, "root": str(root), "val_fraction": 0.25}
    caps = {"samples_per_class": 3, "test_samples_per_class": 2}
    ours = make_benchmark(config(root, val_fraction=0.25, **caps), 8)
    assert ours.fingerprint == make_benchmark({**plain, **caps}, 8).fingerprint
    signs = ours.experiences[2]
    assert [len(part) for part in (signs.train, signs.val, signs.test)] == [4, 2, 4]


def test_a_moved_folder_is_the_same_benchmark(root: Path, tmp_path: Path) -> None:
    before = make_benchmark(config(root), 8).fingerprint
    moved = root.rename(tmp_path / "elsewhere")
    assert make_benchmark(config(moved), 8).fingerprint == before


def test_found_says_what_is_there(root: Path, tmp_path: Path) -> None:
    assert found(config(tmp_path / "no")) is None
    assert found(config(root, only=["signs", "flowers"])) == (
        "signs (16 samples), flowers (8 samples)"
    )


def test_folders_that_are_refused(root: Path, tmp_path: Path) -> None:
    def refused(message: str, place: Path = root, **options: Any) -> None:
        with pytest.raises(UserError, match=message) as caught:
            validate_benchmark_config(config(place, **options))
        assert "\n" not in str(caught.value)

    refused("which does not exist; give benchmark.root=DIR", tmp_path / "no")
    refused("'sings': did you mean 'signs'", only=["sings"])
    refused("list of different names", only=["signs", "signs"])
    refused("Unknown benchmark option 'onyl': did you mean 'only'", onyl=["signs"])
    (tmp_path / "empty").mkdir()
    refused("a folder for each task but it holds no folder", tmp_path / "empty")
    (root / "half" / "train" / "bee").mkdir(parents=True)
    refused("the folder 'test' of .* does not exist")
    (root / "half" / "test" / "cat").mkdir(parents=True)
    refused("class 'cat' is missing", only=["half"])
    (root / "bare").mkdir()
    refused("no part has a class folder", only=["bare"])
    write_task(root / "odd", ("train", "test"))
    write_task(root / "odd", ("val",), ("bee",))
    refused("class 'cat' is missing in 'val'", only=["odd"])
