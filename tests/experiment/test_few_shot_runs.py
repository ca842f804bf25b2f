"""Few-shot runs of the whole command line, on shapes at 16 px."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import warm
import yaml
from whole_runs import content, rows, stamps

from cl_lora.adapters import Adapter, LoRAFactors
from cl_lora.configuration.compose import compose_config
from cl_lora.experiment.pipeline import check, execute
from cl_lora.run_folder.reader import RunFolder
from cl_lora.support import files
from cl_lora.support.errors import UserError

pytestmark = pytest.mark.slow

SMALL = (
    *("model.img_size=16", "precision=fp32", "device=cpu", "report=false", "references=[]"),
    *("strategy.epochs=1", "strategy.batch_size=8", "strategy.rank=2", "strategy.targets=[q,fc1]"),
    *("adaptation.warmup_steps=2", "adaptation.steps=2", "adaptation.epochs=0"),
)
SHAPES = (
    *("benchmark.classes=3", "benchmark.styles=[photo,cartoon,sketch]"),
    *("benchmark.samples_per_class=6", "benchmark.test_samples_per_class=4"),
)
FEW_ARMS = (
    "arms=none",
    "+arms.classifier={adapt: head}",
    "+arms.lora={adapt: lora}",
    "+arms.uniform={method: task_arithmetic, adapt: head}",
    "+arms.learned={method: task_arithmetic, coefficients: softmax, adapt: coefficients}",
)


def given(folder: Path | None, *more: str, experiment: str = "few_shot_shapes") -> list[str]:
    where = [] if folder is None else [f"run_dir={folder}"]
    return [*where, f"experiment={experiment}", *SHAPES, *SMALL, *FEW_ARMS, *more]


def run(folder: Path, *more: str, experiment: str = "few_shot_shapes") -> Path:
    return execute(compose_config(given(folder, *more, experiment=experiment)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One seed, K = 1, 2 and all, two draws."""
    folder = tmp_path_factory.mktemp("few_shot") / "run"
    return run(folder, "shots=[1,2,all]", "draws=2", "seeds=[0]")


@pytest.fixture(scope="module")
def with_one_shot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("one_shot") / "run", "shots=[1]", "seeds=[0]")


@pytest.fixture
def one_shot(with_one_shot: Path, tmp_path: Path) -> Path:
    """A finished run of K = 1 that the test may change."""
    return shutil.copytree(with_one_shot, tmp_path / "run")


def test_every_arm_is_scored_at_every_k_and_draw(finished: Path) -> None:
    run_ = RunFolder.read(finished)
    stages = {(s.name, s.draw) for s in run_.stream.stages}
    assert stages == {("K=1", 0), ("K=1", 1), ("K=2", 0), ("K=2", 1), ("K=all", 0)}
    scored = {(r["arm"], r["stage"]) for r in rows(finished)}
    arms = ("classifier", "lora", "uniform", "learned")
    assert scored == {(arm, str(s.index)) for arm in arms for s in run_.stream.stages}
    assert {r["evaluated"] for r in rows(finished)} == {"2"}
    assert run_.yardstick == "lora"


def test_accounts_and_similarity_are_recorded(finished: Path) -> None:
    run_ = RunFolder.read(finished)
    counts = run_.accounts[run_.accounts["quantity"] == "trainable_parameters"]
    modules = len(run_.similarity["group"].unique())
    assert modules == 12  # q and fc1 of six blocks
    learned = counts[counts["arm"] == "learned"]["value"]
    assert set(learned) == {modules * 2}
    assert set(run_.similarity["adapter"]) == {0, 1}
    assert run_.similarity["value"].between(0, 1 + 1e-9).all()
    weights = run_.coefficients[run_.coefficients["arm"] == "learned"]
    sums = weights.groupby(["stage", "group"])["value"].sum()
    assert sums.to_numpy() == pytest.approx(1.0)


