"""Streams of unlike tasks: shared samples, caps, scaling, fingerprints and what is refused."""

from __future__ import annotations

import importlib
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from published import face_points, wflw_line, write_image, write_utkface, write_wflw

from cl_lora.benchmarks import found, make_benchmark, validate_benchmark_config
from cl_lora.benchmarks.sources.shapes import (
    KEYPOINTS,
    ShapesSpec,
    class_names,
    describe_sample,
    render_sample,
)
from cl_lora.benchmarks.sources.tasks import TASK_SOURCES, TaskSamples, TaskSource, task_source
from cl_lora.support.errors import UserError
from cl_lora.tasks import Scaling, Task, get_kind

pytestmark = pytest.mark.usefixtures("cache")

AGES = [age for first in (0, 4, 17, 31, 46, 60) for age in range(first, first + 4) for _ in "ab"]


@pytest.fixture
def ages(tmp_path) -> dict[str, Any]:
    """Age as a class and in years: 8 faces in each of six bins."""
    write_utkface(tmp_path / "faces", AGES)
    return {
        "kind": "multitask",
        "root": str(tmp_path),
        "tasks": {
            "age class": {"source": "utkface", "root": "faces", "target": "age_class"},
            "years": {"source": "utkface", "root": "faces", "target": "age"},
        },
    }


def shapes(**options: Any) -> dict[str, Any]:
    """All five targets of few shapes."""
    small = {"classes": 3, "styles": ["photo", "sketch"]}
    targets = ("object", "style", "area", "orientation", "outline")
    return {
        "kind": "multitask",
        "tasks": {name: {"source": "shapes", "target": name, **small} for name in targets},
        "samples_per_class": 4,
        "test_samples_per_class": 2,
        **options,
    }


def with_entry(config: dict[str, Any], name: str, **change: Any) -> dict[str, Any]:
    tasks = {**config["tasks"], name: {**config["tasks"].get(name, {}), **change}}
    return {**config, "tasks": tasks}


def test_class_and_regression_have_the_same_samples(ages):
    data = make_benchmark(ages, 8)
    first, second = data.experiences
    assert data.names == ("age class", "years")
    assert [e.task.name for e in data.experiences] == ["age class", "years"]
    assert first.inputs is second.inputs
    for part in ("train", "val", "test"):
        np.testing.assert_array_equal(getattr(first, part), getattr(second, part))
    # 8 a bin: 2 to test (0.2 of 8), then 1 of 6 to choose by (0.1, but not none).
    assert np.bincount(first.targets[first.test]).tolist() == [2] * 6
    assert np.bincount(first.targets[first.val]).tolist() == [1] * 6
    assert np.bincount(first.targets[first.train]).tolist() == [5] * 6
    bins = np.searchsorted([4, 17, 31, 46, 60], second.targets, side="right")
    np.testing.assert_array_equal(bins, first.targets)
    assert len({e.task for e in data.experiences}) == 2


def test_parts_are_sorted_disjoint_and_cover_what_is_decoded(ages):
    for config in (ages, shapes()):
        for e in make_benchmark(config, 16).experiences:
            joined = np.concatenate([e.train, e.val, e.test])
            assert sorted(joined.tolist()) == list(range(len(e.inputs)))
            assert len(e.targets) == len(e.inputs)
            for part in (e.train, e.val, e.test):
                assert part.dtype == np.int64
                assert (part == np.sort(part)).all()


def test_caps_of_the_benchmark_and_of_a_task(ages):
    data = make_benchmark(
        {**ages, "samples_per_class": 3, "test_samples_per_class": 1, "val_fraction": 0.0}, 8
    )
    for e in data.experiences:
        assert (len(e.train), len(e.val), len(e.test)) == (18, 0, 6)
    own = make_benchmark(
        {**with_entry(ages, "years", samples_per_class=2, test_fraction=0.5), "val_fraction": 0.0},
        8,
    )
    assert [(len(e.train), len(e.test)) for e in own.experiences] == [(36, 12), (12, 24)]


def test_a_smaller_cap_keeps_a_part_of_a_larger_one(ages):
    small, large = (
        make_benchmark({**ages, "samples_per_class": cap, "val_fraction": 0.0}, 8).experiences[1]
        for cap in (2, 4)
    )

    def pixels(e) -> set[bytes]:
        return {e.inputs[i].tobytes() for i in e.train}

    assert len(pixels(small)) == 12
    assert pixels(small) < pixels(large)


