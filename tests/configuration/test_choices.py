"""Where the YAML files lie, and that each of them is a choice Hydra knows."""

from __future__ import annotations

import pytest

from cl_lora.configuration.choices import GROUPS, config_names, config_text, config_values
from cl_lora.configuration.compose import Composer

CHOICES = [(group, name) for group in GROUPS for name in config_names(group)]


def test_there_are_choices_in_every_group() -> None:
    assert {group for group, _ in CHOICES} == set(GROUPS)
    assert config_names("nothing") == []


@pytest.mark.parametrize(("group", "name"), CHOICES, ids=map("/".join, CHOICES))
def test_every_choice_composes(group: str, name: str) -> None:
    config = Composer().load([f"{group}={name}"])
    assert config.hydra.runtime.choices[group] == name


def test_text_keeps_comments_and_values_do_not_resolve() -> None:
    assert "#" in config_text("strategy", "lora")
    assert config_values("strategy", "lora")["rank"] == 8
    assert config_values("arms", "none") == {}
