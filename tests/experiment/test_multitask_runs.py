"""Whole runs of unlike tasks on shapes at 16 px; scores are made again in float64 from files."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm
import yaml
from task_bench import (
    dense_backbone,
    loss_by_hand,
    outputs_of,
    score_by_hand,
    with_noise_as_test,
)
from tiny_run import overrides
from whole_runs import content, rows, stamps

from cl_lora.adapters import Adapter
from cl_lora.adapters.injection import LoRAConfig
from cl_lora.benchmarks import Benchmark, make_benchmark
from cl_lora.configuration.compose import compose_config
from cl_lora.evaluation.continual import backward_transfer, forgetting, forward_transfer
from cl_lora.evaluation.scores import ScoreTable
from cl_lora.experiment import pipeline
from cl_lora.experiment.pipeline import check, execute
from cl_lora.models.backbones import Backbone, ModelConfig
from cl_lora.models.prepare import prepare_backbone
from cl_lora.run_folder.reader import RunFolder
from cl_lora.support.errors import UserError

pytestmark = pytest.mark.slow

TASKS = ("object", "area", "orientation", "outline")
SMALL = (
    *("model.img_size=16", "precision=fp32", "device=cpu", "report=false", "spc=1"),
    *("strategy.epochs=3", "strategy.patience=2", "strategy.rank=2", "strategy.batch_size=8"),
    *("strategy.head_hidden=8", "~benchmark.tasks.style", "benchmark.val_fraction=0.25"),
    *("benchmark.samples_per_class=4", "benchmark.test_samples_per_class=2", "arms=none"),
    "subsets.triples_with=null",
    *(f"benchmark.tasks.{t}.classes=3" for t in TASKS),
    *(f"benchmark.tasks.{t}.styles=[photo,sketch]" for t in TASKS),
)
ARMS = (
    "+arms.cat={method: cat, coefficients: 1}",
    "+arms.mean={method: task_arithmetic}",
    "+arms.balanced={method: norm_balanced, coefficients: 1}",
    "+arms.grid={method: cat, coefficients: {name: grid, values: [0.5, 1.0]}}",
    "+arms.learned={method: cat, coefficients: {name: adaptive, b_max: 1.5, steps: 2}}",
    "+arms.refit={method: cat, coefficients: 1, head: refit}",
)
ROWS = "single,head_only,trivial,single_new_head,other_seed,single_x0.5,single_x1.5"
PRIMARY = ("accuracy", "rmse", "angle_error", "nme")


def given(folder: Path, *more: str, experiment: str = "multitask_shapes") -> list[str]:
    return [f"run_dir={folder}", f"experiment={experiment}", *SMALL, *more]


def run(folder: Path, *more: str, experiment: str = "multitask_shapes") -> Path:
    return execute(compose_config(given(folder, *more, experiment=experiment)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds, all pairs, every row and arm."""
    folder = tmp_path_factory.mktemp("multitask") / "run"
    return run(folder, *ARMS, f"references=[{ROWS}]", "seeds=[0,1]")


@pytest.fixture(scope="module")
def benchmark(finished: Path) -> Benchmark:
    """The data of the run, made again from what it recorded."""
    return make_benchmark(yaml.safe_load((finished / "config.yaml").read_text())["benchmark"], 16)


@pytest.fixture(scope="module")
def bare() -> Backbone:
    """The backbone of the run with q, k and v apart, as adapters name them."""
    lora = LoRAConfig(rank=2, targets=("k", "v"))
    return prepare_backbone(ModelConfig("embedded", img_size=16), lora, torch.device("cpu"), False)[
        0
    ]


def adapters(folder: Path, seed: int) -> list[Adapter]:
    return [Adapter.load(p) for p in sorted((folder / "adapters" / f"seed-{seed}").iterdir())]


class Scores:
    """What stands in scores.csv, by (seed, row, stage's name, experience, metric)."""

    def __init__(self, folder: Path) -> None:
        names = {s.index: s.name for s in RunFolder.read(folder).stream.stages}
        self.values = {
            (int(r["seed"]), r["arm"], names[int(r["stage"])], int(r["evaluated"]), r["metric"]):
            float(r["value"])
            for r in rows(folder)
        }  # fmt: skip

    def __call__(self, *key: Any) -> float:
        return self.values[key]


