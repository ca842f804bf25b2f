"""Command lines of Hydra's, with a job that only notes what it gets: no model, no data."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig

import cl_lora.configs
from cl_lora.configuration.compose import Composer, compose_config, known_keys, plain
from cl_lora.configuration.launch import launch
from cl_lora.support.errors import UserError

SEEN: list[dict[str, Any]] = []
CHECKED: list[list[Mapping[str, Any]]] = []


def job(composed: DictConfig) -> None:
    SEEN.append(plain(composed))


def failing(composed: DictConfig) -> None:
    SEEN.append(plain(composed))
    raise UserError("The data is not there")


def interrupted(composed: DictConfig) -> None:
    raise KeyboardInterrupt


def check(jobs: Sequence[Mapping[str, Any]], side_by_side: bool) -> Mapping[int, Mapping[str, Any]]:
    assert not SEEN
    assert not side_by_side
    CHECKED.append(list(jobs))
    return {}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, which every test leaves as it made it."""
    monkeypatch.chdir(tmp_path)
    SEEN.clear()
    CHECKED.clear()
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield tmp_path
    # --info prints through the root logger.
    root.handlers = handlers
    root.setLevel(level)
    assert not list(tmp_path.glob("**/multirun.yaml"))
    assert not {"outputs", "multirun", ".hydra", ".cl-lora-sweep"} & set(os.listdir(tmp_path))
    assert not list(tmp_path.glob("*.log"))


def run(*arguments: str) -> list[dict[str, Any]]:
    """Return what the jobs of a command line get."""
    SEEN.clear()
    assert launch(arguments, job, check) == 0
    return list(SEEN)


def refused(*arguments: str) -> str:
    """Return the sentence with which a command line is refused before any job."""
    SEEN.clear()
    with pytest.raises(UserError) as caught:
        launch(arguments, job, check)
    assert not SEEN
    assert "\n" not in str(caught.value)
    return str(caught.value)


def shown(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert launch(arguments, job, check) == 0
    assert not SEEN
    return capfd.readouterr().out


def test_a_job_gets_plain_values_without_hydras_own() -> None:
    (config,) = run("strategy.rank=3", "seeds=[1,2]")
    assert config == compose_config(["strategy.rank=3", "seeds=[1,2]"])
    assert (config["strategy"]["rank"], config["seeds"]) == (3, [1, 2])
    assert not {"hydra", "experiment"} & set(config)
    assert not CHECKED


def test_a_sweep_is_checked_before_its_first_job() -> None:
    ranks = [c["strategy"]["rank"] for c in run("--multirun", "strategy.rank=4,8", "spc=1,2")]
    assert ranks == [4, 4, 8, 8]
    assert CHECKED == [SEEN]


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "spc=1,2", "seeds=[3]"],
        ["spc=1,2", "-m", "seeds=[3]"],
        ["spc=1,2", "seeds=[3]", "--multirun"],
        ["spc=1,2", "seeds=[3]", "hydra.mode=MULTIRUN"],
        ["--config-dir", "own", "--config-name", "swept", "seeds=[3]"],
        ["spc=range(1,3)", "seeds=[3]", "-m", "hydra/launcher=basic", "hydra/sweeper=basic"],
    ],
)
def test_every_way_to_ask_for_a_sweep(arguments: list[str], own: Path) -> None:
    swept = {"mode": "MULTIRUN", "sweeper": {"params": {"spc": "1,2"}}}
    whole = {"defaults": ["config", "_self_"], "hydra": swept}
    (own / "swept.yaml").write_text(yaml.safe_dump(whole))
    assert [(c["spc"], c["seeds"]) for c in run(*arguments)] == [(1, [3]), (2, [3])]
    assert CHECKED == [SEEN]


def test_only_experiments_ask_for_a_sweep(folder: Path) -> None:
    """So without one nothing need be composed to find that out."""
    files = list(Path(cl_lora.configs.__path__[0]).rglob("*.yaml"))
    asking = {f for f in files if "mode" in (yaml.safe_load(f.read_text()) or {}).get("hydra", {})}
    assert {file.parent.name for file in asking} == {"experiment"}
    composer = Composer()
    for file in asking:
        assert composer.is_multirun([f"experiment={file.stem}"])


