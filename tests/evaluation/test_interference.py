"""Harm of merging by hand, and its correlation with similarity against brute force."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from cl_lora.evaluation import interference
from cl_lora.evaluation.interference import (
    Interference,
    SingleTasks,
    permutation_test,
    relatedness,
    square,
)

NAN = math.nan
YES = np.array([True, False, True])  # accuracy, RMSE, accuracy


def by_hand() -> Interference:
    """Two seeds; task 0 gains 0.5, task 1 (an error) 4, task 2 nothing."""
    tasks = SingleTasks(
        single=np.array([[0.8, 5.0, 0.2], [0.7, 7.0, 0.3]]),
        trivial=np.array([[0.25, 10.0, 0.25], [0.25, 10.0, 0.25]]),
        higher_is_better=YES,
        variance_share=np.array([0.5, NAN, 0.5]),
    )
    merged = np.array(
        [
            [[NAN, 0.55, 0.8], [9.0, NAN, 5.0], [0.2, 0.2, NAN]],
            [[NAN, 0.45, 0.6], [11.0, NAN, 6.0], [0.3, 0.2, NAN]],
        ]
    )
    return Interference(tasks, merged)


def test_harm_by_hand() -> None:
    found = by_hand()
    assert found.tasks.gained.tolist() == pytest.approx([0.5, 4.0, 0.0])
    # Task 0 with 1: (-0.25 - 0.25) / 2 / 0.5; task 1 with 0: -(4 + 4) / 2 / 4.
    expected = [[NAN, -0.5, -0.1], [-1.0, NAN, 0.125], [NAN, NAN, NAN]]
    np.testing.assert_allclose(found.harm, expected)
    np.testing.assert_allclose(
        found.change, [[NAN, -0.25, -0.05], [4.0, NAN, -0.5], [0.0, -0.05, NAN]], atol=1e-12
    )


def test_a_failed_task_is_left_out_of_the_means() -> None:
    found = by_hand()
    assert found.tasks.failed.tolist() == [False, False, True]  # no better than trivial
    np.testing.assert_allclose(found.suffered, [-0.5, -1.0, NAN])
    np.testing.assert_allclose(found.done, [-1.0, -0.5, NAN])


def test_a_collapsed_task_has_failed_however_it_scores() -> None:
    tasks = by_hand().tasks
    tasks = SingleTasks(tasks.single, tasks.trivial, YES, np.array([0.009, NAN, 0.5]))
    assert tasks.collapsed.tolist() == [True, False, False]
    assert tasks.failed.tolist() == [True, False, True]


def test_a_control_is_measured_like_a_merge() -> None:
    tasks = by_hand().tasks
    np.testing.assert_allclose(
        tasks.harm(np.array([[0.8, 6.0, 0.2], [0.7, 8.0, 0.3]])).mean(axis=0), [0, -0.25, NAN]
    )


def symmetric(draw: np.random.Generator, n: int) -> np.ndarray:
    x = draw.normal(size=(n, n))
    return x + x.T


@pytest.mark.parametrize("n", [3, 4, 5, 6])
def test_the_permutation_test_against_brute_force(n: int) -> None:
    draw = np.random.default_rng(n)
    a, b = symmetric(draw, n), symmetric(draw, n)
    above = np.triu_indices(n, 1)
    every = []
    for names in permutations(range(n)):
        renamed = a[np.ix_(names, names)]
        every.append(stats.spearmanr(renamed[above], b[above]).statistic)
    rho, p, tried, exact = permutation_test(a, b, seed=0)
    assert rho == pytest.approx(every[0])
    assert (tried, exact) == (math.factorial(n), True)
    assert p == pytest.approx(np.mean(np.abs(every) >= abs(every[0]) - 1e-12))


def test_of_many_adapters_relabellings_are_drawn_by_the_seed() -> None:
    draw = np.random.default_rng(0)
    a, b = symmetric(draw, 9), symmetric(draw, 9)
    first, again, other = (permutation_test(a, b, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first[2:] == (interference.DRAWS, False)
    assert 0 < abs(first[1] - other[1]) < 0.05
    assert permutation_test(a, a, seed=0)[1] == pytest.approx(1 / 10_001)


def test_the_drawn_test_agrees_with_the_exact_one(monkeypatch) -> None:
    draw = np.random.default_rng(5)
    a, b = symmetric(draw, 6), symmetric(draw, 6)
    exact = permutation_test(a, b, seed=0)[1]
    monkeypatch.setattr(interference, "EXACT", 1)
    assert permutation_test(a, b, seed=0)[1] == pytest.approx(exact, abs=0.02)


def test_p_values_hold_their_level() -> None:
    """Of unrelated matrices at most 5 % have p <= 0.05, though pairs share adapters."""
    draw = np.random.default_rng(11)
    found = []
    for _ in range(200):
        quality = draw.normal(size=5)  # every pair of an adapter shares its quality
        a = quality[:, None] + quality[None, :]
        other = draw.normal(size=5)
        b = other[:, None] + other[None, :]
        found.append(permutation_test(a, b, seed=0)[1])
    assert np.mean(np.array(found) <= 0.05) <= 0.09


MATRICES = st.integers(3, 5).flatmap(
    lambda n: arrays(np.float64, (2, 3, n, n), elements=st.floats(-10, 10, width=16))
)


# A power of two: any other factor may break ties by rounding.
@given(MATRICES, st.sampled_from([0.125, 0.5, 2.0, 8.0]))
def test_identities(x: np.ndarray, factor: float) -> None:
    harm, similar = x
    similar = similar + similar.transpose(0, 2, 1)
    found = relatedness(harm, similar, seed=0)
    assert found.adapters == len(harm[0])
    if math.isnan(found.rho):
        return
    assert -1 <= found.rho <= 1
    assert 1 / found.relabellings <= found.p <= 1
    # Ranks do not see the scale, and turning one around turns rho around.
    turned = relatedness(harm, -factor * similar, seed=0)
    assert turned.rho == pytest.approx(-found.rho)
    assert turned.p == pytest.approx(found.p)
    # Who is called what does not matter.
    order = np.random.default_rng(0).permutation(len(harm[0]))
    renamed = [m[:, order][:, :, order] for m in (harm, similar)]
    again = relatedness(*renamed, seed=0)
    assert (again.rho, again.p) == pytest.approx((found.rho, found.p))


def test_the_interval_is_students_over_seeds() -> None:
    draw = np.random.default_rng(2)
    harm = np.stack([symmetric(draw, 4) for _ in range(3)])
    similar = np.stack([symmetric(draw, 4) for _ in range(3)])
    above = np.triu_indices(4, 1)
    rhos = [
        stats.spearmanr(h[above], s[above]).statistic for h, s in zip(harm, similar, strict=True)
    ]
    found = relatedness(harm, similar, seed=0)
    low, high = stats.t.interval(0.95, 2, np.mean(rhos), stats.sem(rhos))
    assert found.mean == pytest.approx(np.mean(rhos))
    assert (found.low, found.high) == pytest.approx((max(low, -1), min(high, 1)))
    one = relatedness(harm[:1], similar[:1], seed=0)
    assert one.mean == pytest.approx(rhos[0])
    assert math.isnan(one.low)


def test_left_out_adapters_and_what_is_not_defined() -> None:
    draw = np.random.default_rng(3)
    harm, similar = (np.stack([symmetric(draw, 5)]) for _ in range(2))
    broken = harm.copy()
    broken[:, 2] = broken[:, :, 2] = NAN
    kept = [0, 1, 3, 4]
    parts = [m[:, kept][:, :, kept] for m in (harm, similar)]
    expected = relatedness(*parts, seed=0)
    found = relatedness(broken, similar, 0, [False, False, True, False, False])
    assert found == expected
    assert (found.adapters, found.pairs) == (4, 6)
    assert math.isnan(relatedness(broken, similar, 0).rho)
    assert math.isnan(relatedness(harm[:, :2, :2], similar[:, :2, :2], 0).rho)
    assert math.isnan(relatedness(harm, np.ones_like(similar), 0).p)
    with pytest.raises(ValueError, match="stacks of square matrices"):
        relatedness(harm[0], similar[0], 0)


def test_rows_become_symmetric_matrices() -> None:
    found = square({(7, 0, 1): 0.5, (9, 0, 1): 1.0, (3, 0, 1): 9.0}, (7, 9), 2)
    np.testing.assert_allclose(found, [[[NAN, 0.5], [0.5, NAN]], [[NAN, 1.0], [1.0, NAN]]])


def test_one_seed_that_failed_is_enough() -> None:
    """Its mean still beats the trivial predictor: the harm would be divided by next to nothing."""
    single, trivial = np.array([[17.3, 0.9], [12.0, 0.8]]), np.array([[17.1, 0.5], [17.1, 0.5]])
    tasks = SingleTasks(single, trivial, np.array([False, True]), np.array([np.nan, np.nan]))
    assert tasks.gained.tolist() == pytest.approx([2.45, 0.35])
    assert tasks.failed.tolist() == [True, False]
