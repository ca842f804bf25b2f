"""A report is fresh by content: whatever clocks say, and whatever a killed process left."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from cl_lora.evaluation.scores import ScoreTable
from cl_lora.run_folder.freshness import is_fresh, record_made, sources
from cl_lora.run_folder.lock import locked, reporting


@pytest.fixture
def reported(run_path: Path) -> Path:
    """A finished run with something in the place of its report."""
    (run_path / "figures").mkdir()
    (run_path / "tensorboard" / "arm").mkdir(parents=True)
    (run_path / "report.html").write_text("page")
    (run_path / "figures" / "one.svg").write_text("picture")
    (run_path / "tensorboard" / "arm" / "events").write_text("events")
    record_made(run_path, sources(run_path))
    return run_path


def set_clock(folder: Path, seconds: float) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (seconds, seconds))


@pytest.mark.parametrize("seconds", [1e9, 4e9])
def test_times_of_files_say_nothing(reported: Path, seconds: float) -> None:
    set_clock(reported / "figures", seconds)
    os.utime(reported / "scores.csv", (seconds, seconds))
    assert is_fresh(reported)


def test_other_scores_make_a_report_stale_though_it_is_younger(reported: Path) -> None:
    scores = list(ScoreTable.read(reported / "scores.csv"))
    ScoreTable(scores[:-1]).write(reported / "scores.csv")
    os.utime(reported / "report.html", (4e9, 4e9))
    assert not is_fresh(reported)
    ScoreTable(scores).write(reported / "scores.csv", [s.arm for s in scores])


@pytest.mark.parametrize(
    "name",
    [
        *("config.yaml", "stream.json", "scores.csv", "coefficients.csv", "report.html"),
        *("figures/one.svg", "tensorboard/arm/events", "report.json"),
        "adapters/seed-0/00-photo/training.json",
    ],
)
@pytest.mark.parametrize("how", ["changed", "deleted"])
def test_whatever_changes_makes_it_stale(reported: Path, name: str, how: str) -> None:
    assert is_fresh(reported)
    path = reported / name
    path.unlink() if how == "deleted" else path.write_bytes(path.read_bytes()[:-2])
    assert not is_fresh(reported)


def test_where_it_was_computed_does_not(reported: Path) -> None:
    (reported / "environment.json").write_text("{}")
    assert is_fresh(reported)


def test_a_folder_of_an_earlier_version_has_a_stale_report(reported: Path) -> None:
    (reported / "report.json").unlink()
    assert not is_fresh(reported)


# What a killed report leaves -------------------------------------------------------------------


def leave(folder: Path) -> None:
    for name in (".figures.abcdefgh", ".tensorboard.abcdefgh"):
        (folder / name).mkdir()
    (folder / ".report.html.abcdefgh").write_text("half")
    (folder / ".lock-report").write_text("")


def hidden(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob(".*") if p.name != ".lock")


@pytest.mark.parametrize("start", [reporting, locked])
def test_what_a_killed_report_left_is_gone_at_the_next_start(run_path: Path, start) -> None:
    leave(run_path)
    with start(run_path):
        assert not set(hidden(run_path)) - {".lock-report"}
    assert hidden(run_path) == []


def test_what_a_report_is_making_stays(run_path: Path) -> None:
    with reporting(run_path):
        (run_path / ".figures.abcdefgh").mkdir()
        with locked(run_path):
            assert hidden(run_path) == [".figures.abcdefgh", ".lock-report"]


def test_reports_of_one_run_are_made_one_after_the_other(run_path: Path) -> None:
    order: list[str] = []
    inside = threading.Event()

    def second() -> None:
        inside.wait()
        with reporting(run_path):
            order.append("second")

    other = threading.Thread(target=second)
    other.start()
    with reporting(run_path):
        inside.set()
        other.join(0.1)
        order.append("first")
    other.join()
    assert order == ["first", "second"]
    assert hidden(run_path) == []
