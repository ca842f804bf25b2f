import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cl_lora.evaluation.continual import (
    MEASURES,
    ScoreMatrix,
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    seen_average,
)
from cl_lora.evaluation.shape import Shape

NAN = math.nan
# Worked by hand. Columns: experience 0 is best after t=1 (.9), not at its own time (.8).
R = np.array([[0.8, 0.3, 0.6], [0.9, 0.7, 0.5], [0.6, 0.5, 0.9]])
B = np.array([0.1, 0.2, 0.3])

unit = st.floats(0, 1, width=32)


def matrices(minimum=2):
    sizes = st.integers(minimum, 6)
    return sizes.flatmap(lambda n: hnp.arrays(np.float64, (n, n), elements=unit))


def test_by_hand():
    assert average_accuracy(R) == pytest.approx((0.6 + 0.5 + 0.9) / 3)
    assert seen_average(R) == pytest.approx([0.8, 0.8, 2.0 / 3])
    assert average_incremental_accuracy(R) == pytest.approx((0.8 + 0.8 + 2.0 / 3) / 3)
    assert forgetting(R) == pytest.approx(((0.9 - 0.6) + (0.7 - 0.5)) / 2)
    assert backward_transfer(R) == pytest.approx(((0.6 - 0.8) + (0.5 - 0.7)) / 2)
    assert forward_transfer(R, B) == pytest.approx(((0.3 - 0.2) + (0.5 - 0.3)) / 2)


def test_forgetting_counts_the_best_before_the_experience_was_trained():
    zero_shot = np.array([[0.9, 0.8, 0.1], [0.9, 0.6, 0.1], [0.9, 0.5, 0.9]])
    assert forgetting(zero_shot) == pytest.approx((0.0 + (0.8 - 0.5)) / 2)
    assert -backward_transfer(zero_shot) == pytest.approx((0.0 + (0.6 - 0.5)) / 2)


def test_forgetting_where_only_seen_experiences_are_scored():
    lower = np.array([[0.8, NAN, NAN], [0.9, 0.7, NAN], [0.6, 0.5, 0.9]])
    assert forgetting(lower) == pytest.approx(0.25)
    assert average_incremental_accuracy(lower) == average_incremental_accuracy(R)
    assert math.isnan(forward_transfer(lower, B))


def test_lower_is_better_worked_by_hand():
    rmse = np.array([[1.0, 4.0], [3.0, 2.0]])
    assert forgetting(rmse, higher_is_better=False) == 2.0
    assert backward_transfer(rmse, higher_is_better=False) == -2.0
    b = np.array([9.0, 6.0])
    assert forward_transfer(rmse, b, higher_is_better=False) == 2.0


@given(matrices())
def test_an_error_is_a_negated_score(values):
    b = values[0] / 2
    assert forgetting(-values, higher_is_better=False) == forgetting(values)
    assert backward_transfer(-values, higher_is_better=False) == backward_transfer(values)
    assert forward_transfer(-values, -b, higher_is_better=False) == forward_transfer(values, b)


@given(matrices())
def test_forgetting_is_at_least_minus_bwt(values):
    # max_{l<T} R[l,j] >= R[j,j]: Chaudhry's forgetting is never under Avalanche's.
    assert forgetting(values) >= -backward_transfer(values) - 1e-12


@given(matrices(), st.floats(-1, 1))
def test_measures_of_change_ignore_a_constant_shift(values, shift):
    b = values[-1]
    assert forgetting(values + shift) == pytest.approx(forgetting(values), abs=1e-12)
    assert backward_transfer(values + shift) == pytest.approx(backward_transfer(values), abs=1e-12)
    assert forward_transfer(values + shift, b + shift) == pytest.approx(
        forward_transfer(values, b), abs=1e-12
    )


@given(matrices(1))
def test_averages_lie_between_the_extremes(values):
    for average in (average_accuracy(values), average_incremental_accuracy(values)):
        assert values.min() - 1e-12 <= average <= values.max() + 1e-12


@given(st.integers(2, 6), unit)
def test_a_model_that_never_changes_neither_forgets_nor_transfers(size, value):
    constant = np.full((size, size), value)
    assert forgetting(constant) == 0
    assert backward_transfer(constant) == 0
    assert forward_transfer(constant, np.full(size, value)) == 0
    assert average_accuracy(constant) == pytest.approx(value)


