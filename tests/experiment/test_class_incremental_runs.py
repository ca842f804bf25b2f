"""Whole class-incremental runs on shapes at 16 px; scores are made again in float64 from files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from task_bench import dense_backbone, outputs_of
from tiny_run import TRAINING
from whole_runs import SMALL, content, rows

from cl_lora.adapters import Adapter
from cl_lora.adapters.injection import LoRAConfig
from cl_lora.benchmarks import Benchmark, draw_buffer, make_benchmark
from cl_lora.configuration.compose import compose_config
from cl_lora.evaluation.continual import (
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
)
from cl_lora.experiment import pipeline
from cl_lora.experiment.pipeline import execute
from cl_lora.experiment.stages import Outline, get_protocol
from cl_lora.models.backbones import Backbone, ModelConfig
from cl_lora.models.images import ImageBackbone
from cl_lora.models.prepare import prepare_backbone
from cl_lora.reporting.tables.of_run import run_table
from cl_lora.run_folder.reader import RunFolder
from cl_lora.support.errors import UserError

BENCHMARK = (
    "benchmark=class_incremental_shapes",
    "benchmark.options={classes: 6, style: sketch, first_class: 0}",
    "benchmark.groups=3",
    "benchmark.samples_per_class=6",
    "benchmark.test_samples_per_class=5",
)
ARMS = (
    "arms=none",
    "+arms.half={method: task_arithmetic, coefficients: 0.5}",
    "+arms.means={method: task_arithmetic, coefficients: 0.5, head: prototypes, spc: 2}",
    "+arms.grid={method: cat, spc: 2, coefficients: {name: grid, values: [0.2, 1.0]}}",
    "+arms.learned={method: task_arithmetic, spc: 2, tune_head: true, "
    "coefficients: {name: adaptive, b_max: 1, steps: 2}}",
)


def configured(folder: Path, *more: str, arms: tuple[str, ...] = ARMS) -> dict[str, Any]:
    """The configuration of a tiny run: six classes, two by two."""
    given = (f"run_dir={folder}", "report=false", *BENCHMARK, *SMALL, *TRAINING, *arms, *more)
    return compose_config(list(given))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run under one shared head; no test changes it."""
    return execute(configured(tmp_path_factory.mktemp("runs") / "shared", "strategy.epochs=3"))


@pytest.fixture(scope="module")
def data(finished: Path) -> Benchmark:
    """Its benchmark, made again."""
    return make_benchmark(configured(finished)["benchmark"], 16)


@pytest.fixture(scope="module")
def bare() -> Backbone:
    """Its backbone, made again."""
    model = ModelConfig("embedded", img_size=16)
    lora = LoRAConfig(targets=("qkv", "fc1", "fc2"))
    return prepare_backbone(model, lora, torch.device("cpu"), False)[0]


def adapters_in(folder: Path, bank: str = "seed-0") -> list[Adapter]:
    """The adapters of a bank, from disk."""
    return [Adapter.load(path) for path in sorted((folder / "adapters" / bank).iterdir())]


def accuracies(folder: Path, arm: str) -> dict[tuple[int, int], float]:
    """(stage, evaluated) -> accuracy."""
    return {
        (int(r["stage"]), int(r["evaluated"])): float(r["value"])
        for r in rows(folder)
        if r["arm"] == arm and r["metric"] == "accuracy"
    }


def by_hand(outputs: np.ndarray, targets: np.ndarray, known: set[int]) -> float:
    """Accuracy where the answer is the largest of the known labels' outputs."""
    labels = np.array(sorted(known))
    return float((labels[outputs[:, labels].argmax(1)] == targets).mean())


def seen(data: Benchmark, upto: int) -> set[int]:
    """The labels of the experiences up to one."""
    return {label for e in data.experiences[: upto + 1] for label in e.labels or ()}


def test_only_what_was_seen_is_scored_and_nothing_before_training(finished: Path) -> None:
    triangle = {(t, j) for t in range(3) for j in range(t + 1)}
    arms = {r["arm"] for r in rows(finished)}
    assert arms == {
        *("half", "means", "grid", "learned"),
        *("base", "last", "oracle", "sequential", "joint"),
    }
    for arm in arms - {"joint"}:
        assert accuracies(finished, arm).keys() == triangle
    assert accuracies(finished, "joint").keys() == {(2, j) for j in range(3)}
    record = json.loads((finished / "stream.json").read_text())
    assert [e["labels"] for e in record["experiences"]] == [[0, 1], [2, 3], [4, 5]]
    assert [s["index"] for s in record["stages"]] == [0, 1, 2]
    assert [s["evaluated"] for s in record["stages"]] == [[0], [0, 1], [0, 1, 2]]