@pytest.fixture(scope="module")
def scores(finished: Path) -> Scores:
    return Scores(finished)


def by_hand(bare: Backbone, benchmark: Benchmark, bank: list[Adapter], weights: dict, j: int):
    own = dense_backbone(bare, [bank[m] for m in weights], weights.values())
    e = benchmark.experiences[j]
    return score_by_hand(e.task, outputs_of(own, bank[j].head, e, e.test), e.targets[e.test])


# What is scored ------------------------------------------------------------------------------


def test_all_pairs_of_four_tasks_cost_four_trainings(finished: Path) -> None:
    for seed in (0, 1):
        names = [p.name for p in sorted((finished / "adapters" / f"seed-{seed}").iterdir())]
        assert names == [f"{t:02}-{name}" for t, name in enumerate(TASKS)]
    stages = RunFolder.read(finished).stream.stages
    assert [s.group for s in stages] == ["alone"] * 4 + ["pairs"] * 6
    assert [s.name for s in stages[4:]] == [f"{a} + {b}" for a, b in combinations(TASKS, 2)]


def test_rows_are_scored_alone_and_arms_in_pairs(finished: Path) -> None:
    found = {(r["seed"], r["arm"], r["stage"], r["evaluated"]) for r in rows(finished)}
    stages = RunFolder.read(finished).stream.stages
    arms = [a.split("=")[0].removeprefix("+arms.") for a in ARMS]
    assert found == {
        (str(seed), name, str(stage.index), str(j))
        for seed in (0, 1)
        for names, group in ((ROWS.split(","), "alone"), (arms, "pairs"))
        for name in names
        for stage in stages
        if stage.group == group
        for j in stage.evaluated
    }


def test_what_is_recorded_of_tasks_and_rows(finished: Path, benchmark: Benchmark) -> None:
    run_ = RunFolder.read(finished)
    for j, (task, name) in enumerate(zip(run_.stream.tasks, PRIMARY, strict=True)):
        assert [m.name for m in task.metrics][:2] == ["relative", name]
        scaling = benchmark.experiences[j].task.scaling
        assert (task.scaling is None) == (scaling is None) == (j in (0, 2))
    train = benchmark.experiences[1].targets[benchmark.experiences[1].train].astype(float)
    assert run_.stream.tasks[1].scaling["mean"] == pytest.approx((train.mean(),))
    assert run_.stream.tasks[1].scaling["deviation"] == pytest.approx((train.std(),))
    roles = yaml.safe_load((finished / "config.yaml").read_text())["roles"]
    assert {n: r for n, r in roles.items() if r != "control"} == {
        n: n for n in ("single", "head_only", "trivial")
    }


@pytest.mark.parametrize(
    ("row", "factor"), [("single", 1.0), ("single_x0.5", 0.5), ("single_x1.5", 1.5)]
)
def test_single_tasks_by_hand(finished, benchmark, bare, scores, row, factor) -> None:
    for seed in (0, 1):
        bank = adapters(finished, seed)
        for j, name in enumerate(TASKS):
            expected = by_hand(bare, benchmark, bank, {j: factor}, j)
            assert scores(seed, row, name, j, PRIMARY[j]) == pytest.approx(expected, rel=1e-4)


def test_another_seed_is_the_sum_of_both_under_the_own_head(
    finished, benchmark, bare, scores
) -> None:
    for seed in (0, 1):
        bank, other = adapters(finished, seed), adapters(finished, 1 - seed)
        for j, name in enumerate(TASKS):
            own = dense_backbone(bare, [bank[j], other[j]], [1.0, 1.0])
            e = benchmark.experiences[j]
            outputs = outputs_of(own, bank[j].head, e, e.test)
            expected = score_by_hand(e.task, outputs, e.targets[e.test])
            assert scores(seed, "other_seed", name, j, PRIMARY[j]) == pytest.approx(
                expected, rel=1e-4
            )


