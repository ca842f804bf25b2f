from __future__ import annotations

import dataclasses
import hashlib
import math

import numpy as np
import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin

from cl_lora.adapters import Adapter
from cl_lora.adapters.injection import LoRAConfig, extract
from cl_lora.benchmarks import Benchmark
from cl_lora.benchmarks.avalanche import avalanche_benchmark, joint_benchmark
from cl_lora.models.backbones import Backbone
from cl_lora.models.images import ImageBackbone
from cl_lora.models.timm_vits import TimmBackbone
from cl_lora.strategies.config import ANEW, CONTINUED, Lineage, TrainingConfig, schedule
from cl_lora.strategies.lora import LoRAStrategy
from cl_lora.support.errors import UserError
from cl_lora.tasks import CLASS, Task

TASK = Task("three", CLASS, ("a", "b", "c"))


def strategy(
    backbone: Backbone, seed: int = 0, lineage: Lineage = ANEW, plugins=(), **training
) -> LoRAStrategy:
    settings = {"epochs": 2, "batch_size": 8, "lr": 1e-2, **training}
    return LoRAStrategy(
        backbone=backbone,
        task=TASK,
        lora=LoRAConfig(rank=2, targets=("qkv", "fc1")),
        training=TrainingConfig(**settings),
        seed=seed,
        lineage=lineage,
        plugins=plugins,
    )


def stream(benchmark: Benchmark, joint: bool = False) -> list:
    make = joint_benchmark if joint else avalanche_benchmark
    return list(make(benchmark, ImageBackbone.encode).train_stream)


def train(made: LoRAStrategy, benchmark: Benchmark, joint: bool = False) -> list[Adapter]:
    return [made.train_adapter(e, f"e{e.current_experience}") for e in stream(benchmark, joint)]


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
    first = benchmark_16.experiences[0]
    bright = np.broadcast_to((first.targets * 120)[:, None, None, None], first.inputs.shape)
    bright = bright.astype(np.uint8)
    experiences = [dataclasses.replace(e, inputs=bright) for e in benchmark_16.experiences]
    easy = dataclasses.replace(benchmark_16, experiences=tuple(experiences))
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
    last = stream(benchmark_16)[2]
    adapter = resumed.train_adapter(last, "e2")
    assert same(adapter, whole[2])
    assert torch.equal(adapter.head["weight"], whole[2].head["weight"])


def test_sequential_trains_one_adapter_on(make_backbone, benchmark_16) -> None:
    """With a learning rate of almost nothing the factors stay where the last experience left."""
    first = train(strategy(make_backbone(), lineage=CONTINUED), benchmark_16)[0]
    resumed = strategy(make_backbone(), lineage=CONTINUED, lr=1e-12, weight_decay=0.0)
    resumed.resume(first)
    second = stream(benchmark_16)[1]
    after = resumed.train_adapter(second, "e1")
    for module, f in first.factors.items():
        torch.testing.assert_close(after.factors[module].delta(), f.delta())


