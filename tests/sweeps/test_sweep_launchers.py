"""Sweeps by every launcher, in processes of their own: toy jobs that fail, crash and are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
PATIENCE_S = 120.0

Acts = Mapping[str, object]


def begin(place: Path, acts: Acts, *given: str) -> subprocess.Popen[str]:
    place.mkdir(parents=True, exist_ok=True)
    (place / "act.json").write_text(json.dumps(acts))
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)])}
    return subprocess.Popen(
        [sys.executable, str(HERE / "toy_jobs.py"), "-m", *given],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A suite that runs in the background may be deaf to Ctrl-C, and its children with it.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


class Swept:
    """What a sweep left behind."""

    def __init__(self, place: Path, acts: Acts, *given: str) -> None:
        self.place = place
        process = begin(place, acts, *given)
        self.out, self.err = process.communicate(timeout=PATIENCE_S)
        self.code = process.returncode

    def lines(self, name: str) -> list[dict[str, Any]]:
        return lines(self.place, name)

    @property
    def sentences(self) -> list[str]:
        said = (line for line in self.err.splitlines() if line.startswith("cl-lora: "))
        return [line.removeprefix("cl-lora: ") for line in said]


def lines(place: Path, name: str) -> list[dict[str, Any]]:
    path = place / f"{name}.txt"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(true: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return not Path(f"/proc/{pid}/stat").exists() or b") Z " not in (
        Path(f"/proc/{pid}/stat").read_bytes()
    )


# joblib -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """Six jobs on two workers: one of each way to go wrong."""
    return Swept(
        tmp_path_factory.mktemp("mixed"),
        {"2": "fail", "3": "crash", "4": "kill", "5": "full"},
        *("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "spc=1,2,3,4,5,6"),
    )


def test_what_goes_wrong_in_one_job_stops_no_other(mixed: Swept) -> None:
    assert sorted(line["spc"] for line in mixed.lines("done")) == [1, 6]
    assert sorted(line["spc"] for line in mixed.lines("begun")) == [1, 2, 3, 4, 5, 6]
    assert mixed.code == 1


def test_every_job_that_failed_is_one_sentence(mixed: Swept) -> None:
    two, three, four, five, last = mixed.sentences
    assert two == "job 2 of 6 (spc=2): The data of 2 is not there"
    assert three.startswith("job 3 of 6 (spc=3): IndexError: out of range (its output is in ")
    assert four.startswith("job 4 of 6 (spc=4): Its process was killed (SIGKILL) before it was")
    assert five.startswith("job 5 of 6 (spc=5): Cannot write to /dev/full: No space left on device")
    assert last == "2 of 6 jobs are done; the same command goes on with the others"
    assert "Traceback" not in mixed.err
    assert mixed.out == ""


def test_the_traceback_of_a_crash_is_kept_and_nothing_else(mixed: Swept) -> None:
    kept = list(mixed.place.glob(".cl-lora-sweep/jobs-*/*"))
    assert "000002.txt" in [path.name for path in kept]
    assert all(path.suffix == ".txt" for path in kept)
    text = next(path for path in kept if path.name == "000002.txt").read_text()
    assert "words of job 3" in text
    assert "Traceback" in text


def test_one_view_of_all_jobs(mixed: Swept) -> None:
    shown = [line for line in mixed.err.splitlines() if line.startswith("[")]
    assert "[1] spc=1: done in 0 s: runs/1" in shown
    assert "[2] spc=2: failed" in shown
    assert sum(": done in " in line or ": failed" in line for line in shown) == 6


def test_a_job_knows_its_command_its_threads_and_its_folder(mixed: Swept) -> None:
    line = mixed.lines("done")[0]
    assert line["argv"] == ["-m"]
    assert line["threads"] == str(max(1, (os.cpu_count() or 1) // 2))
    assert line["apart"] is True


def test_a_worker_that_is_killed_breaks_its_pool_and_the_others_are_begun_again(
    tmp_path: Path,
) -> None:
    swept = Swept(
        tmp_path,
        {"2": "kill_pool"},
        *("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "spc=1,2,3"),
    )
    assert sorted({line["spc"] for line in swept.lines("done")}) == [1, 3]
    assert len([line for line in swept.lines("begun") if line["spc"] == 2]) == 2
    sentence, _ = swept.sentences
    assert sentence.startswith("job 2 of 3 (spc=2): Its process has ended before it was finished")
    assert swept.code == 1


def test_jobs_end_with_the_sweep_that_is_killed(tmp_path: Path) -> None:
    given = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "spc=1,2,3")
    process = begin(tmp_path, {"1": "long", "2": "long"}, *given)
    wait_until(lambda: len(lines(tmp_path, "begun")) == 2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for line in lines(tmp_path, "begun"):
        wait_until(lambda pid=line["pid"]: not is_alive(pid))
    assert not (tmp_path / "done.txt").exists()
    swept = Swept(tmp_path, {}, "hydra/launcher=basic", "spc=1,2,3")
    assert (swept.code, len(swept.lines("done"))) == (0, 3)
    # What the killed sweep had left is gone too.
    assert not (tmp_path / ".cl-lora-sweep").exists()


def test_ctrl_c_ends_every_job(tmp_path: Path) -> None:
    given = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "spc=1,2")
    process = begin(tmp_path, {"1": "long", "2": "long"}, *given)
    wait_until(lambda: len(lines(tmp_path, "begun")) == 2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode != 0
    for line in lines(tmp_path, "begun"):
        wait_until(lambda pid=line["pid"]: not is_alive(pid))


# submitit and Ray -------------------------------------------------------------------------------


def test_folders_are_named_at_the_end(tmp_path: Path) -> None:
    swept = Swept(tmp_path, {}, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "spc=1,2")
    assert swept.code == 0
    assert "Run folders: runs/1 runs/2" in swept.out
    assert not (tmp_path / ".cl-lora-sweep").exists()


def test_submitit_on_this_machine(tmp_path: Path) -> None:
    swept = Swept(tmp_path, {"2": "fail"}, "hydra/launcher=submitit_local", "spc=1,2")
    assert [line["spc"] for line in swept.lines("done")] == [1]
    assert swept.sentences[0] == "job 2 of 2 (spc=2): The data of 2 is not there"
    assert swept.code == 2
    assert "Traceback" not in swept.err


def test_submitit_in_the_process_of_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_EXECUTOR", "debug")
    swept = Swept(tmp_path, {"3": "crash"}, "hydra/launcher=submitit_local", "spc=1,2,3")
    assert [line["spc"] for line in swept.lines("done")] == [1, 2]
    assert swept.sentences[0] == "job 3 of 3 (spc=3): IndexError: out of range"
    assert swept.code == 1


@pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is not installed")
def test_ray_on_this_machine(tmp_path: Path) -> None:
    swept = Swept(
        tmp_path,
        {"2": "fail", "3": "kill_once"},
        *("hydra/launcher=ray", "hydra.launcher.ray.init.num_cpus=2", "spc=1,2,3"),
    )
    assert sorted(line["spc"] for line in swept.lines("done")) == [1, 3]
    assert swept.sentences[0] == "job 2 of 3 (spc=2): The data of 2 is not there"
    assert swept.code == 2