def test_one_experience_has_averages_only():
    one = np.array([[0.5]])
    assert average_accuracy(one) == average_incremental_accuracy(one) == 0.5
    assert math.isnan(forgetting(one))
    assert math.isnan(backward_transfer(one))
    assert math.isnan(forward_transfer(one, np.array([0.1])))


def test_scored_only_at_the_end_has_the_final_average_only():
    joint = np.array([[NAN, NAN], [0.5, 0.75]])
    assert average_accuracy(joint) == 0.625
    for value in (
        average_incremental_accuracy(joint),
        forgetting(joint),
        backward_transfer(joint),
        forward_transfer(joint, np.zeros(2)),
    ):
        assert math.isnan(value)


@given(matrices(), st.data())
def test_a_missing_entry_is_never_averaged_away(values, data):
    T = len(values)
    t = data.draw(st.integers(0, T - 1))
    j = data.draw(st.integers(0, T - 1))
    holed = values.copy()
    holed[t, j] = NAN
    assert math.isnan(average_accuracy(holed)) == (t == T - 1)
    assert math.isnan(average_incremental_accuracy(holed)) == (j <= t)
    assert math.isnan(forgetting(holed)) == (j <= t and j < T - 1)
    assert math.isnan(backward_transfer(holed)) == (j < T - 1 and t in (j, T - 1))
    assert math.isnan(forward_transfer(holed, np.zeros(T))) == (j == t + 1)


def test_no_baseline_no_forward_transfer():
    assert math.isnan(forward_transfer(R, None))


@pytest.mark.parametrize("shape", [(0, 0), (2, 3), (4,)])
def test_misshapen_scores_are_named(shape):
    with pytest.raises(ValueError, match=r"shape \(T, T\)"):
        forgetting(np.zeros(shape))
    if shape != (2, 3):
        with pytest.raises(ValueError, match=r"shape \(S, T\)"):
            average_accuracy(np.zeros(shape))


def test_the_average_is_over_what_the_last_stage_evaluates():
    two_stages = np.array([[0.1, 0.2, NAN], [0.5, NAN, 0.7]])
    assert math.isnan(average_accuracy(two_stages))
    assert average_accuracy(two_stages, (0, 2)) == pytest.approx(0.6)
    assert math.isnan(average_accuracy(two_stages, ()))
    shape = Shape(2, 3, ordered=False, evaluated=((0, 1), (0, 2)))
    matrix = ScoreMatrix(two_stages, np.full(3, NAN), given_shape=shape)
    assert MEASURES["average"].compute(matrix) == pytest.approx(0.6)
    assert {n for n, m in MEASURES.items() if m.exists(shape)} == {"average"}


@pytest.mark.parametrize(
    ("shape", "in_time"),
    [
        (Shape(3, 3), True),
        (Shape(3, 3, ordered=False), False),
        (Shape(2, 3), False),
        (Shape(1, 1), True),
    ],
)
def test_time_needs_a_stage_after_each_experience(shape, in_time):
    assert shape.in_time == in_time
    assert {m.exists(shape) for m in MEASURES.values() if m.ordered} == {in_time}
    assert MEASURES["average"].exists(shape)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="at least one stage"):
        Shape(0, 3)
    with pytest.raises(ValueError, match="2 stages evaluate but got 1"):
        Shape(2, 3, evaluated=((0,),))
    with pytest.raises(ValueError, match=r"stages=2.* but got \(3, 3\)"):
        ScoreMatrix(R, B, given_shape=Shape(2, 3))


def test_misshapen_baseline_is_named():
    with pytest.raises(ValueError, match=r"shape \(3,\) but got \(2,\)"):
        forward_transfer(R, np.zeros(2))
    with pytest.raises(ValueError, match=r"shape \(3,\) but got \(2,\)"):
        ScoreMatrix(R, np.zeros(2))


def test_arguments_are_left_as_they_were():
    before = R.copy()
    forgetting(R, higher_is_better=False)
    forward_transfer(R, B, higher_is_better=False)
    assert (before == R).all()


def test_the_table_of_measures_computes_the_functions():
    matrix = ScoreMatrix(R, B, "accuracy", True)
    assert {n: m.compute(matrix) for n, m in MEASURES.items()} == {
        "average": average_accuracy(R),
        "average_incremental": average_incremental_accuracy(R),
        "forgetting": forgetting(R),
        "backward_transfer": backward_transfer(R),
        "forward_transfer": forward_transfer(R, B),
    }
