"""What a folder is to hold: arms, rows and seeds of all its commands."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_run import overrides
from whole_runs import rows, run, stamps

from cl_lora.configuration.compose import compose_config
from cl_lora.experiment.ledger import Ledger, open_ledger
from cl_lora.experiment.references import get_references
from cl_lora.experiment.settings import read_settings
from cl_lora.run_folder.config_file import ConfigRecord, read_config
from cl_lora.support.errors import DivergedError, UserError

LEARNED = {"method": "ties", "coefficients": {"name": "adaptive", "steps": 2}}
FIXED = {"method": "cat", "coefficients": 0.5}


def ledger(recorded: ConfigRecord | None, arms: Mapping[str, Any], *more: str) -> Ledger:
    """Return the ledger of a command with these arms."""
    raw = compose_config(overrides(Path("runs/x"), *more))
    return open_ledger(Path("runs/x"), recorded, read_settings({**raw, "arms": dict(arms)}))


def recorded_by(made: Ledger, arms: Mapping[str, Any], *more: str) -> ConfigRecord:
    """Return what ``config.yaml`` says after a command, through YAML."""
    raw = compose_config(overrides(Path("runs/x"), *more))
    config = made.record(read_settings({**raw, "arms": dict(arms)}), {"data": "f00d"})
    plain = yaml.safe_load(yaml.safe_dump(config.record(), sort_keys=False))
    return ConfigRecord(
        name=plain["name"],
        identity=plain["identity"],
        arms=plain["arms"],
        variants=plain["variants"],
        references=tuple(plain["references"]),
        seeds=tuple(plain["seeds"]),
        stopped=plain.get("stopped", {}),
    )


def begun(arms: Mapping[str, Any], *more: str) -> ConfigRecord:
    """Return the record of a first command."""
    return recorded_by(ledger(None, arms, *more), arms, *more)


def test_an_arm_of_an_earlier_command_means_what_it_meant_then() -> None:
    """Whatever this command's defaults are: the recorded variant holds."""
    first = begun({"old": LEARNED}, "spc=2", "buffer_batch_size=6")
    now = ledger(first, {"new": LEARNED}, "spc=4", "buffer_batch_size=9")
    old, new = now.arms
    assert (old.name, old.spc, old.buffer_batch_size) == ("old", 2, 6)
    assert (new.name, new.spc, new.buffer_batch_size) == ("new", 4, 9)
    assert old.variant == first.variants["old"]


def test_a_default_that_a_later_version_changed_changes_no_recorded_arm() -> None:
    first = begun({"old": LEARNED})
    variant = dict(first.variants["old"])
    variant["coefficients"] = {**variant["coefficients"], "steps": 77}
    older = dataclasses.replace(first, variants={"old": variant})
    (old,) = ledger(older, {}).arms
    assert old.rule.options["steps"] == 77


@pytest.mark.parametrize(
    ("again", "more", "key"),
    [
        ({**LEARNED, "density": 0.5}, (), "options.density"),
        ({**LEARNED, "tune_head": True}, (), "tune_head"),
        ({**LEARNED, "spc": 3}, (), "spc is 5"),
        (LEARNED, ("spc=3",), "spc is 5"),
        (LEARNED, ("buffer_batch_size=3",), "buffer_batch_size is 32"),
        ({**LEARNED, "coefficients": {"name": "softmax", "steps": 2}}, (), "coefficients"),
        (FIXED, (), "method is 'ties'"),
    ],
)
def test_an_arm_is_not_defined_twice(again: Mapping[str, Any], more: Any, key: str) -> None:
    first = begun({"x": LEARNED})
    with pytest.raises(UserError, match=rf"Arm 'x' is defined twice: {key}.* another name") as told:
        ledger(first, {"x": again}, *more)
    assert "\n" not in str(told.value)


def test_the_same_arm_may_be_spelled_otherwise() -> None:
    first = begun({"x": LEARNED})
    spelled = {**LEARNED, "density": 0.2, "space": "delta", "spc": 5}
    (arm,) = ledger(first, {"x": spelled}).arms
    assert arm.variant == first.variants["x"]


def test_rows_and_seeds_add_up() -> None:
    first = begun({"a": FIXED}, "references=[joint,base]", "seeds=[3,1]")
    now = ledger(first, {"b": FIXED}, "references=[last]", "seeds=[2]")
    assert now.rows == ["a", "b", "base", "last", "joint"]
    assert now.seeds == (1, 2, 3)
    assert set(now.banks) == {"fresh", "joint"}
    assert ledger(begun({"a": FIXED}, "references=[]"), {}, "references=[]").banks == ("fresh",)