def test_a_single_run_is_composed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once to be checked and once to be run: each takes a fifth of a second."""
    composed = []
    load = ConfigLoaderImpl.load_configuration
    monkeypatch.setattr(
        ConfigLoaderImpl,
        "load_configuration",
        lambda *a, **k: composed.append(1) or load(*a, **k),
    )
    run("strategy.rank=3")
    assert len(composed) == 2


def test_a_check_that_fails_keeps_every_job_from_running(folder: Path) -> None:
    def complain(
        jobs: Sequence[Mapping[str, Any]], side_by_side: bool
    ) -> Mapping[int, Mapping[str, Any]]:
        raise UserError("No")

    with pytest.raises(UserError, match="No"):
        launch(["-m", "spc=1,2"], job, complain)
    assert not SEEN
    assert not list(folder.iterdir())


def test_a_mistake_in_the_last_job_keeps_the_first_from_running() -> None:
    assert "'colman2024_fixed'" in refused("-m", "arms=none,colman2024_fixed")


def test_a_launcher_that_keeps_files_keeps_them(folder: Path) -> None:
    keep = folder / ".cl-lora-sweep" / "log"
    keep.parent.mkdir()
    keep.write_text("")
    run("-m", "spc=1,2")
    assert keep.exists()
    keep.unlink()
    (keep.parent / "multirun.yaml").unlink()
    keep.parent.rmdir()


def test_a_job_that_fails_is_its_own_sentence_alone(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"^The data is not there$"):
        launch(["spc=1"], failing, check)
    assert capfd.readouterr().err == ""
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_a_job_that_fails_stops_no_other(capfd: pytest.CaptureFixture[str]) -> None:
    assert launch(["-m", "spc=1,2"], failing, check) == 2
    assert [config["spc"] for config in SEEN] == [1, 2]
    assert capfd.readouterr().err.splitlines() == [
        "2 jobs, all checked",
        "cl-lora: job 1 of 2 (spc=1): The data is not there",
        "cl-lora: job 2 of 2 (spc=2): The data is not there",
        "cl-lora: 0 of 2 jobs are done; the same command goes on with the others",
    ]


def test_ctrl_c_passes() -> None:
    with pytest.raises(KeyboardInterrupt):
        launch([], interrupted, check)


# What Hydra shows -------------------------------------------------------------------------------


def test_cfg_prints_yaml(capfd: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load(shown(capfd, "--cfg", "job", "--resolve", "strategy.rank=5"))
    assert config["strategy"]["rank"] == 5
    assert "hydra" in yaml.safe_load(shown(capfd, "--cfg", "all"))
    printed = yaml.safe_load(shown(capfd, "--cfg", "job", "--package", "strategy"))
    assert printed["rank"] == 8
    assert shown(capfd, "-c", "job", "-p", "spc").strip() == "5"


def test_a_package_that_is_not_there(capfd: pytest.CaptureFixture[str]) -> None:
    assert launch(["--cfg", "job", "--package", "nowhere"], job, check) == 2
    assert "'nowhere' not found" in capfd.readouterr().err


@pytest.mark.parametrize("what", ["searchpath", "defaults", "defaults-tree", "plugins", "config"])
def test_info(what: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert shown(capfd, "--info", what)


def test_help_names_every_choice_and_option(capfd: pytest.CaptureFixture[str]) -> None:
    text = shown(capfd, "--help", "strategy.rank=77")
    for part in (
        "usage: cl-lora run",
        "coleman2024_adaptive",
        "rank: 77",
        "buffer_batch_size",
        "--cfg",
    ):
        assert part in text
    assert "== Config" not in text
    assert "--shell-completion" in shown(capfd, "--hydra-help")


# A user's own YAML ------------------------------------------------------------------------------


@pytest.fixture
def own(folder: Path) -> Path:
    """A folder with arms=mine and a primary configuration of its own."""
    (folder / "own" / "arms").mkdir(parents=True)
    (folder / "own" / "arms" / "mine.yaml").write_text("a: {method: ties}\nb: {method: cat}\n")
    (folder / "own" / "whole.yaml").write_text("defaults: [config, _self_]\nspc: 9\n")
    return folder / "own"


def test_config_dir(own: Path) -> None:
    (config,) = run("--config-dir", "own", "arms=mine")
    assert list(config["arms"]) == ["a", "b"]


def test_searchpath(own: Path) -> None:
    place = f"hydra.searchpath=[file://{own}]"
    (config,) = run(place, "arms=mine")
    assert list(config["arms"]) == ["a", "b"]
    assert "'mine'" in refused(place, "arms=mne")
    assert [len(c["arms"]) for c in run("-m", place, "arms=none,mine")] == [0, 2]


def test_config_name(own: Path) -> None:
    (config,) = run("--config-dir=own", "--config-name=whole")
    assert config["spc"] == 9


def test_arms_of_ones_own_are_defined_once_too(own: Path) -> None:
    assert "'a' is defined twice" in refused(
        "--config-dir", "own", "arms=mine", "+arms.a={method: cat}"
    )
    (own / "arms" / "other.yaml").write_text("a: {method: cat}\n")
    assert "'a' is defined twice" in refused("--config-dir", "own", "arms=[mine,other]")


@pytest.mark.parametrize("choice", ["experiment=coleman2024_pacs", "experiment=[coleman2024_pacs]"])
def test_an_arm_of_an_experiment_is_not_defined_again(choice: str) -> None:
    name = next(iter(compose_config([choice, "benchmark.root=x"])["arms"]))
    text = refused(choice, "benchmark.root=x", f"+arms.{name}={{method: cat}}")
    assert f"{name!r} is defined twice" in text


def test_a_job_may_use_hydras_own_values(folder: Path) -> None:
    (config,) = run("run_dir=${hydra:runtime.output_dir}/x", "hydra.run.dir=here")
    assert config["run_dir"] == str(folder / "here" / "x")
    swept = run("-m", "spc=1,2", "run_dir=run-${hydra:job.num}")
    assert [c["run_dir"] for c in swept] == ["run-0", "run-1"]
    assert [c["run_dir"] for c in CHECKED[-1]] == ["run-0", "run-1"]


# What is wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["hydra.foo=1"], ["Unknown option 'hydra.foo'", "hydra."]),
        (["hydra.launcher.n_jobs=2"], ["Unknown option 'hydra.launcher.n_jobs'"]),
        (["hydra/launcher=nope"], ["Unknown hydra/launcher 'nope'", "basic"]),
        (["hydra/launcher=jbolib", "-m", "spc=1,2"], ["hydra/launcher 'jbolib'", "'joblib'"]),
        (["hydra/sweeper=nope"], ["Unknown hydra/sweeper 'nope'"]),
        (["hydra.searchpath=[file:///no/where]"], ["/no/where", "hydra.searchpath"]),
        (["hydra.searchpath=3"], ["list of strings"]),
        (["hydra.job.chdir=maybe"], ["'maybe'"]),
        (["--config-dir", "nowhere"], ["--config-dir", "'nowhere'"]),
        (["--config-name", "nope"], ["nope.yaml"]),
        (["--multrun"], ["Unknown flag '--multrun'", "'--multirun'"]),
        (["--cfg", "jb"], ["jb", "job"]),
        (["--cfg", "job", "--multirun"], ["--multirun", "--cfg"]),
        (["--resolve"], ["--cfg"]),
        (["--experimental-rerun", "x"], ["same command"]),
        (["--shell-completion", "zzz"], ["install=SHELL", "'zzz'", "install=bash"]),
        (["--shell-completion", "query=bash"], ["no line was found", "install=SHELL"]),
        (["--shell-completion", "install=tcsh"], ["bash, fish or zsh", "install=bash"]),
        (["--cfg", "job", "spcc=1"], ["'spcc'", "'spc'"]),
        (["--info", "config", "arms=nope"], ["nope"]),
        (["lr=1e-3"], ["'lr'", "did you mean 'strategy.lr'?"]),
        (["root=x", "benchmark=pacs"], ["'benchmark.root'"]),
        (["rank=1"], ["'strategy.rank'"]),
        (["stratgy.rank=1"], ["'strategy.rank'"]),
        (["strategy.rank=1,2"], ["--multirun"]),
        (["-m", "strategy.rank=interval(1,2)"], ["KEY=A,B"]),
        (["-m", "strategy.rank=range(1,3,0)"], ["must not be zero", "KEY=A,B"]),
        (["-m", "spc=range(1,99999999)"], ["at most 10,000 jobs", "99,999,998", "fewer"]),
        (["-m", "spc=range(0,101)", "strategy.rank=range(0,50,0.5)"], ["has 10,100;"]),
        (["-m", "strategy.rank=range(3,3)"], ["no job", "widen it"]),
        (["-m", "spc=1,2", "+arms.x={method: a}", "+arms.x={method: b}"], ["'x' is defined twice"]),
        (["strategy_model=null"], ["name of a choice"]),
        (["+model=embedded"], ["model"]),
        (["~nothing"], ["nothing"]),
        (["benchmark.name=${nowhere}"], ["nowhere"]),
        (["strategy.rank"], ["KEY=VALUE"]),
        (["strategy_model=3"], ["name of a choice", "int"]),
        (["=5"], ["KEY=VALUE", "the key ''"]),
        (["benchmark@x=shapes"], ["benchmark@x"]),
        (["arms=[]"], ["no arms any more", "arms=none"]),
        (["~arms"], ["no arms any more", "arms=none"]),
        (["arms=[]", "+arms.x={method: ties}"], ["arms"]),
        (["~benchmark"], ["no benchmark any more", "benchmark=shapes"]),
        (["~model"], ["no model any more", "model=embedded"]),
        (["~strategy"], ["no strategy any more", "strategy=lora"]),
        (["~report"], ["no report any more", "leave ~report out"]),
        (["~plugins"], ["no plugins any more", "leave ~plugins out"]),
        (["spc=${oc.decode:'{a'}"], ["does not compose", "correct the override"]),
        (["spc=${oc.dict.keys:zzz}"], ["spc"]),
    ],
    ids=" ".join,
)
def test_one_sentence(arguments: list[str], expected: list[str]) -> None:
    text = refused(*arguments)
    for part in expected:
        assert part in text
    assert "hydra" not in text.lower() or "hydra" in arguments[0] or "--" in arguments[0]


@pytest.mark.parametrize(
    ("choice", "extra"),
    [
        *(("joblib", "joblib"), ("submitit_local", "slurm"), ("submitit_slurm", "slurm")),
        ("ray", "ray"),
    ],
)
def test_a_launcher_that_is_not_installed_names_its_extra(
    choice: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Composer._options

    def without(self: Composer, group: str, overrides: Sequence[str]) -> list[str]:
        return [name for name in known(self, group, overrides) if name != choice]

    monkeypatch.setattr(Composer, "_options", without)
    text = refused("-m", f"hydra/launcher={choice}", "spc=1,2")
    assert text.startswith(f"hydra/launcher={choice} is not installed; ")
    assert f"pip install 'cl-lora[{extra}]'" in text


def test_a_text_needs_no_quotes_for_hydra(folder: Path) -> None:
    (config,) = run("run_dir=Läufe; für x", "spc=3")
    assert (config["run_dir"], config["spc"]) == ("Läufe; für x", 3)


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_interrupt_while_it_composes_is_one(
    wrapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a library below takes it for a failure of its own."""

    def load(self: object, **given: object) -> DictConfig:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as stop:
            if wrapped:
                raise ConfigCompositionException("In 'config': nothing was loaded") from stop
            raise

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", load)
    with pytest.raises(KeyboardInterrupt):
        launch(["spc=3"], job, check)


