"""`cl-lora run` through Hydra, end to end: processes of their own, in folders of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import warm
import yaml
from tiny_run import overrides

from cl_lora.cli import main

TINY = ("references=[base]", "run_dir=null", "runs_root=runs")

PLUGIN = """\
import torch

from cl_lora.evaluation.metrics import Metric, register_metric
from cl_lora.merging.kernels import Pipeline
from cl_lora.merging.registry import IN_DELTA, register
from cl_lora.merging.spaces import SPACES

register_metric(Metric("mine", "My own"))


@register(
    "mine", summary="a method of mine", formula="sum", paper="mine", linearity=IN_DELTA
)
def prepare_mine(sources, space, options):
    return Pipeline(SPACES[space](sources), spread=lambda stack, weights: stack, fixed=True)

"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = Path(__file__).parents[2]
    return {
        **os.environ,
        "COLUMNS": "80",
        "PYTHONPATH": str(root),
        "CL_LORA_CACHE": str(tmp_path_factory.mktemp("cache")),
    }


@pytest.fixture
def run(environment: dict[str, str], tmp_path: Path):
    """Return a function that runs the command line in an empty folder."""

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*warm.python(), "-P", "-m", "cl_lora", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return command


def tiny(folder: Path, *more: str) -> list[str]:
    return overrides(folder, *TINY, *more)


def test_a_sweep_runs_every_job_and_leaves_run_folders_only(run, tmp_path: Path) -> None:
    done = run("run", "-m", *tiny(tmp_path, "strategy.rank=1,2", "hydra/launcher=basic"))
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path) == ["runs"]
    configs = [yaml.safe_load(p.read_text()) for p in (tmp_path / "runs").glob("*/config.yaml")]
    assert {config["strategy"]["rank"] for config in configs} == {1, 2}
    words = [line for line in done.stderr.splitlines() if line.startswith(("2 jobs", "["))]
    assert words[0] == "2 jobs, all checked"
    for number, line in enumerate(words[1:], start=1):
        assert line.startswith(f"[{number}] ")
        assert f" strategy.rank={number} " in line
    assert done.stdout.count("Run folder: ") == 2


def test_a_users_own_yaml_and_module(run, tmp_path: Path) -> None:
    (tmp_path / "conf" / "arms").mkdir(parents=True)
    (tmp_path / "conf" / "arms" / "my.yaml").write_text("first: {method: mine, coefficients: 1}\n")
    (tmp_path / "plug").mkdir()
    (tmp_path / "plug" / "in_mine.py").write_text(PLUGIN)
    given = [o for o in tiny(tmp_path) if not o.lstrip("+").startswith("arms")]
    own = ["--config-dir", "conf", "arms=my", "plugins=[plug.in_mine]"]
    done = run("run", *given, *own)
    assert done.returncode == 0, done.stderr
    assert any(line.startswith("first ") for line in done.stdout.splitlines())
    (folder,) = (tmp_path / "runs").iterdir()
    assert yaml.safe_load((folder / "config.yaml").read_text())["arms"]["first"]["method"] == "mine"


def test_what_a_plugin_registers_is_listed(run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    listed = run("list", "methods", "--plugin", "mine")
    assert "mine" in [line.strip() for line in listed.stdout.splitlines()]


def test_a_figure_of_a_plugin_is_drawn_in_a_report(
    run_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cl_lora.reporting.figures import FIGURES

    drawn = []
    (tmp_path / "my_figure.py").write_text(
        "from cl_lora.reporting.figures import figure\n"
        "drawn = []\n"
        "figure('mine', 'Mine', 'Nothing.')(lambda run, metric: drawn.append(metric.name))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    try:
        assert main(["report", str(run_path), "--plugin", "my_figure"]) == 0
    finally:
        FIGURES.pop("mine", None)
        drawn += sys.modules.pop("my_figure").drawn
    assert drawn


def test_mistakes_are_one_sentence(run, tmp_path: Path) -> None:
    """In a process of its own: nothing of Hydra's or Python's stands beside it."""
    for given, expected in (
        (["hydra.foo=1"], "'hydra.foo'"),
        (["--multirun", "hydra/launcher=nope", "spc=1,2"], "Unknown hydra/launcher 'nope'"),
        (["plugins=[nowhere]"], "The plugin 'nowhere' cannot be imported"),
        (["benchmark=pacs", "benchmark.root=/no/such/folder"], "/no/such/folder"),
    ):
        done = run("run", *given)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("cl-lora: ")
        assert expected in done.stderr
        assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_cfg_and_info_run_nothing(run, tmp_path: Path) -> None:
    shown = run("run", "--cfg", "job", "seeds=[3]")
    assert shown.returncode == 0
    assert yaml.safe_load(shown.stdout)["seeds"] == [3]
    info = run("run", "--info", "searchpath")
    assert "pkg://cl_lora.configs" in info.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_failure_in_a_job_leaves_hydras_words_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "benchmark=pacs", "benchmark.root=nowhere"]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert "Error executing job" not in error


def test_ctrl_c_in_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from cl_lora.experiment import pipeline

    def interrupt(*_: object) -> Path:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "execute", interrupt)
    assert main(["run"]) == 130
    assert "the same command goes on from there" in capfd.readouterr().err


def test_launchers_can_send_the_job_to_another_process() -> None:
    import pickle

    from cl_lora.commands.run import job

    assert pickle.loads(pickle.dumps(job)) is job