def test_a_diverged_arm_is_stopped_until_it_is_named_again() -> None:
    made = ledger(None, {"x": LEARNED, "y": FIXED})
    stopped = made.without(made.arms[0], "the loss is nan")
    assert stopped.rows[0] == "y"
    record = recorded_by(stopped, {"x": LEARNED, "y": FIXED})
    assert "x" not in record.arms
    assert "x" not in record.variants
    assert record.stopped["x"]["reason"] == "the loss is nan"
    # A command that does not name it skips it, and keeps saying why.
    later = ledger(record, {"z": FIXED})
    assert [arm.name for arm in later.arms] == ["y", "z"]
    assert later.stopped == record.stopped
    assert later.renewed == ()
    # Named again as it was, it goes on from where it stopped; in other words, it starts anew.
    same = ledger(record, {"x": LEARNED})
    assert (same.stopped, same.renewed) == ({}, ())
    assert "x" in same.rows
    other = ledger(record, {"x": {**LEARNED, "spc": 3}})
    assert (other.stopped, other.renewed) == ({}, ("x",))


# In whole runs -------------------------------------------------------------------------------

STEEP = "+arms.steep={{method: cat, spc: 2, coefficients: {{name: softmax, lr: {}, steps: 3}}}}"


@pytest.fixture(scope="module")
def diverged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose arm ``steep`` diverged; no test changes it."""
    folder = tmp_path_factory.mktemp("ledger") / "run"
    message = r"Arm 'steep', seed 0, stage 'photo': .*everything else is finished .*~arms\.NAME"
    with pytest.raises(DivergedError, match=message):
        run(folder, STEEP.format("1.0e+308"))
    return folder


@pytest.fixture
def copied(diverged: Path, tmp_path: Path) -> Path:
    return shutil.copytree(diverged, tmp_path / "run")


def test_the_others_are_finished_and_the_reason_is_recorded(diverged: Path) -> None:
    record = read_config(diverged)
    assert set(record.arms) == {"half", "ties_learned"}
    assert "finite" in record.stopped["steep"]["reason"]
    last = {r["arm"] for r in rows(diverged) if r["stage"] == "2"}
    assert last == {"half", "ties_learned", "base", "last", "oracle", "sequential", "joint"}


def test_later_commands_skip_it(copied: Path) -> None:
    before, old = stamps(copied), [r for r in rows(copied) if r["arm"] != "steep"]
    assert run(copied, "+arms.sum={method: cat, coefficients: 1}") == copied
    assert [r for r in rows(copied) if r["arm"] not in ("steep", "sum")] == old
    assert stamps(copied) == before
    assert "steep" in read_config(copied).stopped


def test_with_other_settings_nothing_is_left_of_the_first(copied: Path) -> None:
    # What a first attempt left, as if it had got further.
    path = copied / "scores.csv"
    text, marked = re.subn(r"(steep,-1,0,accuracy),[\d.]+", r"\1,0.123", path.read_text())
    assert marked == 1
    path.write_text(text)
    run(copied, STEEP.format("0.1"))
    record = read_config(copied)
    assert not record.stopped
    assert record.variants["steep"]["coefficients"]["lr"] == 0.1
    found = [r for r in rows(copied) if r["arm"] == "steep"]
    assert len(found) == 4 * 3 * 2
    untrained = {r["value"] for r in rows(copied) if r["stage"] == "-1" and r["evaluated"] == "0"}
    assert {r["value"] for r in found if r["stage"] == "-1" and r["evaluated"] == "0"} == untrained


@pytest.mark.parametrize(
    ("references", "yardstick"),
    [
        ("base,last,oracle,sequential,joint", "sequential"),
        ("base,last,oracle", "last"),
        ("oracle,base", "base"),
        ("", None),
    ],
)
def test_arms_are_measured_by_what_needs_no_merge_and_is_no_upper_bound(
    references: str, yardstick: str | None
) -> None:
    more = f"references=[{references}]"
    arms = {"half": {"method": "task_arithmetic", "coefficients": 0.5}}
    raw = compose_config(overrides(Path("runs/x"), more))
    settings = read_settings({**raw, "arms": arms})
    assert ledger(None, arms, more).record(settings, {}).yardstick == yardstick


def test_a_row_of_another_bank_says_which() -> None:
    """Reports tell by it what a row is made of; the usual bank and two banks go without saying."""
    rows = get_references(("single", "single_full", "sequential", "trivial"))
    ledger = Ledger({}, (), rows, (0,), {}, ())
    assert ledger._banks_of_rows == {"single_full": {"bank": "full"}}
    assert ledger._roles == {n: n for n in ("single", "single_full", "trivial")}
