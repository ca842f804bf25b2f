"""Estimates of time: hand-worked sums, and what nothing measured tells of is said."""

from __future__ import annotations

import pytest

from cl_lora.experiment.estimate import (
    Estimate,
    Scoring,
    Training,
    adaptation_time,
    in_words,
    scoring_time,
    training_time,
)


def test_an_adapter_takes_the_mean_of_its_namesakes() -> None:
    done = [Training("fresh", 1, 50, 4.0), Training("fresh", 1, 50, 8.0)]
    assert training_time([Training("fresh", 1, 50)], done) == Estimate(6.0, 1, 0)


def test_one_without_namesakes_takes_the_rate_of_its_bank() -> None:
    done = [Training("fresh", 0, 100, 10.0), Training("fresh", 1, 300, 50.0)]
    todo = [Training("fresh", 2, 200), Training("joint", 0, 400)]
    assert training_time(todo, done) == Estimate(200 * 60 / 400, 1, 1)


def test_what_does_not_tell_its_time_is_not_measured() -> None:
    assert training_time([Training("fresh", 0, 9)], [Training("fresh", 0, 9)]) == Estimate(0, 0, 1)
    assert training_time([], []) == Estimate()


def test_scoring_takes_the_rows_own_time_or_the_mean() -> None:
    todo = [Scoring("routed", 3, 1000), Scoring("new", 3, 1000)]
    assert scoring_time(todo, {"routed": 9.0, "half": 3.0}) == Estimate(9.0 + 6.0, 2, 0)
    assert scoring_time(todo, {}) == Estimate(0.0, 0, 2)


def test_adapting_takes_the_same_stage_or_the_mean_of_the_arm() -> None:
    todo = [
        Scoring("lora", 0, 5, adapts=True),
        Scoring("lora", 7, 5, adapts=True),
        Scoring("full", 0, 5, adapts=True),
        Scoring("base", 0, 5),
    ]
    measured = {("lora", 0): [1.0, 3.0], ("lora", 1): [8.0]}
    assert adaptation_time(todo, measured) == Estimate(2.0 + 4.0, 2, 1)


def test_estimates_add_up() -> None:
    assert Estimate(1.5, 1, 2) + Estimate(2.0, 3, 4) == Estimate(3.5, 4, 6)
    assert Estimate.of([1.0, None, 2.0]) == Estimate(3.0, 2, 1)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "less than a second"),
        (1, "1 second"),
        (89, "89 seconds"),
        (90, "1.5 minutes"),
        (5399, "90 minutes"),
        (5400, "1.5 hours"),
        (360_000, "100 hours"),
    ],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
