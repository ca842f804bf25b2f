import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cl_lora.evaluation.aggregate import (
    averages,
    differences_of,
    estimates,
    holm,
    paired_difference,
    per_seed,
)
from cl_lora.evaluation.scores import Score, ScoreTable
from cl_lora.evaluation.shape import Shape
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


def test_mean_and_sample_deviation_over_seeds():
    found = estimates(table(), "accuracy")
    last = found["low", "final", 1]
    assert last.mean == pytest.approx(0.61)
    assert last.deviation == pytest.approx(np.std([0.6, 0.61, 0.62], ddof=1))
    assert last.seeds == 3
    assert found["low", "average", -1].mean == pytest.approx((0.3 + 0.61) / 2)
    assert found["low", "forgetting", -1].mean == pytest.approx(0.2)
    assert found["high", "forgetting", -1].mean == pytest.approx(0.1)
    assert not found["low", "forgetting", -1].higher_is_better
    assert found["low", "backward_transfer", -1].higher_is_better


def test_one_seed_has_no_deviation():
    last = estimates(table(seeds=[4]), "accuracy")["low", "final", 1]
    assert math.isnan(last.deviation)
    assert last.seeds == 1


def test_undefined_seeds_are_left_out_and_counted():
    scores = table()
    scores.append([Score(9, "low", 1, 1, "accuracy", 0.9)])
    found = estimates(scores, "accuracy")
    assert found["low", "final", 1].seeds == 4
    assert found["low", "final", 0].seeds == 3
    assert found["low", "average", -1].seeds == 3
    none = found["low", "forward_transfer", -1]
    assert none.seeds == 0
    assert math.isnan(none.mean)


def test_lower_is_better_metrics_keep_their_direction():
    scores = ScoreTable(
        Score(0, "a", t, j, "rmse", 1.0 + t + j, higher_is_better=False)
        for t in range(2)
        for j in range(2)
    )
    found = estimates(scores, "rmse")
    assert not found["a", "average", -1].higher_is_better
    assert found["a", "forgetting", -1].mean == 1.0
    assert found["a", "backward_transfer", -1].higher_is_better


def test_more_experiences_than_scored_makes_the_end_undefined():
    assert estimates(table(), "accuracy", Shape(3, 3))["low", "average", -1].seeds == 0
    with pytest.raises(UserError, match="stream of 1 stage and 1 experience has"):
        estimates(table(), "accuracy", Shape(1, 1))


def test_without_order_there_is_the_average_alone():
    """One stage `all` of three experiences; the last is of a task without this metric."""
    scores = ScoreTable(
        [
            *(Score(0, "a", 0, j, "accuracy", 0.5 + 0.1 * j) for j in range(2)),
            Score(0, "a", 0, 2, "rmse", 7.0, higher_is_better=False),
        ]
    )
    of_class = per_seed(scores, "accuracy", Shape(1, 3, False, ((0, 1),)))
    assert of_class == {
        ("a", "final", 0): {0: 0.5},
        ("a", "final", 1): {0: 0.6},
        ("a", "average", -1): {0: pytest.approx(0.55)},
    }
    of_scalar = per_seed(scores, "rmse", Shape(1, 3, False, ((2,),)))
    assert of_scalar == {("a", "final", 2): {0: 7.0}, ("a", "average", -1): {0: 7.0}}


def test_a_missing_score_among_the_evaluated_shows():
    scores = ScoreTable([Score(0, "a", 0, 0, "accuracy", 0.5)])
    found = per_seed(scores, "accuracy", Shape(1, 2, False))
    assert math.isnan(found["a", "average", -1][0])


def test_as_many_stages_as_experiences_are_no_time_without_order():
    measures = {m for _, m, _ in per_seed(table(), "accuracy", Shape(2, 2, ordered=False))}
    assert measures == {"final", "average"}
    assert len({m for _, m, _ in per_seed(table(), "accuracy")}) == 6


def test_unknown_metrics_are_named_and_an_empty_table_has_none():
    for scores in (table(), ScoreTable()):
        with pytest.raises(UserError, match="Unknown metric 'nme'"):
            per_seed(scores, "nme")


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=2, max_size=20),
    st.sampled_from([0.5, 0.95, 0.99]),
)
def test_interval_and_p_value_are_those_of_scipys_paired_test(pairs, confidence):
    a, b = np.array(pairs).T
    ours = paired_difference(a, b, confidence)
    assert ours.n == len(pairs)
    assert ours.low <= ours.mean <= ours.high
    if np.std(a - b, ddof=1) > 1e-9:
        test = stats.ttest_rel(a, b)
        theirs = test.confidence_interval(confidence)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
        assert ours.p == pytest.approx(test.pvalue)


