"""The one builder of typed settings: names, types and what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cl_lora.configuration.build import MISSING, build, missing_options, required
from cl_lora.support.errors import UserError


@dataclass(frozen=True)
class Options:
    rank: int
    lr: float = 0.1
    name: str | None = None
    scale: float | str = "auto"
    whole: bool = False
    parts: Sequence[str] = ()
    sizes: tuple[float, ...] = (1.0,)
    more: Mapping[str, Any] = field(default_factory=dict)
    anything: Any = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"Expected rank to be at least 1 but got {self.rank}")


def test_values_become_what_the_dataclass_says() -> None:
    built = build(
        Options,
        {
            "rank": 2,
            "lr": 1,
            "name": None,
            "parts": ["a", "b"],
            "sizes": [1, 2.5],
            "more": {"x": 1},
        },
        "strategy",
    )
    assert built == Options(2, 1.0, None, "auto", False, ("a", "b"), (1.0, 2.5), {"x": 1})
    assert isinstance(built.lr, float)
    assert isinstance(built.sizes[0], float)


@pytest.mark.parametrize("value", ["auto", 0.5])
def test_a_union_takes_each_of_its_types(value: Any) -> None:
    assert build(Options, {"rank": 1, "scale": value}, "strategy").scale == value


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"rnk": 1}, "Unknown strategy option 'rnk': did you mean 'rank'"),
        ({}, "strategy.rank is missing"),
        ({"rank": None}, "strategy.rank"),
        ({"rank": "two"}, "Expected strategy.rank to be a whole number but got 'two'"),
        ({"rank": 1.5}, "Expected strategy.rank to be a whole number but got 1.5"),
        ({"rank": True}, "Expected strategy.rank to be a whole number but got True"),
        ({"rank": 1, "lr": "x"}, "Expected strategy.lr to be a number but got 'x'"),
        ({"rank": 1, "lr": False}, "Expected strategy.lr to be a number but got False"),
        ({"rank": 1, "name": 3}, "Expected strategy.name to be a text but got 3"),
        ({"rank": 1, "whole": 1}, "Expected strategy.whole to be true or false but got 1"),
        (
            {"rank": 1, "parts": "ab"},
            "Expected strategy.parts to be a list, as [A,B], but got 'ab'",
        ),
        ({"rank": 1, "parts": ["a", 2]}, "strategy.parts[1] to be a text but got 2"),
        ({"rank": 1, "more": [1]}, "Expected strategy.more to be a mapping but got [1]"),
        ({"rank": 0}, "at least 1"),
    ],
)
def test_what_is_wrong_is_one_sentence(values: Mapping[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        build(Options, values, "strategy")
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"rnk": 1}, "Unknown option 'rnk'"),
        ({}, "The option rank is missing"),
        ({"rank": "two"}, "Expected rank to be"),
    ],
)
def test_options_at_the_top_have_no_prefix(values: Mapping[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        build(Options, values, "")


def test_an_option_that_must_be_given_says_what_it_is() -> None:
    @dataclass(frozen=True)
    class Tree:
        root: str = required("the folder of the images", "DIR")

    for values in ({}, {"root": None}, {"root": MISSING}):
        assert missing_options(Tree, values) == ["root"]
        with pytest.raises(UserError, match=r"the folder of the images.*add benchmark\.root=DIR"):
            build(Tree, values, "benchmark")
    assert build(Tree, {"root": Path("x")}, "benchmark").root == "x"


def test_what_is_given_is_not_changed() -> None:
    more = {"x": 1}
    built = build(Options, {"rank": 1, "more": more}, "strategy")
    assert built.more is not more
