import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cl_lora.evaluation.aggregate import differences, paired_difference, per_seed, summary
from cl_lora.evaluation.scores import Score, ScoreTable
from cl_lora.support.errors import UserError


def table(seeds=(0, 1, 2)):
    rows = []
    for seed in seeds:
        for arm, bonus in (("low", 0.0), ("high", 0.1)):
            R = [[0.5, 0.1], [0.3 + bonus, 0.6 + 0.01 * seed]]
            rows += [
                Score(seed, arm, t, j, "accuracy", R[t][j]) for t in range(2) for j in range(2)
            ]
    return ScoreTable(rows)


def cell(frame, arm, measure, evaluated=-1):
    chosen = frame[(frame.arm == arm) & (frame.measure == measure) & (frame.evaluated == evaluated)]
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_mean_and_sample_deviation_over_seeds():
    frame = summary(table())
    last = cell(frame, "low", "final", 1)
    assert last["mean"] == pytest.approx(0.61)
    assert last["deviation"] == pytest.approx(np.std([0.6, 0.61, 0.62], ddof=1))
    assert last["seeds"] == 3
    assert cell(frame, "low", "average")["mean"] == pytest.approx((0.3 + 0.61) / 2)
    assert cell(frame, "low", "forgetting")["mean"] == pytest.approx(0.2)
    assert cell(frame, "high", "forgetting")["mean"] == pytest.approx(0.1)
    assert not cell(frame, "low", "forgetting")["higher_is_better"]
    assert cell(frame, "low", "backward_transfer")["higher_is_better"]
    assert list(dict.fromkeys(frame.arm)) == ["low", "high"]


def test_one_seed_has_no_deviation():
    last = cell(summary(table(seeds=[4])), "low", "final", 1)
    assert math.isnan(last["deviation"])
    assert last["seeds"] == 1


def test_undefined_seeds_are_left_out_and_counted():
    scores = table()
    scores.append([Score(9, "low", 1, 1, "accuracy", 0.9)])
    frame = summary(scores)
    assert cell(frame, "low", "final", 1)["seeds"] == 4
    assert cell(frame, "low", "final", 0)["seeds"] == 3
    assert cell(frame, "low", "average")["seeds"] == 3
    none = cell(frame, "low", "forward_transfer")
    assert none["seeds"] == 0
    assert math.isnan(none["mean"])


def test_lower_is_better_metrics_keep_their_direction():
    scores = ScoreTable(
        Score(0, "a", t, j, "rmse", 1.0 + t + j, higher_is_better=False)
        for t in range(2)
        for j in range(2)
    )
    frame = summary(scores)
    assert not cell(frame, "a", "average")["higher_is_better"]
    assert cell(frame, "a", "forgetting")["mean"] == 1.0
    assert cell(frame, "a", "backward_transfer")["higher_is_better"]


def test_more_experiences_than_scored_makes_the_end_undefined():
    frame = summary(table(), experiences=3)
    assert cell(frame, "low", "average")["seeds"] == 0
    with pytest.raises(UserError, match="stream of 1 experiences"):
        summary(table(), experiences=1)


def test_an_empty_table_has_an_empty_summary():
    assert summary(ScoreTable()).empty
    assert per_seed(ScoreTable()).empty


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=2, max_size=20),
    st.sampled_from([0.5, 0.95, 0.99]),
)
def test_the_interval_is_that_of_scipys_paired_test(pairs, confidence):
    a, b = np.array(pairs).T
    ours = paired_difference(a, b, confidence)
    assert ours.pairs == len(pairs)
    assert ours.low <= ours.mean <= ours.high
    if np.std(a - b, ddof=1) > 1e-9:
        theirs = stats.ttest_rel(a, b).confidence_interval(confidence)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))


def test_the_interval_by_hand():
    # d = 1, 2, 3: mean 2, deviation 1, t(2, .975) = 4.302653
    d = paired_difference([1, 2, 3, math.nan], [0, 0, 0, 0])
    assert d.mean == 2
    assert d.high - d.mean == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)
    assert d.pairs == 3


def test_too_few_pairs_have_no_interval():
    one = paired_difference([2.0], [0.5])
    assert (one.mean, one.pairs) == (1.5, 1)
    assert math.isnan(one.low)
    assert math.isnan(paired_difference([math.nan], [1.0]).mean)


@pytest.mark.parametrize(("b", "confidence"), [([1.0, 2.0], 0.95), ([1.0], 1.0), ([1.0], 0.0)])
def test_bad_arguments_are_named(b, confidence):
    with pytest.raises(ValueError, match="Expected"):
        paired_difference([1.0], b, confidence)


def test_differences_pair_seeds_and_domains():
    frame = differences(table(), reference="low").set_index("arm")
    assert frame.loc["high", "difference"] == pytest.approx(0.05)
    assert frame.loc["high", "pairs"] == 6
    expected = paired_difference([0.1, 0.0] * 3, [0.0] * 6)
    assert frame.loc["high", "low"] == pytest.approx(expected.low)
    assert frame.loc["low", "difference"] == 0
    with pytest.raises(UserError, match="Unknown arm 'lo'"):
        differences(table(), reference="lo")
    with pytest.raises(UserError, match="Unknown metric"):
        differences(table(), reference="low", metric="nme")
