"""The buffer."""

from __future__ import annotations

import numpy as np
import pytest
from benchmark_views import held_out_of, train_of
from hypothesis import given
from hypothesis import strategies as st
from toy_tasks import make_experience, scalars

from cl_lora.benchmarks import Benchmark, draw_buffer
from cl_lora.support.errors import UserError
from cl_lora.support.seeding import numpy_generator
from cl_lora.tasks import CLASS, Task

CLASSES, PER_CLASS = 3, 12


def benchmark() -> Benchmark:
    labels = np.arange(CLASSES * PER_CLASS) % CLASSES
    task = Task("toy", CLASS, ("a", "b", "c"))
    parts = {"train": np.arange(9 * CLASSES), "test": np.arange(9 * CLASSES, len(labels))}
    return Benchmark(
        "toy", tuple(make_experience(name, task, labels, **parts) for name in "pq"), "x"
    )


@given(st.integers(1, 9), st.integers(0, 2**40))
def test_buffer_is_balanced_from_train_and_the_same_again(samples, seed):
    data = benchmark()
    buffers = draw_buffer(data, samples, seed)
    assert len(buffers) == 2
    for buffer, again, one, train, test in zip(
        buffers,
        draw_buffer(data, samples, seed),
        data.experiences,
        train_of(data),
        held_out_of(data),
        strict=True,
    ):
        np.testing.assert_array_equal(buffer, again)
        assert np.bincount(one.targets[buffer]).tolist() == [samples] * CLASSES
        assert len(set(buffer)) == samples * CLASSES
        assert set(buffer) <= set(train)
        assert not set(buffer) & set(test)


def test_a_class_is_the_first_of_a_permutation_and_the_classes_follow_each_other():
    (first, _) = draw_buffer(benchmark(), 2, 5)
    expected = [
        numpy_generator(5, "buffer", "p", name).permutation(np.arange(label, 27, 3))[:2]
        for label, name in enumerate("abc")
    ]
    assert first.tolist() == np.concatenate(expected).tolist()


@given(st.integers(1, 8), st.integers(0, 2**40))
def test_smaller_buffers_are_nested_in_larger_ones(samples, seed):
    data = benchmark()
    larger = draw_buffer(data, samples + 1, seed)
    for small, large in zip(draw_buffer(data, samples, seed), larger, strict=True):
        assert set(small) < set(large)


def test_seeds_and_experiences_draw_apart():
    data = benchmark()
    first, second = draw_buffer(data, 4, 0)
    assert not np.array_equal(first, draw_buffer(data, 4, 1)[0])
    assert not np.array_equal(first, second)


def test_a_scalar_task_is_balanced_over_its_bins():
    data = scalars()
    for buffer, one in zip(draw_buffer(data, 3, 0), data.experiences, strict=True):
        assert len(buffer) == 9
        assert set(buffer) <= set(one.train)
        strata, names = one.task.kind.strata(one.task, one.targets[one.train])
        assert names == ("low", "middle", "high")
        positions = np.searchsorted(one.train, buffer)
        assert strata[positions].tolist() == [0] * 3 + [1] * 3 + [2] * 3


def test_each_experience_is_drawn_by_its_own_task():
    data = Benchmark("mixed", (scalars().experiences[0], benchmark().experiences[0]), "x")
    assert [len(b) for b in draw_buffer(data, 2, 0)] == [6, 6]
    np.testing.assert_array_equal(draw_buffer(data, 2, 0)[1], draw_buffer(benchmark(), 2, 0)[0])


@pytest.mark.parametrize("samples", [0, -1, 1.5, True, None])
def test_buffer_size_must_be_a_positive_integer(samples):
    with pytest.raises(UserError, match=f"at least 1 but got {samples!r}"):
        draw_buffer(benchmark(), samples, 0)


def test_too_large_a_buffer_names_class_and_experience():
    with pytest.raises(UserError, match=r"at most 9, .* of class 'a' in 'p', but got 10"):
        draw_buffer(benchmark(), 10, 0)