def test_the_interval_by_hand():
    # d = 1, 2, 3: mean 2, deviation 1, t(2, .975) = 4.302653
    d = paired_difference([1, 2, 3, math.nan], [0, 0, 0, 0])
    assert d.mean == 2
    assert d.high - d.mean == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)
    assert d.n == 3


def test_too_few_pairs_have_no_interval():
    one = paired_difference([2.0], [0.5])
    assert (one.mean, one.n) == (1.5, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.p)
    assert math.isnan(paired_difference([math.nan], [1.0]).mean)


def test_no_spread_is_certain_either_way():
    assert paired_difference([1.0, 2.0], [0.0, 1.0]).p == 0
    assert paired_difference([1.0, 2.0], [1.0, 2.0]).p == 1


@pytest.mark.parametrize(("b", "confidence"), [([1.0, 2.0], 0.95), ([1.0], 1.0), ([1.0], 0.0)])
def test_bad_arguments_are_named(b, confidence):
    with pytest.raises(ValueError, match="Expected"):
        paired_difference([1.0], b, confidence)


def test_differences_pair_seeds():
    found = averages(table(), "accuracy")
    assert found["low"] == pytest.approx({0: 0.45, 1: 0.455, 2: 0.46})
    reference = found.pop("low")
    noisy = {0: 0.6, 1: 0.5, 2: 0.7, 7: 0.0}  # seed 7 has no partner
    differences = differences_of({**found, "noisy": noisy}, reference, 0.95)
    assert differences["high"].mean == pytest.approx(0.05)
    assert {d.n for d in differences.values()} == {3}
    expected = stats.ttest_rel([0.6, 0.5, 0.7], [0.45, 0.455, 0.46])
    interval = expected.confidence_interval(0.95)
    d = differences["noisy"]
    assert (d.low, d.high, d.p) == pytest.approx((interval.low, interval.high, expected.pvalue))
    # Two comparisons; the other one has the smaller p value.
    assert d.holm == pytest.approx(expected.pvalue)
    assert differences["high"].holm == pytest.approx(2 * differences["high"].p)


def test_holm_by_hand():
    """Holm's procedure with m = 4: .005 x 4, .01 x 3, .03 x 2, then never below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    found = holm([math.nan, 0.01])  # an arm with one seed is no test
    assert math.isnan(found[0])
    assert found[1] == 0.01


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0.001, 0.2))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values, alpha):
    m = len(p_values)
    rejected = set()
    for k, i in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        if min(1.0, (m - k) * p_values[i]) > alpha:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(holm(p_values)) if p <= alpha} == rejected


DRAWS = 2000


def simulated(seeds, domains, of_seed, of_domain, noise):
    """Return d (DRAWS, seeds, domains) of two arms that do not differ on these domains."""
    generator = np.random.default_rng(20)
    # The domains are the same in every draw: the mean over them is what is asked for, 0.
    fixed = generator.normal(0, of_domain, domains)
    fixed -= fixed.mean()
    # What a seed adds to one domain, it adds to others too: one head, one set of coefficients.
    shared = generator.normal(0, of_seed, (DRAWS, seeds, 1))
    return fixed + shared + generator.normal(0, noise, (DRAWS, seeds, domains))


def coverage(d):
    """Return how often the interval over the last axis covers 0."""
    found = [paired_difference(x, np.zeros_like(x)) for x in d]
    return sum(x.low <= 0 <= x.high for x in found) / len(found)


@pytest.mark.parametrize(
    ("of_seed", "of_domain", "noise"), [(1.0, 0.0, 0.3), (0.2, 5.0, 0.3), (1.0, 2.0, 1.0)]
)
def test_95_percent_intervals_cover_95_percent(of_seed, of_domain, noise):
    d = simulated(3, 4, of_seed, of_domain, noise)
    assert 0.93 <= coverage(d.mean(axis=2)) <= 0.97


def test_seeds_times_domains_were_no_independent_pairs():
    """What this project did before: too narrow where seeds differ, too wide where domains do."""
    narrow = simulated(3, 4, of_seed=1.0, of_domain=0.0, noise=0.3)
    assert coverage(narrow.reshape(DRAWS, -1)) < 0.75
    wide = simulated(3, 4, of_seed=0.2, of_domain=5.0, noise=0.3)
    assert coverage(wide.reshape(DRAWS, -1)) > 0.99
