"""Choices that were renamed: the earlier names work as overrides, in lists, sweeps and folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from cl_lora.configuration import renamed
from cl_lora.configuration.choices import config_names
from cl_lora.configuration.compose import compose_config, plain
from cl_lora.configuration.launch import launch
from cl_lora.configuration.renamed import RENAMED, with_new_names
from cl_lora.experiment.settings import read_settings
from cl_lora.support.errors import UserError

SEEN: list[dict[str, Any]] = []


def job(composed: DictConfig) -> None:
    SEEN.append(plain(composed))


def check(jobs: Sequence[Mapping[str, Any]], side_by_side: bool) -> Mapping[int, Mapping[str, Any]]:
    return {}


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    SEEN.clear()
    renamed._tell.cache_clear()
    yield
    renamed._tell.cache_clear()


def configs(*arguments: str) -> list[dict[str, Any]]:
    SEEN.clear()
    assert launch(arguments, job, check) == 0
    return list(SEEN)


@pytest.mark.parametrize("group", RENAMED)
def test_every_name_now_is_a_choice_and_no_earlier_one_is(group: str) -> None:
    names = set(config_names(group))
    assert set(RENAMED[group].values()) <= names
    assert not set(RENAMED[group]) & names


def test_an_earlier_name_works_and_is_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    (config,) = configs("arms=paper_adaptive")
    assert config == compose_config(["arms=coleman2024_adaptive"])
    assert compose_config(["arms=paper_adaptive"]) == config
    said = capfd.readouterr()
    assert said.err == "arms=paper_adaptive is called coleman2024_adaptive now\n"
    assert said.out == ""


def test_an_experiment_and_a_strategy(capfd: pytest.CaptureFixture[str]) -> None:
    (config,) = configs("experiment=paper_b_pacs", "benchmark.root=x")
    assert config == compose_config(["experiment=coleman2024_pacs", "benchmark.root=x"])
    assert config["strategy"]["name"] == "coleman2024"
    assert configs("strategy=paper_b")[0]["strategy"] == config["strategy"]
    assert capfd.readouterr().err.splitlines() == [
        "experiment=paper_b_pacs is called coleman2024_pacs now",
        "strategy=paper_b is called coleman2024 now",
    ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("arms=[paper_fixed,default]", "arms=[coleman2024_fixed,default]"),
        ("arms=[default, 'paper_peft']", "arms=[default, 'coleman2024_peft']"),
        ("arms=paper_spc1,few_shot_paper", "arms=coleman2024_spc1,asadi2024"),
        ("+arms@mine=paper_peft_adaptive", "+arms@mine=coleman2024_peft_adaptive"),
        ("strategy=choice(paper_b,lora)", "strategy=choice(coleman2024,lora)"),
    ],
)
def test_lists_and_sweeps(given: str, expected: str) -> None:
    assert with_new_names([given], lambda group: ()) == [expected]


@pytest.mark.parametrize(
    "given",
    [
        "run_dir=paper_fixed",
        "arms=my_paper_fixed",
        "arms=own/paper_fixed",
        "strategy=paper_fixed",
        "strategy.name=paper_b",
        "+arms.paper_fixed={method: ties}",
        "~arms",
    ],
)
def test_what_is_no_earlier_name_of_its_group_stays(given: str) -> None:
    assert with_new_names([given], lambda group: ()) == [given]


def test_a_sweep_of_earlier_names() -> None:
    found = configs("--multirun", "arms=paper_fixed,[paper_spc1,default]")
    assert [sorted(c["arms"]) for c in found] == [
        sorted(compose_config([f"arms={new}"])["arms"])
        for new in ("coleman2024_fixed", "[coleman2024_spc1,default]")
    ]


def test_a_file_of_the_users_own_keeps_its_name(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own" / "arms").mkdir(parents=True)
    (tmp_path / "own" / "arms" / "paper_fixed.yaml").write_text("mine: {method: cat}\n")
    (config,) = configs("--config-dir", "own", "arms=paper_fixed")
    assert list(config["arms"]) == ["mine"]
    assert capfd.readouterr().err == ""


def test_a_yaml_that_names_an_earlier_choice_is_told_the_name_now(tmp_path: Path) -> None:
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /arms: paper_fixed\n"
    )
    with pytest.raises(UserError, match="arms=paper_fixed is called coleman2024_fixed now; write"):
        launch(["--config-dir", "own", "experiment=mine"], job, check)


def test_a_run_is_found_again_by_either_name() -> None:
    """What a strategy is called is recorded for the reader, and decides no folder."""
    now = compose_config(["strategy=coleman2024"])
    earlier = {**now, "strategy": {**now["strategy"], "name": "paper_b"}}
    of_both = [read_settings(config) for config in (now, earlier)]
    assert of_both[0].recipe == of_both[1].recipe
    assert of_both[0].identity("data", {}) == of_both[1].identity("data", {})
