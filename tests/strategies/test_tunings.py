"""Full fine-tuning: what is kept is exactly what training added, and the backbone stays itself."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn
from torch.nn import functional as F

from cl_lora.adapters import Adapter
from cl_lora.adapters.injection import LoRAConfig
from cl_lora.benchmarks import Benchmark, Experience
from cl_lora.benchmarks.avalanche import avalanche_benchmark
from cl_lora.benchmarks.batches import batches
from cl_lora.models.backbones import Backbone
from cl_lora.models.images import ImageBackbone
from cl_lora.strategies.config import ANEW, CONTINUED, Lineage, TrainingConfig, schedule
from cl_lora.strategies.lora import LoRAStrategy
from cl_lora.strategies.tunings import LORA, TUNINGS, WHOLE, Tuned, Tuning
from cl_lora.support.errors import UserError

CONFIG = LoRAConfig(rank=2, targets=("qkv", "fc1"), dropout=0.0)
MakeBackbone = Callable[[], Backbone]


def strategy(
    backbone: Backbone,
    benchmark: Benchmark,
    *,
    seed: int = 0,
    lineage: Lineage = ANEW,
    tuning: Tuning = WHOLE,
    plugins: tuple[SupervisedPlugin, ...] = (),
    **training: Any,
) -> LoRAStrategy:
    settings = {"epochs": 2, "batch_size": 8, "full_lr": 3e-3, "lr": 7e-2, "head_lr": 1e-2}
    return LoRAStrategy(
        backbone=backbone,
        task=benchmark.tasks[0],
        lora=CONFIG,
        training=TrainingConfig(**{**settings, **training}),
        seed=seed,
        lineage=lineage,
        tuning=tuning,
        plugins=plugins,
    )


def train(made: LoRAStrategy, benchmark: Benchmark, *which: int) -> list[Adapter]:
    stream = list(avalanche_benchmark(benchmark, ImageBackbone.encode).train_stream)
    return [made.train_adapter(stream[t], f"e{t}") for t in which or range(len(stream))]


def state(backbone: Backbone) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in backbone.state_dict().items()}


def digest(adapter: Adapter) -> str:
    found = hashlib.blake2b()
    for part in (adapter.deltas, adapter.head):
        for name in sorted(part):
            found.update(name.encode() + part[name].numpy().tobytes())
    return found.hexdigest()


def require_untouched(backbone: Backbone, before: dict[str, Tensor]) -> None:
    after = backbone.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], before[k]) for k in before)
    for parameter in backbone.parameters():
        assert not parameter.requires_grad
        assert parameter.grad is None
    assert not any(module.training for module in backbone.modules())


# What is kept ------------------------------------------------------------------------------------


class Seen(SupervisedPlugin):
    """Keeps every batch, and the trained weights at the end of each experience."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[Tensor, Tensor]] = []
        self.ends: list[dict[str, Tensor]] = []

    def before_training_iteration(self, strategy: Any, **_: Any) -> None:
        self.batches.append((strategy.mb_x.clone(), strategy.mb_y.clone()))

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        named = strategy.backbone.network.named_parameters()
        self.ends.append({name: p.detach().clone() for name, p in named})


def entry_of(parameter: str) -> str:
    return parameter[: -len(".weight")] if parameter.endswith(".weight") else parameter


