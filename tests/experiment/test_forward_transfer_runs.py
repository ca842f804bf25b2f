"""Runs without the scores that only forward transfer needs: the others are the same to the bit."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from tiny_run import overrides as given_to
from whole_runs import SMALL, content, rows, run, stamps

from cl_lora.configuration.compose import compose_config
from cl_lora.evaluation.continual import forgetting
from cl_lora.experiment.evaluator import Evaluator
from cl_lora.experiment.pipeline import check, execute
from cl_lora.experiment.serving import Served
from cl_lora.experiment.shards import execute_shard
from cl_lora.experiment.stages import Stage
from cl_lora.reporting.compare.joining import conditions_of, why_apart
from cl_lora.reporting.tables.of_run import run_table
from cl_lora.run_folder.parts import Shard
from cl_lora.run_folder.reader import RunFolder
from cl_lora.support.errors import UserError

WITHOUT = "forward_transfer=false"
ROWS = "references=[oracle,joint]"


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("with") / "run", ROWS)


@pytest.fixture(scope="module")
def seen_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("without") / "run", ROWS, WITHOUT)


def test_what_is_left_out_and_what_is_the_same(everything: Path, seen_alone: Path) -> None:
    wanted = [r for r in rows(everything) if int(r["evaluated"]) <= int(r["stage"])]
    assert rows(seen_alone) == wanted
    assert {r["stage"] for r in wanted} == {"0", "1", "2"}
    one, other = content(everything), content(seen_alone)
    assert one["coefficients.csv"] == other["coefficients.csv"]
    assert {k for k in one if k.endswith("safetensors")} <= other.keys()


def test_reports_have_no_forward_transfer(seen_alone: Path) -> None:
    there = RunFolder.read(seen_alone)
    assert [s.index for s in there.stream.stages] == [0, 1, 2]
    columns = list(run_table(there).frame().columns)
    assert not any("forward_transfer" in column for column in columns)
    assert {"average", "forgetting", "backward_transfer"} <= set(columns)
    at = {
        (int(r["stage"]), int(r["evaluated"])): float(r["value"])
        for r in rows(seen_alone)
        if r["arm"] == "half" and r["metric"] == "accuracy"
    }
    matrix = there.scores.matrix(0, "half", "accuracy", there.stream.shape("accuracy")).values
    lost = (max(at[0, 0], at[1, 0]) - at[2, 0] + at[1, 1] - at[2, 1]) / 2
    assert forgetting(matrix) == pytest.approx(lost)


def test_such_runs_are_compared_side_by_side(everything: Path, seen_alone: Path) -> None:
    runs = [RunFolder.read(path) for path in (everything, seen_alone)]
    assert why_apart(*runs) == "what is merged and scored at their stages differs"
    assert len(conditions_of(runs)) == 2


def test_asked_for_later_what_is_missing_is_added(
    everything: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = run(tmp_path / "run", ROWS, WITHOUT)
    trained, scored = stamps(folder), []
    score = Evaluator.score

    def counted(self: Evaluator, served: Served, stage: Stage, *more: object) -> object:
        scored.append(stage.index)
        return score(self, served, stage, *more)  # type: ignore[arg-type]

    def stopped(self: Evaluator, served: Served, stage: Stage, *more: object) -> object:
        if stage.index == 1:
            raise KeyboardInterrupt
        return score(self, served, stage, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(Evaluator, "score", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(folder, ROWS)
    with pytest.raises(UserError, match=r"is unfinished.*run the same command again"):
        RunFolder.read(folder)
    monkeypatch.setattr(Evaluator, "score", counted)
    run(folder, ROWS)
    assert content(folder) | timed(folder) == content(everything) | timed(folder)
    assert stamps(folder) == trained
    assert set(scored) == {1}  # what was done of it stays, and the last stage has nothing ahead
    # What was asked for once is asked of every later row.
    scored.clear()
    with caplog.at_level(logging.WARNING):
        run(folder, ROWS, WITHOUT)
    assert not scored
    assert "holds scores of experiences before their turn, so that all its rows" in caplog.text
    run(folder, ROWS, WITHOUT, "+arms.one={method: task_arithmetic, coefficients: 1}")
    assert sorted(scored) == [-1, 0, 1, 2]
    assert RunFolder.read(folder).config["forward_transfer"] is True


def timed(folder: Path) -> dict[str, bytes]:
    """Return the files that say how long training took."""
    return {k: v for k, v in content(folder).items() if k.endswith("training.json")}


def test_shards_leave_it_out_too(seen_alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    raw = compose_config(given_to(folder, *SMALL, ROWS, WITHOUT))
    for index in (1, 2):
        execute_shard(raw, Shard(index, 2))
    execute(raw)
    assert content(folder) | timed(folder) == content(seen_alone) | timed(folder)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            ("protocol=all_at_once", WITHOUT),
            "forward_transfer=false leaves out scores .* but protocol=all_at_once takes none",
        ),
        (("forward_transfer=maybe",), "Expected forward_transfer to be true or false"),
    ],
)
def test_what_means_nothing_is_refused(
    tmp_path: Path, given: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        check(compose_config(given_to(tmp_path / "run", *given)))
