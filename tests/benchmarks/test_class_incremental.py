"""Class-incremental streams: groups of classes, one task, labels that count, buffers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cl_lora.benchmarks import (
    Benchmark,
    draw_buffer,
    found,
    make_benchmark,
    validate_benchmark_config,
)
from cl_lora.support.errors import UserError
from cl_lora.tasks import CLASS, ScalarKind, Task

CLASSES = tuple("abcdefgh")
NAMED = {"vowels": ["e", "a"], "rest": ["h", "b", "c"]}

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def letters(tree) -> dict[str, Any]:
    """8 classes of 5 images, root/class; image n in path order has red = n."""
    root = tree(domains=("all",), classes=CLASSES)
    return {"kind": "class_incremental", "root": str(root / "all"), "groups": 4, "order_seed": None}


def classes_in(data: Benchmark) -> list[tuple[str, ...]]:
    """The names of the classes that each experience brings."""
    (task,) = data.tasks
    return [tuple(task.labels[label] for label in e.labels or ()) for e in data.experiences]


def test_groups_are_disjoint_and_complete_and_share_one_task(letters):
    data = make_benchmark(letters, 8)
    assert data.names == ("group_0", "group_1", "group_2", "group_3")
    assert data.grows
    assert not data.downstream
    assert len(data.tasks) == 1
    assert [e.labels for e in data.experiences] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert classes_in(data) == [("a", "b"), ("c", "d"), ("e", "f"), ("g", "h")]
    everything = [p for e in data.experiences for p in (*e.train, *e.test)]
    assert sorted(everything) == list(range(40))
    for e in data.experiences:
        assert e.inputs is data.experiences[0].inputs
        assert e.targets is data.experiences[0].targets
        for part in (e.train, e.test):
            assert set(e.targets[part]) == set(e.labels)
            # 5 images a class in path order: the pictures are those of the named classes.
            names = [CLASSES[(red - 1) // 5] for red in e.inputs[part][:, 4, 4, 0].tolist()]
            assert names == [e.task.labels[t] for t in e.targets[part]]


def test_the_order_is_drawn_from_its_seed_alone(letters):
    drawn = make_benchmark({**letters, "order_seed": 3}, 8)
    again = make_benchmark({**letters, "order_seed": 3}, 8)
    other = make_benchmark({**letters, "order_seed": 4}, 8)
    assert drawn.tasks[0].labels == again.tasks[0].labels != other.tasks[0].labels
    assert sorted(drawn.tasks[0].labels) == list(CLASSES)
    assert drawn.tasks[0].labels != CLASSES
    assert drawn.fingerprint == again.fingerprint != other.fingerprint
    # Another order moves classes to other experiences, not images between train and test.
    for data in (drawn, other):
        train = np.sort(np.concatenate([e.train for e in data.experiences]))
        own = make_benchmark(letters, 8)
        expected = np.sort(np.concatenate([e.train for e in own.experiences]))
        np.testing.assert_array_equal(train, expected)


def test_named_groups_come_as_they_are_named_and_may_leave_classes_out(letters):
    data = make_benchmark({**letters, "groups": NAMED, "order_seed": 7}, 8)
    assert data.names == ("vowels", "rest")
    assert classes_in(data) == [("e", "a"), ("h", "b", "c")]
    assert data.tasks[0].labels == ("e", "a", "h", "b", "c")
    used = {int(p) for e in data.experiences for p in (*e.train, *e.test)}
    assert len(used) == 25
    targets = data.experiences[0].targets
    assert (targets == -1).sum() == 15
    assert not used & set(np.flatnonzero(targets == -1))


def test_classes_that_look_like_numbers_are_names(tree):
    root = tree(domains=("all",), classes=tuple("0123"))
    config = {"kind": "class_incremental", "root": str(root / "all")}
    data = make_benchmark({**config, "groups": {"even": [0, 2], "odd": ["1", 3]}}, 8)
    assert classes_in(data) == [("0", "2"), ("1", "3")]


def test_what_a_stream_depends_on_is_in_the_fingerprint(letters, no_decoding):
    data = make_benchmark(letters, 8)
    no_decoding()
    assert make_benchmark({**letters, "name": "other"}, 8).fingerprint == data.fingerprint
    changes = ({"groups": 2}, {"groups": NAMED}, {"order_seed": 0}, {"samples_per_class": 2})
    several = [make_benchmark({**letters, **change}, 8).fingerprint for change in changes]
    few_shot = {"kind": "label_shift", "root": letters["root"], "upstream_tasks": 3}
    several.append(make_benchmark(few_shot, 8).fingerprint)
    assert len({data.fingerprint, *several}) == 6


def test_validation_parts_hold_only_the_labels_of_their_experience(letters):
    data = make_benchmark({**letters, "val_fraction": 0.5}, 8)
    for e in data.experiences:
        assert len(e.val) == 4
        assert set(e.targets[e.val]) == set(e.labels)
        assert not set(e.val) & {*e.train, *e.test}


# What is asked ----------------------------------------------------------------------------------


def test_what_is_asked_grows_with_what_was_seen(letters):
    data = make_benchmark(letters, 8)
    task = data.tasks[0]
    assert data.asked(0, (0,)).choices == (0, 1)
    assert data.asked(0, (0, 1)).choices == (0, 1, 2, 3)
    assert data.asked(3, (3,)).choices == (6, 7)
    assert data.asked(1, (0, 1, 2, 3)) == task
    assert task.choices is None
    assert data.asked(2, (0, 1, 2)).outputs == task.outputs == 8


def test_a_stream_of_domains_asks_the_same_of_all(benchmark_16):
    assert not benchmark_16.grows
    assert benchmark_16.asked(1, (0, 1)) is benchmark_16.tasks[0]


def test_answers_and_losses_are_among_the_choices():
    generator = torch.Generator().manual_seed(0)
    task = Task("t", CLASS, tuple("abcde"))
    outputs = torch.randn(64, 5, generator=generator).requires_grad_()
    targets = torch.tensor([1, 3]).repeat(32)
    among = task.among((3, 1))
    expected = F.cross_entropy(outputs[:, [1, 3]], (targets == 3).long())
    loss = among.loss(outputs, targets)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert outputs.grad is not None
    assert (outputs.grad[:, [0, 2, 4]] == 0).all()
    assert torch.isfinite(outputs.grad).all()
    said = torch.tensor([1, 3])[outputs[:, [1, 3]].argmax(1)]
    torch.testing.assert_close(among.predictions(outputs), said)
    hits = among.hits(outputs, targets)
    assert hits is not None
    torch.testing.assert_close(hits, said == targets)
    accumulator = among.accumulator()
    accumulator.update(outputs[:40], targets[:40])
    accumulator.update(outputs[40:], targets[40:])
    assert accumulator.scores()["accuracy"] == float((said == targets).float().mean())
    drawn = among.drawn_loss(outputs, torch.Generator().manual_seed(0))
    assert torch.isfinite(drawn)
    assert task.among(range(5)) == task


@pytest.mark.parametrize("labels", [(), (0, 5), (-1, 0)])
def test_only_labels_of_the_task_can_be_chosen_among(labels):
    with pytest.raises(UserError, match="Expected numbers of labels of task 't', from 0 to 4"):
        Task("t", CLASS, tuple("abcde")).among(labels)


def test_a_task_without_logits_of_labels_cannot_be_restricted():
    with pytest.raises(UserError, match=r"logits of labels.*'area' is of kind 'scalar'"):
        Task("area", ScalarKind()).among((0,))


# Buffers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seen", [1, 2, 4])
def test_the_buffer_is_balanced_over_the_classes_seen(letters, seen):
    data = make_benchmark({**letters, "order_seed": 1}, 8)
    buffers = draw_buffer(data, 3, seed=5)
    union = np.concatenate(buffers[:seen])
    counts = np.bincount(data.experiences[0].targets[union], minlength=8)
    assert counts.tolist() == [3] * (2 * seen) + [0] * (8 - 2 * seen)
    for e, drawn in zip(data.experiences, buffers, strict=True):
        assert set(drawn) <= set(e.train)
    smaller = draw_buffer(data, 2, seed=5)
    assert all(set(s) <= set(b) for s, b in zip(smaller, buffers, strict=True))
    assert any((a != b).any() for a, b in zip(draw_buffer(data, 3, seed=6), buffers, strict=True))


def test_a_buffer_that_is_too_large_names_a_class_of_the_experience(letters):
    with pytest.raises(UserError, match="at most 4, the train samples of class 'a' in 'group_0'"):
        draw_buffer(make_benchmark(letters, 8), 5, seed=0)


# Any image set, and bad input -------------------------------------------------------------------


def test_shapes_need_no_data():
    config = {"kind": "class_incremental", "images": "shapes", "options": {"classes": 6}}
    small = {"samples_per_class": 2, "test_samples_per_class": 1, "groups": 3, "order_seed": 0}
    data = make_benchmark({**config, **small}, 16)
    assert [(len(e.train), len(e.test)) for e in data.experiences] == [(4, 2)] * 3
    assert found({**config, **small}) is not None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"groups": 3}, "8 is not a multiple of 3; give 2, 4, or name the groups"),
        ({"groups": 8}, "at least 2 classes for each group but 8 classes do not give 8 groups"),
        ({"groups": 20}, "8 classes do not give 20 groups"),
        ({"groups": 1}, "at least 2 groups of classes but got 1"),
        ({"groups": 0}, "at least 2 groups of classes but got 0"),
        ({"groups": {"one": ["a", "b"]}}, "at least 2 groups of classes but got 1"),
        ({"groups": {"x": ["a", "b"], "y": ["b", "c"]}}, "'b' is in 'x' and in 'y'; leave it out"),
        ({"groups": {"x": ["a", "a"], "y": ["b", "c"]}}, "'a' is in 'x' and in 'x'"),
        ({"groups": {"x": ["a", "bb"], "y": ["c", "d"]}}, "'bb'.*'b'"),
        ({"groups": {"x": ["a"], "y": ["c", "d"]}}, "2 classes in benchmark.groups.x but got 1"),
        ({"groups": "five"}, "a number of groups, or for each group a list.*'five'"),
        ({"groups": True}, "a number of groups"),
        ({"groups": {"x": "ab", "y": ["c", "d"]}}, "a number of groups"),
        ({"order_seed": -1}, "benchmark.order_seed"),
        ({"images": "nowhere"}, "'nowhere'"),
    ],
)
def test_bad_groups(letters, change, sentence):
    with pytest.raises(UserError, match=sentence):
        validate_benchmark_config({**letters, **change})


def test_a_folder_is_refused_where_images_are_drawn() -> None:
    config = {"kind": "class_incremental", "images": "shapes", "root": "/somewhere", "groups": 2}
    with pytest.raises(UserError, match=r"names a folder of data but images=shapes are drawn"):
        make_benchmark(config, image_size=16)
