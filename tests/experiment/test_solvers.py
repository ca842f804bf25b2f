"""Solvers and starts of learned coefficients in whole runs, and what arms say of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_run import overrides
from whole_runs import SMALL, content, rows, run

from cl_lora.cli import main
from cl_lora.configuration.compose import compose_config
from cl_lora.experiment import pipeline
from cl_lora.experiment.arms import ArmDefaults, check_protocol, make_arm, settings_of
from cl_lora.experiment.dealing import cost
from cl_lora.experiment.describe import describe_arm
from cl_lora.experiment.pipeline import execute
from cl_lora.experiment.stages import Outline, get_protocol
from cl_lora.support.errors import UserError

LEARNED = {"name": "adaptive", "solver": "gauss_newton", "iterations": 2}
ARMS = (
    "+arms.newton={method: svd, spc: 2, "
    "coefficients: {name: adaptive, solver: gauss_newton, iterations: 2, start: previous}}",
    "+arms.adam={method: ties, spc: 2, coefficients: {name: softmax, steps: 3, start: previous}}",
    "+arms.anchored={method: ties, spc: 2, tune_head: {anchor: 0.5}, "
    "coefficients: {name: adaptive, steps: 2}}",
)


class _StopError(Exception):
    pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole command line, once."""
    folder = tmp_path_factory.mktemp("solvers") / "run"
    assert main(["run", *overrides(folder, *SMALL, *ARMS)]) == 0
    return folder


def test_every_stage_has_the_coefficients_that_were_learned(whole: Path) -> None:
    found = {(r["arm"], r["stage"]) for r in rows(whole, "coefficients.csv")}
    assert {(arm, str(t)) for arm in ("newton", "adam", "anchored") for t in range(3)} <= found


@pytest.mark.parametrize("after", [3, 7, 12])
def test_a_run_that_is_stopped_and_goes_on_starts_from_the_same_coefficients(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """What the stage before ended with is learned again, whichever units are there already."""
    folder = tmp_path / "run"
    scored: list[str] = []
    serve = pipeline.serve_arm

    def stopping(bench: Any, arm: Any, stage: Any) -> Any:
        if len(scored) == after:
            raise _StopError
        scored.append(arm.name)
        return serve(bench, arm, stage)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "serve_arm", stopping)
        with pytest.raises(_StopError):
            run(folder, *ARMS)
    execute(compose_config(overrides(folder, *SMALL, *ARMS)))
    there, expected = content(folder), content(whole)
    for name in ("scores.csv", "coefficients.csv"):
        assert there[name] == expected[name]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tune_head": {"anchor": 0}}, "anchor to be a finite number above 0 but got 0; give"),
        ({"tune_head": {"anchor": -1.0}}, "anchor .* above 0"),
        ({"tune_head": {"anchor": True}}, "anchor .* above 0"),
        ({"tune_head": {"anchor": 1e7}}, "anchor to be at most 1,000,000"),
        ({"tune_head": {"ancor": 1}}, "true or false, or {anchor: a number}"),
        ({"tune_head": {}}, "true or false"),
        ({"tune_head": 0.5}, "true or false"),
        ({"tune_head": True, "coefficients": LEARNED}, "gradient but solver=gauss_newton has none"),
        ({"adapt": "coefficients", "coefficients": LEARNED}, "leave solver=gauss_newton out"),
        (
            {"adapt": "coefficients", "coefficients": {"name": "softmax", "start": "previous"}},
            "leave start=previous out",
        ),
        ({"coefficients": {**LEARNED, "steps": 4}}, "steps is an option of solver=adam"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, message):
    given = {"method": "ties", "coefficients": {"name": "adaptive"}, **settings}
    with pytest.raises(UserError, match=f"Arm 'x': .*{message}"):
        make_arm("x", given)


def test_an_anchor_is_recorded_and_its_absence_is_not():
    settings = {"method": "ties", "coefficients": {"name": "adaptive"}}
    tuned = make_arm("x", {**settings, "tune_head": True})
    held = make_arm("x", {**settings, "tune_head": {"anchor": 2}})
    assert tuned.variant["tune_head"] is True
    assert held.variant == {**tuned.variant, "tune_head": {"anchor": 2.0}}
    assert make_arm("x", settings_of(held.variant)).anchor == 2
    assert "held back to its start (anchor 2)" in describe_arm(held)
    assert "held back" not in describe_arm(tuned)


def test_an_arm_without_batches_has_none_on_record():
    arm = make_arm("x", {"method": "svd", "coefficients": LEARNED})
    assert arm.variant["buffer_batch_size"] is None
    assert arm.needs_buffer
    assert "learned on 5 samples" in describe_arm(arm)
    assert "in batches" not in describe_arm(arm)


def test_the_stage_before_must_be_one():
    arm = make_arm("x", {"method": "ties", "coefficients": {**LEARNED, "start": "previous"}})
    names = ("a", "b", "c")
    stages = get_protocol("prefixes").stages(Outline(names))
    check_protocol([arm], [], False, stages)
    once = get_protocol("all_at_once").stages(Outline(names))
    with pytest.raises(UserError, match=r"Arm 'x': coefficients\.start=previous .*leave it out"):
        check_protocol([arm], [], False, once)


def test_what_learning_costs_grows_with_adapters_and_samples(benchmark_16):
    """Shards are dealt by it."""
    defaults = ArmDefaults(spc=2)
    newton = make_arm("x", {"method": "ties", "coefficients": LEARNED}, defaults)
    adam = make_arm("x", {"method": "ties", "coefficients": {"name": "adaptive"}}, defaults)
    stages = get_protocol("prefixes").stages(Outline(benchmark_16.names))
    first, last = (
        cost(stage, newton, benchmark_16) - cost(stage, None, benchmark_16)
        for stage in (stages[1], stages[3])
    )
    assert first == 6 * (1 + 2 * 2)
    assert last == 18 * (1 + 2 * 4)
    assert cost(stages[3], adam, benchmark_16) - cost(stages[3], None, benchmark_16) == 3 * 3200
