"""The plugin that merges in scripts of Avalanche's users: beside our own runs, and by itself."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from avalanche.benchmarks import benchmark_from_datasets, class_incremental_benchmark
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin, SupervisedPlugin
from avalanche.training.supervised import Naive
from tiny_vit import tiny_backbone
from torch import nn
from torch.utils.data import TensorDataset

import cl_lora.strategies.plugin as plugin_module
from cl_lora.adapters import Adapter, AdapterBank
from cl_lora.adapters.injection import applied
from cl_lora.benchmarks import Benchmark
from cl_lora.benchmarks.avalanche import avalanche_benchmark
from cl_lora.benchmarks.draw import draw_buffer
from cl_lora.cli import main
from cl_lora.configuration.compose import compose_config
from cl_lora.evaluation.continual import backward_transfer
from cl_lora.evaluation.scores import ScoreTable
from cl_lora.experiment.arms import ArmDefaults, make_arm
from cl_lora.experiment.banks import FRESH
from cl_lora.experiment.evaluator import Evaluator
from cl_lora.experiment.merged import serve_arm
from cl_lora.experiment.serving import Workbench
from cl_lora.experiment.stages import Outline, get_protocol
from cl_lora.merging import merge, prepare
from cl_lora.models.backbones import ModelConfig, load_backbone
from cl_lora.models.compute import Compute
from cl_lora.strategies import LoRAConfig, LoRAMergePlugin
from cl_lora.support.errors import UserError
from cl_lora.tasks import CLASS, Task

SIZE, BATCH, LABELS = 16, 5, ("zero", "one", "two")
LORA = LoRAConfig(rank=2, lora_alpha=8, targets=("qkv", "fc1"))


def classifier(make_backbone: Callable[[], Any], seed: int = 3) -> nn.Module:
    """Return a timm model with a classifier of three classes, as a script has it."""
    model = make_backbone().network
    torch.manual_seed(seed)
    model.reset_classifier(3)
    return model.requires_grad_(True).train()


def stream_of(benchmark: Benchmark, backbone: Any) -> Any:
    return avalanche_benchmark(benchmark, lambda x: backbone.normalise(backbone.encode(x)[None])[0])


def script(model: nn.Module, *plugins: SupervisedPlugin, **settings: Any) -> Naive:
    """Return a plain strategy as a user makes it."""
    evaluator = EvaluationPlugin(
        *accuracy_metrics(experience=True, stream=True), *forgetting_metrics(stream=True)
    )
    # Adam's second moment makes steps of one size, so that a few steps move every factor.
    settings.setdefault("optimizer", torch.optim.Adam(model.parameters(), lr=1e-2))
    settings = {"train_mb_size": 8, "train_epochs": 2, "eval_mb_size": BATCH, **settings}
    return Naive(model=model, plugins=list(plugins), evaluator=evaluator, **settings)


def trained(
    strategy: Naive, stream: Any, seed: int = 0
) -> tuple[np.ndarray, dict[str, float], list[dict[str, float]]]:
    """Train and evaluate the stream; return the accuracies (T, T) and the last metrics."""
    torch.manual_seed(seed)
    rows, results, after = [], {}, []
    for experience in stream.train_stream:
        strategy.train(experience, eval_streams=[])
        results = strategy.eval(stream.test_stream)
        rows.append(accuracies(results, len(stream.test_stream)))
        after.append(results)
    return np.array(rows), results, after


def accuracies(results: dict[str, float], count: int) -> list[float]:
    return [results[f"Top1_Acc_Exp/eval_phase/test_stream/Exp{j:03d}"] for j in range(count)]


def forgotten(results: dict[str, float]) -> float:
    return results["StreamForgetting/eval_phase/test_stream"]


@pytest.fixture(scope="module")
def labelled(benchmark_16: Benchmark) -> Benchmark:
    """The benchmark with names of classes of its own."""
    task = Task("shapes", CLASS, LABELS)
    experiences = tuple(replace(e, task=task) for e in benchmark_16.experiences)
    return replace(benchmark_16, experiences=experiences)


@pytest.fixture(scope="module")
def make_backbone() -> Callable[[], Any]:
    return tiny_backbone


@pytest.fixture(scope="module")
def stream(labelled: Benchmark, make_backbone: Callable[[], Any]) -> Any:
    return stream_of(labelled, make_backbone())


@pytest.fixture
def model(make_backbone: Callable[[], Any]) -> nn.Module:
    return classifier(make_backbone)


def own_scores(
    bank: tuple[Adapter, ...], arm: dict[str, Any], benchmark: Benchmark, backbone: Any
) -> tuple[np.ndarray, list[float], torch.Tensor]:
    """Return what a run computes on a bank.

    Accuracies (T, T), all coefficients, and the last outputs for the second experience.
    """
    made = make_arm("merged", arm, ArmDefaults())
    bench = Workbench(
        benchmark=benchmark,
        backbone=backbone,
        banks={FRESH.name: bank},
        compute=Compute(torch.device("cpu"), bf16=False),
        seed=4,
        policy=made.policy,
        buffers={made.spc: draw_buffer(benchmark, made.spc, 4)},
        spc=made.spc,
        batch_size=BATCH,
        head_lr=1e-3,
    )
    rows, coefficients = [], []
    for stage in get_protocol("prefixes").stages(Outline(benchmark.names))[1:]:
        served = serve_arm(bench, made, stage)
        results = Evaluator(bench).score(served, stage)
        rows.append([results[j].scores["accuracy"] for j in range(len(benchmark.names))])
        coefficients += [c.value for c in served.coefficients]
    experience = benchmark.experiences[1]
    inputs = backbone.encode(experience.inputs[experience.test])
    with applied(backbone.network, served.update(1)), torch.no_grad():
        return np.array(rows), coefficients, served.head(1)(backbone(inputs))


ARMS = {
    "sum": {"method": "task_arithmetic", "coefficients": 0.5},
    "weights": {"method": "ties", "density": 0.3, "coefficients": [0.2, 1.5, -0.7]},
    "uniform": {"method": "dare_ties", "density": 0.5},
    "factors": {"method": "task_arithmetic", "space": "factors", "coefficients": 0.7},
    "truncated": {"method": "task_arithmetic", "rank": 1, "coefficients": 1},
    "grid": {"method": "ties", "coefficients": {"name": "grid", "values": [0.1, 1.0, 3.0]}},
    "adaptive": {"method": "task_arithmetic", "coefficients": {"name": "adaptive", "steps": 4}},
    "layers": {
        "method": "ties",
        "coefficients": {"name": "adaptive", "b_max": 3, "steps": 3, "granularity": "layer"},
    },
    "tuned": {
        "method": "dare_linear",
        "coefficients": {"name": "softmax", "steps": 3},
        "tune_head": True,
        "buffer_batch_size": 4,
    },
    "means": {"method": "task_arithmetic", "coefficients": 0.5, "head": "prototypes", "spc": 3},
    "chosen": {
        "method": "task_arithmetic",
        "coefficients": {"name": "grid", "values": [0.1, 2.0]},
        "head": "prototypes",
        "spc": 4,
    },
    "regmean": {"method": "regmean"},
    "first": {"method": "task_arithmetic", "coefficients": 1, "members": 1},
}


@pytest.mark.parametrize("name", ARMS)
def test_our_run_and_avalanche_give_equal_accuracies_on_one_bank(
    name: str, model, make_backbone, labelled, stream, tmp_path
) -> None:
    """What Avalanche logs at every step is what our evaluator scores of the bank on disk."""
    arm = {"spc": 2, **ARMS[name]}
    plugin = LoRAMergePlugin(
        arm, lora=LORA, seed=4, names=labelled.names, labels=LABELS, batch_size=BATCH
    )
    bare = backbone_of(state(model))
    logged, results, _ = trained(script(model, plugin), stream)
    plugin.save_bank(tmp_path / "bank")
    bank = tuple(AdapterBank(tmp_path / "bank"))
    R, coefficients, outputs = own_scores(bank, arm, labelled, make_backbone())
    assert np.array_equal(logged, R)
    assert [c.value for c in plugin.coefficients] == coefficients
    assert forgotten(results) == pytest.approx(-backward_transfer(R), abs=1e-12)
    assert not same(backbone_of(state(model)), bare)  # something happened that can be compared
    inputs = torch.stack([x for x, *_ in stream.test_stream[1].dataset])
    with torch.no_grad():
        assert torch.equal(model(inputs), outputs)


def test_a_run_of_the_command_line_scores_the_bank_of_a_script(tmp_path, monkeypatch) -> None:
    """The bank takes the place of a run's; arms that come later score what was logged."""
    monkeypatch.setenv("CL_LORA_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "run"
    arms = {
        "learned": {
            "method": "ties",
            "spc": 2,
            "coefficients": {"name": "adaptive", "b_max": 2, "steps": 3, "granularity": "layer"},
        },
        "means": {"method": "task_arithmetic", "coefficients": 0.3, "head": "prototypes", "spc": 2},
    }
    given = [
        f"run_dir={folder}",
        "benchmark.classes=3",
        "benchmark.styles=[photo,sketch]",
        "benchmark.samples_per_class=6",
        "benchmark.test_samples_per_class=4",
        "strategy.targets=[q,v]",
        "strategy.rank=2",
        "strategy.epochs=1",
        "references=[base]",
        "arms=none",
        "report=false",
        f"eval_batch_size={BATCH}",
        "precision=fp32",
    ]
    assert main(["run", *given]) == 0
    from cl_lora.benchmarks import make_benchmark

    benchmark = make_benchmark(compose_config(given)["benchmark"], image_size=48)
    logged = {}
    for name, arm in arms.items():
        backbone = load_backbone(ModelConfig("embedded"))
        model = backbone.network
        torch.manual_seed(1)
        model.reset_classifier(3)
        (task,) = benchmark.tasks
        plugin = LoRAMergePlugin(
            arm,
            lora=LoRAConfig(rank=2, targets=("q", "v")),
            names=benchmark.names,
            labels=task.labels,
            batch_size=BATCH,
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        strategy = script(model, plugin, optimizer=optimizer)
        logged[name], results, _ = trained(strategy, stream_of(benchmark, backbone))
    # Adapters are the same whatever merges them.
    plugin.save_bank(folder / "adapters" / "seed-0")
    before = sorted(p.stat().st_mtime_ns for p in folder.rglob("*.safetensors"))
    more = [f"+arms.{name}={json.dumps(arm).replace(chr(34), '')}" for name, arm in arms.items()]
    assert main(["run", *given, *more]) == 0
    assert sorted(p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")) == before
    table = ScoreTable.read(folder / "scores.csv")
    for name in arms:
        R = table.matrix(0, name, "accuracy").values
        assert np.array_equal(R, logged[name])
    assert forgotten(results) == pytest.approx(-backward_transfer(R), abs=1e-12)
    assert R[0, 0] > 0.5


class Watch(SupervisedPlugin):
    """Notes what the model is at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.starts: list[dict[str, torch.Tensor]] = []
        self.ends: list[dict[str, torch.Tensor]] = []
        self.evaluated: list[dict[str, torch.Tensor]] = []
        self.modes: list[bool] = []
        self.held: list[int] = []

    def before_training_epoch(self, strategy, **_) -> None:
        torch.manual_seed(len(self.modes))  # whatever drew between epochs

    def before_training_exp(self, strategy, **_) -> None:
        self.starts.append(state(strategy.model))
        self.held.append(sum(len(g["params"]) for g in strategy.optimizer.param_groups))

    def before_training_iteration(self, strategy, **_) -> None:
        self.modes.append(all(m.training for m in strategy.model.modules()))

    def after_training_iteration(self, strategy, **_) -> None:
        self.last = state(strategy.model)

    def after_training_epoch(self, strategy, **_) -> None:
        self.ends.append(self.last)

    def before_eval_exp(self, strategy, **_) -> None:
        assert not any(m.training for m in strategy.model.modules())
        self.evaluated.append(state(strategy.model))


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of all weights, by the names that they have without an adapter."""
    return {
        name.replace(".base_layer", ""): value.detach().clone()
        for name, value in model.state_dict().items()
    }


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def backbone_of(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v for k, v in weights.items() if ".lora_" not in k and not k.startswith("head.")}


def moved(adapter: Adapter) -> bool:
    return all(f.B.any() for f in adapter.factors.values())


def test_every_experience_starts_bare_with_a_fresh_adapter_and_the_head_goes_on(
    model, stream
) -> None:
    """Adapters after the first would silently keep B = 0 if the optimizer did not know them."""
    bare, head = backbone_of(state(model)), model.head
    plugin, watch = LoRAMergePlugin("ties", lora=LORA), Watch()
    trained(script(model, plugin, watch), stream)
    assert len(plugin.adapters) == 3
    assert all(moved(adapter) for adapter in plugin.adapters)
    for t, (start, end) in enumerate(zip(watch.starts, watch.ends[1::2], strict=True)):
        assert same(backbone_of(start), bare)
        assert same(backbone_of(end), bare)
        assert not any(v.any() for k, v in start.items() if ".lora_B." in k)
        adapter = plugin.adapters[t]
        for module, f in adapter.factors.items():
            assert torch.equal(end[f"{module}.lora_B.default.weight"], f.B)
            assert torch.equal(end[f"{module}.lora_A.default.weight"], f.A)
            assert f.scaling == 4.0
        assert torch.equal(adapter.head["weight"], end["head.weight"])
        assert not torch.equal(start["head.weight"], end["head.weight"])
        if t:
            assert torch.equal(start["head.weight"], plugin.adapters[t - 1].head["weight"])
        assert adapter.training["experience"] == t
        assert [e["epoch"] for e in adapter.training["loss"]] == [1, 2]
    first = [k for k in watch.starts[0] if ".lora_A." in k]
    assert len(first) == 4
    assert all(not torch.equal(watch.starts[0][k], watch.starts[1][k]) for k in first)
    assert len(set(watch.held)) == 1  # old adapters leave the optimizer
    assert model.head is not head  # what serves; the trained one is back when training goes on
    assert all(watch.modes)


def test_between_experiences_the_model_is_the_merge(model, stream, make_backbone) -> None:
    plugin, watch = LoRAMergePlugin({"method": "ties", "coefficients": 0.8}, lora=LORA), Watch()
    strategy = script(model, plugin, watch)
    trained(strategy, stream)
    expected = merge(plugin.adapters, "ties", [0.8] * 3)
    plain = classifier(make_backbone)
    plain.head.load_state_dict(plugin.adapters[-1].head)
    with applied(plain, expected):
        assert same(state(model), state(plain))
    assert same(watch.evaluated[-1], state(model))
    assert plugin.update is not None
    for module in expected.modules():
        assert torch.equal(plugin.update.delta(module), expected.delta(module))
    # Whoever forgets the plugin keeps the merge.
    merged = state(model)
    del plugin, strategy, watch
    gc.collect()
    assert same(state(model), merged)


@pytest.mark.parametrize("rule", [0.6, {"name": "adaptive", "steps": 2}])
def test_evaluation_while_training_sees_the_merge_with_the_adapter_as_it_is(
    model, make_backbone, stream, rule
) -> None:
    arm = {"method": "task_arithmetic", "coefficients": rule, "spc": 1}
    plugin, watch = LoRAMergePlugin(arm, lora=LORA), Watch()
    strategy = script(model, plugin, watch, eval_every=1)
    for experience in stream.train_stream:
        strategy.train(experience, eval_streams=[stream.test_stream])
        # The last evaluation of training was the last epoch's, with nothing trained after it.
        assert same(watch.evaluated[-1], state(model))
        before = strategy.evaluator.get_last_metrics()
        after = strategy.eval(stream.test_stream)
        assert accuracies(before, 3) == accuracies(after, 3)
    # An evaluation before each training, and one each epoch, of three experiences each.
    assert len(watch.evaluated) == 3 * (1 + 2 + 1) * 3
    assert not any(".lora_" in key for seen in watch.evaluated for key in seen)
    assert all(watch.modes)

    quiet, other = LoRAMergePlugin(arm, lora=LORA), classifier(make_backbone)
    unseen = Watch()
    strategy = script(other, quiet, unseen)
    for experience in stream.train_stream:
        strategy.train(experience, eval_streams=[])
    for a, b in zip(plugin.adapters, quiet.adapters, strict=True):
        assert all(torch.equal(f.B, b.factors[m].B) for m, f in a.factors.items())
    assert same(state(model), state(other))


def test_forgetting_of_periodic_evaluation_is_initial_minus_last(model, stream) -> None:
    plugin = LoRAMergePlugin({"method": "task_arithmetic", "coefficients": 1}, lora=LORA)
    strategy, R = script(model, plugin, eval_every=0), []
    for experience in stream.train_stream:
        strategy.train(experience, eval_streams=[stream.test_stream])
        results = strategy.evaluator.get_last_metrics()
        R.append(accuracies(results, 3))
    assert forgotten(results) == pytest.approx(-backward_transfer(np.array(R)), abs=1e-12)


def test_all_experiences_in_one_call(model, make_backbone, stream) -> None:
    """The model is merged and in eval mode between two experiences of one train()."""
    plugin, watch = LoRAMergePlugin("task_arithmetic", lora=LORA), Watch()
    script(model, plugin, watch).train(list(stream.train_stream), eval_streams=[])
    assert all(watch.modes)
    assert all(moved(adapter) for adapter in plugin.adapters)
    other, again = classifier(make_backbone), LoRAMergePlugin("task_arithmetic", lora=LORA)
    strategy = script(other, again, Watch())
    for experience in stream.train_stream:
        strategy.train(experience, eval_streams=[])
    assert same(state(model), state(other))


def momentum(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)


def head_only(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.head.parameters(), lr=1e-2)


def two_groups(model: nn.Module) -> torch.optim.Optimizer:
    """Some parameters are in no group, such as the position embedding."""
    groups = [{"params": model.head.parameters(), "lr": 0.0}, {"params": model.blocks.parameters()}]
    return torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1)


@pytest.mark.parametrize("make", [momentum, head_only, two_groups])
def test_optimizers(make, model, stream) -> None:
    bare, head = backbone_of(state(model)), state(model)["head.weight"]
    optimizer = make(model)
    plugin, watch = LoRAMergePlugin("task_arithmetic", lora=LORA), Watch()
    trained(script(model, plugin, watch, optimizer=optimizer), stream)
    assert all(moved(adapter) for adapter in plugin.adapters)
    assert all(same(backbone_of(start), bare) for start in watch.starts)
    still = torch.equal(plugin.adapters[-1].head["weight"], head)
    assert still == (make is two_groups)  # an adapter has the rate of its own weight
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len({id(p) for p in held}) == len(held) == sum(1 for _ in model.parameters())
    assert len(optimizer.state) <= len(held)


def test_an_optimizer_that_cannot_see_the_adapter_is_refused(model, stream) -> None:
    class Own(Naive):
        def make_optimizer(self, **_) -> None:
            self.optimizer = torch.optim.SGD(self.model.head.parameters(), lr=0.1)
            self.optimized_param_id = {}

    plugin = LoRAMergePlugin("ties", lora=LORA)
    strategy = Own(model=model, optimizer=momentum(model), plugins=[plugin], train_mb_size=8)
    with pytest.raises(UserError, match=r"optimizer of Own .* lacks 'blocks\.0\.attn\.qkv\.lora_A"):
        strategy.train(stream.train_stream[0], eval_streams=[])


def test_an_adapter_that_did_not_move_is_no_success(model, stream, monkeypatch) -> None:
    """The trap of a late hook, rebuilt: nothing of the adapter reaches the optimizer."""

    class Late(LoRAMergePlugin):
        def before_train_dataset_adaptation(self, strategy, **_) -> None:
            pass

        def before_training_exp(self, strategy, **_) -> None:
            super().before_train_dataset_adaptation(strategy)

    monkeypatch.setattr(plugin_module, "_seat", lambda *_: None)
    strategy = script(model, Late("ties", lora=LORA))
    with pytest.raises(UserError, match=r"'experience-0' but its factors B are all zero"):
        strategy.train(stream.train_stream[0], eval_streams=[])


def test_a_learning_rate_of_zero_is_no_success_either(model, stream) -> None:
    frozen = torch.optim.SGD(model.parameters(), lr=0.0)
    with pytest.raises(UserError, match="all zero"):
        script(model, LoRAMergePlugin("ties", lora=LORA), optimizer=frozen).train(
            stream.train_stream[0], eval_streams=[]
        )


def test_training_that_breaks_off_leaves_nothing_behind(model, stream) -> None:
    class Break(SupervisedPlugin):
        when = 1

        def after_training_iteration(self, strategy, **_) -> None:
            if strategy.experience.current_experience == self.when:
                raise KeyboardInterrupt

    breaking, bare = Break(), backbone_of(state(model))
    plugin, watch = LoRAMergePlugin("task_arithmetic", lora=LORA), Watch()
    strategy = script(model, breaking, plugin, watch)
    strategy.train(stream.train_stream[0], eval_streams=[])
    with pytest.raises(KeyboardInterrupt):
        strategy.train(stream.train_stream[1], eval_streams=[])
    assert len(plugin.adapters) == 1
    breaking.when = -1
    for experience in stream.train_stream[1:]:
        strategy.train(experience, eval_streams=[])
    assert [a.training["experience"] for a in plugin.adapters] == [0, 1, 2]
    assert all(same(backbone_of(start), bare) for start in watch.starts)
    assert len(set(watch.held)) == 1


def test_errors_before_training_leave_the_merge_in_place(model, stream) -> None:
    arm = {"method": "ties", "coefficients": [1.0]}
    plugin = LoRAMergePlugin(arm, lora=LORA)
    strategy = script(model, plugin)
    strategy.train(stream.train_stream[0], eval_streams=[])
    merged = state(model)
    with pytest.raises(UserError, match=r"number 2 and coefficients are \[1.0\]"):
        strategy.train(stream.train_stream[1], eval_streams=[])
    assert same(state(model), merged)


def test_replay_and_draws_of_the_script(model, make_backbone, stream) -> None:
    """Another seed of the plugin changes adapters, not the batches; replay works beside it."""
    seen: dict[int, list[float]] = {}
    for seed in (0, 1):

        class Batches(SupervisedPlugin):
            def before_training_iteration(self, strategy, seed=seed, **_) -> None:
                seen.setdefault(seed, []).append(float(strategy.mb_x.double().sum()))

        plugin = LoRAMergePlugin("ties", lora=replace(LORA, dropout=0.0), seed=seed)
        replay = ReplayPlugin(mem_size=6, batch_size=4, batch_size_mem=4)
        other = classifier(make_backbone)
        trained(script(other, replay, Batches(), plugin), stream)
        seen[seed + 10] = [float(f.A.sum()) for f in plugin.adapters[0].factors.values()]
    assert seen[0] == seen[1]
    assert len(seen[0]) == 2 * (3 + 6 + 6)
    assert seen[10] != seen[11]


# Class-incremental streams, and other models ------------------------------------------------------


class Rows(TensorDataset):
    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        super().__init__(x, y)
        self.targets = y.tolist()


def blobs(count: int, seed: int = 0, size: tuple[int, ...] = (3, SIZE, SIZE)) -> Rows:
    """Return classes 0 to 5, a pattern each under noise."""
    patterns = torch.randn(6, *size, generator=torch.Generator().manual_seed(9))
    y = torch.arange(count) % 6
    noise = torch.randn(count, *size, generator=torch.Generator().manual_seed(seed))
    return Rows(patterns[y] + 0.5 * noise, y)


def by_class(size: tuple[int, ...] = (3, SIZE, SIZE)) -> Any:
    parts = {"train": blobs(72, 0, size), "test": blobs(36, 1, size)}
    datasets = {name: as_classification_dataset(part) for name, part in parts.items()}
    return class_incremental_benchmark(datasets, class_order=[4, 2, 0, 1, 5, 3], num_experiences=3)


def test_classes_that_come_two_by_two(make_backbone) -> None:
    model = make_backbone().network
    model.reset_classifier(6)
    arm = {"method": "task_arithmetic", "coefficients": 0.3, "head": "prototypes", "spc": 4}
    plugin = LoRAMergePlugin(arm, lora=LORA)
    R, results, _ = trained(script(model, plugin), by_class())
    for t in range(3):
        assert R[t, : t + 1].min() > 0.5
        assert not R[t, t + 1 :].any()
    assert forgotten(results) == pytest.approx(-backward_transfer(R), abs=1e-12)
    kept = [buffer.targets for buffer in plugin._buffers]
    assert [sorted(set(k)) for k in kept] == [[2, 4], [0, 1], [3, 5]]
    assert all(np.bincount(k)[np.unique(k)].tolist() == [4, 4] for k in kept)


def test_learned_coefficients_see_all_classes_so_far(make_backbone) -> None:
    model = make_backbone().network
    model.reset_classifier(6)
    rule = {"name": "adaptive", "steps": 3}
    arm = {"method": "task_arithmetic", "coefficients": rule, "spc": 2, "tune_head": True}
    plugin = LoRAMergePlugin(arm, lora=LORA, head_lr=0.05)
    R, _, _ = trained(script(model, plugin), by_class())
    members = [[c.adapter for c in plugin.coefficients if c.stage == t] for t in range(3)]
    assert members == [[0], [0, 1], [0, 1, 2]]
    # The head that was tuned serves, and the one that was trained goes on.
    assert not torch.equal(model.head.weight, plugin.adapters[-1].head["weight"])
    assert R.shape == (3, 3)


class Wrapped(nn.Module):
    """A model around a timm model, with a classifier of another name."""

    def __init__(self, vit: nn.Module, outputs: int) -> None:
        super().__init__()
        self.vit = vit
        self.fc = nn.Linear(vit.num_features, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.vit(x))


class Plain(nn.Module):
    """No transformer: linear layers between normalisations."""

    def __init__(self, after: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential()
        self.body.add_module("query", nn.Linear(8, 16))
        self.body.add_module("norm", nn.BatchNorm1d(16))
        self.body.add_module("act", nn.ReLU())
        self.body.add_module("value", nn.Linear(16, 16))
        self.head = nn.Linear(16, 6)
        self.after = after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.head(self.body(x))
        return out if self.after is None else self.after(out)


LEARNED = {"method": "ties", "spc": 2, "coefficients": {"name": "adaptive", "steps": 2}}


def test_a_timm_model_inside_another_whose_queries_and_values_are_adapted(make_backbone) -> None:
    model = Wrapped(make_backbone().network, 6)
    lora = LoRAConfig(rank=2, targets=("q", "v"))
    plugin = LoRAMergePlugin(LEARNED, lora=lora, head="fc")
    trained(script(model, plugin), by_class())
    assert list(plugin.adapters[0].factors) == [
        f"vit.blocks.{block}.attn.qkv.{part}" for block in (0, 1) for part in ("q", "v")
    ]
    assert all(moved(adapter) for adapter in plugin.adapters)
    assert set(plugin.adapters[0].head) == {"weight", "bias"}


def test_any_vision_transformer_of_timm_with_its_own_classifier() -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        "deit_tiny_patch16_224", num_classes=6, img_size=SIZE, patch_size=8, depth=1
    )
    plugin = LoRAMergePlugin("ties", lora=LoRAConfig(rank=2, targets=("qkv", "proj", "fc2")))
    trained(script(model, plugin, train_epochs=1), by_class())
    assert len(plugin.adapters[0].factors) == 3
    assert all(moved(adapter) for adapter in plugin.adapters)


def test_a_model_that_is_no_transformer(tmp_path) -> None:
    torch.manual_seed(0)
    model = Plain()
    plugin = LoRAMergePlugin(LEARNED, lora=LoRAConfig(rank=2, targets=("query", "value")))
    stream = by_class((8,))
    strategy = script(model, plugin, train_mb_size=8)
    mean = model.body.norm.running_mean.clone()
    trained(strategy, stream)
    assert list(plugin.adapters[0].factors) == ["body.query", "body.value"]
    assert torch.equal(model.body.norm.running_mean, mean)  # frozen, as all but the adapter
    assert all(moved(adapter) for adapter in plugin.adapters)


# The bank -----------------------------------------------------------------------------------------


def test_the_bank_is_read_by_everything_else(model, stream, tmp_path) -> None:
    plugin = LoRAMergePlugin({"method": "regmean"}, lora=LORA, names=["a/b", "c", "d"])
    trained(script(model, plugin, train_epochs=1), stream)
    bank = plugin.save_bank(tmp_path / "bank")
    assert [path.name for path in bank.paths()] == ["00-a_b", "01-c", "02-d"]
    read = list(AdapterBank(tmp_path / "bank"))
    for adapter, there in zip(plugin.adapters, read, strict=True):
        assert all(torch.equal(f.B, there.factors[m].B) for m, f in adapter.factors.items())
        assert torch.equal(adapter.head["weight"], there.head["weight"])
        assert set(there.statistics) == {"gram"}
    again = prepare(read, "regmean").combine(torch.full((3,), 1 / 3, dtype=torch.float64))
    for module in again.modules():
        torch.testing.assert_close(plugin.update.delta(module), again.delta(module))
    # Saving again replaces what is there.
    assert len(plugin.save_bank(tmp_path / "bank")) == 3
    paths = [str(path) for path in bank.paths()]
    assert main(["merge", *paths, "--rank", "2", "--out", str(tmp_path / "out")]) == 0
    assert Adapter.load(tmp_path / "out").modules() == read[0].modules()


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ("tiess", "Arm 'merged': Unknown merge method 'tiess': did you mean 'ties'"),
        ({"method": "ties", "densty": 0.2}, "Unknown option 'densty': did you mean 'density'"),
        ({"method": "ties", "density": 7}, "Expected density of merge method 'ties' to be"),
        ({"method": "ties", "space": "factors", "coefficients": "adaptve"}, "adaptive"),
        ({"density": 0.2}, "expected a mapping with a 'method'"),
        (["ties"], "expected a mapping with a 'method'"),
        ({"method": "svd", "coefficients": "adaptive"}, "differentiable in its coefficients"),
        ({"method": "ties", "spc": 0}, "expected spc to be a whole number of at least 1"),
        ({"method": "fisher"}, "method 'fisher' needs a statistic of validation parts"),
        ({"method": "ties", "residual": {"name": "low_rank", "q": 2}}, "leave residual out"),
        ({"residual": {"name": "low_rank", "q": 2}}, "leave residual out"),
        ({"method": "ties", "bank": "full"}, "bank=full: .*leave bank out"),
        ({"method": "ties", "adapt": "lora"}, "adapt=lora: .*leave adapt out"),
        ({"method": "ties", "select_on": "val", "coefficients": "grid"}, "leave select_on out"),
        ({"method": "ties", "head": "own"}, "head=own: .*head=prototypes"),
        ({"method": "ties", "head": "refit"}, "head=refit: .*head=prototypes"),
        ({"method": "ties", "tune_head": True}, "tune_head needs learned coefficients"),
    ],
)
def test_arms_that_cannot_be(arm, message) -> None:
    with pytest.raises(UserError, match=message):
        LoRAMergePlugin(arm)