def test_scores_are_among_the_labels_seen_and_equal_those_made_by_hand(
    finished: Path, data: Benchmark, bare: Backbone
) -> None:
    fresh, sequential = adapters_in(finished), adapters_in(finished, "seed-0-sequential")
    checked = 0
    for t in range(3):
        known, head = seen(data, t), dict(fresh[t].head)
        served = {
            "half": (dense_backbone(bare, fresh[: t + 1], [0.5] * (t + 1)), head, known),
            "base": (dense_backbone(bare, [], []), head, known),
            "last": (dense_backbone(bare, [fresh[t]], [1.0]), head, known),
            "sequential": (
                dense_backbone(bare, [sequential[t]], [1.0]),
                dict(sequential[t].head),
                known,
            ),
        }
        for j in range(t + 1):
            e = data.experiences[j]
            own = dense_backbone(bare, [fresh[j]], [1.0])
            told = {"oracle": (own, dict(fresh[j].head), set(e.labels or ()))}
            for name, (backbone, state, labels) in {**served, **told}.items():
                value = by_hand(outputs_of(backbone, state, e, e.test), e.targets[e.test], labels)
                assert accuracies(finished, name)[t, j] == pytest.approx(value, abs=1e-9), name
                checked += 1
    assert checked == 5 * 6
    (joint,) = adapters_in(finished, "seed-0-joint")
    for j, e in enumerate(data.experiences):
        outputs = outputs_of(dense_backbone(bare, [joint], [1.0]), dict(joint.head), e, e.test)
        value = by_hand(outputs, e.targets[e.test], seen(data, 2))
        assert accuracies(finished, "joint")[2, j] == pytest.approx(value, abs=1e-9)


