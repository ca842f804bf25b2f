"""Splits and caps, on labels alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cl_lora.benchmarks.splits import (
    SplitSettings,
    cap_per_class,
    class_problems,
    hold_out_validation,
    split_domains,
    stratified_split,
)
from cl_lora.support.errors import UserError
from cl_lora.support.seeding import numpy_generator

counts_per_class = st.lists(st.integers(2, 40), min_size=1, max_size=5)


def labels_of(counts: list[int], seed: int = 0) -> np.ndarray:
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(seed).permutation(labels)


def names(counts: list[int]) -> list[str]:
    return [f"class{i}" for i in range(len(counts))]


@given(counts_per_class, st.floats(0.01, 0.99), st.integers(0, 2**32))
def test_split_is_a_partition_and_stratified_within_one_sample(counts, fraction, seed):
    labels = labels_of(counts)
    train, test = stratified_split(
        labels, fraction, np.random.default_rng(seed), domain="d", classes=names(counts)
    )
    assert sorted([*train, *test]) == list(range(len(labels)))
    for label, count in enumerate(counts):
        held_out = int(np.sum(labels[test] == label))
        assert 1 <= held_out <= count - 1
        assert abs(held_out - count * fraction) <= 1


@given(counts_per_class, st.integers(1, 50), st.integers(0, 2**32))
def test_cap_keeps_at_most_n_per_class_and_smaller_caps_are_nested(counts, cap, seed):
    labels = labels_of(counts)
    indices = np.arange(len(labels)) * 3

    def kept(n: int) -> np.ndarray:
        return cap_per_class(indices, labels, n, np.random.default_rng(seed))

    for label, count in enumerate(counts):
        assert np.sum(labels[kept(cap) // 3] == label) == min(cap, count)
    assert set(kept(cap)) <= set(kept(cap + 1)) <= set(indices)


def test_no_cap_keeps_everything():
    indices = np.array([4, 2, 9])
    assert cap_per_class(indices, np.array([0, 1, 0]), None, np.random.default_rng(0)).tolist() == [
        2,
        4,
        9,
    ]


def test_class_with_one_sample_names_domain_and_class():
    with pytest.raises(UserError, match=r"class 'b' in domain 'sketch'.*but got 1"):
        stratified_split(
            np.array([0, 0, 1]),
            0.5,
            np.random.default_rng(0),
            domain="sketch",
            classes=["a", "b"],
        )


def split(domains: list[str], settings: SplitSettings, labels: np.ndarray, domain_of: np.ndarray):
    order = [["p", "q"].index(domain) for domain in domains]
    renumbered = np.array([order.index(number) for number in domain_of])
    return split_domains(labels, renumbered, domains, ["a", "b"], settings=settings)


def test_split_depends_on_the_split_seed_and_not_on_the_domain_order():
    labels = np.tile([0, 1], 40)
    domain_of = np.repeat([0, 1], 40)
    first, second = split(["p", "q"], SplitSettings(0.25, 0, val_fraction=0.2), labels, domain_of)
    swapped = split(["q", "p"], SplitSettings(0.25, 0, val_fraction=0.2), labels, domain_of)
    other, _ = split(["p", "q"], SplitSettings(0.25, 1), labels, domain_of)
    for side in ("train", "val", "test"):
        np.testing.assert_array_equal(getattr(first, side), getattr(swapped[1], side))
        np.testing.assert_array_equal(getattr(second, side), getattr(swapped[0], side))
    assert not np.array_equal(first.test, other.test)


@given(st.integers(1, 12), st.integers(1, 12))
def test_caps_never_move_a_sample_from_test_to_train(train_cap, test_cap):
    labels = np.tile([0, 1], 40)
    domain_of = np.repeat([0, 1], 40)
    full = split(["p", "q"], SplitSettings(0.25, 0), labels, domain_of)
    settings = SplitSettings(0.25, 0, train_cap, test_cap)
    capped = split(["p", "q"], settings, labels, domain_of)
    for few, all_ in zip(capped, full, strict=True):
        assert set(few.train) <= set(all_.train)
        assert set(few.test) <= set(all_.test)
        assert len(few.val) == 0
        assert np.bincount(labels[few.train]).tolist() == [min(train_cap, 15)] * 2
        assert np.bincount(labels[few.test]).tolist() == [min(test_cap, 5)] * 2


@given(st.sampled_from([None, 2, 3, 7]), st.floats(0.001, 0.999))
def test_validation_part_is_taken_from_what_there_is_to_train_on(cap, fraction):
    labels = np.tile([0, 1], 40)
    domain_of = np.repeat([0, 1], 40)
    without = split(["p", "q"], SplitSettings(0.25, 0, cap), labels, domain_of)
    settings = SplitSettings(0.25, 0, cap, val_fraction=fraction)
    for parts, whole in zip(split(["p", "q"], settings, labels, domain_of), without, strict=True):
        np.testing.assert_array_equal(parts.test, whole.test)
        assert sorted([*parts.train, *parts.val]) == whole.train.tolist()
        for label in (0, 1):
            count = int(np.sum(labels[whole.train] == label))
            held_out = int(np.sum(labels[parts.val] == label))
            assert 1 <= held_out <= count - 1
            assert abs(held_out - count * fraction) <= 1
        assert (np.diff(parts.val) > 0).all()
        assert (np.diff(parts.train) > 0).all()


def test_validation_is_drawn_from_split_seed_and_domain_name():
    labels = np.zeros(10, dtype=np.int64)
    train = np.arange(100, 110)
    _, val = hold_out_validation(train, labels, 0.3, 4, domain="p", classes=["a"])
    expected = numpy_generator(4, "val", "p").permutation(10)[:3]
    assert val.tolist() == sorted(100 + expected)


def test_class_with_one_train_sample_cannot_be_validated():
    labels = np.tile([0, 1], 40)
    settings = SplitSettings(0.25, 0, samples_per_class=1, val_fraction=0.5)
    with pytest.raises(UserError, match=r"2 train samples of class 'a' in domain 'p'.*but got 1"):
        split(["p"], settings, labels, np.zeros(80, dtype=np.int64))


def test_given_split_must_have_every_class():
    labels = np.array([0, 1, 0, 1])
    given_split = {"p": (np.array([0, 1]), np.array([2]))}
    with pytest.raises(UserError, match=r"test sample of every class in domain 'p'.*none of 'b'"):
        split_domains(
            labels,
            np.zeros(4, dtype=np.int64),
            ["p"],
            ["a", "b"],
            settings=SplitSettings(0.2, 0),
            given=given_split,
        )


def test_class_problems_blame_the_minority():
    complete = {"p": {"a", "b"}, "q": {"a", "b"}, "r": {"a", "b"}}
    assert class_problems(complete) == []
    assert class_problems(complete | {"q": {"a"}}) == ["class 'b' is missing in 'q'"]
    assert class_problems(complete | {"q": {"a", "b", "c"}}) == ["class 'c' is only in 'q'"]