def test_a_cap_of_landmarks_is_of_quarters(tmp_path):
    lines = [
        wflw_line(face_points(5, 5, 20 + n), (4, 4, 40, 40), (0,) * 6, f"{n}.jpg")
        for n in range(40)
    ]
    root = write_wflw(tmp_path / "w", lines[::2], lines[1::2])
    task = {"source": "wflw", "root": str(root), "outside": 2.0}
    data = make_benchmark(
        {"kind": "multitask", "tasks": {"l": task}, "samples_per_class": 3, "val_fraction": 0.2},
        8,
    )
    (e,) = data.experiences
    assert (len(e.train), len(e.val), len(e.test)) == (8, 4, 20)
    for part in (e.train, e.val):
        distance = np.linalg.norm(e.targets[part, 60] - e.targets[part, 72], axis=1)
        every = np.sort(np.array([(20 + n) / 2 for n in range(0, 40, 2)]) / 50.4)
        edges = np.quantile(every, (0.25, 0.5, 0.75))
        counts = np.bincount(np.searchsorted(edges, distance), minlength=4)
        assert counts.tolist() == [len(part) // 4] * 4


def test_targets_are_standardised_by_the_train_part(ages):
    data = make_benchmark(ages, 8)
    first, second = data.experiences
    assert first.task.scaling is None
    years = second.targets[second.train].astype(np.float64)
    assert second.task.scaling == Scaling((years.mean(),), (years.std(),))
    raw = make_benchmark({**ages, "standardise": False}, 8)
    assert raw.experiences[1].task.scaling is None
    np.testing.assert_array_equal(raw.experiences[1].targets, second.targets)
    assert raw.fingerprint != data.fingerprint


def test_five_targets_of_the_same_shapes():
    data = make_benchmark(shapes(val_fraction=0.25), 32)
    kinds = ["class", "class", "scalar", "angle", "points"]
    assert [e.task.kind.name for e in data.experiences] == kinds
    assert len({id(e.inputs) for e in data.experiences}) == 1
    objects, styles, areas, angles, outlines = data.experiences
    for e in data.experiences:
        np.testing.assert_array_equal(e.train, objects.train)
        assert (len(e.train), len(e.val), len(e.test)) == (18, 6, 12)
    spec = ShapesSpec(3, ("photo", "sketch"), 6, 32, 0)
    assert objects.task.labels == class_names(spec)
    assert styles.task.labels == ("photo", "sketch")
    assert angles.task.period == 2 * math.pi
    assert angles.task.scaling is None
    assert outlines.task.normaliser == (0, 4)
    assert len(outlines.task.scaling.mean) == 2 * KEYPOINTS
    number = int(np.flatnonzero((objects.targets == 1) & (styles.targets == 1))[2])
    sample = render_sample(spec, "sketch", label=1, index=2)
    np.testing.assert_array_equal(objects.inputs[number], sample.image)
    np.testing.assert_allclose(areas.targets[number], 100 * sample.area, rtol=1e-5)
    np.testing.assert_allclose(angles.targets[number], sample.orientation, rtol=1e-6)
    np.testing.assert_allclose(outlines.targets[number], sample.keypoints / 32, rtol=1e-4)


def test_targets_do_not_depend_on_the_size_of_the_images():
    first, second = (make_benchmark(shapes(), size) for size in (16, 48))
    for one, other in zip(first.experiences, second.experiences, strict=True):
        np.testing.assert_array_equal(one.targets, other.targets)


def test_shapes_in_another_order_of_styles_and_with_one_style():
    config = shapes()
    for entry in config["tasks"].values():
        entry["styles"] = ["sketch", "photo"]
    objects, styles, *_ = make_benchmark(config, 16).experiences
    assert styles.task.labels == ("sketch", "photo")
    spec = ShapesSpec(3, ("photo", "sketch"), 6, 16, 0)
    note = describe_sample(spec, "sketch", 0, 0)
    assert note.style == "sketch"
    (number,) = np.flatnonzero(
        (objects.inputs == render_sample(spec, "sketch", 0, 0).image).all(axis=(1, 2, 3))
    )
    assert styles.targets[number] == 0


def test_what_a_fingerprint_depends_on(ages, tmp_path, no_decoding):
    data = make_benchmark(ages, 8)
    again = make_benchmark({**ages, "name": "other", "cache_dir": None}, 8)
    assert again.fingerprint == data.fingerprint
    renamed = {**ages, "tasks": {"bins": ages["tasks"]["age class"], "y": ages["tasks"]["years"]}}
    swapped = {**ages, "tasks": dict(reversed(ages["tasks"].items()))}
    changes = [
        {**ages, "split_seed": 1},
        {**ages, "val_fraction": 0.0},
        {**ages, "samples_per_class": 3},
        {**ages, "test_samples_per_class": 1},
        {**ages, "standardise": False},
        with_entry(ages, "years", test_fraction=0.5),
        renamed,
        swapped,
    ]
    values = {make_benchmark(config, 8).fingerprint for config in changes}
    assert len(values | {data.fingerprint}) == 1 + len(changes)
    assert make_benchmark(ages, 9).fingerprint not in values
    no_decoding()
    shutil.move(tmp_path / "faces", tmp_path / "moved")
    elsewhere = with_entry(with_entry(ages, "years", root="moved"), "age class", root="moved")
    assert make_benchmark(elsewhere, 8).fingerprint == data.fingerprint


def test_one_target_that_changes_is_another_benchmark(tmp_path):
    def lines(moved: float) -> list[str]:
        all_points = [face_points(5, 5, 20 + n) for n in range(8)]
        all_points[0][5] += moved
        return [
            wflw_line(points, (4, 4, 40, 40), (0,) * 6, f"{n}.jpg")
            for n, points in enumerate(all_points)
        ]

    def value(train: list[str]) -> str:
        root = write_wflw(tmp_path / "w", train, lines(0))
        task = {"source": "wflw", "root": str(root)}
        return make_benchmark({"kind": "multitask", "tasks": {"l": task}}, 8).fingerprint

    flagged = lines(0)
    flagged[0] = flagged[0].replace(" 0 0 0 0 0 0 ", " 0 0 0 0 1 0 ")
    assert value(lines(0)) != value(lines(0.5))
    assert value(lines(0)) == value(flagged)  # no test sample has it: nothing is reported on it


def test_another_margin_is_another_crop(tmp_path):
    line = wflw_line(face_points(5, 5, 20), (4, 4, 40, 40), (0,) * 6, "0.jpg")
    root = write_wflw(tmp_path / "w", [line] * 4, [line])
    task = {"source": "wflw", "root": str(root)}
    config = {"kind": "multitask", "tasks": {"l": task}, "val_fraction": 0.0}
    values = {
        make_benchmark(with_entry(config, "l", margin=margin), 8).fingerprint
        for margin in (0.0, 0.1)
    }
    assert len(values) == 2
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2


def test_what_is_found(ages, tmp_path):
    assert found(ages) == "age class (48 samples), years (48 samples)"
    assert found({**ages, "root": str(tmp_path / "nowhere")}) is None
    assert found({"kind": "multitask"}) is None
    assert "object (36 samples)" in str(found(shapes()))


def test_roots_are_relative_to_the_root_or_to_where_one_is(ages, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    validate_benchmark_config({**ages, "root": None})
    validate_benchmark_config({**ages, "root": "."})
    absolute = str(tmp_path / "faces")
    config = {**ages, "root": "/nowhere", "tasks": {"a": {**ages["tasks"]["years"]}}}
    validate_benchmark_config(with_entry(config, "a", root=absolute))
    with pytest.raises(UserError, match=r"benchmark.tasks.a.root to be a folder but got '/nowhere"):
        validate_benchmark_config(config)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (
            "years",
            {"target": "age_class"},
            "tasks.age class and .*tasks.years are the same",
        ),
        ("years", {"root": "./faces", "target": "age_class", "samples_per_class": 3}, "the same"),
        ("years", {"source": "utk"}, "benchmark.tasks.years.source 'utk': did you mean 'utkface'"),
        ("years", {"source": None}, "benchmark.tasks.years to be a mapping with a source"),
        ("years", {"targt": "age"}, "benchmark.tasks.years option 'targt': did you mean 'target'"),
        ("years", {"root": "???"}, "benchmark.tasks.years.root, the folder of the images, but"),
        ("years", {"root": ""}, "benchmark.tasks.years.root to be a text but got ''"),
        ("years", {"target": None}, "benchmark.tasks.years.target, what is predicted"),
        ("years", {"samples_per_class": 0}, "benchmark.tasks.years.samples_per_class to be an"),
        ("years", {"test_fraction": 1.0}, "benchmark.tasks.years.test_fraction to be a number"),
        ("years", {"root": "nowhere"}, r"nowhere', which does not exist; give .*years.root=DIR"),
        ("s", {"source": "shapes", "target": "shape"}, "benchmark.tasks.s.target 'shape'"),
        ("s", {"source": "shapes", "target": "style", "styles": ["foto"]}, "'foto': did you mean"),
        ("s", {"source": "shapes", "target": "object", "classes": 1}, "s.classes to be an integer"),
    ],
)
def test_entries_that_are_refused(ages, name, change, words):
    with pytest.raises(UserError, match=words):
        validate_benchmark_config(with_entry(ages, name, **change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tasks": {}}, "at least one task but it is empty"),
        ({"tasks": None}, "benchmark.tasks, the tasks by name, but it is not given"),
        ({"tasks": ["a"]}, "benchmark.tasks to be a mapping"),
        ({"tasks": {"a": 3}}, "benchmark.tasks.a to be a mapping with a source but got 3"),
        ({"val_fraction": 1.0}, "benchmark.val_fraction"),
        ({"split_seed": -1}, "benchmark.split_seed"),
        ({"samples_per_class": 0}, "benchmark.samples_per_class"),
        ({"test_samples_per_class": 0}, "benchmark.test_samples_per_class"),
        ({"standardise": 1}, "benchmark.standardise to be true or false"),
        ({"root": ""}, "benchmark.root"),
        ({"name": ""}, "benchmark.name"),
        ({"samples_per_class": 1}, "2 train samples of class '0-3' .* benchmark.val_fraction=0"),
    ],
)
def test_settings_that_are_refused(ages, change, words):
    with pytest.raises(UserError, match=words):
        validate_benchmark_config({**ages, **change})


