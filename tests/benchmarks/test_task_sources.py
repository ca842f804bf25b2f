"""Sources of tasks, each on a small data set written here in its published form."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from published import (
    FIRE,
    WFLW_LISTS,
    face_points,
    wflw_line,
    write_expw,
    write_fire_risk,
    write_image,
    write_utkface,
    write_wflw,
)

from cl_lora.benchmarks import Experience, make_benchmark, validate_benchmark_config
from cl_lora.benchmarks.sources.tasks.galaxy10 import GALAXIES
from cl_lora.support.errors import UserError

pytestmark = pytest.mark.usefixtures("cache")


def config(source: str, root: Path, **options: Any) -> dict[str, Any]:
    """One task without a validation part."""
    task = {"source": source, "root": str(root), **options}
    return {"kind": "multitask", "tasks": {"it": task}, "val_fraction": 0.0}


def only(source: str, root: Path, size: int = 8, **options: Any) -> Experience:
    (experience,) = make_benchmark(config(source, root, **options), size).experiences
    assert experience.name == experience.task.name == "it"
    return experience


def refused(source: str, root: Path, *words: str, **options: Any) -> None:
    with pytest.raises(UserError) as caught:
        validate_benchmark_config(config(source, root, **options))
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


# -- tree


def test_a_tree_keeps_its_split(tree):
    it = only("tree", tree(domains=("train", "test"), count=3))
    assert it.task.labels == ("cat", "dog")
    assert it.targets[it.train].tolist() == [0, 0, 0, 1, 1, 1]
    # The writer numbers the images, train first; red is the number.
    assert it.inputs[it.train][:, 0, 0, 0].tolist() == [1, 2, 3, 4, 5, 6]
    assert it.inputs[it.test][:, 0, 0, 0].tolist() == [7, 8, 9, 10, 11, 12]


def test_trees_that_are_refused(tree, tmp_path):
    root = tree(domains=("train",))
    refused("tree", root, "the folder 'test' of benchmark.tasks.it.root", "does not exist")
    refused("tree", tmp_path / "no", "benchmark.tasks.it.root=DIR", "does not exist")
    (root / "test" / "cat").mkdir(parents=True)
    write_image(root / "test" / "cat" / "1.png")
    refused("tree", root, "class 'dog' is missing in 'test'"[:20])


# -- FireRisk


def test_fire_risk_joins_seven_classes_to_three(tmp_path):
    it = only("fire_risk", write_fire_risk(tmp_path / "f", {"train": 2, "val": 1}))
    assert it.task.labels == ("none", "high", "low")
    # water, non-burnable | very high, high, moderate | low, very low
    assert np.bincount(it.targets[it.train]).tolist() == [4, 6, 4]
    assert np.bincount(it.targets[it.test]).tolist() == [2, 3, 2]
    bin_of = dict(zip(FIRE, ("high", "low", "high", "none", "high", "low", "none"), strict=True))
    by_name = {n: bin_of[FIRE[(n - 1) // 2]] for n in range(1, 15)}
    for index in it.train:
        number = int(it.inputs[index][0, 0, 0])
        assert it.task.labels[it.targets[index]] == by_name[number]


def test_fire_risk_in_another_spelling_is_the_same(tmp_path):
    other = [name.replace("_", "-").replace("Non-b", "Non_b") for name in FIRE]
    counts = {"train": 2, "val": 1}
    first = only("fire_risk", write_fire_risk(tmp_path / "a", counts))
    second = only("fire_risk", write_fire_risk(tmp_path / "b", counts, other))
    assert np.bincount(first.targets).tolist() == np.bincount(second.targets).tolist()


def test_fire_risk_caps_a_bin_not_a_folder(tmp_path):
    root = write_fire_risk(tmp_path / "f", {"train": 3, "val": 1})
    it = only("fire_risk", root, samples_per_class=4)
    assert np.bincount(it.targets[it.train]).tolist() == [4, 4, 4]
    assert len(it.inputs) == 12 + 7  # what no part uses is not decoded


def test_fire_risk_that_is_not_whole(tmp_path):
    root = write_fire_risk(tmp_path / "f", {"train": 1, "val": 1}, FIRE[:-1])
    refused("fire_risk", root, "class folders water, non_burnable", "but got High, Low")
    root = write_fire_risk(tmp_path / "g", {"train": 1})
    refused("fire_risk", root, "the folder 'val' of benchmark.tasks.it.root")


# -- UTKFace

AGES = [0, 3, 4, 16, 17, 30, 31, 45, 46, 59, 60, 116]


def test_utkface_bins_of_ages_and_years(tmp_path):
    root = write_utkface(tmp_path / "u", AGES)
    it = only("utkface", root, target="age_class", test_fraction=0.5)
    assert it.task.labels == ("0-3", "4-16", "17-30", "31-45", "46-59", "60+")
    assert np.bincount(it.targets[it.train]).tolist() == [1] * 6
    assert np.bincount(it.targets[it.test]).tolist() == [1] * 6
    years = only("utkface", root, target="age", test_fraction=0.5)
    assert sorted(years.targets.tolist()) == AGES
    assert years.targets.dtype == np.float32
    for number, first, last in ((0, 0, 3), (1, 4, 16), (4, 46, 59), (5, 60, 116)):
        assert set(years.targets[it.targets == number]) == {first, last}


def test_utkface_of_both_endings_and_the_published_slips(tmp_path):
    root = write_utkface(tmp_path / "u", AGES[:6])
    write_utkface(root, AGES[6:], ".jpg")
    for name in (
        "61_1_20170109142408075.jpg.chip.jpg",  # no race
        "24_0_1_20170116220224657 .jpg.chip.jpg",
        "55_0_0_20170116232725357jpg.chip.jpg",
        "53__0_20170116184028385.jpg.chip.jpg",  # no gender
    ):
        write_image(root / name)
    (root / "Thumbs.db").touch()
    it = only("utkface", root, target="age")
    assert len(it.targets) == 16


@pytest.mark.parametrize(
    "name", ["face.jpg", "x_1_0_20170109142408075.jpg", "131_1_0_20170109142408075.jpg", "5_1.jpg"]
)
def test_utkface_names_that_are_malformed(tmp_path, name):
    root = write_utkface(tmp_path / "u", AGES)
    write_image(root / name)
    refused("utkface", root, name, "AGE_GENDER_RACE_TIME.jpg", "rename", target="age")


def test_utkface_without_images(tmp_path):
    (tmp_path / "u").mkdir()
    refused("utkface", tmp_path / "u", "but got no image", target="age")
    write_utkface(tmp_path / "u", [1, 2, 50])
    refused("utkface", tmp_path / "u", "'4-16'", target="age")
    refused("utkface", tmp_path / "u", "benchmark.tasks.it.target 'agee'", "'age'", target="agee")


# -- ExpW

EXPW = [f"{n}.jpg 0 5 10 30 25 60.5 {n % 7}" for n in range(14)]


def test_expw_reads_labels_and_crops_boxes(tmp_path):
    root = write_expw(tmp_path / "e", EXPW, [f"{n}.jpg" for n in range(14)])
    # A face of its own in an image of two: top 10, left 30, right 50, bottom 30.
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[10:30, 30:50] = 255
    Image.fromarray(pixels).save(root / "origin" / "two.png")
    with (root / "label.lst").open("a") as file:
        file.write("two.png 1 10 30 50 30 80.25 3\n")
    it = only("expw", root, margin=0.0, test_fraction=0.5)
    assert it.task.labels == ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
    assert np.bincount(it.targets).tolist() == [2, 2, 2, 3, 2, 2, 2]
    (white,) = np.flatnonzero(it.inputs[:, 1:7, 1:7].min(axis=(1, 2, 3)) > 250)
    assert it.targets[white] == 3
    wide = only("expw", root, margin=0.5, test_fraction=0.5)
    assert wide.inputs[white].min() == 0
    kept = only("expw", root, least_confidence=60.0, samples_per_class=1)
    assert len(kept.train) == 7


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0.jpg 0 5 10 30 25 60.5", "7 fields in place of 8"),
        ("0.jpg 0 5 10 30 25 60.5 7", "emotion '7'"),
        ("0.jpg 0 5 10 30 25 60.5 happy", "emotion 'happy'"),
        ("0.jpg 0 5 ten 30 25 60.5 1", "'ten' in place of a number"),
        ("0.jpg 0 5 nan 30 25 60.5 1", "'nan' in place of a number"),
        ("0.jpg 0 5 30 30 25 60.5 1", "a box 5 30 30 25 without an area"),
        ("99.jpg 0 5 10 30 25 60.5 1", "no image '99.jpg'"),
    ],
)
def test_expw_lines_that_are_malformed(tmp_path, line, words):
    root = write_expw(tmp_path / "e", [*EXPW[:3], "", line], [f"{n}.jpg" for n in range(14)])
    refused("expw", root, "label.lst", f"line 5: {words}", "IMAGE FACE TOP LEFT", "correct")


def test_expw_places(tmp_path):
    root = write_expw(tmp_path / "e", EXPW, [f"{n}.jpg" for n in range(14)])
    refused("expw", root, "benchmark.tasks.it.labels", "does not exist", labels="x.lst")
    refused("expw", root, "benchmark.tasks.it.images", "does not exist", images="faces")
    refused("expw", root, "least_confidence", "none of 14", least_confidence=99.0)
    refused("expw", root, "benchmark.tasks.it.margin", "-1", margin=-1.0)


def test_a_box_outside_its_image_is_named_when_images_are_read(tmp_path):
    lines = [*EXPW[:13], "13.jpg 0 5 70 90 25 60.5 6"]
    root = write_expw(tmp_path / "e", lines, [f"{n}.jpg" for n in range(14)])
    with pytest.raises(UserError, match=r"1 of 14 images: .*13.jpg .*outside its 60 x 40 pixels"):
        only("expw", root, test_fraction=0.5)


# -- WFLW

BOX = (10, 5, 50, 45)


def line(number: int, attributes=(0, 0, 0, 0, 0, 0), points=None, box=BOX) -> str:
    shown = face_points(10, 5, 40 + number / 10) if points is None else points
    return wflw_line(shown, box, attributes, f"0--Parade/{number}.jpg")


@pytest.fixture
def wflw(tmp_path) -> Path:
    tests = [line(100 + n, attributes=(0, 0, 0, n % 2, int(n == 7), 0)) for n in range(8)]
    train = [line(n, attributes=(1, 0, 0, 0, 0, 0)) for n in range(16)]
    return write_wflw(tmp_path / "w", train, tests)


def test_wflw_points_are_shares_of_the_crop(wflw):
    it = only("wflw", wflw, margin=0.25)
    assert (len(it.train), len(it.test)) == (16, 8)
    assert it.targets.shape == (24, 98, 2)
    assert it.targets.dtype == np.float32
    assert it.task.normaliser == (60, 72)
    # The crop has the side 60 about the centre (30, 25): its corner is (0, -5).
    points = face_points(10, 5, 40)
    np.testing.assert_allclose(it.targets[0], (points + np.array((0, 5))) / 60, atol=1e-6)
    distance = np.linalg.norm(it.targets[0][60] - it.targets[0][72])
    np.testing.assert_allclose(distance, 20 / 60, atol=1e-6)


def test_wflw_subsets_have_test_samples(wflw):
    it = only("wflw", wflw)
    assert list(it.subsets) == ["make_up", "occlusion"]  # a pose is in the train list only
    assert it.subsets["make_up"][it.test].tolist() == [False, True] * 4
    assert it.subsets["occlusion"][it.test].tolist() == [False] * 7 + [True]
    assert it.subsets["occlusion"].shape == (24,)


def test_wflw_crops_show_what_the_points_say(tmp_path):
    root = write_wflw(tmp_path / "w", [line(n) for n in range(8)], [line(100 + n) for n in (0, 1)])
    x, y = (round(v) for v in face_points(10, 5, 40)[72])
    pixels = np.zeros((50, 60, 3), dtype=np.uint8)
    pixels[y - 2 : y + 2, x - 2 : x + 2] = 255
    Image.fromarray(pixels).save(root / "WFLW_images" / "0--Parade" / "0.jpg", quality=100)
    it = only("wflw", root, size=60, test_samples_per_class=1)
    row, column = np.unravel_index(it.inputs[0][..., 0].argmax(), (60, 60))
    np.testing.assert_allclose(
        (np.array([column, row]) + 0.5) / 60, it.targets[0][72], atol=2.5 / 60
    )


def test_wflw_in_folders_of_ones_own(wflw, tmp_path):
    first = only("wflw", wflw)
    (wflw / WFLW_LISTS).rename(wflw / "lists")
    (wflw / "WFLW_images").rename(wflw / "pictures")
    other = only("wflw", wflw, lists="lists", images="pictures")
    np.testing.assert_array_equal(first.targets, other.targets)
    refused("wflw", wflw, "benchmark.tasks.it.lists", "does not exist")
    refused("wflw", wflw, "benchmark.tasks.it.images", "does not exist", lists="lists")


def spoiled(number: int, value: str) -> str:
    fields = line(0).split()
    fields[number] = value
    return " ".join(fields)


def one_eye() -> np.ndarray:
    points = face_points(10, 5, 40)
    points[72] = points[60]
    return points


def far_away() -> np.ndarray:
    points = face_points(10, 5, 40)
    points[3] = (10, 500)
    return points


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (line(0).rpartition(" ")[0], "206 fields in place of 207"),
        ("a line of words", "4 fields in place of 207"),
        (spoiled(7, "x"), "'x' in place of a number"),
        (spoiled(7, "nan"), "'nan' in place of a number"),
        (spoiled(201, "2"), "attributes 0 2 0 0 0 0"),
        (spoiled(198, "10"), "a box 10 5 10 45 without an area"),
        (spoiled(206, "no.jpg"), "no image 'no.jpg'"),
        (line(0, points=one_eye()), "points 60 and 72 of the eyes are one"),
        (line(0, points=far_away()), "point 3 lies more than 0.5 of the crop's side outside it"),
    ],
)
def test_wflw_lines_that_are_malformed(wflw, bad, words):
    file = wflw / WFLW_LISTS / "list_98pt_rect_attr_test.txt"
    with file.open("a") as opened:
        opened.write(f"{bad}\n")
    refused("wflw", wflw, str(file), f"line 9: {words}", "196 coordinates", "correct or remove")


def test_a_landmark_outside_may_be_allowed(wflw):
    refused("wflw", wflw, "line 1: point", outside=0.0, margin=0.0)
    assert len(only("wflw", wflw, margin=0.0, outside=0.6).targets) == 24
    refused("wflw", wflw, "benchmark.tasks.it.outside", outside=math.nan)


def test_wflw_lists_that_are_missing_or_empty(wflw):
    file = wflw / WFLW_LISTS / "list_98pt_rect_attr_train.txt"
    file.write_text("\n")
    refused("wflw", wflw, "list_98pt_rect_attr_train.txt", "it is empty")
    file.unlink()
    refused("wflw", wflw, "list_98pt_rect_attr_train.txt", "does not exist")


# -- Galaxy10


def write_galaxies(file: Path, answers, **change: Any) -> Path:
    images = np.zeros((len(answers), 16, 16, 3), dtype=np.uint8)
    images[:] = np.arange(len(answers), dtype=np.uint8)[:, None, None, None]
    data = {"images": images, "ans": np.array(answers, dtype=np.uint8), **change}
    with h5py.File(file, "w") as opened:
        for name, values in data.items():
            if values is not None:
                opened[name] = values
        opened["ra"] = np.zeros(len(answers))
    return file


def test_galaxies_without_the_rarest_class(tmp_path):
    answers = [*range(10), *range(10), *range(10)]
    it = only("galaxy10", write_galaxies(tmp_path / "g.h5", answers), test_fraction=0.34)
    assert len(it.task.labels) == 9
    assert "cigar shaped smooth" not in it.task.labels
    assert (len(it.train), len(it.test)) == (18, 9)
    for pixels, label in zip(it.inputs, it.targets, strict=True):
        assert GALAXIES[answers[pixels[0, 0, 0]]] == it.task.labels[label]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ans": None}, "ans (N,) but got images (30, 16, 16, 3)"),
        ({"images": np.zeros((30, 16, 16))}, "images uint8"),
        ({"images": np.zeros((30, 4, 4, 3))}, "images uint8"),
        ({"images": np.zeros((29, 4, 4, 3), dtype=np.uint8)}, "images (29, 4, 4, 3)"),
        ({"ans": np.arange(30)}, "row 10 is 10"),
    ],
)
def test_files_that_hold_something_else(tmp_path, change, words):
    refused("galaxy10", write_galaxies(tmp_path / "g.h5", [*range(10)] * 3, **change), words)


def test_a_file_that_is_no_hdf5_and_one_that_is_missing(tmp_path):
    (tmp_path / "g.h5").write_text("no")
    refused("galaxy10", tmp_path / "g.h5", "to be an HDF5 file")
    refused("galaxy10", tmp_path / "h.h5", "benchmark.tasks.it.root=FILE", "does not exist")


def test_without_h5py_the_extra_is_named(tmp_path, monkeypatch):
    file = write_galaxies(tmp_path / "g.h5", [*range(10)] * 3)
    monkeypatch.setitem(sys.modules, "h5py", None)
    refused("galaxy10", file, "pip install 'cl-lora[hdf5]'")
