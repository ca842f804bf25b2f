"""The buffer and the fingerprint."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cl_lora.benchmarks import DomainBenchmark, draw_buffer
from cl_lora.benchmarks.core import fingerprint
from cl_lora.support.errors import UserError

CLASSES, DOMAINS, PER_CLASS = 3, 2, 12


def benchmark() -> DomainBenchmark:
    count = CLASSES * DOMAINS * PER_CLASS
    labels = np.arange(count) % CLASSES
    thirds = np.split(np.arange(count), DOMAINS)
    return DomainBenchmark(
        name="toy",
        classes=("a", "b", "c"),
        domains=("p", "q"),
        images=np.zeros((count, 2, 2, 3), dtype=np.uint8),
        labels=labels,
        train=tuple(part[: 9 * CLASSES] for part in thirds),
        test=tuple(part[9 * CLASSES :] for part in thirds),
        fingerprint="",
    )


@given(st.integers(1, 9), st.integers(0, 2**40))
def test_buffer_is_balanced_from_train_and_the_same_again(samples, seed):
    data = benchmark()
    buffers = draw_buffer(data, samples, seed)
    assert len(buffers) == DOMAINS
    for buffer, again, train, test in zip(
        buffers, draw_buffer(data, samples, seed), data.train, data.test, strict=True
    ):
        np.testing.assert_array_equal(buffer, again)
        assert np.bincount(data.labels[buffer]).tolist() == [samples] * CLASSES
        assert len(set(buffer)) == samples * CLASSES
        assert set(buffer) <= set(train)
        assert not set(buffer) & set(test)


@given(st.integers(1, 8), st.integers(0, 2**40))
def test_smaller_buffers_are_nested_in_larger_ones(samples, seed):
    data = benchmark()
    larger = draw_buffer(data, samples + 1, seed)
    for small, large in zip(draw_buffer(data, samples, seed), larger, strict=True):
        assert set(small) < set(large)


def test_seeds_and_domains_draw_apart():
    data = benchmark()
    first, second = draw_buffer(data, 4, 0)
    assert not np.array_equal(first, draw_buffer(data, 4, 1)[0])
    assert not np.array_equal(first, second - 36)


@pytest.mark.parametrize("samples", [0, -1, 1.5, True, None])
def test_buffer_size_must_be_a_positive_integer(samples):
    with pytest.raises(UserError, match=f"at least 1 but got {samples!r}"):
        draw_buffer(benchmark(), samples, 0)


def test_too_large_a_buffer_names_class_and_domain():
    with pytest.raises(UserError, match=r"at most 9, .* class 'a' in domain 'p', but got 10"):
        draw_buffer(benchmark(), 10, 0)


def test_fingerprint_changes_with_each_of_its_parts():
    one, two = np.array([1, 2]), np.array([3])
    base = {
        "content": "x",
        "classes": ("a",),
        "domains": ("p", "q"),
        "labels": np.zeros(4, dtype=np.int64),
        "train": (one, two),
        "test": (two, one),
    }
    changes = {
        "content": "y",
        "classes": ("b",),
        "domains": ("q", "p"),
        "labels": np.ones(4, dtype=np.int64),
        "train": (one, one),
        "test": (two, two),
    }
    values = [fingerprint(**base), *(fingerprint(**base | {k: v}) for k, v in changes.items())]
    assert len(set(values)) == 1 + len(changes)
    assert fingerprint(**base) == values[0]