def test_support_sets_are_recorded_and_nested(finished: Path) -> None:
    record = json.loads((finished / "buffers" / "seed-0-support.json").read_text())
    sets = {name: set(indices) for name, indices in record["indices"]["sketch"].items()}
    assert sets["K=1, draw 0"] < sets["K=2, draw 0"]
    assert sets["K=1, draw 1"] < sets["K=2, draw 1"]
    assert sets["K=1, draw 0"] != sets["K=1, draw 1"]
    assert [len(s) for s in sets.values()] == [3, 3, 6, 6]


def test_the_same_command_again_does_nothing(finished: Path) -> None:
    before, when = content(finished), stamps(finished)
    run(finished, "shots=[1,2,all]", "draws=2", "seeds=[0]")
    assert content(finished) == before
    assert stamps(finished) == when


def test_more_shots_and_arms_train_no_adapter(tmp_path: Path) -> None:
    """A later command adds to the folder; what is there keeps its number and its score."""
    folder = run(tmp_path / "run", "shots=[1,all]", "seeds=[0]")
    first, when = rows(folder), stamps(folder)
    more = "+arms.means={adapt: none}"
    run(folder, "shots=[2]", "seeds=[0]", more)
    after = rows(folder)
    assert stamps(folder) == when
    assert all(row in after for row in first)
    names = {s.index: s.name for s in RunFolder.read(folder).stream.stages}
    assert {names[int(r["stage"])] for r in after if r["arm"] == "means"} == {"K=1", "K=2", "K=all"}
    assert {names[int(r["stage"])] for r in after if r["arm"] == "lora"} == {"K=1", "K=2", "K=all"}


def test_two_runs_with_one_seed_are_the_same_bytes(tmp_path: Path, finished: Path) -> None:
    again = run(tmp_path / "again", "shots=[1,2,all]", "draws=2", "seeds=[0]")
    names = [name for name in content(finished) if not name.endswith("training.json")]
    assert {n: content(again)[n] for n in names} == {n: content(finished)[n] for n in names}
    assert (again / "similarity.csv").read_bytes() == (finished / "similarity.csv").read_bytes()


def test_what_is_lost_is_measured_again_alone(one_shot: Path) -> None:
    folder = one_shot
    whole = (folder / "scores.csv").read_text()
    kept = [line for line in whole.splitlines(keepends=True) if ",lora," not in line]
    (folder / "scores.csv").write_text("".join(kept))
    run(folder, "shots=[1]", "seeds=[0]")
    assert (folder / "scores.csv").read_text() == whole


