"""Torchvision's sets as tasks of a multitask stream, and the eight of Jiang et al. together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published import write_image
from torchvision import datasets
from torchvision_layouts import (
    CLASSES,
    LAYOUTS,
    PER_CLASS,
    SPLIT_BY_US,
    TEST,
    TRAIN,
    food,
    grey,
    mnist,
    picture,
    svhn,
)

from cl_lora.benchmarks import Benchmark, found, make_benchmark, validate_benchmark_config
from cl_lora.benchmarks.sources.torchvision_sets import PUBLISHED
from cl_lora.configuration.compose import compose_config
from cl_lora.support.errors import UserError

pytestmark = pytest.mark.usefixtures("cache")


def config(root: Path, name: str, **options: Any) -> dict[str, Any]:
    task = {"source": "torchvision", "root": ".", "set": name, **options}
    return {"kind": "multitask", "tasks": {"it": task}, "root": str(root), "val_fraction": 0.0}


@pytest.mark.parametrize("name", LAYOUTS)
def test_labels_pictures_and_split_of_a_task(name, tmp_path, monkeypatch):
    fabricate, classes = LAYOUTS[name]
    fabricate(tmp_path, monkeypatch)
    (it,) = make_benchmark(config(tmp_path, name, test_fraction=0.25), 8).experiences
    assert it.task.labels == tuple(classes.split())
    for side, part in ((TRAIN, it.train), (TEST, it.test)):
        shown = TRAIN if name in SPLIT_BY_US else side
        expected = [grey(label, shown) for label in it.targets[part].tolist()]
        assert (it.inputs[part] == np.array(expected)[:, None, None, None]).all()
    share = PER_CLASS // 4 if name in SPLIT_BY_US else PER_CLASS
    assert np.bincount(it.targets[it.test]).tolist() == [share] * CLASSES


def test_only_the_samples_that_are_used_are_read(tmp_path, monkeypatch):
    """Of files and of arrays; a picture that is not used makes no other benchmark."""
    food(tmp_path, monkeypatch)
    svhn(tmp_path, monkeypatch)
    caps = {"samples_per_class": 2, "test_samples_per_class": 1}

    def built(name: str) -> Benchmark:
        return make_benchmark({**config(tmp_path, name), **caps}, 8)

    for name in ("Food101", "SVHN"):
        (it,) = built(name).experiences
        assert len(it.inputs) == 3 * CLASSES
        assert np.bincount(it.targets[it.train]).tolist() == [2] * CLASSES
        for side, part in ((TRAIN, it.train), (TEST, it.test)):
            expected = [grey(label, side) for label in it.targets[part].tolist()]
            assert (it.inputs[part][:, 0, 0, 0] == expected).all()
    before = {built("Food101").fingerprint}
    for number in range(4):
        place = tmp_path / "food-101" / "images" / "dish0" / f"train{CLASSES * number}.jpg"
        kept = place.read_bytes()
        picture(place, 3, TRAIN)
        before.add(built("Food101").fingerprint)
        place.write_bytes(kept)
    assert len(before) == 3  # two of the four are used


def test_a_task_and_the_set_of_a_stream_hold_the_same(tmp_path, monkeypatch):
    """The other door to the same data: a task shift of whole sets."""
    LAYOUTS["DTD"][0](tmp_path, monkeypatch)
    food(tmp_path, monkeypatch)
    stream = make_benchmark(
        {"kind": "task_shift", "root": str(tmp_path), "sets": ["DTD", "Food101"]}, 8
    )
    (it,) = make_benchmark(config(tmp_path, "DTD"), 8).experiences
    other = stream.experiences[0]
    assert np.array_equal(it.inputs[it.test], other.inputs[other.test])
    assert np.array_equal(it.targets[it.train], other.targets[other.train])


def test_classes_can_be_given_other_names(tmp_path, monkeypatch):
    svhn(tmp_path, monkeypatch)
    names = ["zero", "one", "two", "three"]
    (it,) = make_benchmark(config(tmp_path, "SVHN", labels=names), 8).experiences
    assert it.task.labels == tuple(names)
    with pytest.raises(UserError, match=r"tasks\.it\.labels to name the 4 classes .* got 3 names"):
        validate_benchmark_config(config(tmp_path, "SVHN", labels=names[:3]))
    with pytest.raises(UserError, match=r"benchmark\.tasks\.it\.labels .* different names"):
        validate_benchmark_config(config(tmp_path, "SVHN", labels=["a", "a", "b", "c"]))


def test_what_is_wrong_is_said(tmp_path):
    with pytest.raises(UserError, match=r"benchmark\.tasks\.it\.set 'MNITS': did you mean 'MNIST'"):
        validate_benchmark_config(config(tmp_path, "MNITS"))
    with pytest.raises(UserError, match=r"torchvision's DTD in .*tasks\.it\.download=true"):
        validate_benchmark_config(config(tmp_path, "DTD"))
    twice = config(tmp_path, "DTD")
    twice["tasks"]["again"] = {**twice["tasks"]["it"], "labels": ["a"]}
    with pytest.raises(UserError, match="are the same task"):
        validate_benchmark_config(twice)


def test_found_looks_where_a_set_lies(tmp_path, monkeypatch):
    assert found(config(tmp_path, "Food101")) is None
    food(tmp_path, monkeypatch)
    assert found(config(tmp_path, "Food101")) == f"it ({2 * CLASSES * PER_CLASS} samples)"


def test_the_eight_tasks_are_composed_and_built(tmp_path, monkeypatch):
    raw = compose_config(["experiment=reuse_clip", f"benchmark.root={tmp_path}"])
    benchmark = raw["benchmark"]
    names = ["mnist", "gtsrb", "svhn", "resisc45", "sun397", "eurosat", "dtd", "cars"]
    assert list(benchmark["tasks"]) == names
    sets = [task.get("set") for task in benchmark["tasks"].values()]
    assert [name for name in sets if name] == [
        *("MNIST", "GTSRB", "SVHN", "SUN397", "EuroSAT", "DTD", "StanfordCars")
    ]
    assert set(sets) - {None} <= set(PUBLISHED)
    assert len(benchmark["tasks"]["gtsrb"]["labels"]) == 43
    assert len(benchmark["tasks"]["eurosat"]["labels"]) == len(_eurosat_classes())
    assert set(raw["model"]["task_prompts"]) == set(names)

    # The tasks of four classes that the tests write have other names.
    for fabricate, _ in (LAYOUTS[name] for name in sets if name and name != "MNIST"):
        fabricate(tmp_path, monkeypatch)
    mnist(tmp_path, monkeypatch)
    monkeypatch.setattr(datasets.MNIST, "classes", list("wxyz"), raising=False)
    for task in benchmark["tasks"].values():
        task.pop("labels", None)
    for number in range(20):
        write_image(tmp_path / "NWPU-RESISC45" / f"land_{number % 2}" / f"{number}.jpg")
    made = make_benchmark(benchmark, 8)
    assert list(made.names) == names
    assert [len(e.task.labels) for e in made.experiences] == [4, 4, 4, 2, 4, 4, 4, 4]
    assert all(len(e.val) for e in made.experiences)
    resisc = made.experiences[3]
    assert (len(resisc.train) + len(resisc.val), len(resisc.test)) == (16, 4)
    assert resisc.task.labels == ("land_0", "land_1")


def _eurosat_classes() -> list[str]:
    return [
        *("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture"),
        *("PermanentCrop", "Residential", "River", "SeaLake"),
    ]
