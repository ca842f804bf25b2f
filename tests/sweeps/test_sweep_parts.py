"""Parts of a sweep in this process: state files, launchers, threads, labels, the view."""

from __future__ import annotations

import io
import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from cl_lora.support import progress
from cl_lora.support.errors import UserError
from cl_lora.sweeps import launchers
from cl_lora.sweeps.launchers import LAUNCHERS, launcher_of, not_installed, threads_each
from cl_lora.sweeps.states import DONE, FAILED, RUNNING, WAITING, State, StateFile
from cl_lora.sweeps.sweep import labels_of
from cl_lora.sweeps.view import shown

# State files ------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> StateFile:
    made = StateFile(tmp_path, 3)
    made.create()
    return made


def test_a_state_is_read_as_it_was_written(file: StateFile) -> None:
    assert file.read() == State(phase=WAITING)
    state = State(RUNNING, "seed 0: training 'photo'", 3, None, 1.5, 0.0, 2, 77, "x", True)
    assert file.write(state)
    assert StateFile(file.path.parent, 3).read() == state


def test_a_file_keeps_its_size_so_that_a_full_disk_takes_it(file: StateFile) -> None:
    size, place = file.path.stat().st_size, file.path.stat().st_ino
    for said in ("", "x" * 10_000, "\0" * 10_000):
        assert file.write(State(FAILED, said=said))
        assert (file.path.stat().st_size, file.path.stat().st_ino) == (size, place)
        assert file.read().said == said[: len(file.read().said)]
        assert bool(file.read().said) == bool(said)


def test_what_is_half_written_is_the_last_that_was_whole(file: StateFile) -> None:
    file.write(State(RUNNING, step=1))
    assert file.read().step == 1
    file.path.write_bytes(b'{"phase": "run')
    assert file.read().step == 1


def test_a_job_goes_on_where_its_parent_is_gone(file: StateFile) -> None:
    file.path.unlink()
    assert not file.write(State(RUNNING))
    assert not file.path.exists()
    with file.held() as mine:
        assert mine
    file.wait()


def test_a_job_is_held_by_one_process(file: StateFile) -> None:
    with file.held() as mine, StateFile(file.path.parent, 3).held() as other:
        assert mine
        assert not other
    with file.held() as mine:
        assert mine


# Launchers --------------------------------------------------------------------------------------


def at_once(choice: str, jobs: int, **options: object) -> int | None:
    kind = next(kind for kind in LAUNCHERS if choice in kind.choices)
    assert launcher_of({"_target_": kind.target}) is kind
    return kind.at_once(options, jobs)


def test_how_many_jobs_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "cores", lambda: 8)
    assert at_once("basic", 9) == 1
    assert at_once("joblib", 9, n_jobs=3) == 3
    assert at_once("joblib", 2, n_jobs=3) == 2
    assert at_once("submitit_local", 9) == 9
    assert at_once("submitit_slurm", 9) is None
    here = {"init": {"address": None}, "remote": {"num_cpus": 2}}
    assert at_once("ray", 9, ray=here) == 4
    assert at_once("ray", 9, ray={**here, "init": {"address": None, "num_cpus": 2}}) == 1
    assert at_once("ray", 9, ray={"init": {"address": "auto"}}) is None
    other = launcher_of({"_target_": "somebody.Else"})
    assert other.side_by_side
    assert other.at_once({}, 9) is None