def test_class_means_are_those_of_the_balanced_buffer(
    finished: Path, data: Benchmark, bare: Backbone
) -> None:
    fresh, buffers = adapters_in(finished), draw_buffer(data, 2, seed=0)
    images, targets = data.experiences[0].inputs, data.experiences[0].targets

    def features(own: Backbone, indices: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            inputs = ImageBackbone.encode(images[indices]).double()
            found: np.ndarray = own.network(own.normalise(inputs)).numpy()
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    for t in range(3):
        own = dense_backbone(bare, fresh[: t + 1], [0.5] * (t + 1))
        drawn = np.concatenate(buffers[: t + 1])
        known = sorted(seen(data, t))
        assert np.bincount(targets[drawn]).tolist() == [2] * len(known)
        of_buffer = features(own, drawn)
        means = np.stack([of_buffer[targets[drawn] == c].mean(0) for c in known])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        for j in range(t + 1):
            test = data.experiences[j].test
            said = np.array(known)[(features(own, test) @ means.T).argmax(1)]
            value = float((said == targets[test]).mean())
            assert accuracies(finished, "means")[t, j] == pytest.approx(value, abs=1e-9)


def test_the_head_learns_the_labels_seen_so_far_and_no_others(finished: Path) -> None:
    for bank in ("seed-0", "seed-0-sequential"):
        heads = [adapter.head for adapter in adapters_in(finished, bank)]
        for t in (0, 1):
            begin, end = heads[t], heads[t + 1]
            # Rows of labels to come have no gradient and only decay: their direction stays.
            to_come = slice(2 * (t + 2), 6)
            assert (begin["bias"][2 * (t + 1) :] == 0).all()
            cosine = torch.nn.functional.cosine_similarity(
                begin["weight"][to_come], end["weight"][to_come], dim=1
            )
            assert (cosine > 1 - 1e-6).all()
            # Those seen before are trained on, as what the new samples are not.
            assert (end["bias"][: 2 * (t + 1)] < begin["bias"][: 2 * (t + 1)]).all()


def test_measures_by_hand(finished: Path) -> None:
    run = RunFolder.read(finished)
    for arm in ("half", "learned", "sequential"):
        at = accuracies(finished, arm)
        incremental = (
            at[0, 0] + (at[1, 0] + at[1, 1]) / 2 + (at[2, 0] + at[2, 1] + at[2, 2]) / 3
        ) / 3
        lost = (max(at[0, 0], at[1, 0]) - at[2, 0] + at[1, 1] - at[2, 1]) / 2
        back = (at[2, 0] - at[0, 0] + at[2, 1] - at[1, 1]) / 2
        matrix = run.scores.matrix(0, arm, "accuracy", run.stream.shape("accuracy")).values
        assert np.isnan(matrix[np.triu_indices(3, 1)]).all()
        assert average_incremental_accuracy(matrix) == pytest.approx(incremental)
        assert forgetting(matrix) == pytest.approx(lost)
        assert backward_transfer(matrix) == pytest.approx(back)
        frame = run_table(run).frame().set_index("arm")
        assert frame.loc[arm, "average_incremental"] == pytest.approx(incremental)
        assert frame.loc[arm, "average"] == pytest.approx(sum(at[2, j] for j in range(3)) / 3)
    assert not any("forward_transfer" in column for column in run_table(run).frame().columns)
    assert run_table(run).title.startswith("Accuracy in % after the last group of classes")


def test_no_test_sample_is_used_to_choose(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = pipeline.make_benchmark

    def with_noise(*given: Any) -> Benchmark:
        benchmark = make(*given)
        first = benchmark.experiences[0]
        inputs, targets = first.inputs.copy(), first.targets.copy()
        generator = np.random.default_rng(0)
        for e in benchmark.experiences:
            inputs[e.test] = generator.integers(0, 256, inputs[e.test].shape)
            targets[e.test] = generator.choice(e.labels or (), len(e.test))
        noisy = [replace(e, inputs=inputs, targets=targets) for e in benchmark.experiences]
        return replace(benchmark, experiences=tuple(noisy))

    monkeypatch.setattr(pipeline, "make_benchmark", with_noise)
    noisy = execute(configured(tmp_path / "noisy", "strategy.epochs=3"))
    assert {r["arm"] for r in rows(finished, "coefficients.csv")} >= {"grid", "learned"}
    one, other = content(finished), content(noisy)
    for name in one:
        if name.endswith((".safetensors", ".json")) and "training" not in name:
            assert one[name] == other[name], name
    assert one["coefficients.csv"] == other["coefficients.csv"]
    assert one["scores.csv"] != other["scores.csv"]


def test_heads_kept_apart_learn_and_answer_among_their_own_labels(
    tmp_path: Path, data: Benchmark, bare: Backbone
) -> None:
    given = ("strategy.head=own", "references=[last,oracle]")
    own = execute(configured(tmp_path / "own", *given, arms=ARMS[:2]))
    fresh = adapters_in(own)
    for j, e in enumerate(data.experiences):
        outside = sorted(seen(data, 2) - set(e.labels or ()))
        assert (fresh[j].head["bias"][outside] == 0).all()
        outputs = outputs_of(dense_backbone(bare, fresh, [0.5] * 3), dict(fresh[j].head), e, e.test)
        value = by_hand(outputs, e.targets[e.test], set(e.labels or ()))
        assert accuracies(own, "half")[2, j] == pytest.approx(value, abs=1e-9)


def test_heads_merged_with_the_coefficients(
    tmp_path: Path, data: Benchmark, bare: Backbone
) -> None:
    run = execute(configured(tmp_path / "each", "strategy.head=per_experience", "references=[]"))
    fresh = adapters_in(run)
    for t in range(3):
        there = fresh[: t + 1]
        state = {k: 0.5 * sum(a.head[k].double() for a in there) for k in ("weight", "bias")}
        backbone = dense_backbone(bare, there, [0.5] * (t + 1))
        for j in range(t + 1):
            e = data.experiences[j]
            value = by_hand(
                outputs_of(backbone, state, e, e.test), e.targets[e.test], seen(data, t)
            )
            assert accuracies(run, "half")[t, j] == pytest.approx(value, abs=1e-9)


def test_statistics_are_of_the_loss_that_was_learned(tmp_path: Path) -> None:
    """Fisher draws labels from the outputs: one that has not come would give an infinite loss."""
    arms = (
        "arms=none",
        "+arms.fisher={method: fisher, coefficients: 1}",
        "+arms.regmean={method: regmean, coefficients: 1}",
    )
    given = ("references=[]", "benchmark.val_fraction=0.4")
    run = execute(configured(tmp_path / "fisher", *given, arms=arms))
    assert all(0 <= v <= 1 for v in accuracies(run, "fisher").values())
    assert len(accuracies(run, "regmean")) == 6


# Bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["strategy.head=frozen"], "strategy.head=frozen trains the head on the first experience"),
        (
            ["protocol=shots", "strategy.head=own", "shots=[1]", "references=[]"],
            r"'shots' adapts to an experience with a task of its own.*benchmark=few_shot_label",
        ),
        (["benchmark.groups=4"], "6 classes do not give 4 groups; give 2, 3, or name the groups"),
    ],
)
def test_what_does_not_go_with_labels_that_come(
    tmp_path: Path, given: list[str], sentence: str
) -> None:
    config = configured(tmp_path / "refused", *given)
    if "protocol=shots" in given:
        config["arms"] = {"lora": {"adapt": "lora"}}
    with pytest.raises(UserError, match=sentence):
        execute(config)
    assert not (tmp_path / "refused").exists()


def test_a_protocol_that_scores_what_has_not_come_is_refused() -> None:
    names = ("a", "b")
    growing = Outline(names=names, grows=True)
    stages = get_protocol("prefixes").stages(growing)
    assert [(s.index, s.evaluated) for s in stages] == [(0, (0,)), (1, (0, 1))]
    protocol = replace(
        get_protocol("prefixes"),
        make=lambda _: tuple(s for s in get_protocol("prefixes").make(Outline(names=names))),
    )
    with pytest.raises(UserError, match="scores an experience whose labels have not come yet"):
        protocol.stages(growing)
