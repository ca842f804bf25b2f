from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from cl_lora.adapters.injection import LoRAConfig
from cl_lora.benchmarks.core import DomainBenchmark
from cl_lora.benchmarks.stream import avalanche_benchmark, joint_benchmark
from cl_lora.models.backbones import Backbone
from cl_lora.strategies.config import TrainingConfig, schedule
from cl_lora.strategies.lora import LoRAStrategy
from cl_lora.support.errors import UserError


def strategy(backbone: Backbone, seed: int = 0, kind: str = "fresh", **training) -> LoRAStrategy:
    settings = {"epochs": 2, "batch_size": 8, "lr": 1e-2, **training}
    return LoRAStrategy(
        backbone=backbone,
        classes=3,
        lora=LoRAConfig(rank=2, targets=("qkv", "fc1")),
        training=TrainingConfig(**settings),
        seed=seed,
        kind=kind,
    )


def train(made: LoRAStrategy, benchmark: DomainBenchmark, joint: bool = False) -> list:
    stream = (joint_benchmark if joint else avalanche_benchmark)(benchmark).train_stream
    return [made.train_adapter(e, f"e{e.current_experience}") for e in stream]


def norm(adapter) -> float:
    return float(sum(f.delta().norm() for f in adapter.factors.values()))


def same(a, b) -> bool:
    return all(
        torch.equal(a.factors[m].A, b.factors[m].A) and torch.equal(a.factors[m].B, b.factors[m].B)
        for m in a.factors
    )


def test_every_experience_trains_a_fresh_adapter(backbone, benchmark_16) -> None:
    """The trap of a late hook: adapters after the first would silently keep B = 0."""
    fingerprint = backbone.fingerprint()
    adapters = train(strategy(backbone), benchmark_16)
    assert len(adapters) == 3
    assert all(norm(a) > 0.01 for a in adapters)
    assert not same(adapters[0], adapters[1])
    assert backbone.fingerprint() == fingerprint
    for t, adapter in enumerate(adapters):
        assert adapter.training["experience"] == t
        assert [p["epoch"] for p in adapter.training["loss"]] == [1, 2]
        assert all(math.isfinite(p["loss"]) for p in adapter.training["loss"])


def test_training_learns(backbone, benchmark_16) -> None:
    """Images whose brightness is their class: even a random backbone can tell them apart."""
    bright = np.broadcast_to(
        (benchmark_16.labels * 120)[:, None, None, None], benchmark_16.images.shape
    )
    easy = dataclasses.replace(benchmark_16, images=bright.astype(np.uint8))
    curve = train(strategy(backbone, epochs=20, head_lr=2e-2), easy)[0].training["loss"]
    assert curve[-1]["loss"] < 0.5 * curve[0]["loss"]
    assert curve[-1]["accuracy"] == 1.0


def test_same_seed_same_bytes_and_resuming_changes_nothing(make_backbone, benchmark_16) -> None:
    whole = train(strategy(make_backbone()), benchmark_16)
    again = train(strategy(make_backbone()), benchmark_16)
    other = train(strategy(make_backbone(), seed=1), benchmark_16)
    assert all(same(a, b) for a, b in zip(whole, again, strict=True))
    assert not same(whole[0], other[0])

    resumed = strategy(make_backbone())
    resumed.resume(whole[1])
    torch.manual_seed(99)
    last = list(avalanche_benchmark(benchmark_16).train_stream)[2]
    adapter = resumed.train_adapter(last, "e2")
    assert same(adapter, whole[2])
    assert torch.equal(adapter.head["weight"], whole[2].head["weight"])


def test_sequential_trains_one_adapter_on(make_backbone, benchmark_16) -> None:
    """With a learning rate of almost nothing the factors stay where the last experience left."""
    first = train(strategy(make_backbone(), kind="sequential"), benchmark_16)[0]
    resumed = strategy(make_backbone(), kind="sequential", lr=1e-12, weight_decay=0.0)
    resumed.resume(first)
    second = list(avalanche_benchmark(benchmark_16).train_stream)[1]
    after = resumed.train_adapter(second, "e1")
    for module, f in first.factors.items():
        torch.testing.assert_close(after.factors[module].delta(), f.delta())


def test_head_policies(make_backbone, benchmark_16) -> None:
    frozen = train(strategy(make_backbone(), head="frozen"), benchmark_16)
    assert torch.equal(frozen[0].head["weight"], frozen[2].head["weight"])
    shared = train(strategy(make_backbone(), head="shared"), benchmark_16)
    assert not torch.equal(shared[0].head["weight"], shared[2].head["weight"])
    # A head of its own starts anew: with no head training it is the initial one every time.
    own = train(strategy(make_backbone(), head="per_experience", head_lr=1e-12), benchmark_16)
    torch.testing.assert_close(own[0].head["weight"], own[2].head["weight"])


def test_joint_sees_all_experiences(backbone, benchmark_16) -> None:
    stream = joint_benchmark(benchmark_16).train_stream
    assert len(stream) == 1
    assert len(stream[0].dataset) == sum(len(i) for i in benchmark_16.train)
    assert norm(train(strategy(backbone), benchmark_16, joint=True)[0]) > 0


def test_bf16_autocast_trains(backbone, benchmark_16) -> None:
    made = strategy(backbone)
    made.bf16 = True
    adapter = train(made, benchmark_16)[0]
    assert norm(adapter) > 0
    assert next(iter(adapter.factors.values())).A.dtype == torch.float32


def test_nan_loss_stops_with_the_place_and_the_remedy(backbone, benchmark_16) -> None:
    with pytest.raises(UserError, match=r"step \d+ of 6 .*e0.*lower strategy.lr"):
        train(strategy(backbone, lr=1e30, head_lr=1e30, warmup=0.0), benchmark_16)
    assert not hasattr(backbone.network, "peft_config")


def test_optimizer_holds_only_what_trains_with_two_rates(backbone, benchmark_16) -> None:
    made = strategy(backbone, lr=1e-3, head_lr=1e-2, warmup=0.0)
    seen = []
    original = made.optimizer_step

    def spy() -> None:
        original()
        seen.append([(g["peak"], len(g["params"])) for g in made.optimizer.param_groups])

    made.optimizer_step = spy
    train(made, benchmark_16)
    assert all(step == [(1e-3, 8), (1e-2, 2)] for step in seen)


def test_schedule_rises_then_falls_to_zero() -> None:
    shares = [schedule(s, 100, 0.1) for s in range(101)]
    assert shares[0] == pytest.approx(1 / 11)
    assert shares[10] == 1.0
    assert shares[55] == pytest.approx(0.5)
    assert shares[100] == pytest.approx(0.0)
    assert max(shares) == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"lr": float("inf")}, r"strategy\.lr"),
        ({"head_lr": -1.0}, "head_lr"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"warmup": 1.0}, "warmup"),
        ({"head": "shard"}, "did you mean 'shared'"),
    ],
)
def test_bad_training_settings(settings, message) -> None:
    with pytest.raises(UserError, match=message):
        TrainingConfig(**settings)
