"""Groups of classes: disjoint, of the sizes asked for, and entangled ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cl_lora.benchmarks.streams.groups import (
    class_order,
    disjoint_groups,
    entangled_groups,
    held_out_group,
)
from cl_lora.support.errors import UserError


@given(st.integers(1, 6), st.integers(2, 9), st.one_of(st.none(), st.integers(0, 99)))
def test_equal_groups_share_no_class_and_leave_none(upstream, size, seed):
    order = class_order(size * (upstream + 1), seed)
    groups = disjoint_groups(order, upstream)
    assert [len(group.classes) for group in groups] == [size] * (upstream + 1)
    assert [c for group in groups for c in group.classes] == list(order)
    assert sorted(order) == list(range(len(order)))


def test_split_cifar100():
    groups = disjoint_groups(range(100), 3)
    assert [g.name for g in groups] == [
        "classes_0_24",
        "classes_25_49",
        "classes_50_74",
        "classes_75_99",
    ]
    assert groups[1].classes == tuple(range(25, 50))


@pytest.mark.parametrize("upstream", [1, 3, 5, 15, 25])
def test_downstream_group_is_the_same_whatever_the_number_of_upstream_tasks(upstream):
    *others, last = disjoint_groups(range(100), upstream, 25)
    assert last == disjoint_groups(range(100), 3)[-1]
    assert [len(group.classes) for group in others] == [75 // upstream] * upstream
    assert sorted(c for group in others for c in group.classes) == list(range(75))


def test_an_order_that_is_drawn_is_the_same_again_and_another_one_by_another_seed():
    assert class_order(30, None) == tuple(range(30))
    assert class_order(30, 1) == class_order(30, 1) != class_order(30, 2)


@pytest.mark.parametrize(
    ("upstream", "downstream", "words"),
    [
        (3, None, "10 of the 10 classes to split into 4 equal groups but 10 is not a multiple"),
        (3, 3, "7 of the 10 classes to split into 3 equal groups but 7 is not a multiple of 3"),
        (9, None, "at least 2 classes in each group"),
        (1, 1, "at least 2 classes in each group"),
        (1, 10, "at least 2 classes in each group"),
        (1, 12, "at least 2 classes in each group"),
    ],
)
def test_sizes_that_do_not_fit(upstream, downstream, words):
    with pytest.raises(UserError, match=words):
        disjoint_groups(range(10), upstream, downstream)


def test_the_group_held_out_is_the_last():
    groups = disjoint_groups(range(8), 3)
    assert held_out_group(groups, None) == groups
    assert held_out_group(groups, "classes_2_3") == (groups[0], groups[2], groups[3], groups[1])
    with pytest.raises(UserError, match=r"Unknown benchmark.downstream 'classes_2_4'"):
        held_out_group(groups, "classes_2_4")


def test_the_fourth_task_with_the_classes_of_the_downstream_one():
    *others, fourth, downstream = entangled_groups(range(100), 25, (0, 0, 0, 1))
    assert fourth.classes == downstream.classes == tuple(range(25))
    assert sorted(c for group in others for c in group.classes) == list(range(25, 100))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5), st.integers(2, 10))
def test_tasks_share_what_the_overlap_says_and_nothing_else(overlap, size):
    order = np.random.default_rng(0).permutation(size * (len(overlap) + 1)).tolist()
    *upstream, downstream = entangled_groups(order, size, overlap)
    seen = set(downstream.classes)
    for share, group in zip(overlap, upstream, strict=True):
        assert len(set(group.classes)) == size
        assert len(set(group.classes) & set(downstream.classes)) == round(share * size)
        own = set(group.classes) - set(downstream.classes)
        assert not own & seen
        seen |= own


def test_half_and_half_cover_all_of_the_downstream_classes():
    first, second, downstream = entangled_groups(range(12), 4, (0.5, 0.5))
    assert set(first.classes[:2]) | set(second.classes[:2]) == set(downstream.classes)


@pytest.mark.parametrize(
    ("size", "overlap", "words"),
    [
        (4, (), "a list of numbers from 0 to 1"),
        (4, (0.5, 1.5), r"got \[0.5, 1.5\]"),
        (4, (float("nan"),), "got .nan"),
        (1, (0.5,), "downstream_classes to be at least 2 but got 1"),
        (4, (0.0, 0.0), "at least 12 classes for 4 downstream .* but got 10"),
    ],
)
def test_entangling_that_does_not_fit(size, overlap, words):
    with pytest.raises(UserError, match=words):
        entangled_groups(range(10), size, overlap)
