"""The largest values of options, and texts that nothing can hold."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from cl_lora.configuration.build import build
from cl_lora.support.errors import UserError, shown
from cl_lora.support.ranges import at_most, check_most, check_plain, largest


@dataclass(frozen=True)
class Options:
    rank: int = at_most(100, 8)
    lr: float = at_most(10, 0.1)
    seeds: Sequence[int] | int = at_most(1000, (0,))
    patience: int | None = at_most(5, None)
    name: str = "x"


def test_a_default_is_one_still() -> None:
    assert Options() == Options(8, 0.1, (0,), None, "x")
    assert largest(Options) == {"rank": 100, "lr": 10, "seeds": 1000, "patience": 5}


@pytest.mark.parametrize(
    "values", [{"rank": 100}, {"lr": 10}, {"seeds": [0, 1000]}, {"patience": 5}, {"lr": -10.0}]
)
def test_the_largest_value_is_taken(values: dict[str, Any]) -> None:
    build(Options, values, "strategy")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"rank": 101}, "Expected strategy.rank to be at most 100 but got 101; give a smaller"),
        ({"lr": 10.5}, "Expected strategy.lr to be at most 10 but got 10.5; give a smaller"),
        ({"lr": -11}, "Expected strategy.lr to be at least -10 but got -11.0; give a larger"),
        ({"seeds": [0, 10**20]}, "strategy.seeds to be at most 1,000 but got 1000000000000"),
        ({"seeds": 1001}, "strategy.seeds to be at most 1,000 but got 1001"),
        ({"patience": 10**400}, "strategy.patience to be at most 5 but got 1000"),
        ({"rank": 10**5000}, "strategy.rank to be at most 100 but got a number of thousands"),
        ({"lr": 10**400}, "strategy.lr to be a number but got 1000"),
    ],
)
def test_a_larger_one_is_refused(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        build(Options, values, "strategy")
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 300


def test_other_values_are_left_to_other_checks() -> None:
    for value in (True, "abc", None, {"a": 10**9}, float("nan"), float("inf")):
        check_most(value, 5, "x")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"a": {"b": ["x", "y\0z"]}}, "a.b.1 holds a NUL character: 'y\\x00z'; write it without"),
        ({"a": os.fsdecode(b"a\xff")}, "a holds bytes that are not UTF-8: 'a\\udcff'; write"),
        ({"a\0": 1}, "holds a NUL character"),
        ({"a": [2**63]}, "a.0 to be a number of at most 64 bits but got 9223372036854775808; "),
        ({"a": -(10**400)}, "at most 64 bits"),
    ],
)
def test_what_no_option_can_hold(config: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        check_plain(config)
    assert expected in str(caught.value)
    assert str(caught.value).isprintable()


def test_everything_else_is_plain() -> None:
    check_plain({"a": [1, "ü\n", None, 2**63 - 1, {"b": 0.5}], 5: True})


def test_a_long_value_is_shown_without_its_middle() -> None:
    assert shown("a" * 300) == "'" + "a" * 59 + " ... " + "a" * 59 + "'"
    assert shown([1, 2]) == "[1, 2]"
