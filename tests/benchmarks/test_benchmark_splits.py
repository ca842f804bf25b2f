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
    split_domains,
    stratified_split,
)
from cl_lora.support.errors import UserError

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
    train, test = split(["p", "q"], SplitSettings(0.25, 0), labels, domain_of)
    swapped_train, swapped_test = split(["q", "p"], SplitSettings(0.25, 0), labels, domain_of)
    other, _ = split(["p", "q"], SplitSettings(0.25, 1), labels, domain_of)
    for kept, swapped in ((train, swapped_train), (test, swapped_test)):
        np.testing.assert_array_equal(kept[0], swapped[1])
        np.testing.assert_array_equal(kept[1], swapped[0])
    assert not np.array_equal(train[0], other[0])


@given(st.integers(1, 12), st.integers(1, 12))
def test_caps_never_move_a_sample_from_test_to_train(train_cap, test_cap):
    labels = np.tile([0, 1], 40)
    domain_of = np.repeat([0, 1], 40)
    full_train, full_test = split(["p", "q"], SplitSettings(0.25, 0), labels, domain_of)
    settings = SplitSettings(0.25, 0, train_cap, test_cap)
    train, test = split(["p", "q"], settings, labels, domain_of)
    for number in range(2):
        assert set(train[number]) <= set(full_train[number])
        assert set(test[number]) <= set(full_test[number])
        assert np.bincount(labels[train[number]]).tolist() == [min(train_cap, 15)] * 2
        assert np.bincount(labels[test[number]]).tolist() == [min(test_cap, 5)] * 2


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