def test_trivial_rows_by_hand(benchmark, scores) -> None:
    for j, (name, e) in enumerate(zip(TASKS, benchmark.experiences, strict=True)):
        train, test = (e.targets[part].astype(np.float64) for part in (e.train, e.test))
        if j == 0:
            said = np.eye(3)[np.bincount(train.astype(int)).argmax()]
        elif j == 2:
            turn = train * 2 * np.pi / e.task.period
            said = np.array([np.cos(turn).mean(), np.sin(turn).mean()])
        else:
            said = np.zeros(train[0].size)  # the mean, standardised
        outputs = np.tile(said, (len(test), 1))
        expected = score_by_hand(e.task, outputs, test if j else test.astype(int))
        for seed in (0, 1):
            assert scores(seed, "trivial", name, j, PRIMARY[j]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("arm", "weight"), [("cat", 1.0), ("mean", 0.5)])
def test_pairs_by_hand(finished, benchmark, bare, scores, arm, weight) -> None:
    bank = adapters(finished, 0)
    for pair in combinations(range(4), 2):
        for j in pair:
            expected = by_hand(bare, benchmark, bank, dict.fromkeys(pair, weight), j)
            name = " + ".join(TASKS[m] for m in pair)
            assert scores(0, arm, name, j, PRIMARY[j]) == pytest.approx(expected, rel=1e-4)


def test_balanced_and_learned_pairs_by_hand(finished, benchmark, bare, scores) -> None:
    bank = adapters(finished, 0)
    norms = [
        np.sqrt(sum(float(f.delta().double().square().sum()) for f in a.factors.values()))
        for a in bank
    ]
    recorded = RunFolder.read(finished).coefficients
    stages = RunFolder.read(finished).stream.stages
    for stage in stages[4:]:
        mean = np.mean([norms[m] for m in stage.members])
        for j in stage.members:
            expected = by_hand(
                bare, benchmark, bank, {m: mean / norms[m] for m in stage.members}, j
            )
            found = scores(0, "balanced", stage.name, j, PRIMARY[j])
            assert found == pytest.approx(expected, rel=1e-4)
            for arm in ("grid", "learned"):
                of = recorded[
                    (recorded.seed == 0) & (recorded.arm == arm) & (recorded.stage == stage.index)
                ]
                weights = dict(zip(of.adapter, of.value, strict=True))
                assert set(weights) == set(stage.members)
                expected = by_hand(bare, benchmark, bank, weights, j)
                found = scores(0, arm, stage.name, j, PRIMARY[j])
                assert found == pytest.approx(expected, rel=1e-4)


def test_share_of_the_single_task_from_the_other_rows(scores) -> None:
    """For the same seed and task; for errors as for scores worse is below 1."""
    for (seed, row, stage, j, metric), found in scores.values.items():
        if metric != "relative":
            continue
        value = scores(seed, row, stage, j, PRIMARY[j])
        single = scores(seed, "single", TASKS[j], j, PRIMARY[j])
        d = 1 if j == 0 else -1
        assert found == pytest.approx(1 + d * (value - single) / abs(single), rel=1e-9)
        assert row != "single" or found == 1.0


def test_validation_losses_are_recorded_and_the_best_is_kept(finished, benchmark, bare) -> None:
    for j, path in enumerate(sorted((finished / "adapters" / "seed-0").iterdir())):
        record = json.loads((path / "training.json").read_text())
        losses = [epoch["val_loss"] for epoch in record["loss"]]
        best = int(np.argmin(losses))
        assert record["best_epoch"] == best + 1
        assert len(losses) == min(3, best + 1 + 2)
        own = dense_backbone(bare, [Adapter.load(path)], [1.0])
        e = benchmark.experiences[j]
        outputs = torch.from_numpy(outputs_of(own, Adapter.load(path).head, e, e.val))
        found = float(loss_by_hand(e.task, outputs, e.targets[e.val]))
        assert found == pytest.approx(losses[best], rel=1e-4)


# Going on ------------------------------------------------------------------------------------


def test_the_same_command_again_does_nothing(finished: Path) -> None:
    before, when = content(finished), stamps(finished)
    run(finished, *ARMS, f"references=[{ROWS}]", "seeds=[0,1]")
    assert content(finished) == before
    assert stamps(finished) == when


