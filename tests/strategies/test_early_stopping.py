"""Stopping by the loss on a validation part: what is kept, when training ends, what is recorded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cl_lora.adapters import Adapter
from cl_lora.adapters.injection import LoRAConfig, applied
from cl_lora.benchmarks import Benchmark, Experience
from cl_lora.benchmarks.avalanche import avalanche_benchmark
from cl_lora.benchmarks.batches import batches
from cl_lora.models.backbones import Backbone
from cl_lora.models.heads import MLPHead, head_of
from cl_lora.models.images import ImageBackbone
from cl_lora.strategies.config import TrainingConfig
from cl_lora.strategies.lora import LoRAStrategy
from cl_lora.tasks import Scaling, Task, get_kind

LORA = LoRAConfig(rank=2, targets=("qkv", "fc1"), dropout=0.3)


def strategy(backbone: Backbone, task: Task, **training) -> LoRAStrategy:
    settings = {"epochs": 8, "batch_size": 6, "lr": 3e-2, "head_lr": 3e-2, "head": "own"}
    config = TrainingConfig(**{**settings, **training})
    return LoRAStrategy(backbone=backbone, task=task, lora=LORA, training=config, seed=0)


@pytest.fixture
def noisy(benchmark_16: Benchmark) -> Benchmark:
    """Train labels that are wrong: what is learned of them makes the validation loss worse."""
    made = []
    for e in benchmark_16.experiences:
        train, val, targets = e.train[::2], e.train[1::2], e.targets.copy()
        targets[train] = np.random.default_rng(0).permutation(targets[train])
        made.append(replace(e, train=train, val=val, targets=targets))
    return replace(benchmark_16, experiences=tuple(made))


def train(
    made: LoRAStrategy, benchmark: Benchmark, t: int = 0, validation: bool = True
) -> tuple[Adapter, list[dict[str, float]]]:
    e = benchmark.experiences[t]
    stream = avalanche_benchmark(benchmark, ImageBackbone.encode).train_stream

    def samples():
        return batches(e, e.val, 5, ImageBackbone.encode)

    adapter = made.train_adapter(stream[t], e.name, None, e.task, samples if validation else None)
    return adapter, adapter.training["loss"]


def validation_loss(backbone: Backbone, adapter: Adapter, e: Experience) -> float:
    """Return the loss of what was kept, dropout off, all samples in one batch."""

    class Update:
        def modules(self) -> tuple[str, ...]:
            return tuple(adapter.factors)

        def delta(self, module: str) -> Tensor:
            return adapter.factors[module].delta()

    with torch.no_grad(), applied(backbone.network, Update()):
        outputs = head_of(adapter.head)(backbone(ImageBackbone.encode(e.inputs[e.val])))
    targets = torch.from_numpy(e.targets[e.val])
    if e.task.labels:
        return float(F.cross_entropy(outputs, targets))
    scaling = e.task.scaling
    wanted = (targets.double() - scaling.mean[0]) / scaling.deviation[0]
    return float((outputs[:, 0].double() - wanted).abs().mean())


@pytest.mark.parametrize("patience", [1, 2, 8])
def test_the_weights_of_the_lowest_validation_loss_are_kept(
    make_backbone: Callable[[], Backbone], noisy: Benchmark, patience: int
) -> None:
    backbone = make_backbone()
    task = noisy.experiences[0].task
    adapter, curve = train(strategy(backbone, task, patience=patience), noisy)
    losses = [entry["val_loss"] for entry in curve]
    best = int(np.argmin(losses))
    assert adapter.training["best_epoch"] == best + 1
    found = validation_loss(backbone, adapter, noisy.experiences[0])
    assert found == pytest.approx(losses[best], rel=1e-4)
    assert best < len(losses) - 1, "the last epoch is the best: nothing is shown"
    assert found < losses[-1] - 1e-3
    # It ended where it should: not before, and as soon as patience had run out.
    assert len(curve) == min(8, best + 1 + patience)


def test_stopping_changes_nothing_of_the_epochs_before(make_backbone, noisy) -> None:
    """Looking at the validation part draws nothing, and leaves training mode on."""
    task = noisy.experiences[0].task
    whole, plain = train(strategy(make_backbone(), task), noisy)
    watched, curve = train(strategy(make_backbone(), task, patience=8), noisy)
    assert [e["loss"] for e in curve] == [e["loss"] for e in plain]
    assert all("val_loss" not in entry for entry in plain)
    assert "best_epoch" not in whole.training
    assert all(math.isfinite(entry["val_loss"]) for entry in curve)
    short, cut = train(strategy(make_backbone(), task, patience=1), noisy)
    assert cut == curve[: len(cut)]
    assert watched.training["best_epoch"] <= 8
    assert short.training["best_epoch"] == len(cut) - 1


def test_without_a_patience_the_last_weights_are_kept(make_backbone, noisy) -> None:
    """Also where there is a validation part, which is not looked at."""
    task = noisy.experiences[0].task
    one, _ = train(strategy(make_backbone(), task), noisy)
    other, _ = train(strategy(make_backbone(), task), noisy, validation=False)
    assert all(torch.equal(one.factors[m].B, other.factors[m].B) for m in one.factors)
    assert all(torch.equal(one.head[k], other.head[k]) for k in one.head)


def test_where_it_goes_on_getting_better_the_last_is_the_best(make_backbone, benchmark_16) -> None:
    """On the train part itself, as validation part."""
    easy = [replace(e, val=e.train) for e in benchmark_16.experiences]
    benchmark = replace(benchmark_16, experiences=tuple(easy))
    backbone = make_backbone()
    made = strategy(backbone, easy[0].task, epochs=4, lr=3e-3, head_lr=3e-3, patience=1)
    adapter, curve = train(made, benchmark)
    assert len(curve) == adapter.training["best_epoch"] == 4
    assert validation_loss(backbone, adapter, easy[0]) == pytest.approx(
        curve[-1]["val_loss"], rel=1e-4
    )


def test_the_next_experience_starts_anew(make_backbone, noisy) -> None:
    """What was the lowest loss of the one before says nothing, and heads start again."""
    task = noisy.experiences[0].task
    one = strategy(make_backbone(), task, patience=1)
    train(one, noisy, 0)
    second, curve = train(one, noisy, 1)
    alone, expected = train(strategy(make_backbone(), task, patience=1), noisy, 1)
    assert curve == expected
    assert all(torch.equal(second.head[k], alone.head[k]) for k in alone.head)


def test_unlike_tasks_one_after_another_with_mlp_heads(make_backbone, benchmark_16) -> None:
    """Each with its own head, loss and metric, as if it were trained by itself."""
    first = benchmark_16.experiences[0]
    level = first.inputs.reshape(len(first.inputs), -1).mean(axis=1).astype(np.float32)
    scalar = Task("level", get_kind("scalar"), scaling=Scaling.of(level[first.train]))
    train_part, val = first.train[::2], first.train[1::2]
    experiences = (
        replace(first, train=train_part, val=val),
        replace(first, name="level", task=scalar, targets=level, train=train_part, val=val),
    )
    benchmark = replace(benchmark_16, experiences=experiences)
    settings = {"head_shape": "mlp", "head_hidden": 5, "patience": 2, "epochs": 3}
    backbone = make_backbone()
    both = strategy(backbone, first.task, **settings)
    found = [train(both, benchmark, t)[0] for t in range(2)]
    assert [len(a.head["out.weight"]) for a in found] == [3, 1]
    assert all(isinstance(head_of(a.head), MLPHead) for a in found)
    assert [a.training["metric"] for a in found] == ["accuracy", "rmse"]
    curve = found[1].training["loss"]
    assert validation_loss(backbone, found[1], experiences[1]) == pytest.approx(
        min(entry["val_loss"] for entry in curve), rel=1e-4
    )
    assert all(entry["rmse"] > 0 for entry in curve)
    alone, _ = train(strategy(make_backbone(), scalar, **settings), benchmark, 1)
    assert all(torch.equal(alone.head[k], found[1].head[k]) for k in alone.head)
    assert all(torch.equal(alone.factors[m].B, found[1].factors[m].B) for m in alone.factors)