def test_what_needs_nothing_else_may_be_named() -> None:
    made = LoRAMergePlugin({"method": "ties", "bank": "fresh", "coefficients": "grid"})
    assert made.arm.method == "ties"
    assert LoRAMergePlugin({"method": "ties", "select_on": "support", "coefficients": "grid"}).arm


def first_train(model: nn.Module, plugin: LoRAMergePlugin, stream: Any) -> None:
    script(model, plugin).train(stream.train_stream[0], eval_streams=[])


@pytest.mark.parametrize(
    ("make", "plugin", "message"),
    [
        (
            Plain,
            lambda: LoRAMergePlugin("ties"),
            r"LoRA target 'qkv' but .*linear layers are called: query, value$",
        ),
        (
            Plain,
            lambda: LoRAMergePlugin("ties", lora=LoRAConfig(targets=("q", "v"))),
            r"LoRA target 'q' but .*called: query, value$",
        ),
        (
            Plain,
            lambda: LoRAMergePlugin("ties", lora=LoRAConfig(targets=("head",))),
            r"LoRA target 'head' but .*called: query, value$",
        ),
        (
            Plain,
            lambda: LoRAMergePlugin("ties", head="fc"),
            r"linear layer 'fc' with a bias but found none of that name; give head=NAME, of its "
            r"linear layers head, body\.value, body\.query$",
        ),
        (
            Plain,
            lambda: LoRAMergePlugin("ties", head="body.norm"),
            "'body.norm' with a bias but found BatchNorm1d there",
        ),
        (
            lambda: Plain(lambda outputs: outputs.softmax(-1)),
            lambda: LoRAMergePlugin(LEARNED, lora=LoRAConfig(targets=("query",))),
            "return what its layer 'head' gives",
        ),
        (
            Plain,
            lambda: LoRAMergePlugin(
                {**LEARNED, "spc": 13}, lora=LoRAConfig(rank=2, targets=("query",))
            ),
            "at most 12, the train samples of class '2' in 'experience-0', but got 13",
        ),
        (
            Plain,
            lambda: LoRAMergePlugin(
                {
                    "method": "ties",
                    "coefficients": {"name": "adaptive", "granularity": "layer"},
                },
                lora=LoRAConfig(targets=("query",)),
            ),
            "Arm 'merged': Expected modules that lie in layers",
        ),
        (
            Plain,
            lambda: LoRAMergePlugin("ties", lora=LoRAConfig(targets=("query",)), labels=["a"]),
            r"Expected 6 labels, .*but got 1: \['a'\]",
        ),
        (
            Plain,
            lambda: LoRAMergePlugin("ties", lora=LoRAConfig(targets=("query",)), names=[]),
            r"this is number 1 and names are \[\]",
        ),
    ],
)
def test_models_and_data_that_do_not_fit(make, plugin, message) -> None:
    with pytest.raises(UserError, match=message):
        first_train(make(), plugin(), by_class((8,)))


