"""A run is sent while it is computed; a second command sends what is new; failures stop nothing."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import tiny_run
from fabricate import ARMS, REFERENCES, fabricate_run
from tracking_doubles import Remembering, RememberingTracker

from cl_lora.cli import main
from cl_lora.evaluation.aggregate import per_seed
from cl_lora.evaluation.scores import Score, ScoreTable
from cl_lora.run_folder.config_file import read_config
from cl_lora.tracking import TRACKERS, Sender, Tracking, connected
from cl_lora.tracking.parameters import flattened, names_of_experiences

TRACKING = "tracking.json"


@pytest.fixture
def warnings(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Callable[[], list[str]]:
    """Return what sending has warned of."""
    monkeypatch.setattr(logging.getLogger("cl_lora"), "propagate", True)
    caplog.set_level(logging.WARNING, "cl_lora")
    return lambda: [r.getMessage() for r in caplog.records if r.name.startswith("cl_lora.")]


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Remembering:
    tracker = RememberingTracker()
    monkeypatch.setitem(TRACKERS, tracker.name, tracker)
    return tracker.connection


def expected(
    table: ScoreTable, names: Sequence[str]
) -> dict[tuple[int, str, int], dict[str, float]]:
    found: dict[tuple[int, str, int], dict[str, float]] = {}
    for s in table:
        unit = found.setdefault((s.seed, s.arm, s.stage + 1), {})
        unit[f"{s.metric}/{names[s.evaluated]}"] = s.value
    return found


def without_averages(
    units: dict[tuple[int, str, int], dict[str, float]],
) -> dict[tuple[int, str, int], dict[str, float]]:
    return {
        key: {name: v for name, v in values.items() if not name.endswith("/average")}
        for key, values in units.items()
    }


def test_a_run_is_sent_as_it_is_computed_and_goes_on(
    memory: Remembering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    given = ["run", *tiny_run.overrides(folder, "references=[base]", "seeds=[0]")]
    monkeypatch.setitem(sys.modules, "mlflow", None)  # to import it fails
    for name in ("mlflow", "wandb"):  # Avalanche imports W&B by itself; nothing here may
        monkeypatch.delitem(TRACKERS, name)

    assert main([*given, "tracker=memory"]) == 0
    names = ("photo", "cartoon", "sketch")
    table = ScoreTable.read(folder / "scores.csv")
    assert without_averages(memory.scores()) == expected(table, names)
    # Not all at the end: the first was sent before the last was there.
    assert memory.calls.count("log") > 3
    assert memory.calls.index("log") < memory.calls.index("conclude")
    assert set(memory.states.values()) == {"finished"}
    overview, *rows = memory.runs.values()
    assert (overview.kind, overview.name) == ("overview", "run")
    assert {row.name: row.kind for row in rows} == {
        **{"half": "arm", "ties_learned": "arm", "base": "reference"}
    }
    assert {row.parent for row in rows} == {"run-0"}
    ((identifier, files),) = memory.files
    assert identifier == "run-0"
    assert files == ["config.yaml", "stream.json", "scores.csv"]

    # Where it is sent decides nothing: the same folder, nothing computed, and nothing to send.
    record = read_config(folder)
    assert record.settings["tracker"] == "memory"
    assert "tracker" not in flattened(record.identity)
    before = (folder / "scores.csv").stat().st_mtime_ns
    calls = len(memory.calls)
    assert main([*given, "tracker=memory"]) == 0
    assert (folder / "scores.csv").stat().st_mtime_ns == before
    assert len(memory.calls) == calls

    # One more arm, without a tracker; then the plain command sends it to the runs that are there.
    more = "+arms.quarter={method: task_arithmetic, coefficients: 0.25}"
    assert main([*given, more]) == 0
    assert len(memory.calls) == calls
    assert main([*given, more, "tracker=[memory]"]) == 0
    table = ScoreTable.read(folder / "scores.csv")
    assert without_averages(memory.scores()) == expected(table, names)
    assert len(memory.runs) == 5
    assert memory.files[-1][0] == "run-0"
    assert set(memory.states.values()) == {"finished"}


def test_light_commands_import_no_tracker() -> None:
    code = (
        "import sys; from cl_lora.cli import main; import cl_lora.commands.run; main(['--help']);"
        "main(['report', '--help'])"
    )
    watched = "; print([m for m in sys.modules if m in ('mlflow', 'wandb', 'cl_lora.tracking')])"
    code = f"try:\n    {code}\nexcept SystemExit:\n    pass\n{watched.removeprefix('; ')}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_what_rows_are_told_by(memory: Remembering, run_path: Path) -> None:
    with connected("memory") as tracking:
        tracking.finished(run_path)
    assert len(memory.runs) == 1 + 2 * (len(ARMS) + len(REFERENCES))
    by_name = {run.name: (key, run) for key, run in memory.runs.items()}
    key, run = by_name["ta_adaptive_b3 (seed 1)"]
    told = flattened(run.parameters)
    assert told["arm.name"] == "ta_adaptive_b3"
    assert told["arm.method"] == "task_arithmetic"
    assert (told["seed"], told["strategy.rank"], told["identity.data"]) == (1, 8, "f00d")
    assert told["versions.git_commit"] == "abc123"
    assert run.notes.startswith("The method task_arithmetic.")
    overview = memory.runs["run-0"].parameters
    assert overview["arms"] == list(ARMS)

    table = ScoreTable.read(run_path / "scores.csv")
    measures = per_seed(table, "accuracy")
    assert memory.results[key] == {
        f"result/{measure}": values[1]
        for (arm, measure, experience), values in measures.items()
        if arm == "ta_adaptive_b3" and experience == -1
    } or memory.results[key].keys() >= {"result/average", "result/forgetting"}
    average = measures[next(k for k in measures if k[0] == "ta_adaptive_b3" and k[1] == "average")][
        1
    ]
    assert memory.results[key]["result/average"] == average
    last = memory.scores()[1, "ta_adaptive_b3", 4]
    assert last["accuracy/average"] == pytest.approx(average)
    second = memory.scores()[1, "ta_adaptive_b3", 2]
    seen = [second["accuracy/photo"], second["accuracy/art_painting"]]
    assert second["accuracy/average"] == pytest.approx(sum(seen) / 2)
    assert "accuracy/average" not in memory.scores()[1, "ta_adaptive_b3", 0]


@pytest.mark.parametrize("good", [0, 1, 4, 11, 33, 40])
def test_a_tracker_that_fails_says_so_once_and_the_next_command_sends_the_rest(
    memory: Remembering, run_path: Path, warnings: Callable[[], list[str]], good: int
) -> None:
    memory.fail_at = good
    with connected("memory") as tracking:
        tracking.begun(run_path)
        for score in list(ScoreTable.read(run_path / "scores.csv"))[:50]:
            tracking.scored([score])
        tracking.finished(run_path)
    (said,) = warnings()
    assert said.startswith("the tracker memory has failed and is sent nothing more (the line is ")
    assert "cl-lora report RUN --tracker memory, sends what is missing" in said
    memory.fail_at = None
    with connected("memory") as tracking:
        tracking.finished(run_path)
    table = ScoreTable.read(run_path / "scores.csv")
    names = ("photo", "art_painting", "cartoon", "sketch")
    assert without_averages(memory.scores()) == expected(table, names)
    finished = [key for key, state in memory.states.items() if state == "finished"]
    assert len(finished) == 17


def test_a_run_that_ends_early_is_ended_and_finished_later(
    memory: Remembering, run_path: Path
) -> None:
    table = ScoreTable.read(run_path / "scores.csv")
    ScoreTable(s for s in table if s.stage < 1).write(run_path / "scores.csv", list(ARMS))

    def interrupted() -> None:
        with connected("memory") as tracking:
            tracking.begun(run_path)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert set(memory.states.values()) == {"unfinished"}
    table.write(run_path / "scores.csv", list(ARMS))
    with connected("memory") as tracking:
        tracking.finished(run_path)
    assert set(memory.states.values()) == {"finished"}
    assert len(memory.scores()) == len({(s.seed, s.arm, s.stage) for s in table})


def test_a_slow_tracker_is_sent_to_seldom(run_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("cl_lora.tracking.sending.time.monotonic", lambda: clock[0])
    slow = Remembering()
    log = slow.log

    def slowly(identifier: str, points: object) -> None:
        clock[0] += 1.0
        log(identifier, points)  # type: ignore[arg-type]

    monkeypatch.setattr(slow, "log", slowly)
    (run_path / "scores.csv").unlink()
    tracking = Tracking([Sender("memory", slow)])
    tracking.begun(run_path)
    for step in range(100):
        clock[0] += 1.0
        tracking.scored([Score(step // 4, "ties_w1", step % 4, 0, "accuracy", 0.5)])
    assert 2 <= slow.calls.count("log") <= 30
    assert len(slow.scores()) < 100
    tracking.close()
    assert len(slow.scores()) == 100


def test_an_arm_that_is_defined_anew_has_a_run_of_its_own(
    memory: Remembering, tmp_path: Path
) -> None:
    folder = fabricate_run(tmp_path / "run", seeds=(0,))
    with connected("memory") as tracking:
        tracking.finished(folder)
    shutil.rmtree(folder / "adapters")
    fabricate_run(
        folder, arms={**ARMS, "ties_w1": {"method": "ties", "coefficients": 2}}, seeds=(0,)
    )
    with connected("memory") as tracking:
        tracking.finished(folder)
    assert [run.name for run in memory.runs.values()].count("ties_w1") == 2
    assert len(memory.runs) == 1 + len(ARMS) + len(REFERENCES) + 1


def test_a_run_that_was_deleted_at_the_tracker_is_sent_again(
    memory: Remembering, run_path: Path
) -> None:
    with connected("memory") as tracking:
        tracking.finished(run_path)
    whole = memory.scores()
    everything = {k: v for k, v in memory.runs.items() if v.name == "joint (seed 0)"}
    ((gone, _),) = everything.items()
    for of_run in (memory.runs, memory.points, memory.states):
        del of_run[gone]  # type: ignore[attr-defined]
    kept = json.loads((run_path / TRACKING).read_text())
    kept["memory"]["memory"]["seed-0/joint"]["stages"].remove(3)
    (run_path / TRACKING).write_text(json.dumps(kept))
    with connected("memory") as tracking:
        tracking.finished(run_path)
    assert memory.scores() == whole


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"format": 2}', '{"format": 1, "memory": {"memory": 3}}']
)
def test_a_damaged_memory_is_said_and_stops_nothing(
    memory: Remembering, run_path: Path, warnings: Callable[[], list[str]], text: str
) -> None:
    (run_path / TRACKING).write_text(text)
    with connected("memory") as tracking:
        tracking.begun(run_path)
        tracking.finished(run_path)
    (said,) = warnings()
    assert "tracking.json is damaged" in said
    assert not memory.calls


def test_a_report_is_sent(
    memory: Remembering,
    run_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def written(folder: Path) -> tuple[Path, ...]:
        (folder / "report.html").write_text("report")
        (folder / "figures").mkdir(exist_ok=True)
        (folder / "figures" / "final.png").write_bytes(b"png")
        return ()

    monkeypatch.setattr("cl_lora.commands.report.write_reports", written)
    assert main(["report", str(run_path), "--tracker", "memory"]) == 0
    assert "Sent to:     memory, memory" in capsys.readouterr().out
    ((_, files),) = memory.files
    assert {"report.html", "figures/final.png", "scores.csv"} <= set(files)
    (run_path / "report.html").write_text("another")
    memory.fail_at = None
    memory.files.clear()
    with connected("memory") as tracking:
        tracking.finished(run_path)
    assert memory.files == [("run-0", ["report.html"])]
    memory.fail_at = 0
    (run_path / "report.html").write_text("a third")
    assert main(["report", str(run_path), "--tracker", "memory"]) == 2
    assert "Sent to" not in capsys.readouterr().out


def test_names_that_trackers_take() -> None:
    assert names_of_experiences(["a b", "x/y", "..", "average", "été"]) == (
        *("a b", "01-x_y", "02-", "03-average", "été"),
    )