@pytest.fixture
def own_source():
    """Registers a source of given targets; it is forgotten at the end."""

    def register(task: Task, targets: np.ndarray) -> dict[str, Any]:
        @task_source("own", summary="mine")
        class Own(TaskSource):
            def listed(self, request):
                return TaskSamples(task, targets, lambda chosen, size: None)

        return {"kind": "multitask", "tasks": {"mine": {"source": "own"}}}

    yield register
    TASK_SOURCES.pop("own", None)


def test_a_source_of_ones_own_is_split_by_quarters(own_source):
    values = np.arange(40, dtype=np.float32)
    validate_benchmark_config(own_source(Task("", get_kind("scalar")), values))


def test_a_target_that_is_not_a_number(own_source):
    values = np.arange(40, dtype=np.float32)
    values[7] = math.nan
    with pytest.raises(UserError, match=r"finite targets in task 'mine' but number 7 of 40 is not"):
        validate_benchmark_config(own_source(Task("", get_kind("scalar")), values))


def test_landmarks_without_a_normaliser(own_source):
    task = Task("", get_kind("points"), ("a", "b"), normaliser=(0, 1))
    points = np.random.default_rng(0).random((40, 2, 2)).astype(np.float32)
    points[3, 1] = points[3, 0]
    with pytest.raises(UserError, match=r"points 'a' and 'b' of task 'mine' apart but in number 3"):
        validate_benchmark_config(own_source(task, points))