def test_a_classifier_without_a_bias_and_a_model_of_peft() -> None:
    model = Plain()
    model.head = nn.Linear(16, 6, bias=False)
    with pytest.raises(UserError, match="found one without a bias"):
        first_train(model, LoRAMergePlugin("ties"), by_class((8,)))
    import peft

    model = Plain()
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["query"]))
    with pytest.raises(UserError, match="peft has put some into it"):
        first_train(model, LoRAMergePlugin("ties"), by_class((8,)))


def test_inputs_and_targets_that_no_buffer_can_hold() -> None:
    class Texts(torch.utils.data.Dataset):
        targets = [0, 1] * 4

        def __len__(self) -> int:
            return len(self.targets)

        def __getitem__(self, index: int) -> tuple[str, int]:
            return "text", self.targets[index]

    lora = LoRAConfig(rank=2, targets=("query",))
    texts = as_classification_dataset(Texts())
    stream = benchmark_from_datasets(train=[texts], test=[texts])
    with pytest.raises(UserError, match="to be tensors but got str"):
        first_train(Plain(), LoRAMergePlugin(LEARNED, lora=lora), stream)
    rows = Rows(torch.randn(8, 8), torch.arange(8) + 3)
    stream = benchmark_from_datasets(train=[as_classification_dataset(rows)])
    with pytest.raises(
        UserError, match="from 0 to 5, the labels of task 'script', but got 3 to 10"
    ):
        first_train(Plain(), LoRAMergePlugin(LEARNED, lora=lora), stream)