def test_without_samples_where_domains_share_their_classes(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", "shots=[0,1]", "seeds=[0]")
    names = {s.index: s.name for s in RunFolder.read(folder).stream.stages}
    scored = {r["arm"] for r in rows(folder) if names[int(r["stage"])] == "K=0"}
    assert scored == {"classifier", "lora", "uniform", "learned"}


def test_each_data_set_is_held_out_in_turn_and_trained_once(tmp_path: Path) -> None:
    """Task shift over three folders of images: three rounds, three adapters."""
    root = image_sets(tmp_path / "sets")
    folder = tmp_path / "run"
    command = [
        f"run_dir={folder}",
        "experiment=few_shot_task",
        f"benchmark.root={root}",
        "model=embedded",
        *SMALL,
        *FEW_ARMS,
        "shots=[1,all]",
        "draws=1",
        "seeds=[0]",
    ]
    execute(compose_config(command))
    assert len(list((folder / "adapters" / "seed-0").iterdir())) == 3
    stages = RunFolder.read(folder).stream.stages
    assert {(s.evaluated, s.members) for s in stages} == {
        ((0,), (1, 2)),
        ((1,), (0, 2)),
        ((2,), (0, 1)),
    }


def image_sets(root: Path) -> Path:
    """Write three sets of different classes: 2, 3 and 2, four train and two test images each."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for name, classes in (("birds", 2), ("cars", 3), ("fish", 2)):
        for side, count in (("train", 4), ("test", 2)):
            for c in range(classes):
                folder = root / name / side / f"class_{c}"
                folder.mkdir(parents=True)
                for i in range(count):
                    pixels = draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                    Image.fromarray(pixels // 4 + 60 * c).save(folder / f"{i}.png")
    return root


def test_a_stream_of_few_shot_tasks(tmp_path: Path) -> None:
    """Transfer at K of each task from those before it; forgetting of what one merge serves."""
    folder = run(
        tmp_path / "run",
        *("shots=[1]", "draws=1", "seeds=[0]", "references=[last,oracle]"),
        experiment="few_shot_stream",
    )
    run_ = RunFolder.read(folder)
    found = {(r["arm"], int(r["stage"]), int(r["evaluated"])) for r in rows(folder)}
    at_k = {s.index: s.evaluated[0] for s in run_.stream.stages if s.x is not None}
    in_time = [s for s in run_.stream.stages if s.x is None]
    assert sorted(at_k.values()) == [1, 2]
    assert {f for f in found if f[0] == "lora"} == {("lora", s, j) for s, j in at_k.items()}
    merged = {("uniform", s.index, j) for s in in_time for j in s.evaluated}
    assert merged < found
    assert {f for f in found if f[0] == "last"} == {("last", s, j) for _, s, j in merged}
    # The last adapter alone serves its own task as the oracle does.
    scores = {
        (r["arm"], int(r["stage"]), int(r["evaluated"])): float(r["value"])
        for r in rows(folder)
        if r["metric"] == "accuracy"
    }
    for t, stage in enumerate(in_time):
        assert scores["last", stage.index, t] == scores["oracle", stage.index, t]


# What a user may do wrong --------------------------------------------------------------------


def refused(tmp_path: Path, *more: str, experiment: str = "few_shot_shapes") -> str:
    """Return the sentence that a command is refused with; nothing is trained or left."""
    folder = tmp_path / "refused"
    config = compose_config(given(folder, *more, experiment=experiment))
    check_and_execute = [check, execute]
    with pytest.raises(UserError) as caught:  # noqa: PT012
        for step in check_and_execute:
            step(config)
    assert not (folder / "adapters").exists()
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["shots=[1,7]"], r"at most 6, the train samples of class 'star' in 'sketch', but got 7"),
        (["shots=[-1]"], r"whole numbers of at least 0, or all"),
        (["shots=[every]"], r"whole numbers of at least 0, or all"),
        (["shots=[]"], r"Expected shots to be a list"),
        (["shots=[1,1]"], r"named twice in shots"),
        (["draws=0"], r"Expected draws to be a whole number of at least 1"),
        (["benchmark.downstream=painting"], r"Unknown benchmark.downstream 'painting'"),
        (["benchmark.downstream=photo", "benchmark.upstream=[photo,sketch]"], r"remove it there"),
        (["benchmark.styles=[sketch]"], r"at least one upstream experience"),
        (["strategy.head=shared"], r"needs a head of its own .* set strategy\.head=own"),
        (["yardstick=nobody"], r"Unknown yardstick 'nobody'"),
        (["references=[joint]"], r"baseline 'joint' .* leave it out"),
        (["protocol=prefixes", "strategy.head=shared", "shots=[1,2,5,10,20,all]"],
         r"Arm 'classifier' is adapted to support sets, which .*prefixes"),
        (["+arms.plain={method: ties}"], r"Arm 'plain' is scored at no stage"),
        (["+arms.a={method: ties, coefficients: softmax}"], r"Arm 'a' learns .* on a buffer"),
        (["+arms.a={method: ties, adapt: head, members: 3}"], r"members to be at most 2"),
        (["adaptation.grid=[1.0,3.0]", "adaptation.select_on=val"], r"benchmark\.val_fraction"),
        (["adaptation.step=3"], r"adaptation"),
        (["references=[base]"], r"baseline 'base' is scored at no stage"),
        (["+arms.a={method: ties, head: prototypes}"],
         r"Arm 'a': head=prototypes serves all experiences by one head .* give head=refit"),
        (["+arms.a={adapt: head, adaptation: {grid: [1.0, 3.0]}}"], r"grids of one size"),
        (["+arms.a={method: cat, coefficients: best, adapt: head}", "adaptation.warmup_steps=0"],
         r"chosen by the loss of a head that is warmed up"),
        (["protocol=prefixes"], r"shots and draws are for few-shot protocols"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_training(tmp_path: Path, more, said) -> None:
    try:
        sentence = refused(tmp_path, *more)
    except UserError as error:  # of composing
        sentence = str(error)
    assert re.search(said, sentence), sentence


def test_shots_without_a_few_shot_protocol(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shots and draws are for few-shot protocols"):
        check(compose_config([f"run_dir={tmp_path / 'run'}", "shots=[1]"]))


def test_classes_that_are_not_shared(tmp_path: Path) -> None:
    """K = 0 and the average of upstream heads need them."""
    command = [
        f"run_dir={tmp_path / 'run'}",
        "experiment=few_shot_label",
        "benchmark=few_shot_label_shapes",
        "benchmark.options={classes: 6}",
        "benchmark.upstream_tasks=2",
        "model=embedded",
        *SMALL,
        *FEW_ARMS,
    ]
    for more in (["shots=[0]"], ["shots=[1]", "+arms.a={adapt: head, head_start: average}"]):
        with pytest.raises(UserError, match="do not have the same classes"):
            execute(compose_config([*command, *more]))


def test_adapters_of_another_backbone_or_of_other_modules_are_named(one_shot: Path) -> None:
    """As when a folder of adapters was put into the bank by hand."""
    folder = one_shot
    training = folder / "adapters" / "seed-0" / "01-cartoon" / "training.json"
    record = json.loads(training.read_text())
    training.write_text(json.dumps(files.sealed({**record, "backbone": "f00d"})))
    with pytest.raises(UserError, match=r"01-cartoon was trained on another backbone"):
        run(folder, "shots=[1]", "seeds=[0]")
    training.write_text(json.dumps(record))
    config = folder / "config.yaml"
    recorded = yaml.safe_load(config.read_text())
    recorded["identity"]["strategy"]["targets"] = ["fc1", "fc2", "q"]
    del recorded["digest"]
    config.write_text(yaml.safe_dump(recorded))
    with pytest.raises(UserError, match=r"trained in other modules .* lacks '.*fc2'"):
        run(folder, "shots=[1]", "seeds=[0]", "strategy.targets=[q,fc1,fc2]")


def test_unequal_ranks_where_a_method_needs_equal_ones(one_shot: Path) -> None:
    """As when one adapter of the bank was replaced: said before anything is adapted."""
    folder = one_shot
    path = folder / "adapters" / "seed-0" / "01-cartoon"
    adapter = Adapter.load(path)
    wider = {
        m: LoRAFactors(torch.cat([f.A, f.A]), torch.cat([f.B, 0 * f.B], dim=1), f.scaling)
        for m, f in adapter.factors.items()
    }
    replace(adapter, factors=wider).save(path)
    arm = "+arms.in_factors={method: linear, space: factors, adapt: head}"
    with pytest.raises(UserError, match=r"Arm 'in_factors', adapters in .*seed-0: .*rank"):
        run(folder, "shots=[1]", "seeds=[0]", arm)
    run(folder, "shots=[1]", "seeds=[0]")  # exact sums have no need of equal ranks


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    """The whole command line: exit codes, the table, the report, and no traceback."""

    def command(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*warm.python(), "-m", "cl_lora", "run", *given(tmp_path / "run"), *more],
            env={**os.environ, "COLUMNS": "80"},
            capture_output=True,
            text=True,
            check=False,
        )

    done = command("shots=[1,all]", "seeds=[0]", "report=true")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "K=1" in done.stdout
    assert "learned" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80 + len(str(tmp_path))
    assert (tmp_path / "run" / "report.html").exists()
    wrong = command("shots=[99]", "seeds=[0]")
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr
    assert wrong.stderr.strip().splitlines()[-1].startswith("cl-lora: Expected shots")
