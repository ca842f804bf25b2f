"""An arm adapted to a support set: against plain loops, dense algebra and hand-worked counts."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from bench import LORA, Counting, random_adapter
from bench import with_noise_as_test as with_noise
from torch import Tensor
from torch.nn import functional as F

from cl_lora.adapters.injection import applied
from cl_lora.benchmarks import Benchmark
from cl_lora.benchmarks.draw import draw_support
from cl_lora.benchmarks.streams.covariate_shift import hold_out_last
from cl_lora.experiment.adapting import adapt_arm, edges
from cl_lora.experiment.arms import Arm, ArmDefaults, make_arm
from cl_lora.experiment.evaluator import Evaluator
from cl_lora.experiment.sampling import draws, held_out
from cl_lora.experiment.serving import Served, Workbench
from cl_lora.experiment.stages import Outline, Stage, get_protocol
from cl_lora.models.backbones import Backbone
from cl_lora.models.head_policies import get_head_policy
from cl_lora.models.heads import PrototypeHead
from cl_lora.models.weights import Weights
from cl_lora.strategies.config import AdaptationConfig
from cl_lora.support.errors import DivergedError

QUICK = AdaptationConfig(warmup_steps=3, steps=4, epochs=0, batch_size=5, head_lr=0.05)
SUM = {"method": "task_arithmetic"}
ARMS: dict[str, dict[str, Any]] = {
    "means_base": {"adapt": "none"},
    "means_uniform": {**SUM, "adapt": "none"},
    "classifier": {"adapt": "head"},
    "full": {"adapt": "full"},
    "lora": {"adapt": "lora"},
    "uniform": {**SUM, "adapt": "head"},
    "heads": {**SUM, "adapt": "head", "head_start": "average"},
    "learned": {**SUM, "coefficients": "softmax", "adapt": "coefficients"},
    "ties": {
        "method": "ties",
        "coefficients": {"name": "adaptive", "b_max": 3},
        "adapt": "coefficients",
    },
    "lora_from_uniform": {**SUM, "adapt": "lora"},
    "lora_from_learned": {**SUM, "coefficients": "softmax", "adapt": "lora"},
    "lora_from_best": {**SUM, "coefficients": "best", "adapt": "lora"},
    "truncated": {**SUM, "adapt": "lora", "truncate": True},
}
TRAINS_NETWORK = ("full", "lora", "lora_from_uniform", "lora_from_learned", "truncated")


@pytest.fixture
def bench(benchmark_16: Benchmark, backbone: Backbone) -> Workbench:
    return few_shot_bench(hold_out_last(benchmark_16), backbone)


def few_shot_bench(benchmark: Benchmark, backbone: Backbone) -> Workbench:
    """Return a seed of a few-shot run: random adapters 0 and 1 upstream, 2 downstream."""
    Counting.passes = 0
    return Workbench(
        benchmark=benchmark,
        backbone=backbone,
        banks={"fresh": tuple(random_adapter(backbone, i) for i in range(3))},
        compute=Counting(torch.device("cpu"), bf16=False),
        seed=0,
        policy=get_head_policy("own"),
        buffers={},
        spc=2,
        batch_size=5,
        head_lr=0.1,
        lora=LORA,
    )


def stage(k: int | str = 2, draw: int = 0) -> Stage:
    outline = Outline(("a", "b", "c"), (2,), (8.0,) * 3, (k,), draws=draw + 1)
    return get_protocol("shots").stages(outline)[draw]


def arm(name: str = "x", config: AdaptationConfig = QUICK, **settings: Any) -> Arm:
    return make_arm(name, settings, ArmDefaults(head="own", adaptation=config))


def served(bench: Workbench, k: int | str = 2, config: AdaptationConfig = QUICK, **settings: Any):
    return adapt_arm(bench, arm(config=config, **settings), stage(k))


def support(bench: Workbench, k: int | str = 2) -> tuple[Tensor, Tensor]:
    experience = bench.benchmark.experiences[2]
    indices = draw_support(experience, k, bench.seed, 0)
    inputs = bench.backbone.encode(experience.inputs[indices])
    return inputs, torch.from_numpy(experience.targets[indices])


def rows(size: int, steps: int, purpose: str, k: int | str = 2) -> list[Tensor]:
    name = "sketch"
    return list(draws(size, QUICK.batch_size, steps, 0, purpose, name, f"K={k}", 0))


def outputs(bench: Workbench, found: Served, inputs: Tensor) -> Tensor:
    from cl_lora.models.weights import changed

    with changed(bench.backbone.network, found.update(2)), torch.no_grad():
        return found.head(2)(bench.backbone(inputs))


# What is served -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARMS)
def test_the_backbone_is_given_back_bit_for_bit(bench: Workbench, name: str) -> None:
    before = {k: v.clone() for k, v in bench.backbone.state_dict().items()}
    served(bench, **ARMS[name])
    after = bench.backbone.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert not any(p.requires_grad for p in bench.backbone.parameters())
    assert not any(module.training for module in bench.backbone.modules())


@pytest.mark.parametrize("name", ["classifier", "uniform"])
def test_training_on_features_computed_once_equals_the_plain_way(bench: Workbench, name) -> None:
    """Warm-up and classifier tuning against a loop through the whole backbone in every step."""
    found = served(bench, **ARMS[name])
    inputs, targets = support(bench)
    adapters = bench.banks["fresh"][:2] if name == "uniform" else ()
    head = torch.nn.Linear(16, 3)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    for purpose, steps, decays in (("warm-up", 3, False), ("adaptation", 4, True)):
        optimizer = torch.optim.AdamW(head.parameters(), lr=0.05, weight_decay=0.01)
        for step, batch in enumerate(rows(6, steps, purpose)):
            if decays:
                optimizer.param_groups[0]["lr"] = 0.05 * (1 + np.cos(np.pi * step / steps)) / 2
            with dense_sum(bench, adapters):
                loss = F.cross_entropy(head(bench.backbone(inputs[batch])), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.testing.assert_close(found.head(2).weight, head.weight, rtol=1e-4, atol=1e-6)


def dense_sum(bench: Workbench, adapters):
    """Return a context in which the mean of the dense updates is added to the weights."""

    class Sum:
        def modules(self):
            return adapters[0].modules() if adapters else ()

        def delta(self, module):
            parts = [a.factors[module] for a in adapters]
            return sum(f.scaling * f.B.double() @ f.A.double() for f in parts) / len(parts)

    return applied(bench.backbone.network, Sum() if adapters else None)


def test_learned_composition_serves_the_merge_with_the_learned_weights(bench: Workbench) -> None:
    """Two modules by hand: softmax weights over the adapters, each module its own."""
    found = served(bench, **ARMS["learned"])
    values = {(c.group, c.adapter): c.value for c in found.coefficients}
    module = "blocks.1.mlp.fc1"
    weights = [values[module, m] for m in (0, 1)]
    assert sum(weights) == pytest.approx(1.0)
    assert weights[0] != pytest.approx(0.5, abs=1e-6)  # learned
    factors = [a.factors[module] for a in bench.banks["fresh"][:2]]
    expected = sum(
        w * f.scaling * f.B.double() @ f.A.double() for w, f in zip(weights, factors, strict=True)
    )
    torch.testing.assert_close(
        found.update(2).delta(module).double(), expected, rtol=1e-5, atol=1e-6
    )


def test_composition_is_learned_as_by_a_plain_loop_on_merged_weights(bench: Workbench) -> None:
    """The bottleneck and its weights, without weight decay, against dense deltas in autograd."""
    config = replace(QUICK, weight_decay=0.5)
    found = served(bench, config=config, **ARMS["learned"])
    inputs, targets = support(bench)
    adapters = bench.banks["fresh"][:2]
    modules = adapters[0].modules()
    v = torch.zeros(len(modules), 2, dtype=torch.float64, requires_grad=True)
    head = torch.nn.Linear(16, 3)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)

    def features(batch: Tensor) -> Tensor:
        alpha = v.softmax(-1).float()
        weights = {}
        for i, module in enumerate(modules):
            delta = sum(alpha[i, n] * a.factors[module].delta() for n, a in enumerate(adapters))
            name = f"network.{module}.weight"
            weights[name] = bench.backbone.get_parameter(name) + delta
        return torch.func.functional_call(bench.backbone, weights, (inputs[batch],))

    optimizer = torch.optim.AdamW(head.parameters(), lr=0.05, weight_decay=0.5)
    for batch in rows(6, 3, "warm-up"):
        loss = F.cross_entropy(head(features(batch).detach()), targets[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer = torch.optim.AdamW(
        [
            {"params": [v], "lr": 0.05, "weight_decay": 0.0},
            {"params": list(head.parameters()), "lr": 0.05, "weight_decay": 0.5},
        ]
    )
    for step, batch in enumerate(rows(6, 4, "adaptation")):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 + np.cos(np.pi * step / 4)) / 2
        loss = F.cross_entropy(head(features(batch)), targets[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    learned = {(c.group, c.adapter): c.value for c in found.coefficients}
    expected = v.softmax(-1)
    for i, module in enumerate(modules):
        for n in (0, 1):
            assert learned[module, n] == pytest.approx(expected[i, n].item(), rel=1e-3, abs=1e-4)
    torch.testing.assert_close(found.head(2).weight, head.weight, rtol=1e-3, atol=1e-4)


def test_a_lora_on_a_composition_keeps_the_composition(bench: Workbench) -> None:
    """What is beyond the frozen merge has the rank of a LoRA; a truncated one is of that rank."""
    uniform = served(bench, **ARMS["uniform"]).update(2)
    found = served(bench, **ARMS["lora_from_uniform"]).update(2)
    truncated = served(bench, **ARMS["truncated"]).update(2)
    for module in uniform.modules():
        beyond = found.delta(module) - uniform.delta(module)
        assert 0 < np.linalg.matrix_rank(beyond.numpy(), tol=1e-4) <= LORA.rank
        assert np.linalg.matrix_rank(truncated.delta(module).numpy(), tol=1e-4) <= LORA.rank


def test_a_truncated_composition_starts_at_its_best_approximation(bench: Workbench) -> None:
    still = replace(QUICK, lora_lr=1e-12)
    found = served(bench, config=still, **ARMS["truncated"]).update(2)
    uniform = served(bench, **ARMS["uniform"]).update(2)
    for module in uniform.modules():
        u, s, vh = torch.linalg.svd(uniform.delta(module).double(), full_matrices=False)
        best = (u[:, :2] * s[:2]) @ vh[:2]
        torch.testing.assert_close(found.delta(module).double(), best, rtol=1e-4, atol=1e-5)


def test_lora_from_learned_starts_where_learning_ends(bench: Workbench) -> None:
    learned = served(bench, **ARMS["learned"])
    found = served(bench, **ARMS["lora_from_learned"])
    assert [c.value for c in found.coefficients] == [c.value for c in learned.coefficients]


def test_the_best_adapter_is_chosen_on_the_support_set(bench: Workbench) -> None:
    """By the loss of a head warmed up on its features: computed here for each adapter."""
    found = served(bench, **ARMS["lora_from_best"])
    inputs, targets = support(bench)
    fit, judge = held_out(targets, 0.2)
    losses = []
    for adapter in bench.banks["fresh"][:2]:
        with dense_sum(bench, [adapter]), torch.no_grad():
            features = bench.backbone(inputs)
        head = torch.nn.Linear(16, 3)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        optimizer = torch.optim.AdamW(head.parameters(), lr=0.05, weight_decay=0.01)
        for batch in rows(len(fit), 3, "warm-up"):
            chosen = fit[batch]
            loss = F.cross_entropy(head(features[chosen]), targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(float(F.cross_entropy(head(features[judge]), targets[judge]).detach()))
    weights = [c.value for c in found.coefficients]
    assert sorted(weights) == [0.0, 1.0]
    assert weights[int(np.argmin(losses))] == 1.0


def test_class_means_are_those_of_the_support_set(bench: Workbench) -> None:
    found = served(bench, **ARMS["means_base"])
    inputs, targets = support(bench)
    with torch.no_grad():
        expected = PrototypeHead(bench.backbone(inputs), targets, 3)
    torch.testing.assert_close(found.head(2).weight, expected.weight.detach())


@pytest.mark.parametrize("name", ["classifier", "uniform", "learned", "full"])
def test_without_samples_class_means_of_upstream_features_serve(bench: Workbench, name) -> None:
    found = served(bench, 0, **ARMS[name])
    merged = bench.banks["fresh"][:2] if ARMS[name].get("method") else ()
    features, labels = [], []
    for experience in bench.benchmark.experiences[:2]:
        inputs = bench.backbone.encode(experience.inputs[experience.train])
        with dense_sum(bench, merged), torch.no_grad():
            features.append(bench.backbone(inputs))
        labels.append(torch.from_numpy(experience.targets[experience.train]))
    expected = PrototypeHead(torch.cat(features), torch.cat(labels), 3)
    torch.testing.assert_close(found.head(2).weight, expected.weight.detach(), rtol=1e-4, atol=1e-5)


def test_the_heads_average_starts_the_head(bench: Workbench) -> None:
    still = replace(QUICK, warmup_steps=0, head_lr=1e-12)
    found = served(bench, config=still, **ARMS["heads"])
    heads = [bench.banks["fresh"][m].head["weight"] for m in (0, 1)]
    torch.testing.assert_close(found.head(2).weight, (heads[0] + heads[1]) / 2)


# A fair comparison ----------------------------------------------------------------------------


def test_every_arm_sees_the_same_batches_for_the_same_steps(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cl_lora.experiment import adapting

    seen: dict[str, list[tuple[str, list[list[int]]]]] = {}
    current = ""

    def spy(size, batch_size, steps, seed, purpose, *keys):
        made = list(draws(size, batch_size, steps, seed, purpose, *keys))
        seen.setdefault(current, []).append((purpose, [r.tolist() for r in made]))
        return iter(made)

    monkeypatch.setattr(adapting, "draws", spy)
    for name in ("classifier", "full", "lora", "uniform", "learned", "lora_from_uniform"):
        current = name
        served(bench, **ARMS[name])
    assert all(found == seen["classifier"] for found in seen.values())
    assert [purpose for purpose, _ in seen["lora"]] == ["warm-up", "adaptation"]
    assert [len(batches) for _, batches in seen["lora"]] == [3, 4]


def test_a_loras_first_factors_are_paired_over_arms(bench: Workbench) -> None:
    """With a rate of almost nothing the factors A of two arms are the ones that were drawn."""
    still = replace(QUICK, lora_lr=1e-12, weight_decay=0.0)
    scratch, on_top = (
        served(bench, config=still, **ARMS[name]).update(2)
        for name in ("lora", "lora_from_uniform")
    )
    module = "blocks.0.attn.qkv"
    torch.testing.assert_close(
        scratch.entries[module].A, on_top.entries[module].A[-LORA.rank :], rtol=0, atol=1e-6
    )


def test_steps_grow_with_the_pool_only_as_passes_ask() -> None:
    config = AdaptationConfig(steps=40, epochs=2, batch_size=16)
    assert [config.steps_for(n) for n in (1, 16, 320, 1600)] == [40, 40, 40, 200]


def test_no_arm_sees_the_query(benchmark_16: Benchmark, make_backbone) -> None:
    """With noise in its place everything that is trained and chosen stays the same."""
    stream = hold_out_last(benchmark_16)
    config = replace(QUICK, grid=(0.3, 1.0, 3.0))
    for name in ("learned", "lora_from_best", "classifier"):
        first, second = (
            served(few_shot_bench(data, make_backbone()), 4, config, **ARMS[name])
            for data in (stream, with_noise(stream))
        )
        assert torch.equal(first.head(2).weight, second.head(2).weight)
        assert first.coefficients == second.coefficients
        rates = [a.value for a in first.accounts if a.quantity == "learning_rate_factor"]
        assert rates == [a.value for a in second.accounts if a.quantity == "learning_rate_factor"]


def test_the_factor_with_the_lowest_loss_is_chosen(bench: Workbench) -> None:
    """Each candidate is trained alone on the part to fit, and judged on the rest: done here too."""
    grid = (0.01, 1.0, 30.0)
    found = served(bench, 4, replace(QUICK, grid=grid), **ARMS["classifier"])
    (chosen,) = [a.value for a in found.accounts if a.quantity == "learning_rate_factor"]
    inputs, targets = support(bench, 4)
    fit, judge = held_out(targets, 0.2)
    with torch.no_grad():
        features = bench.backbone(inputs)
    losses = {}
    for factor in grid:
        head = torch.nn.Linear(16, 3)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        for purpose, steps, rate in (("warm-up", 3, 1.0), ("adaptation", 4, factor)):
            optimizer = torch.optim.AdamW(head.parameters(), lr=0.05, weight_decay=0.01)
            for step, batch in enumerate(rows(len(fit), steps, purpose, 4)):
                decay = (1 + np.cos(np.pi * step / steps)) / 2 if purpose == "adaptation" else 1
                optimizer.param_groups[0]["lr"] = 0.05 * rate * decay
                chosen_rows = fit[batch]
                loss = F.cross_entropy(head(features[chosen_rows]), targets[chosen_rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        losses[factor] = float(F.cross_entropy(head(features[judge]), targets[judge]).detach())
    assert chosen == min(losses, key=lambda f: losses[f])


def test_a_validation_part_may_judge_instead(benchmark_16: Benchmark, backbone: Backbone) -> None:
    """Trained on the whole support set, judged on the downstream validation part."""
    stream = hold_out_last(benchmark_16)
    downstream = stream.experiences[2]
    val = downstream.train[::2]  # disjoint from the rest as a real one is
    rest = np.setdiff1d(downstream.train, val)
    held = replace(downstream, train=rest, val=val)
    bench = few_shot_bench(replace(stream, experiences=(*stream.experiences[:2], held)), backbone)
    grid = (0.01, 1.0, 30.0)
    config = replace(QUICK, grid=grid, select_on="val")
    found = served(bench, 1, config, **ARMS["classifier"])
    (chosen,) = [a.value for a in found.accounts if a.quantity == "learning_rate_factor"]
    inputs = bench.backbone.encode(held.inputs[val])
    targets = torch.from_numpy(held.targets[val])
    losses = {}
    for factor in grid:
        tried = _fitted_with(bench, QUICK, factor)
        with torch.no_grad():
            losses[factor] = float(F.cross_entropy(tried(bench.backbone(inputs)), targets))
    assert chosen == min(losses, key=lambda f: losses[f])
    torch.testing.assert_close(
        found.head(2).weight, _fitted_with(bench, QUICK, chosen).weight, rtol=1e-4, atol=1e-6
    )


def _fitted_with(bench: Workbench, config: AdaptationConfig, factor: float) -> torch.nn.Module:
    """Return a classifier tuned on the K = 1 support with one factor, by a plain loop."""
    inputs, targets = support(bench, 1)
    with torch.no_grad():
        features = bench.backbone(inputs)
    head = torch.nn.Linear(16, 3)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    for purpose, steps, rate in (("warm-up", 3, 1.0), ("adaptation", 4, factor)):
        optimizer = torch.optim.AdamW(head.parameters(), lr=0.05, weight_decay=0.01)
        for step, batch in enumerate(rows(len(targets), steps, purpose, 1)):
            decay = (1 + np.cos(np.pi * step / steps)) / 2 if purpose == "adaptation" else 1
            optimizer.param_groups[0]["lr"] = config.head_lr * rate * decay
            loss = F.cross_entropy(head(features[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return head


def test_with_one_sample_a_class_nothing_is_chosen(bench: Workbench) -> None:
    found = served(bench, 1, replace(QUICK, grid=(0.1, 1.0)), **ARMS["classifier"])
    assert not [a for a in found.accounts if a.quantity == "learning_rate_factor"]
    plain = served(bench, 1, **ARMS["classifier"])
    assert torch.equal(found.head(2).weight, plain.head(2).weight)


def test_a_factor_whose_training_fails_is_not_chosen(bench: Workbench) -> None:
    """Only if every one fails does the arm."""
    config = replace(QUICK, grid=(1.0, 1e33))
    found = served(bench, 4, config, **ARMS["lora"])
    assert account(found)["learning_rate_factor"] == 1.0
    with pytest.raises(DivergedError, match="The loss"):
        served(bench, 4, replace(config, grid=(1.0, 1e3), lora_lr=1e30), **ARMS["lora"])


def test_time_holds_what_learning_the_start_took(bench: Workbench) -> None:
    """Also where another arm has learned it before."""
    first = account(served(bench, **ARMS["lora_from_learned"]))["seconds"]
    (learned,) = bench.learned.values()
    assert learned.seconds < first
    other = adapt_arm(bench, arm("y", **ARMS["lora_from_learned"]), stage())
    assert account(other)["seconds"] > learned.seconds
    assert account(served(bench, **ARMS["learned"]))["seconds"] > 0


def test_the_head_of_a_truncated_composition_is_warmed_up_on_it(bench: Workbench) -> None:
    still = replace(QUICK, lora_lr=1e-12, steps=1)
    found = served(bench, config=still, **ARMS["truncated"])
    inputs, targets = support(bench)
    cut = served(bench, **ARMS["uniform"]).update(2).truncate(LORA.rank)
    head = torch.nn.Linear(16, 3)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    with applied(bench.backbone.network, cut), torch.no_grad():
        features = bench.backbone(inputs)
    for purpose, steps in (("warm-up", 3), ("adaptation", 1)):
        optimizer = torch.optim.AdamW(head.parameters(), lr=0.05, weight_decay=0.01)
        for batch in rows(6, steps, purpose):
            loss = F.cross_entropy(head(features[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.testing.assert_close(found.head(2).weight, head.weight, rtol=1e-3, atol=1e-4)


def test_a_choice_at_the_edge_is_said() -> None:
    said = edges({"a": [0.3, 0.3, 1.0, 3.0], "b": [1.0, 1.0]}, (0.3, 1.0, 3.0))
    assert said == [
        "3 of 4 learning rates chosen for a lie at the edge of the grid (2 at 0.3, 1 at 3); widen "
        "adaptation.grid"
    ]
    assert edges({"a": [1.0]}, (1.0,)) == []


# Accounts ------------------------------------------------------------------------------------


def account(found: Served) -> dict[str, float]:
    return {a.quantity: a.value for a in found.accounts}


def test_trainable_parameters_are_counted_without_the_head(bench: Workbench) -> None:
    """2 blocks, qkv 48 x 16 and fc1 64 x 16, rank 2; two upstream adapters."""
    of_lora = 2 * 2 * ((16 + 48) + (16 + 64))
    every = sum(p.numel() for p in bench.backbone.network.parameters())
    expected = {
        "classifier": 0,
        "uniform": 0,
        "lora": of_lora,
        "lora_from_uniform": of_lora,
        "learned": 4 * 2,
        "full": every,
        "means_base": 0,
    }
    counted = {
        name: account(served(bench, **ARMS[name]))["trainable_parameters"] for name in expected
    }
    assert counted == expected
    by_layer = {**ARMS["learned"], "coefficients": {"name": "softmax", "granularity": "layer"}}
    assert account(served(bench, **by_layer))["trainable_parameters"] == 2 * 2


def test_time_and_memory_are_recorded(bench: Workbench) -> None:
    found = account(served(bench, **ARMS["lora"]))
    assert found["seconds"] > 0
    assert found["peak_memory_mb"] >= 0
    assert "learning_rate_factor" not in found


def test_full_fine_tuning_is_scored_with_its_own_weights(bench: Workbench) -> None:
    found = served(bench, **ARMS["full"])
    weights = found.update(2)
    assert isinstance(weights, Weights)
    other = copy.deepcopy(bench.backbone)
    other.network.load_state_dict({**other.network.state_dict(), **weights.values})
    experience = bench.benchmark.experiences[2]
    inputs = other.encode(experience.inputs[experience.test])
    with torch.no_grad():
        right = (
            found.head(2)(other(inputs)).argmax(1).numpy() == experience.targets[experience.test]
        )
    result = Evaluator(bench).score(found, stage())[2]
    assert result.scores["accuracy"] == pytest.approx(right.mean())


def test_nested_support_sets_cost_one_pass(bench: Workbench) -> None:
    """What K = 2 has is not computed again for K = 4, nor the query for another K."""
    evaluator = Evaluator(bench)
    evaluator.score(served(bench, 2, **ARMS["uniform"]), stage(2))
    before = Counting.passes
    evaluator.score(served(bench, 4, **ARMS["uniform"]), stage(4))
    assert Counting.passes == before + 1
    evaluator.score(served(bench, 4, **ARMS["means_uniform"]), stage(4))
    assert Counting.passes == before + 1


def test_training_that_diverges_names_arm_stage_and_data(bench: Workbench) -> None:
    with pytest.raises(DivergedError, match=r"Arm 'x', seed 0, stage 'K=2' of 'sketch': The loss"):
        served(bench, config=replace(QUICK, lora_lr=1e30), **ARMS["lora"])
    # What was open is given back all the same.
    assert not hasattr(bench.backbone.network, "peft_config")
