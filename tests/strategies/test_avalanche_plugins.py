"""Plugins of Avalanche inside our strategy: its replay and its elastic weight consolidation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from avalanche.training.plugins import EWCPlugin, ReplayPlugin, SupervisedPlugin

from cl_lora.adapters import Adapter
from cl_lora.adapters.injection import LoRAConfig
from cl_lora.benchmarks import Benchmark
from cl_lora.benchmarks.avalanche import avalanche_benchmark
from cl_lora.models.backbones import Backbone
from cl_lora.models.images import ImageBackbone
from cl_lora.strategies.config import TrainingConfig, schedule
from cl_lora.strategies.lora import LoRAStrategy

EPOCHS, BATCH, MEMORY = 2, 8, 12


class Watch(SupervisedPlugin):
    """Notes what our strategy does in every experience; it comes after the plugin under test."""

    def __init__(self) -> None:
        super().__init__()
        self.samples: list[set[bytes]] = []
        self.rates: list[list[float]] = []
        self.batches: list[int] = []
        self.penalties: list[list[float]] = []

    def before_training_exp(self, strategy, **_) -> None:
        self.samples.append(set())
        self.rates.append([])
        self.penalties.append([])
        self.batches.append(len(strategy.dataloader))

    def before_training_iteration(self, strategy, **_) -> None:
        self.samples[-1] |= {digest(x.numpy()) for x in strategy.mb_x}

    def before_backward(self, strategy, **_) -> None:
        plain = strategy.task.loss(strategy.mb_output, strategy.mb_y)
        self.penalties[-1].append(float((strategy.loss - plain).detach()))

    def after_update(self, strategy, **_) -> None:
        self.rates[-1].append(strategy.optimizer.param_groups[0]["lr"])


def digest(image: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).tobytes()).digest()


def trained(
    backbone: Backbone, benchmark: Benchmark, *plugins: SupervisedPlugin
) -> tuple[list[Adapter], Watch]:
    """Train every experience and return the adapters and what was seen."""
    watch = Watch()
    made = LoRAStrategy(
        backbone=backbone,
        task=benchmark.tasks[0],
        lora=LoRAConfig(rank=2, dropout=0.0),
        training=TrainingConfig(epochs=EPOCHS, batch_size=BATCH, lr=1e-2),
        seed=0,
        plugins=[*plugins, watch],
    )
    stream = avalanche_benchmark(benchmark, ImageBackbone.encode).train_stream
    return [made.train_adapter(e, f"e{i}") for i, e in enumerate(stream)], watch


@pytest.fixture
def plain(make_backbone: Callable[[], Backbone], benchmark_16: Benchmark) -> list[Adapter]:
    return trained(make_backbone(), benchmark_16)[0]


def same(a: Adapter, b: Adapter) -> bool:
    factors = all(
        torch.equal(f.A, b.factors[m].A) and torch.equal(f.B, b.factors[m].B)
        for m, f in a.factors.items()
    )
    return factors and all(torch.equal(value, b.head[key]) for key, value in a.head.items())


def images_of(benchmark: Benchmark, j: int) -> set[bytes]:
    experience = benchmark.experiences[j]
    return {digest(ImageBackbone.encode(experience.inputs[i]).numpy()) for i in experience.train}


def test_replay_trains_on_earlier_experiences_for_longer_epochs(
    make_backbone, benchmark_16, plain
) -> None:
    replay = ReplayPlugin(mem_size=MEMORY, batch_size=4, batch_size_mem=4)
    adapters, watch = trained(make_backbone(), benchmark_16, replay)
    own = [images_of(benchmark_16, j) for j in range(3)]
    assert watch.samples[0] == own[0]
    assert watch.samples[1] - own[1] <= own[0]
    assert len(watch.samples[1] - own[1]) == MEMORY
    earlier = watch.samples[2] - own[2]
    assert earlier & own[0]
    assert earlier & own[1]
    # Four of each a batch: an experience of 24 has six batches then, not three.
    assert watch.batches == [3, 6, 6]
    # The schedule ends where training ends, in the epochs of the loader that replay put in.
    for batches, rates in zip(watch.batches, watch.rates, strict=True):
        steps = batches * EPOCHS
        assert rates == [pytest.approx(1e-2 * schedule(s, steps, 0.1)) for s in range(steps)]
    assert same(adapters[0], plain[0])
    assert not same(adapters[1], plain[1])


def test_a_loader_of_more_batches_lengthens_the_schedule(
    make_backbone, benchmark_16, plain
) -> None:
    """Whatever a plugin puts in the loader's place, the schedule counts."""

    class Twice(SupervisedPlugin):
        def before_training_exp(self, strategy, **_) -> None:
            strategy.dataloader = [*strategy.dataloader, *strategy.dataloader]

    _, watch = trained(make_backbone(), benchmark_16, Twice())
    assert watch.batches == [6, 6, 6]
    assert watch.rates[0] == [
        pytest.approx(1e-2 * schedule(s, 6 * EPOCHS, 0.1)) for s in range(6 * EPOCHS)
    ]


def test_ewc_pulls_the_second_experience_back(make_backbone, benchmark_16, plain) -> None:
    adapters, watch = trained(make_backbone(), benchmark_16, EWCPlugin(ewc_lambda=100.0))
    assert watch.penalties[0] == [0.0] * 6
    assert max(watch.penalties[1]) > 1e-3
    assert max(watch.penalties[2]) > 1e-3
    assert same(adapters[0], plain[0])
    assert not same(adapters[1], plain[1])


def test_a_plugin_that_does_nothing_changes_nothing(make_backbone, benchmark_16, plain) -> None:
    adapters, _ = trained(make_backbone(), benchmark_16, SupervisedPlugin())
    assert all(same(a, b) for a, b in zip(adapters, plain, strict=True))


def test_our_own_bookkeeping_stands_beside_plugins(make_backbone, benchmark_16, plain) -> None:
    """The recorded curve is that of the task's loss and metric, an entry an epoch."""
    adapters, _ = trained(make_backbone(), benchmark_16, ReplayPlugin(mem_size=MEMORY))
    for adapter in adapters:
        curve = adapter.training["loss"]
        assert [entry["epoch"] for entry in curve] == [1, 2]
        assert all(0 <= entry["accuracy"] <= 1 for entry in curve)
    assert adapters[0].training["loss"] == plain[0].training["loss"]