def test_the_papers_six_tasks_need_their_data_only():
    file = Path(__file__).parents[2] / "configs" / "benchmark" / "multitask_faces_and_sky.yaml"
    config = yaml.safe_load(file.read_text())
    assert found({**config, "root": "/nowhere"}) is None
    with pytest.raises(UserError, match=r"benchmark.tasks.fire.root .*/nowhere/FireRisk'"):
        validate_benchmark_config({**config, "root": "/nowhere"})


def test_the_source_that_the_documentation_shows(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "multitask_data.md").read_text()
    (tmp_path / "brightness.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("brightness")
    try:
        for number in range(30):
            write_image(tmp_path / "data" / f"{number}.png", number=number)
        task = {"source": "brightness", "root": str(tmp_path / "data")}
        (e,) = make_benchmark({"kind": "multitask", "tasks": {"it": task}}, 8).experiences
    finally:
        TASK_SOURCES.pop("brightness", None)
    assert len(e.test) == 5
    np.testing.assert_array_equal(e.inputs[:, 0, 0, 0], e.targets)


def test_a_folder_of_data_that_no_task_reads_is_refused() -> None:
    """Who names it thinks that these images are trained on."""
    drawn = {"kind": "multitask", "tasks": {"a": {"source": "shapes", "target": "object"}}}
    with pytest.raises(UserError, match="'faces' names a folder of data but no task has a root"):
        validate_benchmark_config({**drawn, "root": "faces"})
