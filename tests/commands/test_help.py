"""Help texts: what every command can do, with examples, in 80 columns."""

from __future__ import annotations

import re
import shlex

import pytest

from cl_lora.cli import COMMANDS, main
from cl_lora.configuration.compose import compose_config

WIDTH = 80


@pytest.fixture
def text(
    request: pytest.FixtureRequest,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """What ``--help`` prints in a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    assert main([*filter(None, [request.param]), "--help"]) == 0
    return capfd.readouterr().out


def examples(text: str) -> list[list[str]]:
    """Return the words of every example; a line that ends in a backslash goes on."""
    part = re.split(r"\n\n", text.partition("examples:\n")[2])[0].replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in part.splitlines()]


@pytest.mark.parametrize("text", ["", *COMMANDS], indirect=True)
def test_help_fits_and_has_options_and_examples(text: str) -> None:
    assert max(map(len, text.splitlines())) <= WIDTH
    assert text.startswith("usage: cl-lora ")
    assert "\noptions:\n  -h, --help" in text
    found = examples(text)
    assert found
    for program, command, *arguments in found:
        assert program == "cl-lora"
        assert command in COMMANDS
        flags = [word for word in arguments if word.startswith("--")]
        assert all(flag in text or command not in text.splitlines()[0] for flag in flags)


@pytest.mark.parametrize("text", [""], indirect=True)
def test_the_first_help_names_every_command_and_the_version(text: str) -> None:
    assert all(re.search(rf"^  {name} +\S", text, re.M) for name in COMMANDS)
    assert re.search(r"^  --version +\S", text, re.M)


@pytest.mark.parametrize("text", ["run"], indirect=True)
def test_examples_of_run_compose(text: str) -> None:
    for _, _, *words in examples(text):
        overrides = [word for word in words if not word.startswith("--")]
        if "--multirun" not in words:
            assert compose_config(overrides)
