"""The trunk's test of success: another kind of task and another protocol, a small file each.

Whole runs of the command line: train, merge, learn coefficients, score, table, report, TensorBoard,
compare. Nothing of the package knows either file.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import warm
from tiny_run import ARMS, TRAINING

from cl_lora.evaluation.scores import ScoreTable
from cl_lora.run_folder.reader import RunFolder

PLUGINS = Path(__file__).parent / "plugins"


def command_line(*arguments: str) -> str:
    """Run the command line in a process of its own, beside the plugins, and return what it says."""
    done = subprocess.run(
        [*warm.python(), "-m", "cl_lora", *arguments],
        cwd=PLUGINS,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def area_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of the second kind, with a learned arm, two seeds."""
    folder = tmp_path_factory.mktemp("area") / "run"
    said = command_line(
        *("run", "--config-dir=.", "benchmark=areas", "plugins=[area_kind]", "seeds=[0,1]"),
        *(f"run_dir={folder}", *TRAINING, *ARMS, "strategy.head=per_experience"),
    )
    return folder, said


@pytest.fixture(scope="module")
def once_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of both."""
    folder = tmp_path_factory.mktemp("once") / "run"
    said = command_line(
        *("run", "--config-dir=.", "benchmark=areas", "plugins=[area_kind,at_once]"),
        *("protocol=at_once", f"run_dir={folder}", *TRAINING, *ARMS),
    )
    return folder, said


def test_a_scalar_task_runs_end_to_end(area_run: tuple[Path, str]) -> None:
    folder, said = area_run
    scores = ScoreTable.read(folder / "scores.csv")
    assert scores.metrics == ("area_rmse",)
    assert not scores.higher_is_better("area_rmse")
    arms, rows = ("half", "ties_learned"), ("base", "last", "oracle", "sequential", "joint")
    assert set(scores.arms) == {*arms, *rows}
    for seed in (0, 1):
        for arm in scores.arms:
            stages = {s.stage for s in scores if s.seed == seed and s.arm == arm}
            assert stages == ({-1, 2} if arm == "joint" else {-1, 0, 1, 2})
    assert all(np.isfinite(s.value) and s.value >= 0 for s in scores)
    assert "RMSE" in said
    assert "%" not in said.split("Run folder")[0].replace("95 %", "")
    assert not (folder / "hits").exists()  # an area is neither right nor wrong


def test_training_lowers_the_error(area_run: tuple[Path, str]) -> None:
    """Else the run would only have looked like one."""
    scores = ScoreTable.read(area_run[0] / "scores.csv")
    error = {
        arm: np.mean([scores.matrix(s, arm, "area_rmse").values[-1] for s in (0, 1)])
        for arm in ("oracle", "joint")
    }
    untrained = np.mean([scores.matrix(s, "last", "area_rmse").baseline for s in (0, 1)])
    assert error["joint"] < untrained


def test_reports_of_a_scalar_task(area_run: tuple[Path, str]) -> None:
    folder, _ = area_run
    page = (folder / "report.html").read_text()
    assert "RMSE" in page
    assert "ccuracy" not in page.split("<style", 1)[0] + page.split("</style>", 1)[1]
    assert ">Last RMSE in px</button>" in page
    training = page.split('<details id="training">')[1].split("</details>")[0]
    for trained in folder.glob("adapters/seed-*/*/training.json"):
        record = json.loads(trained.read_text())
        assert record["metric"] == "area_rmse"
        index, name = trained.parent.name.split("-", 1)
        _, seed, *bank = trained.parent.parent.name.split("-", 2)
        start = f'<th scope="row" class="text">{index} {name}</th>'
        start += f'<td class="text">{(bank or ["fresh"])[0]}</td>'
        start += f'<td data-v="{seed}">'
        (row,) = (row for row in training.split("<tr>") if row.startswith(start))
        last = record["loss"][-1]["area_rmse"]
        assert f'<td data-v="{last!r}">{last:.3f}</td></tr>' in row
    assert (folder / "tensorboard" / "half").is_dir()
    assert list((folder / "figures").glob("*.png"))
    stream = json.loads((folder / "stream.json").read_text())
    assert stream["tasks"][0]["metrics"][0] == {
        "name": "area_rmse",
        "title": "RMSE",
        "unit": "px",
        "higher_is_better": False,
        "low": 0.0,
        "high": None,
    }


def test_reports_need_no_plugin(area_run: tuple[Path, str], tmp_path: Path) -> None:
    """Whoever is sent a run folder need not have what made it."""
    said = command_line("compare", str(area_run[0]), "--metric", "area_rmse", "--to", "last")
    assert "half" in said
    assert "RMSE" in said


def test_another_protocol_runs_end_to_end(once_run: tuple[Path, str]) -> None:
    folder, said = once_run
    run = RunFolder.read(folder)
    assert not run.stream.ordered
    assert [s.index for s in run.stream.stages] == [-1, 0]
    assert run.stream.stages[1].members == (0, 1, 2)
    for arm in run.scores.arms:
        assert {(s.stage, s.evaluated) for s in run.scores if s.arm == arm} == {
            (stage, j) for stage in (-1, 0) for j in range(3)
        }
    assert set(run.coefficients["adapter"]) == {0, 1, 2}
    assert "orget" not in said  # nothing was learned after another thing: nothing is forgotten
    assert "RMSE" in said
    assert (folder / "report.html").is_file()
