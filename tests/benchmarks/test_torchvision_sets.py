"""Published sets as torchvision lays them out: fabricated on disk, read by its classes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets
from torchvision_layouts import (
    CLASSES,
    LAYOUTS,
    PER_CLASS,
    SPLIT_BY_US,
    TEST,
    TRAIN,
    cifar,
    eurosat,
    flowers,
    food,
    grey,
    mnist,
    picture,
)

from cl_lora.benchmarks import make_benchmark, validate_benchmark_config
from cl_lora.benchmarks.sources.image_sets import IMAGE_SETS, SetRequest, load_image_set
from cl_lora.benchmarks.sources.torchvision_sets import PUBLISHED
from cl_lora.benchmarks.splits import SplitSettings
from cl_lora.support.errors import UserError

SETTINGS = SplitSettings(test_fraction=0.25, split_seed=0)


def load(name: str, root: Path, **more):
    return load_image_set(name, SetRequest(name, SETTINGS, str(root), **more))


@pytest.mark.parametrize("name", LAYOUTS)
def test_labels_pictures_and_split(name, tmp_path, monkeypatch):
    fabricate, classes = LAYOUTS[name]
    fabricate(tmp_path, monkeypatch)
    images = load(name, tmp_path)
    assert images.classes == tuple(classes.split())
    pixels, content = images.decode(8, str(tmp_path / "cache"))
    assert pixels.shape[1:] == (8, 8, 3)
    for side, part in ((TRAIN, images.parts.train), (TEST, images.parts.test)):
        shown = side if name not in SPLIT_BY_US else TRAIN
        expected = [grey(label, shown) for label in images.labels[part].tolist()]
        assert (pixels[part] == np.array(expected)[:, None, None, None]).all()
        if name not in SPLIT_BY_US:
            assert np.bincount(images.labels[part]).tolist() == [PER_CLASS] * CLASSES
    if name in SPLIT_BY_US:
        assert np.bincount(images.labels[images.parts.test]).tolist() == [1] * CLASSES
    assert load(name, tmp_path).decode(8, str(tmp_path / "cache"))[1] == content


@pytest.mark.parametrize(("name", "fabricate"), [("MNIST", mnist), ("Flowers102", flowers)])
def test_sets_whose_class_names_are_fixed(name, fabricate, tmp_path, monkeypatch):
    # Ten digits and 102 flowers: four of them are not a whole set, and that is said.
    fabricate(tmp_path, monkeypatch)
    monkeypatch.setattr(getattr(datasets, name), "classes", list("wxyz"), raising=False)
    images = load(name, tmp_path)
    pixels, _ = images.decode(8, str(tmp_path / "cache"))
    assert images.classes == tuple("wxyz")
    for side, part in ((TRAIN, images.parts.train), (TEST, images.parts.test)):
        assert np.bincount(images.labels[part]).tolist() == [PER_CLASS] * CLASSES
        expected = [grey(label, side) for label in images.labels[part].tolist()]
        assert (pixels[part] == np.array(expected)[:, None, None, None]).all()


def test_every_set_is_registered_and_a_class_of_torchvision():
    assert set(PUBLISHED) == {*LAYOUTS, "MNIST", "Flowers102"}
    for name in PUBLISHED:
        assert name in IMAGE_SETS
        assert hasattr(datasets, name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_missing_says_where_it_is_expected(name, tmp_path):
    with pytest.raises(UserError) as caught:
        load(name, tmp_path)
    message = str(caught.value)
    assert f"torchvision's {name} in {tmp_path / PUBLISHED[name].folder} but" in message
    assert "benchmark.download=true" in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_nothing_is_downloaded_unless_asked(name, tmp_path, monkeypatch):
    asked = []

    def refuse(self, *args, **options):
        asked.append(options.pop("download"))
        raise OSError("no network")

    monkeypatch.setattr(getattr(datasets, name), "__init__", refuse)
    for download in (False, True):
        with pytest.raises(UserError, match="no network"):
            load(name, tmp_path, download=download)
    assert asked == [False, True]


def test_a_stream_of_a_published_set_and_one_of_several(tmp_path, monkeypatch, cache):
    for fabricate in (cifar, eurosat, food):
        fabricate(tmp_path, monkeypatch)
    config = {"root": str(tmp_path)}
    groups = make_benchmark(
        {**config, "kind": "label_shift", "images": "CIFAR100", "upstream_tasks": 1}, 8
    )
    assert [e.task.labels for e in groups.experiences] == [("apple", "bear"), ("cup", "dog")]
    assert set(groups.experiences[1].inputs[groups.experiences[1].test].ravel()) == {21, 31}
    tasks = {**config, "kind": "task_shift", "sets": ["EuroSAT", "CIFAR100", "Food101"]}
    data = make_benchmark({**tasks, "downstream": "CIFAR100"}, 8)
    assert data.names == ("EuroSAT", "Food101", "CIFAR100")
    assert data.experiences[1].task.labels == ("dish0", "dish1", "dish2", "dish3")
    with pytest.raises(UserError, match=r"no benchmark.options for images=CIFAR100 but got size"):
        validate_benchmark_config(
            {**config, "kind": "label_shift", "images": "CIFAR100", "options": {"size": 3}}
        )


def test_a_moved_set_is_not_decoded_again_and_a_changed_picture_is(tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    food(tmp_path / "one", monkeypatch)
    _, content = load("Food101", tmp_path / "one").decode(8, str(tmp_path / "cache"))
    shutil.move(tmp_path / "one", tmp_path / "two")
    moved = load("Food101", tmp_path / "two")
    assert moved.decode(8, str(tmp_path / "cache"))[1] == content
    picture(tmp_path / "two" / "food-101" / "images" / "dish0" / "train0.jpg", 3, TRAIN)
    changed = load("Food101", tmp_path / "two")
    assert changed.decode(8, str(tmp_path / "cache"))[1] != content