def test_what_a_loader_trips_over_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: object, **given: object) -> DictConfig:
        raise AttributeError("'NoneType' object has\nno attribute 'x'")

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", load)
    assert "does not compose: AttributeError: 'NoneType' object has no" in refused("spc=3")


def test_known_keys_are_those_of_the_choices() -> None:
    keys = known_keys(["benchmark=pacs"])
    assert {"benchmark", "benchmark.root", "strategy.lr", "seeds", "plugins"} <= set(keys)
    assert "benchmark.styles" not in keys
    assert "arms.ta_w1" not in keys


def test_expand_leaves_another_sweepers_jobs_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a sweeper makes jobs from the results of earlier ones; each is checked as it comes."""
    from cl_lora.configuration import compose

    monkeypatch.setattr(compose, "_BASIC_SWEEPER", "some.other.Sweeper")
    assert Composer().expand(["spc=1,2"], multirun=True) is None
    run("-m", "spc=1,2")
    assert not CHECKED


def test_hydra_is_as_it_was_afterwards() -> None:
    before = HydraConfig.instance().cfg
    run("spc=1")
    run("-m", "spc=1,2")
    assert HydraConfig.instance().cfg is before
    assert not GlobalHydra.instance().is_initialized()


def test_python_without_assertions_is_refused_in_one_sentence() -> None:
    """Hydra's parser moves on within assertions, and fails later without them."""
    code = "from cl_lora.cli import main; raise SystemExit(main(['run', '+arms.x={method: ties}']))"
    done = subprocess.run(
        [sys.executable, "-O", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("cl-lora: Hydra reads no override without")
