"""The whole command line, as a user runs it."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import peft
import pytest
import warm
import yaml
from PIL import Image
from tiny_run import overrides

from cl_lora.adapters import Adapter
from cl_lora.cli import COMMANDS, main
from cl_lora.configuration.compose import compose_config
from cl_lora.run_folder.reader import RunFolder

pytestmark = pytest.mark.slow


def command(*arguments: str, python: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own; ``python`` starts it, a warm one if empty."""
    return subprocess.run(
        [*(python or warm.python()), "-m", "cl_lora", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "80"},
    )


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    patch = pytest.MonkeyPatch()
    patch.setenv("CL_LORA_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished tiny run and what it printed, by an interpreter that had imported nothing."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    done = command("run", *overrides(folder), python=[sys.executable])
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def page_of(folder: Path) -> str:
    """The report of a run, without the files of figures and TensorBoard."""
    from cl_lora.reporting.html import render_html

    return render_html(RunFolder.read(folder))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "scores.csv").open() as file:
        return list(csv.DictReader(file))


def stamps(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.glob("adapters/**/*") if p.is_file()}


def test_table_fits_80_columns_and_names_every_arm(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    assert max(len(line) for line in printed.splitlines() if str(folder) not in line) <= 80
    for name in ("half", "ties_learned", "base", "last", "oracle", "sequential", "joint"):
        assert any(line.startswith(name) for line in printed.splitlines()), name
    assert str(folder) in printed


def test_run_folder_holds_what_it_promises(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    for name in ("config.yaml", "environment.json", "scores.csv", "coefficients.csv", "log.txt"):
        assert (folder / name).is_file(), name
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["strategy"]["rank"] == 2
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["packages"]["torch"]
    assert environment["seeds"] == [0]
    names = sorted(p.name for p in (folder / "adapters" / "seed-0").iterdir())
    assert names == ["00-photo", "01-cartoon", "02-sketch"]
    adapter = folder / "adapters" / "seed-0" / "00-photo"
    assert peft.PeftConfig.from_pretrained(str(adapter)).r == 2
    assert set(Adapter.load(adapter).head) == {"weight", "bias"}
    training = json.loads((adapter / "training.json").read_text())
    assert (
        training["fingerprint"] == json.loads((folder / "stream.json").read_text())["fingerprint"]
    )


def test_scores_cover_every_arm_experience_and_domain(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    found = {(r["arm"], int(r["stage"]), int(r["evaluated"]), r["metric"]) for r in rows(folder)}
    everything = {
        (arm, t, j, metric)
        for arm in ("half", "ties_learned", "base", "last", "oracle", "sequential", "joint")
        for t in range(-1, 3)
        for j in range(3)
        for metric in ("accuracy", "f1")
        if arm != "joint" or t in (-1, 2)
    }
    assert found == everything
    assert all(
        0 <= float(r["value"]) <= 1 and r["higher_is_better"] == "true" for r in rows(folder)
    )


def test_oracle_is_each_own_adapter(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    value = {
        (r["arm"], int(r["stage"]), int(r["evaluated"])): r["value"]
        for r in rows(folder)
        if r["metric"] == "accuracy"
    }
    for j in range(3):
        assert value["oracle", 2, j] == value["last", j, j]
        assert value["oracle", 0, j] == value["last", 0, j]


def test_buffer_is_balanced_recorded_and_free_of_test_samples(finished: tuple[Path, str]) -> None:
    from cl_lora.benchmarks import make_benchmark

    folder, _ = finished
    recorded = json.loads((folder / "buffers" / "seed-0-spc-2.json").read_text())
    config = yaml.safe_load((folder / "config.yaml").read_text())
    benchmark = make_benchmark(config["benchmark"], image_size=16)
    held_out = {int(i) for experience in benchmark.experiences for i in experience.test}
    for experience in benchmark.experiences:
        indices = recorded["indices"][experience.name]
        assert set(indices) <= set(experience.train.tolist())
        assert not set(indices) & held_out
        assert np.bincount(experience.targets[indices]).tolist() == [2, 2, 2]


def test_second_run_trains_nothing_and_keeps_every_byte(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    before, scores = stamps(folder), (folder / "scores.csv").read_bytes()
    again = command("run", *overrides(folder))
    assert again.returncode == 0
    assert "stage" not in again.stderr
    assert stamps(folder) == before
    assert (folder / "scores.csv").read_bytes() == scores


def test_new_arm_trains_nothing_and_keeps_the_other_rows(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    before, old = stamps(folder), rows(folder)
    new = "+arms.peft={method: linear, space: factors, coefficients: [0.5, 0.25, 0.25]}"
    done = command("run", *overrides(folder, new))
    assert done.returncode == 0, done.stderr
    assert stamps(folder) == before
    kept = [r for r in rows(folder) if r["arm"] != "peft"]
    assert kept == old
    assert {r["arm"] for r in rows(folder)} - {r["arm"] for r in old} == {"peft"}


def test_changed_arm_of_the_same_name_is_refused(finished: tuple[Path, str], capfd) -> None:
    folder, _ = finished
    given = [a.replace("coefficients: 0.5", "coefficients: 0.75") for a in overrides(folder)]
    assert main(["run", *given]) == 2
    assert "'half' is defined twice" in capfd.readouterr().err


@pytest.fixture
def copied(finished: tuple[Path, str], tmp_path: Path) -> Path:
    """A finished run that the test may change."""
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    return folder


STEEP = "+arms.steep={{method: cat, spc: 2, coefficients: {{name: softmax, lr: {}, steps: 3}}}}"


def test_an_arm_that_diverges_stands_in_no_other_arms_way(copied: Path, capfd) -> None:
    old = rows(copied)
    assert main(["run", *overrides(copied, STEEP.format("1.0e+308"))]) == 2
    error = capfd.readouterr().err
    assert "Arm 'steep', seed 0, stage 'photo'" in error
    assert "Traceback" not in error
    config = yaml.safe_load((copied / "config.yaml").read_text())
    assert "steep" not in config["arms"]
    assert "finite" in config["stopped"]["steep"]["reason"]
    # The same command fails again at the same place only; the others go on without it.
    assert main(["run", *overrides(copied, STEEP.format("1.0e+308"))]) == 2
    error = capfd.readouterr().err
    assert "everything else is finished" in error
    assert "~arms.NAME" in error
    there = rows(copied)
    assert [r for r in there if r["arm"] != "steep"] == old
    assert main(["run", *overrides(copied, "+arms.sum={method: cat, coefficients: 1}")]) == 0
    assert [r for r in rows(copied) if r["arm"] not in ("steep", "sum")] == old
    page = page_of(copied)
    assert ">steep<" not in page  # nor in a cell of its tables
    assert ">sum<" in page
    # With other settings it is an arm like any, and nothing is left of the first ones.
    assert main(["run", *overrides(copied, STEEP.format("0.1"))]) == 0
    assert "stopped" not in yaml.safe_load((copied / "config.yaml").read_text())
    fresh = {r["stage"] for r in rows(copied) if r["arm"] == "steep"}
    assert fresh == {"-1", "0", "1", "2"}
    with (copied / "coefficients.csv").open() as file:
        assert "nan" not in file.read()


def test_an_arm_that_diverges_leaves_the_others_finished(tmp_path: Path, capfd) -> None:
    """It comes first, so every other arm is scored after it has failed."""
    given = overrides(tmp_path / "run", STEEP.format("1.0e+308"))
    given.insert(given.index("arms=none") + 1, given.pop())
    assert main(["run", *given]) == 2
    assert "'steep'" in capfd.readouterr().err
    done = {r["arm"] for r in rows(tmp_path / "run") if r["stage"] == "2"}
    assert done == {"half", "ties_learned", "base", "last", "oracle", "sequential", "joint"}
    assert main(["report", str(tmp_path / "run")]) == 0  # whole, its figures too


@pytest.mark.parametrize(
    ("rate", "option"), [("0.1", "spc=5"), ("1.0e+308", "buffer_batch_size=1")]
)
def test_a_stopped_arm_of_other_settings_keeps_nothing_of_the_first(
    copied: Path, rate: str, option: str
) -> None:
    """Even if the run is killed before the arm is scored again."""
    from cl_lora.experiment import pipeline

    assert main(["run", *overrides(copied, STEEP.format("1.0e+308"))]) == 2
    assert any(r["arm"] == "steep" for r in rows(copied))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "train_banks", interrupt)
        names = [o for o in overrides(copied, STEEP.format(rate)) if "ties_learned" not in o]
        with pytest.raises(KeyboardInterrupt):
            pipeline.execute(compose_config([*names, option]))
    assert not [r for r in rows(copied) if r["arm"] == "steep"]
    assert "steep" in yaml.safe_load((copied / "config.yaml").read_text())["arms"]


def test_an_arm_that_a_later_command_does_not_name_stays_what_it_was(copied: Path) -> None:
    others = [o for o in overrides(copied) if "ties_learned" not in o]
    assert main(["run", *others, "spc=1", "buffer_batch_size=3"]) == 0
    config = yaml.safe_load((copied / "config.yaml").read_text())
    recorded = config["variants"]["ties_learned"]
    assert (recorded["spc"], recorded["buffer_batch_size"]) == (2, 32)
    words = page_of(copied)
    assert "learned on 2 samples per class and experience, in batches of 32" in words


def test_multirun_over_the_buffer_is_refused_before_training(tmp_path: Path, capfd) -> None:
    given = overrides(tmp_path / "run", "buffer_batch_size=2,3")
    assert main(["run", "--multirun", *given]) == 2
    error = capfd.readouterr().err
    assert "'ties_learned' in several ways" in error
    assert "stage" not in error


def test_each_arm_is_recorded_with_every_default(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    variants = yaml.safe_load((folder / "config.yaml").read_text())["variants"]
    assert variants["ties_learned"] == {
        "method": "ties",
        "space": "delta",
        "scaling": "alpha * s * B A",
        "options": {
            "density": 0.2,
            "trim": "tensor",
            "sign": "unweighted",
            "elect": "total",
            "divisor": "count",
            "rank": None,
        },
        "coefficients": {
            "name": "adaptive",
            "b_max": 3,
            "init": "zero",
            "granularity": "layer",
            "steps": 2,
            "lr": 0.05,
        },
        "scale": "b_max",
        "scale_title": "b_max",
        "spc": 2,
        "buffer_batch_size": 32,
        "head": None,
        "tune_head": False,
    }
    assert variants["half"]["coefficients"] == {"name": "fixed", "value": 0.5}


def test_an_arm_of_other_defaults_is_refused(copied: Path, capfd) -> None:
    path = copied / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["variants"]["ties_learned"]["options"]["density"] = 0.5
    del config["digest"]  # as an earlier version wrote it
    path.write_text(yaml.safe_dump(config))
    assert main(["run", *overrides(copied)]) == 2
    error = capfd.readouterr().err
    assert "Arm 'ties_learned' is defined twice" in error
    assert "options.density is 0.5 in" in error


def test_another_buffer_trains_nothing(copied: Path, capfd) -> None:
    before = stamps(copied)
    other = [o for o in overrides(copied, "buffer_batch_size=2") if "ties_learned" not in o]
    new = "+arms.other={method: ties, spc: 1, coefficients: {name: adaptive, steps: 1}}"
    assert main(["run", *other, new]) == 0
    assert stamps(copied) == before
    assert {r["arm"] for r in rows(copied)} > {"other", "ties_learned"}
    variants = yaml.safe_load((copied / "config.yaml").read_text())["variants"]
    assert variants["other"]["buffer_batch_size"] == 2
    # What is recorded keeps its meaning: a command that would change it is refused.
    assert main(["run", *overrides(copied, "buffer_batch_size=2")]) == 2
    assert "buffer_batch_size is 32 in" in capfd.readouterr().err


def test_every_environment_is_recorded_once(copied: Path) -> None:
    path = copied / "environment.json"
    first = json.loads(path.read_text())
    for key in ("earlier", "digest"):
        first.pop(key, None)  # as an earlier version wrote it
    first["packages"]["torch"] = "1.0"
    path.write_text(json.dumps(first))
    for _ in range(2):
        assert main(["run", *overrides(copied)]) == 0
    now = json.loads(path.read_text())
    assert now["packages"]["torch"] != "1.0"
    assert now["earlier"] == [first]


def test_multirun_checks_every_combination_before_the_first(tmp_path: Path, capfd) -> None:
    given = overrides(tmp_path / "x", f"runs_root={tmp_path}", "run_dir=null")
    assert main(["run", "--multirun", *given[1:], "strategy.rank=1,0"]) == 2
    assert "at least 1" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_multirun_into_one_folder_is_refused(tmp_path: Path, capfd) -> None:
    given = overrides(tmp_path / "x")
    assert main(["run", "--multirun", *given, "strategy.rank=1,2"]) == 2
    assert "leave run_dir out" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "given", [[], ["--help"], ["list", "--help"], ["demo", "--help"], ["--version"]]
)
def test_help_loads_nothing_heavy(given: list[str]) -> None:
    code = (
        "import sys\nfrom cl_lora.cli import main\n"
        f"try:\n    main({given!r})\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'hydra', 'avalanche', 'timm', 'peft'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_without_a_command_the_help_is_printed(capfd) -> None:
    assert main([]) == 0
    printed = capfd.readouterr().out
    for name in COMMANDS:
        assert f"\n  {name} " in printed


@pytest.mark.parametrize("given", [["seeds=[1]"], ["--multirun", "spc=1,2"], ["+arms.x={}"]])
def test_overrides_without_a_command_name_the_command(given: list[str], capfd) -> None:
    assert main(given) == 2
    assert f"write cl-lora run {' '.join(given)}" in capfd.readouterr().err


def test_the_demo_is_a_run_without_overrides(monkeypatch) -> None:
    from cl_lora.commands import run

    given = []
    monkeypatch.setattr(run, "run", lambda arguments: given.append(arguments) or 0)
    assert main(["demo"]) == 0
    assert given == [[]]
    assert main(["demo", "seeds=[1]"]) == 2


def test_help_of_run_ends_at_once(capfd) -> None:
    assert main(["run", "--help"]) == 0
    printed = capfd.readouterr().out
    for part in ("coleman2024_adaptive", "strategy:", "--cfg job", "cl-lora run --multirun"):
        assert part in printed


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("benchmarks", "office_home"),
        ("models", "vit_tiny"),
        ("model_sources", "clip"),
        ("methods", "dare_ties"),
        ("residuals", "low_rank"),
        ("coefficients", "adaptive"),
        ("arms", "coleman2024_adaptive"),
        ("experiments", "coleman2024_pacs"),
        ("heads", "prototypes"),
        ("adaptations", "lora"),
        ("head_starts", "average"),
        ("images", "CIFAR100"),
        ("texts", "sciq"),
        ("sources", "utkface"),
        ("references", "sequential"),
        ("protocols", "prefixes"),
        ("kinds", "class"),
        ("metrics", "accuracy"),
        ("figures", "forgetting"),
        ("trackers", "mlflow"),
    ],
)
def test_list(what: str, expected: str, capfd) -> None:
    assert main(["list", what]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert expected in [line.strip() for line in lines]
    assert all(len(line.strip()) > 2 for line in lines if line.startswith("    "))


def test_every_list_is_tested() -> None:
    from cl_lora.commands.list import LISTS

    mark = next(m for m in test_list.pytestmark if m.name == "parametrize")
    assert {what for what, _ in mark.args[1]} == set(LISTS)


def test_doctor_names_versions_device_and_data(capfd, monkeypatch, tmp_path: Path) -> None:
    for domain in ("photo", "art_painting", "cartoon", "sketch"):
        tree(tmp_path / "pacs" / domain, {"dog": 3, "cat": 3})
    monkeypatch.setenv("CL_LORA_PACS", str(tmp_path / "pacs"))
    assert main(["doctor"]) == 0
    printed = capfd.readouterr().out
    import torch

    assert torch.__version__.split("+")[0] in printed
    assert "device" in printed
    assert "precision" in printed
    found = {line.split()[0]: line for line in printed.splitlines() if line.startswith("  ")}
    assert "not found" not in found["pacs"]
    assert "not found" in found["office_home"]


# Bad input: one clear sentence, exit code 2, before any training -----------------------------


def tree(domain: Path, classes: dict[str, int]) -> None:
    """Write a domain of small pictures: class -> how many."""
    for number, (name, count) in enumerate(classes.items()):
        (domain / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.full((8, 8, 3), 40 * number + i, dtype=np.uint8)
            Image.fromarray(pixels).save(domain / name / f"{i}.png")


def bad_tree(root: Path, spoil: Callable[[Path], None]) -> list[str]:
    for domain in ("a", "b"):
        tree(root / domain, {"cat": 4, "dog": 4})
    spoil(root)
    return ["benchmark=domains", f"benchmark.root={root}"]


def remove_class(root: Path) -> None:
    for path in (root / "b" / "dog").iterdir():
        path.unlink()
    (root / "b" / "dog").rmdir()


def empty_class(root: Path) -> None:
    for path in (root / "b" / "dog").iterdir():
        path.unlink()


def damage(root: Path) -> None:
    (root / "a" / "cat" / "1.png").write_bytes(b"no image")
    (root / "b" / "dog" / "2.png").write_bytes(b"nor this")


BAD = [
    (["benchmrk=x"], ["benchmrk", "benchmark"]),
    (["benchmark=pcas"], ["'pcas'", "'pacs'"]),
    (["model=vit_tny"], ["vit_tiny"]),
    (["arms=colman2024_fixed"], ["coleman2024_fixed"]),
    (["strategy.rnk=4"], ["strategy.rnk", "strategy.rank"]),
    (["strategy.rank=0"], ["at least 1", "0"]),
    (["strategy.rank=two"], ["whole number", "two"]),
    (["strategy.head=shred"], ["shared"]),
    (["strategy.targets=[qkv,fc3]"], ["fc3", "fc1"]),
    (["precision=fp8"], ["fp8", "fp32"]),
    (["device=gpu"], ["gpu"]),
    (["seeds=[0,0]"], ["twice"]),
    (["seeds=[]"], ["seeds"]),
    (["seeds=1.5"], ["seeds", "1.5"]),
    (["references=base"], ["references", "[A,B]", "'base'"]),
    (["references=5"], ["references", "5"]),
    (["run_dir=[a]"], ["run_dir"]),
    (["arms=null"], ["null", "none"]),
    (["model=null"], ["null", "embedded"]),
    (["experiment=null"], ["null", "coleman2024_pacs"]),
    (["+strategy.rank=3"], ["leave the '+' out"]),
    (["benchmark.kind=[a]"], ["benchmark.kind"]),
    (["benchmark=domains", "benchmark.rot=x"], ["'benchmark.root'"]),
    (["benchmark=domains", "benchmark.styles=[photo]"], ["benchmark.styles"]),
    (["benchmark.name=${nowhere}"], ["nowhere"]),
    (["model=vit_tiny", "model.name=vit_tiny_patch16_224.aug"], ["augreg_in21k"]),
    (["model=vit_tiny", "model.name=zzz"], ["'zzz'", "more"]),
    (["references=[lst]"], ["last"]),
    (["spc=0"], ["spc", "at least 1"]),
    (["strategy.rank"], ["KEY=VALUE"]),
    (["--multrun"], ["--multirun"]),
    (["strategy.rank=1,2"], ["--multirun"]),
    (["benchmark=pacs"], ["benchmark.root"]),
    (["benchmark=pacs", "benchmark.root=/no/such/folder"], ["/no/such/folder", "does not exist"]),
    (["model=vit_tiny", "model.checkpoint=/no/file"], ["/no/file"]),
    (["+arms.x={method: tis}"], ["'x'", "'ties'"]),
    (["+arms.x={method: ties, density: 0}"], ["density", "0"]),
    (["+arms.x={method: ties, density: 1.5}"], ["density", "1.5"]),
    (["+arms.x={method: ties, densty: 0.5}"], ["densty", "density"]),
    (["+arms.x={method: ties, coefficients: {name: adaptive, b_max: 0.5}}"], ["b_max", "0.5"]),
    (["+arms.x={method: ties, coefficients: {name: adptive}}"], ["adaptive"]),
    (["+arms.x={method: ties, spc: 0}"], ["spc", "0"]),
    (["+arms.x={method: ties, spc: 500, coefficients: {name: softmax}}"], ["500", "at most"]),
    (["+arms.x={method: ties, coefficients: .nan}"], ["nan"]),
    (["+arms.x={method: ties, coefficients: [1, 2]}"], ["4 fixed coefficients", "2"]),
    (["+arms.x={method: svd, coefficients: {name: softmax}}"], ["differentiable"]),
    (["+arms.x={method: ties, rank: 2, coefficients: {name: adaptive}}"], ["differentiable"]),
    (["+arms.last={method: ties}"], ["'last'", "baseline"]),
    (["+arms.ta_w1={method: ties}"], ["'ta_w1' is defined twice"]),
    (["+arms.x={method: ties}", "+arms.x={method: cat}"], ["'x' is defined twice"]),
    (["+arms.x={method: ties, head: frozen}"], ["strategy.head=frozen"]),
    (["+arms.x={method: ties, head: [a]}"], ["head"]),
    (["+arms.x={method: ties, coefficients: {name: [a]}}"], ["coefficient rule"]),
    (["+arms.x={method: ties, coefficients: {name: adaptive, init: 3}}"], ["init", "b_max"]),
]


@pytest.mark.parametrize(("given", "expected"), BAD, ids=[" ".join(g) for g, _ in BAD])
def test_bad_option(given: list[str], expected: list[str], tmp_path: Path, capfd) -> None:
    check_refused([f"run_dir={tmp_path / 'run'}", *given], expected, tmp_path / "run", capfd)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (remove_class, ["'b'", "'dog'"]),
        (empty_class, ["b", "dog", "empty"]),
        (damage, ["1.png", "2.png"]),
    ],
)
def test_bad_data(
    spoil: Callable[[Path], None], expected: list[str], tmp_path: Path, capfd
) -> None:
    given = bad_tree(tmp_path / "data", spoil)
    check_refused([f"run_dir={tmp_path / 'run'}", *given], expected, tmp_path / "run", capfd)


def check_refused(given: list[str], expected: list[str], run: Path, capfd) -> None:
    assert main(["run", *given]) == 2
    lines = [x for x in capfd.readouterr().err.splitlines() if x.startswith("cl-lora: ")]
    assert len(lines) == 1
    for part in expected:
        assert part in lines[0]
    assert not (run / "adapters").exists()


def test_unknown_command_and_list(capfd) -> None:
    assert main(["rn"]) == 2
    assert main(["list", "metods"]) == 2
    errors = capfd.readouterr().err
    assert "'run'" in errors
    assert "'methods'" in errors


def test_mistake_gives_no_traceback_and_code_2(tmp_path: Path) -> None:
    done = command("run", f"run_dir={tmp_path}/x", "strategy.lr=-1")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "strategy.lr" in done.stderr


def test_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path, capfd) -> None:
    hidden = [".env.local", "project/.git/HEAD", "adapters/x/.secret"]
    for name in ("thesis.tex", *hidden):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("years of work")
    before = sorted(tmp_path.rglob("*"))
    assert main(["run", f"run_dir={tmp_path}"]) == 2
    assert "holds other files" in capfd.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_own_files_in_a_run_folder_stay(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    mine = [folder / ".notes.txt", folder / "mine" / ".git" / "HEAD"]
    leftovers = [folder / ".scores.csv.abc", folder / "adapters" / "seed-0" / ".03-x.abc" / "y"]
    for path in (*mine, *leftovers):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    assert main(["run", *overrides(folder)]) == 0
    assert all(path.exists() for path in mine)
    assert not any(path.exists() for path in leftovers)


def test_a_mistake_that_the_data_shows_is_not_recorded(
    finished: tuple[Path, str], tmp_path: Path, capfd
) -> None:
    """Else the folder would refuse the corrected command, or go on failing without the arm."""
    folder, _ = finished
    before = (folder / "config.yaml").read_bytes()
    for bad in ("coefficients: [1, 2]", "coefficients: {name: softmax}, spc: 500"):
        given = overrides(folder, f"+arms.bad={{method: ties, {bad}}}")
        assert main(["run", *given]) == 2
        assert (folder / "config.yaml").read_bytes() == before
    new = tmp_path / "run"
    assert main(["run", *overrides(new, "model.checkpoint=/dev/null")]) == 2
    assert main(["run", *overrides(new, "model.checkpoint=" + str(folder / "scores.csv"))]) == 2
    assert "no checkpoint" in capfd.readouterr().err
    assert not (new / "config.yaml").exists()


def test_config_of_a_killed_start_is_no_obstacle(tmp_path: Path, capfd) -> None:
    (tmp_path / ".config.yaml.x1y2").write_text("")
    assert main(["run", *overrides(tmp_path, "model.checkpoint=" + __file__)]) == 2
    assert "no checkpoint" in capfd.readouterr().err


def test_interrupted_reports_are_made_again(finished: tuple[Path, str], monkeypatch) -> None:
    from cl_lora.reporting import tensorboard

    folder, _ = finished
    given = ["run", *overrides(folder, "report=true")]
    with monkeypatch.context() as patch:
        patch.setattr(tensorboard, "write_tensorboard", interrupt)
        assert main(given) == 130
    assert not (folder / "report.html").exists()
    assert main(given) == 0
    assert (folder / "report.html").exists()
    assert list((folder / "tensorboard").iterdir())
    assert list((folder / "figures").glob("*.png"))


def test_nan_loss_stops_with_the_place_and_keeps_what_is_finished(
    finished: tuple[Path, str], tmp_path: Path, capfd
) -> None:
    """The first adapter is copied from a sound run, so only the later ones can diverge."""
    folder, _ = finished
    run = tmp_path / "run"
    given = overrides(run, "strategy.lr=1e30", "strategy.head_lr=1e30", "precision=fp32")
    shutil.copytree(folder / "adapters" / "seed-0" / "00-photo", tmp_path / "00-photo")
    with pytest.MonkeyPatch.context() as patch:
        # Validation passes; the sound adapter is put in place when the folder has been opened.
        from cl_lora.experiment import pipeline

        train = pipeline.train_banks

        def with_first(settings, benchmark, backbone, target, *rest):
            shutil.copytree(tmp_path / "00-photo", target / "adapters" / "seed-0" / "00-photo")
            return train(settings, benchmark, backbone, target, *rest)

        patch.setattr(pipeline, "train_banks", with_first)
        assert main(["run", *given]) == 2
    error = capfd.readouterr().err
    assert "cartoon" in error
    assert "strategy.lr" in error
    assert "Traceback" not in error
    assert [p.name for p in (run / "adapters" / "seed-0").iterdir()] == ["00-photo"]


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_folder_of_another_configuration_is_refused(finished: tuple[Path, str], capfd) -> None:
    folder, _ = finished
    assert main(["run", *overrides(folder, "strategy.lora_alpha=3")]) == 2
    assert "strategy.lora_alpha" in capfd.readouterr().err


@pytest.mark.parametrize("version", [1, 99])
def test_folder_of_another_version_is_refused(version: int, tmp_path: Path, capfd) -> None:
    (tmp_path / "config.yaml").write_text(f"format: {version}\n")
    assert main(["run", f"run_dir={tmp_path}"]) == 2
    error = capfd.readouterr().err
    assert "another version" in error
    assert f"got {version}" in error


def test_run_dir_that_is_a_file_is_refused(tmp_path: Path, capfd) -> None:
    (tmp_path / "file").write_text("")
    assert main(["run", f"run_dir={tmp_path / 'file'}"]) == 2
    assert "file is a file" in capfd.readouterr().err


def test_full_disk_is_one_sentence(tmp_path: Path, capfd, monkeypatch) -> None:
    """The kernel's own 'no space left': every file that is written goes to /dev/full."""
    from cl_lora.support import files

    real = os.fdopen

    def full(handle: int, mode: str):
        os.close(handle)
        return real(os.open("/dev/full", os.O_WRONLY), mode)

    monkeypatch.setattr(files.os, "fdopen", full)
    assert main(["run", *overrides(tmp_path / "run")]) == 2
    assert "No space left" in capfd.readouterr().err
    assert not (tmp_path / "run" / "adapters").exists()


def test_full_disk_under_the_log_gives_no_traceback(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    (folder / "log.txt").unlink()
    (folder / "log.txt").symlink_to("/dev/full")
    arm = "+arms.logged={method: cat, coefficients: 0.25}"
    done = command("run", *overrides(folder, arm, "references=[base]"))
    (folder / "log.txt").unlink()
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_two_processes_never_share_a_folder(tmp_path: Path, capfd) -> None:
    import fcntl

    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["run", f"run_dir={tmp_path / 'run'}"]) == 2
    assert "Another process" in capfd.readouterr().err