def test_further_subsets_train_nothing_and_keep_the_numbers(tmp_path: Path) -> None:
    arm = ARMS[0]
    folder = run(tmp_path / "run", arm, "references=[single]")
    first, when, names = rows(folder), stamps(folder), RunFolder.read(folder).stream.stages
    run(folder, arm, "references=[single]", "subsets.triples_with=[area,object]")
    run(folder, arm, "references=[single]", "subsets.pairs=false", "subsets.all_subsets=2")
    run_ = RunFolder.read(folder)
    assert stamps(folder) == when
    assert run_.stream.stages[: len(names)] == names
    assert [s.name for s in run_.stream.stages[len(names) :]] == [
        "object + area + orientation",
        "object + area + outline",
    ]
    after = rows(folder)
    assert all(row in after for row in first)
    assert {int(r["stage"]) for r in after if r not in first} == {10, 11}
    # A later arm is scored at the triples too, and by the protocol of subsets only.
    run(folder, ARMS[1], "references=[single]")
    assert {int(r["stage"]) for r in rows(folder) if r["arm"] == "mean"} == set(range(4, 12))


def test_what_is_lost_of_a_bank_is_trained_again_the_same(tmp_path: Path, finished: Path) -> None:
    """From the middle of unlike tasks: the head of the one before does not fit the next."""
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    for name in ("02-orientation", "03-outline"):
        shutil.rmtree(folder / "adapters" / "seed-0" / name)
    run(folder, *ARMS, f"references=[{ROWS}]", "seeds=[0,1]")
    one, other = content(finished), content(folder)
    names = [n for n in one if not n.endswith("training.json")]
    assert {n: other[n] for n in names} == {n: one[n] for n in names}


def test_two_runs_with_one_seed_are_the_same_bytes(tmp_path: Path, finished: Path) -> None:
    again = run(tmp_path / "again", *ARMS, f"references=[{ROWS}]", "seeds=[0,1]")
    names = [name for name in content(finished) if not name.endswith("training.json")]
    assert len(names) > 20
    assert {n: content(again)[n] for n in names} == {n: content(finished)[n] for n in names}


