"""Streams of few-shot composition as benchmarks: what is upstream, pool and query."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_tasks import make_experience

from cl_lora.benchmarks import Benchmark, found, make_benchmark, validate_benchmark_config
from cl_lora.benchmarks.sources.image_sets import IMAGE_SETS, register_image_set
from cl_lora.benchmarks.streams.held_out import held_out, stream_order
from cl_lora.support.errors import UserError
from cl_lora.tasks import CLASS, Task

CLASSES = tuple("abcdefgh")

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def class_tree(tree, tmp_path) -> dict[str, Any]:
    """Label shift over root/class, 8 classes of 5 images; image n in path order has red = n."""
    root = tree(domains=("all",), classes=CLASSES)
    return {"kind": "label_shift", "root": str(root / "all")}


@pytest.fixture
def split_tree(tree) -> dict[str, Any]:
    """Label shift over root/{train,test}/class."""
    return {"kind": "label_shift", "root": str(tree(domains=("train", "test"), classes=CLASSES))}


@pytest.fixture
def sets(tree, tmp_path) -> Path:
    """Three sets of other sizes and classes, root/NAME/{train,test}/class."""
    root = tmp_path / "sets"
    for name, classes, count in (("m", "ab", 3), ("n", "cde", 4), ("o", "fg", 2)):
        data = tree(domains=("train", "test"), classes=tuple(classes), count=count)
        root.mkdir(exist_ok=True)
        data.rename(root / name)
    return root


def check_held_out(data: Benchmark) -> None:
    """What holds for every stream with one experience held out."""
    last = len(data.experiences) - 1
    assert data.downstream == (last,)
    assert data.upstream == tuple(range(last))
    assert len({e.task for e in data.experiences}) == len(data.experiences)
    for e in data.experiences:
        parts = (e.train, e.val, e.test)
        joined = np.concatenate(parts)
        assert len(set(joined)) == len(joined)
        assert all((part == np.sort(part)).all() for part in parts)
        assert set(e.targets[joined]) == set(range(e.task.outputs))


def red(e, part) -> list[int]:
    return e.inputs[part][:, 4, 4, 0].tolist()


def test_label_shift_is_disjoint_in_classes_and_images(class_tree):
    data = make_benchmark(class_tree, 8)
    check_held_out(data)
    assert data.names == ("classes_0_1", "classes_2_3", "classes_4_5", "classes_6_7")
    assert [e.task.labels for e in data.experiences] == [
        ("a", "b"),
        ("c", "d"),
        ("e", "f"),
        ("g", "h"),
    ]
    everything = [p for e in data.experiences for p in (*e.train, *e.test)]
    assert sorted(everything) == list(range(40))
    for number, e in enumerate(data.experiences):
        assert e.inputs is data.experiences[0].inputs
        # 5 images a class in path order: the pictures belong to the group's own classes.
        for part in (e.train, e.test):
            labels = (np.array(red(e, part)) - 1) // 5
            np.testing.assert_array_equal(labels - 2 * number, e.targets[part])
        assert np.bincount(e.targets[e.train]).tolist() == [4, 4]
        assert np.bincount(e.targets[e.test]).tolist() == [1, 1]


def test_a_tree_with_a_split_keeps_it(split_tree):
    data = make_benchmark(split_tree, 8)
    check_held_out(data)
    reds = [(red(e, e.train), red(e, e.test)) for e in data.experiences]
    # The writer of the tree writes train first: 8 classes of 5.
    assert reds == [(list(range(s, s + 10)), list(range(s + 40, s + 50))) for s in range(1, 41, 10)]


def test_uneven_groups_and_validation_parts(split_tree):
    data = make_benchmark(
        {**split_tree, "downstream_classes": 2, "upstream_tasks": 2, "val_fraction": 0.4}, 8
    )
    check_held_out(data)
    assert [e.task.outputs for e in data.experiences] == [3, 3, 2]
    assert [len(e.val) for e in data.experiences] == [6, 6, 4]
    other = make_benchmark({**split_tree, "val_fraction": 0.4}, 8)
    np.testing.assert_array_equal(data.experiences[-1].train, other.experiences[-1].train)
    assert data.names[-1] == other.names[-1]


def test_what_label_shift_depends_on_is_in_the_fingerprint(split_tree, no_decoding):
    data = make_benchmark(split_tree, 8)
    no_decoding()
    assert make_benchmark({**split_tree, "name": "other"}, 8).fingerprint == data.fingerprint
    changes = (
        {"downstream": "classes_0_1"},
        {"upstream_tasks": 1},
        {"class_seed": 1},
        {"samples_per_class": 3},
        {"downstream_classes": 2, "upstream_tasks": 2},
        {"kind": "entangled", "downstream_classes": 2, "overlap": [0.0, 1.0]},
        {"kind": "entangled", "downstream_classes": 2, "overlap": [1.0, 0.0]},
    )
    values = {make_benchmark({**split_tree, **change}, 8).fingerprint for change in changes}
    assert len(values | {data.fingerprint}) == 1 + len(changes)


def test_downstream_group_by_name(split_tree):
    data = make_benchmark({**split_tree, "downstream": "classes_2_3"}, 8)
    assert data.names == ("classes_0_1", "classes_4_5", "classes_6_7", "classes_2_3")
    with pytest.raises(UserError, match=r"Unknown benchmark.downstream 'classes_1_2'"):
        validate_benchmark_config({**split_tree, "downstream": "classes_1_2"})


def test_a_moved_tree_is_the_same_benchmark(class_tree, tmp_path, no_decoding):
    data = make_benchmark(class_tree, 8)
    no_decoding()
    shutil.move(class_tree["root"], tmp_path / ".elsewhere")
    moved = make_benchmark({**class_tree, "root": str(tmp_path / ".elsewhere")}, 8)
    assert moved.fingerprint == data.fingerprint


def test_entangled_tasks_train_on_shared_classes_but_never_on_the_query(split_tree):
    config = {**split_tree, "kind": "entangled", "downstream_classes": 2, "overlap": [0, 0.5, 1]}
    data = make_benchmark(config, 8)
    check_held_out(data)
    downstream = data.experiences[-1]
    assert data.names == ("upstream_0", "upstream_1", "upstream_2", "downstream")
    shared = [len(set(e.train) & set(downstream.train)) for e in data.experiences[:-1]]
    assert shared == [0, 5, 10]
    assert data.experiences[2].task.labels == downstream.task.labels
    for e in data.experiences[:-1]:
        assert not set(e.train) & set(downstream.test)


def test_shapes_in_groups_of_outlines(no_decoding):
    config = {
        "kind": "label_shift",
        "images": "shapes",
        "options": {"classes": 6, "style": "sketch"},
        "upstream_tasks": 2,
        "samples_per_class": 4,
        "test_samples_per_class": 2,
    }
    data = make_benchmark(config, 16)
    check_held_out(data)
    plain = {"kind": "shapes", "classes": 6, "styles": ["sketch"]}
    (whole,) = make_benchmark(
        {**plain, "samples_per_class": 4, "test_samples_per_class": 2}, 16
    ).experiences
    np.testing.assert_array_equal(data.experiences[0].inputs, whole.inputs)
    assert [n for e in data.experiences for n in e.task.labels] == list(whole.task.labels)
    assert sorted(p for e in data.experiences for p in e.test) == whole.test.tolist()
    assert found(config) == "embedded: 36 images, 6 classes"
    no_decoding()
    assert make_benchmark(config, 16).fingerprint == data.fingerprint
    with pytest.raises(UserError, match=r"Unknown benchmark.options option 'clases'"):
        validate_benchmark_config({**config, "options": {"clases": 6}})


def test_covariate_shift_holds_a_domain_out_and_gives_each_a_task(tree):
    root = tree(domains=("art", "photo", "sketch"))
    config = {"kind": "covariate_shift", "root": str(root), "downstream": "art"}
    data = make_benchmark(config, 8)
    check_held_out(data)
    assert data.names == ("photo", "sketch", "art")
    assert [e.task.name for e in data.experiences] == ["photo", "sketch", "art"]
    assert {e.task.labels for e in data.experiences} == {("cat", "dog")}
    plain = make_benchmark({"kind": "domains", "root": str(root)}, 8)
    for e in data.experiences:
        same = plain.experiences[plain.names.index(e.name)]
        np.testing.assert_array_equal(e.train, same.train)
        np.testing.assert_array_equal(e.test, same.test)
        np.testing.assert_array_equal(red(e, e.train), red(same, same.train))
    other = make_benchmark({**config, "downstream": "sketch"}, 8)
    assert other.fingerprint not in {data.fingerprint, plain.fingerprint}
    some = make_benchmark({**config, "upstream": ["sketch"]}, 8)
    assert some.names == ("sketch", "art")
    assert len(some.experiences[0].inputs) == 20


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"downstream": "foto"}, r"Unknown benchmark.downstream 'foto': did you mean 'photo'"),
        ({"upstream": ["phot"]}, r"Unknown benchmark.upstream 'phot': did you mean 'photo'"),
        ({"upstream": ["sketch", "photo"]}, "'photo' is in benchmark.upstream too; remove it"),
        ({"domains": ["photo"]}, "at least one upstream experience but got 'photo' alone"),
        ({"downstream": "???"}, "benchmark.downstream, the domain that is held out, but"),
        ({"upstream": []}, "benchmark.upstream to be a list of different names"),
    ],
)
def test_what_covariate_shift_refuses_before_decoding(folder_config, change, words):
    config = {**folder_config, "kind": "covariate_shift", "downstream": "photo", **change}
    with pytest.raises(UserError, match=words):
        validate_benchmark_config(config)


def test_a_style_of_shapes_held_out():
    small = {"classes": 2, "samples_per_class": 3, "test_samples_per_class": 2}
    config = {"kind": "covariate_shift_shapes", **small}
    data = make_benchmark(config, 16)
    check_held_out(data)
    assert data.names == ("photo", "cartoon", "painting", "sketch")
    plain = make_benchmark({"kind": "shapes", **small}, 16)
    np.testing.assert_array_equal(data.experiences[3].test, plain.experiences[2].test)
    np.testing.assert_array_equal(data.experiences[3].inputs, plain.experiences[2].inputs)
    assert (data.annotations["style"][data.experiences[3].test] == 3).all()
    some = make_benchmark({**config, "upstream": ["cartoon"]}, 16)
    assert some.names == ("cartoon", "sketch")
    with pytest.raises(UserError, match=r"Unknown benchmark.downstream 'sketsh'"):
        validate_benchmark_config({**config, "downstream": "sketsh"})


def test_task_shift_has_other_images_and_classes_for_each_task(sets):
    config = {"kind": "task_shift", "root": str(sets), "downstream": "n"}
    data = make_benchmark(config, 8)
    check_held_out(data)
    assert data.names == ("m", "o", "n")
    assert [e.task.labels for e in data.experiences] == [
        ("a", "b"),
        ("f", "g"),
        ("c", "d", "e"),
    ]
    assert [(len(e.train), len(e.test)) for e in data.experiences] == [(6, 6), (4, 4), (12, 12)]
    assert red(data.experiences[2], data.experiences[2].train) == list(range(1, 13))
    assert red(data.experiences[2], data.experiences[2].test) == list(range(13, 25))
    assert found(config) == f"{sets}: m (12 images), o (8 images), n (24 images)"


def test_task_shift_without_a_name_holds_none_out(sets):
    data = make_benchmark({"kind": "task_shift", "root": str(sets)}, 8)
    assert data.names == ("m", "n", "o")
    assert data.downstream == ()
    assert data.upstream == (0, 1, 2)
    held = make_benchmark({"kind": "task_shift", "root": str(sets), "downstream": "o"}, 8)
    assert held.names == data.names
    assert held.fingerprint != data.fingerprint
    chosen = make_benchmark({"kind": "task_shift", "root": str(sets), "sets": ["o", "m"]}, 8)
    assert chosen.names == ("o", "m")
    np.testing.assert_array_equal(chosen.experiences[1].train, data.experiences[0].train)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"downstream": "p"}, r"Unknown benchmark.downstream 'p'"),
        ({"sets": ["m", "p"]}, "Unknown image set of .* 'p'"),
        ({"sets": ["m"]}, r"at least two sets in .* but got m; give benchmark.sets"),
        ({"upstream": ["n", "m"], "downstream": "n"}, "'n' is in benchmark.upstream too"),
        ({"sets": ["m", "CIFAR100"]}, r"torchvision's CIFAR100 in .*cifar-100-python but"),
        ({"root": "/nowhere"}, "does not exist; give benchmark.root=DIR"),
        ({"sets": ["m", "half"]}, "half to hold train/class and test/class"),
    ],
)
def test_what_task_shift_refuses(sets, change, words):
    (sets / "half" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match=words):
        validate_benchmark_config({"kind": "task_shift", "root": str(sets), **change})


def test_trees_that_are_not_whole(split_tree, class_tree, tmp_path):
    root = Path(split_tree["root"])
    shutil.rmtree(root / "test" / "c")
    with pytest.raises(UserError, match=r"every part of .* class 'c' is .*; complete the folders$"):
        validate_benchmark_config(split_tree)
    shutil.rmtree(root / "test")
    with pytest.raises(UserError, match="to hold test beside train but it does not"):
        validate_benchmark_config(split_tree)
    assert found({**split_tree, "root": str(tmp_path / "nowhere")}) is None
    with pytest.raises(UserError, match=r"does not exist; give benchmark.root=DIR"):
        validate_benchmark_config({**split_tree, "root": str(tmp_path / "nowhere")})


@pytest.mark.parametrize("kind", ["label_shift", "entangled", "task_shift"])
@pytest.mark.parametrize("root", ["???", None])
def test_a_root_that_is_not_given(kind, root):
    with pytest.raises(
        UserError, match=r"Expected benchmark.root, the folder .* is not given; add"
    ):
        validate_benchmark_config({"kind": kind, "root": root})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("upstream_tasks", 0),
        ("downstream_classes", 1),
        ("class_seed", -1),
        ("images", "shape"),
        ("test_fraction", 1.0),
        ("root", ""),
        ("downstream", ""),
        ("download", 1),
    ],
)
def test_bad_value_of_label_shift(class_tree, name, value):
    with pytest.raises(UserError) as caught:
        validate_benchmark_config({**class_tree, name: value})
    assert f"benchmark.{name}" in str(caught.value)
    assert repr(value) in str(caught.value)


def test_options_that_a_tree_does_not_have(class_tree):
    with pytest.raises(UserError, match=r"no benchmark.options for images=tree but got classes"):
        validate_benchmark_config({**class_tree, "options": {"classes": 3}})


def toy(name: str, **parts: Any):
    return make_experience(name, Task(name, CLASS, ("a", "b")), np.arange(12) % 2, **parts)


NONE = np.array([], dtype=np.int64)


@pytest.mark.parametrize(
    ("experiences", "words"),
    [
        ([toy("p")], "at least one upstream experience in 'toy' but got none"),
        ([], "at least one upstream experience in 'toy' but got none"),
        ([toy("p"), toy("q", test=NONE)], "'q' but its query is empty"),
        ([toy("p", test=NONE), toy("q")], "'p' but its test part is empty"),
        ([toy("p"), toy("q", train=NONE)], "the pool of the support of 'q' but it is empty"),
        ([toy("p", train=NONE), toy("q")], "the train part of 'p' but it is empty"),
        ([toy("p"), toy("p")], "different names but got 'p', 'p'"),
    ],
)
def test_a_stream_that_cannot_be_one(experiences, words):
    with pytest.raises(UserError, match=words):
        held_out("toy", experiences, "x")


def test_order_of_a_stream():
    assert stream_order("abc", None, "a") == ("b", "c", "a")
    assert stream_order("abc", ("c", "b"), "a") == ("c", "b", "a")
    assert stream_order("abc", ("c",), None) == ("c",)
    assert stream_order("abc", None, None) == ("a", "b", "c")


def test_an_image_set_of_a_name_that_is_taken():
    before = dict(IMAGE_SETS)
    with pytest.raises(UserError, match=r"'tree' is registered already, by .*class_tree"):
        register_image_set("tree", summary="")(lambda request: None)
    assert before == IMAGE_SETS


@pytest.mark.parametrize("overlap", [[], [2.0], [-0.5, 1.0], [float("nan")]])
def test_shares_are_refused_before_the_data_is_looked_for(overlap: list[float]) -> None:
    config = {"kind": "entangled", "root": "nowhere", "overlap": overlap}
    with pytest.raises(UserError, match=r"benchmark\.overlap"):
        validate_benchmark_config(config)
