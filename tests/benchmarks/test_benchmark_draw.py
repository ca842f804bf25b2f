"""The buffer and the support."""

from __future__ import annotations

import numpy as np
import pytest
from benchmark_views import held_out_of, train_of
from hypothesis import given
from hypothesis import strategies as st
from toy_tasks import make_experience, scalars

from cl_lora.benchmarks import ALL, Benchmark, draw_buffer, draw_support
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


@given(st.integers(1, 8), st.integers(0, 2**40), st.integers(0, 20))
def test_support_sets_are_balanced_nested_and_from_the_pool(shots, seed, draw):
    (one, _) = benchmark().experiences
    small, large = (draw_support(one, k, seed, draw) for k in (shots, shots + 1))
    assert np.bincount(one.targets[small]).tolist() == [shots] * CLASSES
    assert len(set(small)) == shots * CLASSES
    assert set(small) < set(large) <= set(draw_support(one, ALL, seed, draw))
    assert not set(small) & set(one.test)
    np.testing.assert_array_equal(small, draw_support(one, shots, seed, draw))


def test_a_support_set_is_the_first_of_a_permutation_of_its_own():
    (one, _) = benchmark().experiences
    expected = [
        numpy_generator(5, "support", "p", name, 2).permutation(np.arange(label, 27, 3))[:4]
        for label, name in enumerate("abc")
    ]
    assert draw_support(one, 4, 5, 2).tolist() == np.concatenate(expected).tolist()


def test_the_whole_pool_is_the_train_part_of_its_own():
    (one, _) = benchmark().experiences
    pool = draw_support(one, "all", 0)
    np.testing.assert_array_equal(pool, one.train)
    pool[:] = 0
    assert one.train.any()


def test_seeds_draws_and_experiences_have_supports_of_their_own():
    first, second = benchmark().experiences
    sets = [
        draw_support(first, 3, 0, 0),
        draw_support(first, 3, 0, 1),
        draw_support(first, 3, 1, 0),
        draw_support(second, 3, 0, 0),
        draw_buffer(benchmark(), 3, 0)[0],
    ]
    assert len({tuple(indices) for indices in sets}) == len(sets)


def test_support_of_a_scalar_task_is_balanced_over_its_bins():
    (one, _) = scalars().experiences
    support = draw_support(one, 2, 0)
    strata, _ = one.task.kind.strata(one.task, one.targets[one.train])
    assert strata[np.searchsorted(one.train, support)].tolist() == [0, 0, 1, 1, 2, 2]


def test_more_shots_than_a_class_has_names_it():
    task = Task("toy", CLASS, ("a", "b"))
    labels = np.array([0] * 6 + [1] * 3 + [0, 1, 0, 1])
    one = make_experience("p", task, labels)
    assert len(draw_support(one, 3, 0)) == 6
    with pytest.raises(UserError, match=r"at most 3, .* of class 'b' in 'p', but got 4; leave 4"):
        draw_support(one, 4, 0)
    assert len(draw_support(one, ALL, 0)) == 9


@pytest.mark.parametrize("shots", [0, -1, 1.5, True, None, "every"])
def test_shots_must_be_a_positive_integer_or_all(shots):
    with pytest.raises(UserError, match=f"at least 1 or 'all' but got {shots!r}"):
        draw_support(benchmark().experiences[0], shots, 0)


@pytest.mark.parametrize("draw", [-1, 0.5, True])
def test_a_draw_has_a_number(draw):
    with pytest.raises(UserError, match=f"at least 0 but got {draw!r}"):
        draw_support(benchmark().experiences[0], 1, 0, draw)