def test_one_plugin_has_one_model(make_backbone, model, stream) -> None:
    plugin = LoRAMergePlugin("ties", lora=LORA)
    first_train(model, plugin, stream)
    with pytest.raises(UserError, match="make a plugin for each model"):
        first_train(classifier(make_backbone), plugin, stream)


def test_a_bank_of_nothing() -> None:
    with pytest.raises(UserError, match=r"call train\(\) first"):
        LoRAMergePlugin("ties").save_bank("bank")


# The page and the package -------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs" / "avalanche.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_there_are_two_short_examples() -> None:
    assert len(EXAMPLES) == 2
    assert all(len(text.splitlines()) < 40 for text in EXAMPLES)


@pytest.fixture
def in_a_folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CL_LORA_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    return tmp_path


def test_the_example_of_classes_runs_as_it_stands(in_a_folder: Path) -> None:
    found: dict[str, Any] = {}
    exec(compile(EXAMPLES[0], str(PAGE), "exec"), found)
    assert found["results"]["Top1_Acc_Stream/eval_phase/test_stream"] > 0.45
    assert len(list(AdapterBank(in_a_folder / "digits_bank"))) == 5
    assert all(moved(adapter) for adapter in found["plugin"].adapters)


def test_the_example_of_domains_runs_as_it_stands(in_a_folder: Path) -> None:
    found: dict[str, Any] = {}
    exec(compile(EXAMPLES[1], str(PAGE), "exec"), found)
    assert found["results"]["Top1_Acc_Stream/eval_phase/test_stream"] > 0.6
    assert [a.name for a in found["plugin"].adapters] == ["photo", "cartoon", "sketch"]


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, cl_lora.strategies as s; "
        "assert set(s.__all__) == {'LoRAConfig', 'LoRAMergePlugin'}; "
        "heavy = {'torch', 'avalanche', 'peft', 'timm'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    import cl_lora.strategies as package

    with pytest.raises(AttributeError, match="no attribute 'LoRAPlugin'"):
        package.LoRAPlugin  # noqa: B018