class Batches(SupervisedPlugin):
    """Notes the samples of every training batch, a digest each, and where each adapter starts."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, list[list[str]]] = {}
        self.starts: list[torch.Tensor] = []

    def before_training_exp(self, strategy, **_) -> None:
        factors = extract(strategy.backbone.network)
        self.starts.append(next(iter(factors.values())).A)

    def before_training_iteration(self, strategy, **_) -> None:
        batch = [hashlib.blake2b(x.numpy().tobytes()).hexdigest() for x in strategy.mb_x]
        self.seen.setdefault(strategy.experience.current_experience, []).append(batch)


def orders(made: LoRAStrategy, batches: Batches, benchmark: Benchmark) -> list[list[int]]:
    """Train on the same data in every experience, and return the order that each saw them in."""
    first = benchmark.experiences[0]
    same_data = [dataclasses.replace(e, train=first.train) for e in benchmark.experiences]
    train(made, dataclasses.replace(benchmark, experiences=tuple(same_data)))
    place = {
        hashlib.blake2b(ImageBackbone.encode(first.inputs[i]).numpy().tobytes()).hexdigest(): int(i)
        for i in first.train
    }
    return [[place[x] for batch in batches.seen[t] for x in batch] for t in sorted(batches.seen)]


def test_every_experience_draws_its_own_adapter_and_batches(make_backbone, benchmark_16) -> None:
    """On equal data: what differs then is the draw."""
    batches = Batches()
    found = orders(strategy(make_backbone(), plugins=[batches]), batches, benchmark_16)
    assert all(sorted(order) == sorted(found[0]) for order in found)
    assert len({tuple(order) for order in found}) == 3
    assert not any(torch.equal(batches.starts[0], start) for start in batches.starts[1:])
    again = Batches()
    assert orders(strategy(make_backbone(), plugins=[again]), again, benchmark_16) == found
    # The lineage and the seed count too.
    for more in ({"seed": 1}, {"lineage": CONTINUED}):
        other = Batches()
        seen = orders(strategy(make_backbone(), plugins=[other], **more), other, benchmark_16)
        # From the first experience on, where no lineage has anything to go on from.
        assert seen[0] != found[0]
        assert not torch.equal(other.starts[0], batches.starts[0])


def test_the_label_decides_the_draw_where_there_is_one(make_backbone, benchmark_16) -> None:
    first = stream(benchmark_16)[0]
    plain, one, other = (
        strategy(make_backbone()).train_adapter(first, "e0", label)
        for label in (None, "fresh-0", "fresh-1")
    )
    assert not same(one, other)
    assert same(plain, strategy(make_backbone()).train_adapter(first, "e0", "0"))


class Normalised(torch.nn.Module):
    """A ViT block stack behind a batch normalisation whose statistics are far from the data's."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.blocks, self.rest = network.blocks, network
        self.norm = torch.nn.BatchNorm2d(3)
        self.dropout = torch.nn.Dropout(0.5)
        self.num_features = network.num_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features (batch, width)."""
        return self.rest(self.dropout(self.norm(x)))


def normalised(make_backbone) -> Backbone:
    network = Normalised(make_backbone().network).requires_grad_(False)
    return TimmBackbone(network.eval(), 16, [0.5] * 3, [0.5] * 3).eval()


def test_a_backbone_with_batch_normalisation_stays_as_it_was(make_backbone, benchmark_16) -> None:
    backbone = normalised(make_backbone)
    images = ImageBackbone.encode(benchmark_16.experiences[0].inputs[:6])
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    features = backbone(images)
    adapters = train(strategy(backbone), benchmark_16)
    assert all(norm(a) > 0 for a in adapters)
    assert not any(module.training for module in backbone.modules())
    after = backbone.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert int(backbone.network.norm.num_batches_tracked) == 0
    assert torch.equal(backbone(images), features)  # dropout is off, too


def test_batch_normalisation_makes_no_difference_to_resuming(make_backbone, benchmark_16) -> None:
    whole = train(strategy(normalised(make_backbone)), benchmark_16)
    resumed = strategy(normalised(make_backbone))
    resumed.resume(whole[1])
    last = resumed.train_adapter(stream(benchmark_16)[2], "e2")
    assert same(last, whole[2])
    assert torch.equal(last.head["weight"], whole[2].head["weight"])


def test_dropout_of_the_adapter_is_on_while_it_trains(make_backbone, benchmark_16) -> None:
    modes: list[bool] = []

    class Modes(SupervisedPlugin):
        def before_forward(self, strategy, **_) -> None:
            modes.append(strategy.model.training and strategy.backbone.network.training)

    train(strategy(make_backbone(), plugins=[Modes()]), benchmark_16)
    assert len(modes) == 18
    assert all(modes)


def test_head_policies(make_backbone, benchmark_16) -> None:
    frozen = train(strategy(make_backbone(), head="frozen"), benchmark_16)
    assert torch.equal(frozen[0].head["weight"], frozen[2].head["weight"])
    shared = train(strategy(make_backbone(), head="shared"), benchmark_16)
    assert not torch.equal(shared[0].head["weight"], shared[2].head["weight"])
    # A head of its own starts anew: with no head training it is the initial one every time.
    own = train(strategy(make_backbone(), head="per_experience", head_lr=1e-12), benchmark_16)
    torch.testing.assert_close(own[0].head["weight"], own[2].head["weight"])


def test_joint_sees_all_experiences(backbone, benchmark_16) -> None:
    (everything,) = stream(benchmark_16, joint=True)
    assert len(everything.dataset) == sum(len(e.train) for e in benchmark_16.experiences)
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


@pytest.mark.parametrize("warmup", [0.0, 0.4])
def test_every_step_is_taken_at_the_rate_of_the_schedule(backbone, benchmark_16, warmup) -> None:
    """What the optimizer steps with, not what was set up: 2 epochs of 3 batches."""
    made = strategy(backbone, lr=1e-3, head_lr=1e-2, warmup=warmup)
    taken: list[tuple[float, ...]] = []
    make = made.make_optimizer

    def spy(**more) -> None:
        make(**more)
        made.optimizer.register_step_pre_hook(
            lambda optimizer, *_: taken.append(tuple(g["lr"] for g in optimizer.param_groups))
        )

    made.make_optimizer = spy
    train(made, benchmark_16)
    shares = [schedule(step, 6, warmup) for step in range(6)]
    assert taken == [(pytest.approx(1e-3 * s), pytest.approx(1e-2 * s)) for s in shares] * 3


def test_a_rate_that_falls_trains_another_adapter_than_one_that_does_not(
    make_backbone, benchmark_16, monkeypatch
) -> None:
    falls = train(strategy(make_backbone()), benchmark_16)
    monkeypatch.setattr("cl_lora.strategies.lora.schedule", lambda *_: 1.0)
    assert not same(falls[0], train(strategy(make_backbone()), benchmark_16)[0])


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