@pytest.mark.parametrize(
    ("cores", "jobs", "said", "expected"),
    [
        *((2, 1, None, 2), (2, 2, None, 1), (2, 9, None, 1), (8, 3, None, 2)),
        *((8, 2, "1", 1), (8, 2, "16", 4), (8, 2, "", 4), (8, 2, "0", 4), (8, None, "3", None)),
    ],
)
def test_threads_are_shared_out(
    cores: int,
    jobs: int | None,
    said: str | None,
    expected: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launchers, "cores", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert threads_each(jobs) == expected


def test_an_unknown_launcher_has_no_extra() -> None:
    assert not_installed("nope") is None
    assert not_installed("basic") is None


def test_extras_of_launchers_are_extras_of_the_package() -> None:
    import configparser

    parser = configparser.ConfigParser()
    parser.read(Path(__file__).parents[2] / "setup.cfg")
    assert {kind.extra for kind in LAUNCHERS} - {""} <= set(parser["options.extras_require"])


# Labels and the view ----------------------------------------------------------------------------


def test_a_label_is_what_tells_a_job_from_the_others() -> None:
    jobs = [["spc=1", "seeds=[0]", "arms=none"], ["spc=1", "seeds=[1]", "arms=none"]]
    assert labels_of(jobs) == ("seeds=[0]", "seeds=[1]")
    assert labels_of([["spc=1"]]) == ("spc=1",)


def test_the_view_says_what_began_and_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [StateFile(tmp_path, n) for n in range(3)]
    for file in files:
        file.create()
    with shown(files, ["a", "b", "c"]):
        files[0].write(State(DONE, began=10.0, ended=22.0, said="runs/x"))
        files[1].write(State(FAILED, said="no"))
        files[2].write(State(RUNNING, "training", 1, 4))
    assert capsys.readouterr().err.splitlines() == [
        "[1] a: done in 12 s: runs/x",
        "[2] b: failed",
        "[3] c: started",
    ]


def test_the_view_has_bars_at_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    files = [StateFile(tmp_path, n) for n in range(2)]
    for file in files:
        file.create()
    with shown(files, ["a", "b"]):
        files[0].write(State(DONE, began=10.0, ended=22.0, said="runs/x"))
        files[1].write(State(RUNNING, "seed 0: training [photo]", 1, 4))
    text = terminal.getvalue()
    assert "[1] a: done in 12 s: runs/x" in text
    assert "[2] seed 0: training [photo]" in text
    assert "1/4" in text


def test_steps_are_told_to_a_listener(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[str, int, int | None]] = []
    with progress.told_to(lambda *step: told.append(step)):
        assert list(progress.track(range(2), "counting")) == [0, 1]
    assert told == [("counting", 0, 2), ("counting", 1, 2), ("counting", 2, 2)]
    assert list(progress.track(range(2), "counting")) == [0, 1]
    assert len(told) == 3
    assert capsys.readouterr().err == ""


# Folders of jobs --------------------------------------------------------------------------------


def configs(*overrides: list[str]) -> list[dict[str, object]]:
    from cl_lora.configuration.compose import compose_config

    return [compose_config(given) for given in overrides]


def test_seeds_side_by_side_have_folders_of_their_own() -> None:
    from cl_lora.commands.jobs import check

    jobs = configs(
        *([f"seeds=[{seed}]", f"strategy.rank={rank}"] for rank in (4, 8) for seed in (0, 1)),
        ["seeds=[0,1]", "strategy.rank=16"],
    )
    apart = {"seeds_apart": True}
    assert check(jobs, True) == {0: apart, 1: apart, 2: apart, 3: apart}
    assert check(jobs, False) == {}


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        ((["arms=none"], ["arms=default"]), ["Jobs 1 and 2", "seed 0", "arms=[A,B]"]),
        ((["seeds=[0,1]"], ["seeds=[1,2]"]), ["seed 1", "hydra/launcher=basic"]),
        ((["run_dir=x", "seeds=[0]"], ["run_dir=x", "seeds=[1]"]), ["run_dir=x", "leave run_dir"]),
    ],
)
def test_jobs_that_would_share_a_folder_are_refused(
    jobs: tuple[list[str], ...], expected: list[str]
) -> None:
    from cl_lora.commands.jobs import check

    with pytest.raises(UserError) as caught:
        check(configs(*jobs), True)
    for part in expected:
        assert part in str(caught.value)
    check(configs(*jobs), False)


def test_a_folder_of_seeds_is_named_by_them(tmp_path: Path) -> None:
    from cl_lora.experiment.settings import read_settings

    def folder(*more: str) -> Path:
        (config,) = configs([f"runs_root={tmp_path}", *more])
        settings = read_settings(config)
        return settings.folder(settings.identity("data", {"weights": "w"}))

    whole = folder("seeds=[1,0]")
    assert folder("seeds=[1,0]", "seeds_apart=true").name == f"{whole.name}-seed-0-seed-1"
    alone = folder("seeds=[0]", "seeds_apart=true")
    alone.mkdir()
    assert folder("seeds=[1,0]") == whole
    assert folder("seeds=[0]", "seeds_apart=true", "benchmark.name=other") == alone
    with pytest.raises(UserError, match=r"run_dir=x .* seeds_apart=true"):
        folder("run_dir=x", "seeds_apart=true")


def test_states_are_plain_json(file: StateFile) -> None:
    file.write(State(DONE, pid=os.getpid()))
    assert json.loads(file.path.read_text())["pid"] == os.getpid()


def test_commands_of_the_page_are_sweeps() -> None:
    import re
    import shlex

    from cl_lora.configuration.compose import Composer

    page = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()
    blocks = re.findall(r"^```text\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    words = [shlex.split(line) for b in blocks for line in b.replace("\\\n", " ").splitlines()]
    sweeps = [given[3:] for given in words if given[:3] == ["cl-lora", "run", "--multirun"]]
    assert len(sweeps) == 4
    composer = Composer()
    for words_given in sweeps:
        given = list(words_given)
        if "hydra/launcher=ray" in given and find_spec("ray") is None:
            given = [word for word in given if "hydra" not in word]
        jobs = composer.expand(given, multirun=True)
        assert jobs is not None
        assert len(jobs) == 9
        assert composer.compose(jobs[-1], 8)["strategy"]["rank"] == 16