def test_noise_as_test_data_changes_nothing_but_the_scores(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapters, heads and every learned coefficient of a whole run."""
    made = pipeline.make_benchmark
    monkeypatch.setattr(pipeline, "make_benchmark", lambda *g: with_noise_as_test(made(*g)))
    noisy = run(tmp_path / "noisy", *ARMS, f"references=[{ROWS}]", "seeds=[0,1]")
    one, other = content(finished), content(noisy)
    learned = [n for n in one if n.endswith((".safetensors", "coefficients.csv"))]
    learned += [n for n in one if n.startswith("buffers/")]
    assert len(learned) > 2 * 4 * 2
    assert {n: other[n] for n in learned} == {n: one[n] for n in learned}
    assert other["scores.csv"] != one["scores.csv"]


# One after another ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stream") / "run"
    rows_ = "references=[last,single,head_only,trivial]"
    return run(folder, *ARMS[:2], ARMS[-1], rows_, experiment="multitask_stream_shapes")


def raw_matrix(folder: Path, arm: str) -> np.ndarray:
    """Return the primary metric of every experience at every stage (T, T), oriented upwards."""
    R = np.full((4, 4), np.nan)
    for r in rows(folder):
        t, j = int(r["stage"]), int(r["evaluated"])
        if r["arm"] == arm and r["metric"] == PRIMARY[j] and t >= 0:
            R[t, j] = float(r["value"]) * (1 if j == 0 else -1)
    return R


def test_tasks_one_after_another_are_scored_at_every_stage(stream: Path) -> None:
    stages = RunFolder.read(stream).stream.stages
    assert [s.index for s in stages] == [-1, 0, 1, 2, 3]
    for arm in ("cat", "mean", "refit", "last"):
        found = {(int(r["stage"]), int(r["evaluated"])) for r in rows(stream) if r["arm"] == arm}
        assert found == {(t, j) for t in range(-1, 4) for j in range(4)}
    for row in ("single", "head_only", "trivial"):
        assert {int(r["stage"]) for r in rows(stream) if r["arm"] == row} == {3}


def test_merges_of_all_so_far_under_the_own_and_the_initial_heads(stream, benchmark, bare) -> None:
    scores = Scores(stream)
    bank = adapters(stream, 0)
    config = yaml.safe_load((stream / "config.yaml").read_text())["identity"]["strategy"]
    from cl_lora.models.heads import new_head

    for t, name in enumerate(TASKS):
        for j, e in enumerate(benchmark.experiences):
            members = range(t + 1)
            own = dense_backbone(bare, bank[: t + 1], [1.0 for _ in members])
            initial = new_head("mlp", bare.features, e.task.outputs, 0, config["head_hidden"])
            head = bank[j].head if j <= t else initial.state_dict()
            outputs = outputs_of(own, head, e, e.test)
            expected = score_by_hand(e.task, outputs, e.targets[e.test])
            assert scores(0, "cat", name, j, PRIMARY[j]) == pytest.approx(expected, rel=1e-4)
            if j > t:  # there is no train part yet to make a new head of
                assert scores(0, "refit", name, j, PRIMARY[j]) == pytest.approx(expected, rel=1e-4)


def test_forgetting_of_the_share_is_that_of_the_metric_over_the_single_score(stream) -> None:
    table = ScoreTable.read(stream / "scores.csv")
    scores = Scores(stream)
    single = np.array([scores(0, "single", "outline", j, PRIMARY[j]) for j in range(4)])
    for arm in ("cat", "mean", "last"):
        R = raw_matrix(stream, arm) / np.abs(single)
        best = np.nanmax(R[:-1], axis=0)[:3]
        lost = np.mean(best - R[-1, :3])
        back = np.mean(R[-1, :3] - np.diag(R)[:3])
        matrix = table.matrix(0, arm, "relative")
        assert forgetting(matrix.values) == pytest.approx(lost, rel=1e-9)
        assert backward_transfer(matrix.values) == pytest.approx(back, rel=1e-9)
        untrained = np.array(
            [scores(0, arm, "untrained", j, PRIMARY[j]) * (1 if j == 0 else -1) for j in range(4)]
        ) / np.abs(single)
        ahead = np.mean([R[j - 1, j] - untrained[j] for j in range(1, 4)])
        assert forward_transfer(matrix.values, matrix.baseline) == pytest.approx(ahead, rel=1e-9)


def test_the_bank_is_that_of_the_other_protocol(stream: Path, finished: Path) -> None:
    """Adapters know nothing of what is merged: every byte of them is the same."""
    one, other = content(stream), content(finished)
    names = [n for n in one if n.endswith(".safetensors")]
    assert len(names) == 8
    assert all(one[n] == other[n] for n in names)


# What a user may do wrong --------------------------------------------------------------------


def refused(folder: Path, *more: str, experiment: str = "multitask_shapes") -> str:
    """Return the sentence that a command is refused with; nothing is trained or left."""
    config = compose_config(given(folder, *more, experiment=experiment))
    with pytest.raises(UserError) as caught:
        execute(config)
    assert not (folder / "adapters").exists()
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["strategy.head=shared", "strategy.head_shape=linear"],
         r"protocol 'subsets' needs a head of its own .* set strategy\.head=own"),
        (["protocol=prefixes", "subsets.all_subsets=3"], r"subsets says what the protocol subsets "
         r"merges but protocol=prefixes; leave it out, or set protocol=subsets"),
        (["references=[other_seed]"], r"'other_seed' needs the adapters of a second seed but "
         r"seeds=\[0\]; give two, like seeds=\[0,1\]"),
        (["references=[joint]"], r"baseline 'joint' trains one head on all experiences"),
        (["references=[sequential]"], r"'sequential' trains one head .* different tasks: object, "),
        (["+arms.a={method: cat, head: prototypes}"],
         r"Arm 'a': head=prototypes serves all experiences by one head .* give head=refit"),
        (["+arms.a={method: cat, tune_head: true, coefficients: adaptive}"],
         r"Arm 'a': tune_head cannot go with head=own"),
        (["benchmark.val_fraction=0"], r"validation part but that of 'object' is empty; set "
         r"benchmark\.val_fraction=0\.1, or strategy\.patience=null"),
        (["strategy.patience=0"], r"strategy\.patience to be at least 1 but got 0"),
        (["strategy.patience=soon"], r"strategy\.patience"),
        (["strategy.head_shape=mpl"], r"Unknown strategy\.head_shape 'mpl': did you mean 'mlp'"),
        (["strategy.head_hidden=0"], r"strategy\.head_hidden to be at least 1"),
        (["subsets.triples_with=[object,star]"], r"Unknown subsets\.triples_with 'star'"),
        (["subsets.triples_with=[object]"], r"subsets\.triples_with to be two different names"),
        (["subsets.all_subsets=1"], r"subsets\.all_subsets .* at least 2, but got 1"),
        (["subsets.pairs=false", "subsets.triples_with=null"], r"subsets merges nothing"),
        (["subsets.pair=true"], r"pair"),
        (["spc=40"], r"samples_per_class to be at most"),
        (["+arms.a={method: cat, adapt: lora}"],
         r"Arm 'a' is adapted to support sets, which the protocol 'subsets' does not draw"),
        (["+arms.a={method: norm_balanced, density: 0.5}"], r"Arm 'a': .*density"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_training(tmp_path: Path, more, said) -> None:
    arms = () if any("arms.a" in o for o in more) else (ARMS[3],)
    folder = tmp_path / "refused"
    try:
        sentence = refused(folder, *arms, *more)
    except UserError as error:  # of composing
        sentence = str(error)
    assert re.search(said, sentence), sentence


def test_unlike_tasks_need_heads_of_their_own_under_prefixes_too(tmp_path: Path) -> None:
    more = ("strategy.head=shared", "strategy.head_shape=linear", "references=[]")
    sentence = refused(tmp_path / "run", *more, experiment="multitask_stream_shapes")
    assert re.search(
        r"experiences that share one task, as they share a head, but 'multitask_shapes' has "
        r"several: object, area, orientation, outline; set strategy\.head=own",
        sentence,
    )


def test_class_means_need_classes(tmp_path: Path) -> None:
    one = [f"~benchmark.tasks.{t}" for t in TASKS if t != "area"]
    small = [o for o in SMALL if not any(f".{t}." in o for t in TASKS if t != "area")]
    more = ("strategy.head=prototypes", "strategy.head_shape=linear", "references=[]", *one)
    config = ["experiment=multitask_stream_shapes", f"run_dir={tmp_path}/run", *small, *more]
    said = r"head policy 'prototypes' needs classes but task 'area' .* is of kind 'scalar'; choose"
    with pytest.raises(UserError, match=said):
        execute(compose_config(config))


def test_subsets_are_for_the_protocol_of_that_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave it out, or set protocol=subsets"):
        check(compose_config([f"run_dir={tmp_path}", "subsets.all_subsets=3"]))


def test_few_shot_heads_are_linear(tmp_path: Path) -> None:
    more = ("experiment=few_shot_shapes", "strategy.head_shape=mlp")
    with pytest.raises(UserError, match=r"trains linear heads .* set strategy\.head_shape=linear"):
        check(compose_config([f"run_dir={tmp_path}", *more]))


def test_inputs_of_one_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = pipeline.make_benchmark

    def unequal(*given: Any) -> Benchmark:
        from dataclasses import replace

        benchmark = made(*given)
        first, *rest = benchmark.experiences
        smaller = replace(first, inputs=first.inputs[:, :8, :8])
        return replace(benchmark, experiences=(smaller, *rest))

    monkeypatch.setattr(pipeline, "make_benchmark", unequal)
    assert re.search(
        r"share a backbone but the inputs of 'object' are \(8, 8, 3\) and those of '\w+' "
        r"\(16, 16, 3\); give them one size",
        refused(tmp_path / "run", ARMS[0]),
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ("references=[other_seed]",),
            "cl-lora: The baseline 'other_seed' needs the adapters",
        ),
        (("benchmark.val_fraction=0",), "cl-lora: strategy.patience stops training by the loss on"),
        (("subsets.all_subsets=1",), "cl-lora: Expected subsets.all_subsets to be the largest"),
    ],
)
def test_on_the_command_line_one_sentence_and_exit_code_2(tmp_path: Path, more, said) -> None:
    done = subprocess.run(
        [*warm.python(), "-m", "cl_lora", "run", *given(tmp_path / "run", ARMS[0], *more)],
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith(said)
    assert not (tmp_path / "run" / "adapters").exists()


def test_relations_of_every_pair_and_facts_of_every_adapter_are_recorded(finished: Path) -> None:
    found = RunFolder.read(finished)
    pairs = list(combinations(range(4), 2))
    relations = found.relations.set_index(["seed", "measure", "first", "second"])["value"]
    for seed in (0, 1):
        bank = adapters(finished, seed)
        whole = [torch.cat([f.delta().double().ravel() for f in a.factors.values()]) for a in bank]
        for a, b in pairs:
            cosine = torch.nn.functional.cosine_similarity(whole[a], whole[b], dim=0)
            assert relations[seed, "cosine", a, b] == pytest.approx(float(cosine), abs=1e-6)
            assert 0 <= relations[seed, "subspace", a, b] <= 1
            assert 0 <= relations[seed, "cka", a, b] <= 1 + 1e-9
        facts = found.adapter_facts.query("quantity == 'norm' and seed == @seed")["value"]
        np.testing.assert_allclose(facts, [float(w.norm()) for w in whole], rtol=1e-5)
    assert len(relations) == 2 * 3 * len(pairs)


def test_a_lost_file_of_relations_is_made_again_the_same(tmp_path: Path, finished: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    before = (folder / "relations.csv").read_bytes(), (folder / "scores.csv").read_bytes()
    (folder / "relations.csv").unlink()
    run(folder, *ARMS, f"references=[{ROWS}]", "seeds=[0,1]")
    assert ((folder / "relations.csv").read_bytes(), (folder / "scores.csv").read_bytes()) == before


def test_a_run_in_time_compares_no_adapters(stream: Path) -> None:
    assert not (stream / "relations.csv").exists()
    assert RunFolder.read(stream).relations.empty


# Stopping early where tasks share a head -------------------------------------------------------


def test_domains_stop_early_by_the_validation_samples_of_what_each_adapter_learns(
    tmp_path: Path,
) -> None:
    """The joint adapter by those of all domains together."""
    folder = run_domains(
        tmp_path / "run", "benchmark.val_fraction=0.34", "strategy.patience=1", "strategy.epochs=3"
    )
    config = yaml.safe_load((folder / "config.yaml").read_text())
    data = make_benchmark(config["benchmark"], 16)
    bare = prepare_backbone(
        ModelConfig("embedded", img_size=16),
        LoRAConfig(rank=2, targets=tuple(config["identity"]["strategy"]["targets"])),
        torch.device("cpu"),
        False,
    )[0]
    paths = sorted((folder / "adapters").glob("seed-0*/*"))
    assert len(paths) == 3 + 3 + 1
    for path in paths:
        record = json.loads((path / "training.json").read_text())
        losses = [epoch["val_loss"] for epoch in record["loss"]]
        assert record["best_epoch"] == int(np.argmin(losses)) + 1
        adapter = Adapter.load(path)
        own = dense_backbone(bare, [adapter], [1.0])
        joint = "joint" in path.parent.name
        learned = data.experiences if joint else data.experiences[int(path.name[:2]) :][:1]
        each = [(outputs_of(own, adapter.head, e, e.val), e.targets[e.val]) for e in learned]
        outputs, targets = (np.concatenate(column) for column in zip(*each, strict=True))
        assert len(targets) == 6 * len(learned)
        found = float(loss_by_hand(data.tasks[0], torch.from_numpy(outputs), targets))
        assert found == pytest.approx(min(losses), rel=1e-4), path


def run_domains(folder: Path, *more: str) -> Path:
    small = ("model.img_size=16", "precision=fp32", "device=cpu", "references=[sequential,joint]")
    return execute(compose_config(overrides(folder, *small, *more)))


def test_a_patience_needs_a_validation_part_in_domains_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"that of 'photo' is empty; set benchmark\.val_fraction"):
        run_domains(tmp_path / "run", "strategy.patience=1")
    assert not (tmp_path / "run" / "adapters").exists()