def by_hand(
    backbone: Backbone, head: nn.Linear, seen: list[tuple[Tensor, Tensor]], config: TrainingConfig
) -> tuple[dict[str, Tensor], nn.Linear]:
    """Train everything with AdamW on the same batches, float32; return what was added."""
    own = copy.deepcopy(backbone)
    before = {name: p.detach().clone() for name, p in own.network.named_parameters()}
    for parameter in own.network.parameters():
        parameter.requires_grad_(True)
    own.train()
    groups = [
        {"params": list(own.network.parameters()), "lr": config.full_lr},
        {"params": list(head.parameters()), "lr": config.head_lr},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    for step, (inputs, targets) in enumerate(seen):
        share = schedule(step, len(seen), config.warmup)
        for group, peak in zip(
            optimizer.param_groups, (config.full_lr, config.head_lr), strict=True
        ):
            group["lr"] = share * peak
        optimizer.zero_grad()
        F.cross_entropy(head(own(inputs)), targets).backward()
        optimizer.step()
    named = own.network.named_parameters()
    return {entry_of(name): p.detach() - before[name] for name, p in named}, head


def test_it_is_plain_training_of_all_weights(
    make_backbone: MakeBackbone, benchmark_16: Benchmark
) -> None:
    """Against a loop written here, on the same batches."""
    seen = Seen()
    backbone = make_backbone()
    made = strategy(backbone, benchmark_16, plugins=(seen,))
    head = nn.Linear(backbone.features, 3)
    head.load_state_dict(made.model.head.state_dict())
    (adapter,) = train(made, benchmark_16, 0)
    assert len(seen.batches) == 2 * 3
    expected, trained = by_hand(make_backbone(), head, seen.batches, made.training)
    assert set(adapter.deltas) == set(expected)
    for name, delta in expected.items():
        assert delta.abs().max() > 0 or name.endswith("k.bias"), name
        torch.testing.assert_close(adapter.deltas[name], delta, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(adapter.head["weight"], trained.weight.detach())
    torch.testing.assert_close(adapter.head["bias"], trained.bias.detach())


def test_deltas_and_the_base_are_the_trained_weights(
    make_backbone: MakeBackbone, benchmark_16: Benchmark
) -> None:
    seen, backbone = Seen(), make_backbone()
    before = dict(make_backbone().network.named_parameters())
    adapters = train(strategy(backbone, benchmark_16, plugins=(seen,)), benchmark_16)
    assert len(adapters) == 3
    for adapter, end in zip(adapters, seen.ends, strict=True):
        assert not adapter.factors
        assert adapter.entries is adapter.deltas
        for name, weight in end.items():
            delta = adapter.deltas[entry_of(name)]
            assert torch.equal(delta, weight - before[name])
            torch.testing.assert_close(before[name] + delta, weight, rtol=0, atol=1e-7)


def test_every_parameter_has_an_entry_in_its_shape(
    backbone: Backbone, benchmark_16: Benchmark
) -> None:
    (adapter,) = train(strategy(backbone, benchmark_16), benchmark_16, 0)
    shapes = {entry_of(n): tuple(p.shape) for n, p in backbone.network.named_parameters()}
    assert {name: tuple(d.shape) for name, d in adapter.deltas.items()} == shapes
    for name in (
        *("cls_token", "pos_embed", "patch_embed.proj", "patch_embed.proj.bias", "norm"),
        *("norm.bias", "blocks.0.attn.qkv", "blocks.1.mlp.fc2.bias", "blocks.0.norm1"),
    ):
        assert adapter.deltas[name].abs().max() > 0, name
    assert WHOLE.modules(backbone, CONFIG) == tuple(adapter.deltas)
    assert all(d.device.type == "cpu" and not d.requires_grad for d in adapter.deltas.values())


def test_deltas_are_copies_that_later_training_leaves_alone(
    make_backbone: MakeBackbone, benchmark_16: Benchmark
) -> None:
    made = strategy(make_backbone(), benchmark_16)
    (first,) = train(made, benchmark_16, 0)
    kept = digest(first)
    train(made, benchmark_16, 1)
    assert digest(first) == kept


# The backbone ------------------------------------------------------------------------------------


def test_the_backbone_is_bit_for_bit_what_it_was(
    backbone: Backbone, benchmark_16: Benchmark
) -> None:
    before, fingerprint = state(backbone), backbone.fingerprint()
    made = strategy(backbone, benchmark_16)
    for t in range(3):
        train(made, benchmark_16, t)
        require_untouched(backbone, before)
    assert backbone.fingerprint() == fingerprint


class Breaks(SupervisedPlugin):
    """Fails in the middle of training."""

    def __init__(self, at: int, error: BaseException) -> None:
        super().__init__()
        self.left, self.error = at, error

    def after_update(self, strategy: Any, **_: Any) -> None:
        self.left -= 1
        if not self.left:
            raise self.error


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_it_is_given_back_after_an_exception_inside_training(
    make_backbone: MakeBackbone, benchmark_16: Benchmark, error: BaseException
) -> None:
    backbone = make_backbone()
    before = state(backbone)
    made = strategy(backbone, benchmark_16, plugins=(Breaks(4, error),))
    with pytest.raises(type(error)):
        train(made, benchmark_16, 0)
    require_untouched(backbone, before)
    # And it can be trained as if nothing had been.
    (again,) = train(strategy(backbone, benchmark_16), benchmark_16, 0)
    (plain,) = train(strategy(make_backbone(), benchmark_16), benchmark_16, 0)
    assert digest(again) == digest(plain)


def test_a_loss_that_is_not_finite_leaves_the_backbone(
    backbone: Backbone, benchmark_16: Benchmark
) -> None:
    before = state(backbone)
    with pytest.raises(UserError, match=r"training loss became .* lower strategy.lr"):
        train(strategy(backbone, benchmark_16, full_lr=1e30, warmup=0.0), benchmark_16, 0)
    require_untouched(backbone, before)


@pytest.mark.parametrize("tuning", TUNINGS.values(), ids=TUNINGS)
def test_what_is_opened_is_closed(backbone: Backbone, tuning: Tuning) -> None:
    before = state(backbone)
    opened = tuning.opened(backbone, CONFIG, None)
    assert any(p.requires_grad for p in backbone.parameters())
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(0.25)
    found = opened.tuned()
    opened.close()
    require_untouched(backbone, before)
    assert found.entries
    assert bool(found.factors) == (tuning is LORA)


# Draws and lineages ------------------------------------------------------------------------------


def test_the_same_seed_is_the_same_bytes_and_another_is_not(
    make_backbone: MakeBackbone, benchmark_16: Benchmark
) -> None:
    one, again = (train(strategy(make_backbone(), benchmark_16), benchmark_16) for _ in range(2))
    assert [digest(a) for a in one] == [digest(a) for a in again]
    other = train(strategy(make_backbone(), benchmark_16, seed=1), benchmark_16)
    assert not {digest(a) for a in one} & {digest(a) for a in other}
    assert len({digest(a) for a in one}) == 3


def test_each_experience_starts_from_the_base_whatever_came_before(
    make_backbone: MakeBackbone, benchmark_16: Benchmark
) -> None:
    """Also after resuming from a file: the head and the draws are all that is taken over."""
    settings = {"head": "own"}
    whole = train(strategy(make_backbone(), benchmark_16, **settings), benchmark_16)
    (alone,) = train(strategy(make_backbone(), benchmark_16, **settings), benchmark_16, 2)
    assert digest(alone) == digest(whole[2])
    shared = train(strategy(make_backbone(), benchmark_16), benchmark_16)
    resumed = strategy(make_backbone(), benchmark_16)
    resumed.resume(shared[1])
    torch.manual_seed(99)
    (last,) = train(resumed, benchmark_16, 2)
    assert digest(last) == digest(shared[2])


def test_whole_weights_can_be_trained_on_too(
    make_backbone: MakeBackbone, benchmark_16: Benchmark
) -> None:
    """With a rate of almost nothing the deltas stay where the last experience left them."""
    first, second = train(
        strategy(make_backbone(), benchmark_16, lineage=CONTINUED), benchmark_16, 0, 1
    )
    still = strategy(
        make_backbone(), benchmark_16, lineage=CONTINUED, full_lr=1e-12, weight_decay=0.0
    )
    still.resume(first)
    backbone = still.backbone
    before = state(backbone)
    (after,) = train(still, benchmark_16, 1)
    for name, delta in first.deltas.items():
        torch.testing.assert_close(after.deltas[name], delta, rtol=0, atol=1e-6)
        assert not torch.equal(second.deltas[name], delta)
    require_untouched(backbone, before)


# Settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tuning", "key"), [(WHOLE, "full_lr"), (LORA, "lr")])
def test_each_tuning_has_its_own_rate(
    backbone: Backbone, benchmark_16: Benchmark, tuning: Tuning, key: str
) -> None:
    rates = {"full_lr": 2e-5, "lr": 5e-4, "head_lr": 1e-2}
    made = strategy(backbone, benchmark_16, tuning=tuning, **rates)
    peaks: list[list[float]] = []
    step = made.optimizer_step

    def spy() -> None:
        step()
        peaks.append([group["peak"] for group in made.optimizer.param_groups])

    made.optimizer_step = spy
    train(made, benchmark_16, 0)
    assert peaks == [[rates[key], rates["head_lr"]]] * 6


def test_the_rate_decides_how_far_the_weights_go(
    make_backbone: MakeBackbone, benchmark_16: Benchmark
) -> None:
    def way(**more: Any) -> float:
        (adapter,) = train(strategy(make_backbone(), benchmark_16, **more), benchmark_16, 0)
        return float(sum(d.square().sum() for d in adapter.deltas.values())) ** 0.5

    near = way(full_lr=1e-5)
    assert 5 * near < way(full_lr=1e-3)
    assert way(full_lr=1e-5, lr=0.5) == near


@pytest.mark.parametrize(
    ("head", "trained"), [("own", (1, 1)), ("shared", (1, 1)), ("frozen", (1, 0))]
)
def test_the_policy_says_whether_the_head_trains(
    backbone: Backbone, benchmark_16: Benchmark, head: str, trained: tuple[int, int]
) -> None:
    made = strategy(backbone, benchmark_16, head=head)
    start = made.model.head.state_dict()["weight"].clone()
    first, second = train(made, benchmark_16, 0, 1)
    assert bool(trained[0]) != torch.equal(first.head["weight"], start)
    assert bool(trained[1]) != torch.equal(second.head["weight"], first.head["weight"])
    if head == "own":  # it starts anew
        (alone,) = train(strategy(backbone, benchmark_16, head=head), benchmark_16, 1)
        assert torch.equal(alone.head["weight"], second.head["weight"])
    assert all(a.deltas["cls_token"].abs().max() > 0 for a in (first, second))


def test_dropout_is_on_while_it_trains(
    make_backbone: MakeBackbone, benchmark_16: Benchmark
) -> None:
    modes: list[bool] = []

    class Modes(SupervisedPlugin):
        def before_forward(self, strategy: Any, **_: Any) -> None:
            modes.append(strategy.model.training and strategy.backbone.network.training)

    train(strategy(make_backbone(), benchmark_16, plugins=(Modes(),)), benchmark_16, 0)
    assert modes == [True] * 6


def test_the_registered_tunings() -> None:
    assert list(TUNINGS) == ["lora", "full"]
    assert [TUNINGS[name].rank(CONFIG) for name in TUNINGS] == [2, None]
    assert Tuned().entries == {}


# Early stopping ----------------------------------------------------------------------------------


@pytest.fixture
def noisy(benchmark_16: Benchmark) -> Benchmark:
    """Train labels that are wrong: what is learned of them makes the validation loss worse."""
    made = []
    for e in benchmark_16.experiences:
        train_part, targets = e.train[::2], e.targets.copy()
        targets[train_part] = np.random.default_rng(0).permutation(targets[train_part])
        made.append(replace(e, train=train_part, val=e.train[1::2], targets=targets))
    return replace(benchmark_16, experiences=tuple(made))


def validation(e: Experience) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    return lambda: batches(e, e.val, 5, ImageBackbone.encode)


def loss_of(make_backbone: MakeBackbone, adapter: Adapter, e: Experience) -> float:
    own = make_backbone()
    with torch.no_grad():
        for name, parameter in own.network.named_parameters():
            parameter.add_(adapter.deltas[entry_of(name)])
        features = own(ImageBackbone.encode(e.inputs[e.val]))
        outputs = F.linear(features, adapter.head["weight"], adapter.head["bias"])
        return float(F.cross_entropy(outputs, torch.from_numpy(e.targets[e.val])))


@pytest.mark.parametrize("patience", [1, 8])
def test_the_weights_of_the_lowest_validation_loss_are_kept(
    make_backbone: MakeBackbone, noisy: Benchmark, patience: int
) -> None:
    e, backbone = noisy.experiences[0], make_backbone()
    before = state(backbone)
    made = strategy(backbone, noisy, epochs=6, full_lr=1e-3, head_lr=3e-2, patience=patience)
    stream = avalanche_benchmark(noisy, ImageBackbone.encode).train_stream
    adapter = made.train_adapter(stream[0], e.name, None, e.task, validation(e))
    losses = [epoch["val_loss"] for epoch in adapter.training["loss"]]
    best = int(np.argmin(losses))
    assert best < len(losses) - 1, "the last epoch is the best: nothing is shown"
    assert adapter.training["best_epoch"] == best + 1
    assert len(losses) == min(6, best + 1 + patience)
    assert loss_of(make_backbone, adapter, e) == pytest.approx(losses[best], rel=1e-4)
    require_untouched(backbone, before)
