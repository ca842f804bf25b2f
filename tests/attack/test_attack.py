"""A slice of the attack: damaged files, hostile data, wrong settings, full disks; and its judge."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import warm
from attack.__main__ import GROUPS, sliced
from attack.core import Case, Outcome, Verdict, is_sentence, judge

SENTENCE = "cl-lora: Expected a folder but it is a file; give another name\n"


def outcome(code: int = 0, err: str = "", hung: bool = False) -> Outcome:
    return Outcome(code, "", err, 1.0, hung)


@pytest.mark.parametrize(
    ("found", "right", "verdict"),
    [
        (outcome(), True, Verdict.RIGHT),
        (outcome(), False, Verdict.WRONG),
        (outcome(2, SENTENCE), False, Verdict.REFUSED),
        (outcome(2, "cl-lora: no\n"), False, Verdict.UNCLEAR),
        (outcome(1, SENTENCE), False, Verdict.UNCLEAR),
        (outcome(-9), False, Verdict.UNCLEAR),
        (outcome(2, "Traceback (most recent call last):\n" + SENTENCE), True, Verdict.TRACEBACK),
        (outcome(0, hung=True), True, Verdict.HANG),
    ],
)
def test_the_judge_tells_what_is_good(found: Outcome, right: bool, verdict: Verdict) -> None:
    assert judge(found, lambda: right)[0] is verdict
    assert verdict.good == (verdict in (Verdict.RIGHT, Verdict.REFUSED))


def test_what_is_half_written_is_seen(tmp_path: Path) -> None:
    (tmp_path / ".scores.csv.abc").write_text("")
    assert judge(outcome(), lambda: True, tmp_path)[0] is Verdict.HALF


def test_an_escape_code_is_no_sentence() -> None:
    assert is_sentence(SENTENCE)
    assert not is_sentence("cl-lora: \x1b[2J is missing; give another name\n")


def test_a_slice_is_spread_over_all_cases() -> None:
    cases = [Case(str(i), lambda place: (Verdict.RIGHT, "")) for i in range(100)]
    chosen = [int(case.name) // 10 for case in sliced(cases, 10, seed=3)]
    assert chosen == list(range(10))


@pytest.mark.slow
def test_a_slice_of_every_group_ends_well(tmp_path: Path) -> None:
    here, told = Path(__file__).parents[1], tmp_path / "told.json"
    found = subprocess.run(
        [*warm.python(), "-m", "attack", "--slice", "1", "--json", str(told)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    results = json.loads(told.read_text())
    assert set(results) == set(GROUPS)
    assert all(result["cases"] for result in results.values())
