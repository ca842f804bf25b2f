"""Values that Hydra's grammar cannot read: texts get their quotes, anything else a sentence."""

from __future__ import annotations

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from cl_lora.configuration.compose import Composer, compose_config
from cl_lora.configuration.quoting import with_quotes
from cl_lora.support.errors import UserError


def read(override: str) -> object:
    (parsed,) = OverridesParser.create().parse_overrides([override])
    return parsed.value()


@pytest.mark.parametrize(
    "text",
    [
        "/data/Bilder für x",
        "/data/日本",
        "a;b&c#d!e^f`g~h",
        "(2)",
        "a\\ü\\",
        "b=c ü",
        "2 > 1",
    ],
)
def test_a_text_is_what_was_written(text: str) -> None:
    (quoted,) = with_quotes([f"run_dir={text}"])
    assert read(quoted) == text
    assert compose_config([f"run_dir={text}"])["run_dir"] == text


@pytest.mark.parametrize(
    "override",
    ["seeds=[0,1]", "spc=1,2", "a=b", "run_dir=a b", "+arms.x={method: ties}", "x='ü'", "~arms"],
)
def test_what_can_be_read_stays(override: str) -> None:
    # Beside one that cannot.
    assert with_quotes([override, "run_dir=ü"]) == [override, 'run_dir="ü"']


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("run_dir=/data/Bilder, für x", "/data/Bilder, für x"),
        ("run_dir=it's ü", "it's ü"),
        ("seeds=[ä,ö]", ["ä", "ö"]),
        ("+arms.x={method: tïes, density: 0.2}", {"method": "tïes", "density": 0.2}),
        ("seeds=[a b,c;d]", ["a b", "c;d"]),
    ],
)
def test_what_may_be_more_than_a_text_is_shown_with_its_quotes(
    override: str, value: object
) -> None:
    assert with_quotes([override]) == [override]
    with pytest.raises(UserError, match="inner quotes, as ") as caught:
        Composer().parse([override])
    (corrected,) = shlex.split(str(caught.value).rpartition("inner quotes, as ")[2])
    assert read(corrected) == value


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("strategy.rank='2", "The value of strategy.rank cannot be read"),
        ("seeds=[0", "The value of seeds cannot be read: '[0'; close every bracket"),
        ("ü=1", "has the key 'ü'; write the name of an option"),
        ("abc", "has no '='"),
        ("run_dir=a\udcff", "Expected text in UTF-8"),
        ("run_dir=a\x07", r"'a\x07'; close every"),
        ("", "has no '='"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(override: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        compose_config([override])
    assert expected in str(caught.value)
    assert "Lexer" not in str(caught.value)
    assert str(caught.value).isprintable()
