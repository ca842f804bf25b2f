"""What an arm serves, against independent computations on a tiny bank."""

from __future__ import annotations

from typing import Any

import numpy as np
import peft
import pytest
import torch

from cl_lora.adapters import Adapter
from cl_lora.adapters.injection import LoRAConfig, applied, inject, target_modules
from cl_lora.benchmarks.batches import batches
from cl_lora.benchmarks.core import DomainBenchmark, draw_buffer
from cl_lora.experiment.arms import make_arm
from cl_lora.experiment.banks import Banks
from cl_lora.experiment.evaluator import ArmEvaluator
from cl_lora.models.backbones import Backbone
from cl_lora.models.compute import Compute
from cl_lora.models.heads import PrototypeHead, linear_head, new_linear_head
from cl_lora.support.errors import UserError
from cl_lora.support.seeding import torch_generator

CPU = Compute(torch.device("cpu"), bf16=False)
LORA = LoRAConfig(rank=2, lora_alpha=4, targets=("qkv", "fc1"), dropout=0.0)


def random_adapter(backbone: Backbone, number: int) -> Adapter:
    """Return an adapter as training would leave it, but at random: s = 2, rank 2."""
    from cl_lora.adapters import LoRAFactors

    generator = torch_generator(number, "adapter")
    factors = {}
    for name in target_modules(backbone.network, LORA.targets):
        out, into = backbone.network.get_submodule(name).weight.shape
        factors[name] = LoRAFactors(
            torch.randn(2, into, generator=generator) / 4,
            torch.randn(out, 2, generator=generator) / 4,
            2.0,
        )
    head = new_linear_head(backbone.features, 3, seed=number).state_dict()
    return Adapter(f"a{number}", factors, head)


@pytest.fixture
def adapters(backbone: Backbone) -> tuple[Adapter, ...]:
    return tuple(random_adapter(backbone, i) for i in range(3))


def evaluator(
    benchmark: DomainBenchmark, backbone: Backbone, adapters: tuple[Adapter, ...], **more: Any
) -> ArmEvaluator:
    settings: dict[str, Any] = {
        "benchmark": benchmark,
        "backbone": backbone,
        "banks": Banks(adapters, adapters, adapters[0]),
        "compute": CPU,
        "seed": 0,
        "head_policy": "shared",
        "buffers": {spc: draw_buffer(benchmark, spc, 0) for spc in (1, 2)},
        "spc": 2,
        "batch_size": 5,
        "head_lr": 0.1,
        **more,
    }
    return ArmEvaluator(**settings)


def arm(**settings: Any) -> Any:
    return make_arm("x", settings, spc=2, buffer_batch_size=100)


def features(backbone: Backbone, update: Any, images: torch.Tensor) -> torch.Tensor:
    with applied(backbone.network, update), torch.no_grad():
        return backbone(images)


def test_peft_linear_arm_scores_as_peft_itself(
    benchmark_16, backbone, make_backbone, adapters, tmp_path
) -> None:
    """The oracle: peft loads the folders, merges them and predicts; we count what is right."""
    made = evaluator(benchmark_16, backbone, adapters)
    served = arm(method="linear", space="factors", coefficients=[0.5, 0.3, 0.2])
    scores, _ = made.evaluate(served, 2, lambda: None)

    other = make_backbone()
    for adapter in adapters:
        adapter.save(tmp_path / adapter.name)
    model = peft.PeftModel.from_pretrained(other.network, str(tmp_path / "a0"), adapter_name="a0")
    for name in ("a1", "a2"):
        model.load_adapter(str(tmp_path / name), adapter_name=name)
    model.add_weighted_adapter(["a0", "a1", "a2"], [0.5, 0.3, 0.2], "m", combination_type="linear")
    model.set_adapter("m")
    other.network = model.eval()
    head = linear_head(adapters[2].head)
    for j, indices in enumerate(benchmark_16.test):
        images, labels = next(batches(benchmark_16, indices, 100))
        with torch.no_grad():
            right = (head(other(images)).argmax(1) == labels).double().mean()
        found = [s.value for s in scores if s.evaluated == j and s.metric == "accuracy"]
        assert found == [pytest.approx(float(right))]


def test_only_adapters_trained_so_far_are_merged(benchmark_16, backbone, adapters) -> None:
    made = evaluator(benchmark_16, backbone, adapters)
    served = made.merged(arm(method="task_arithmetic", coefficients=[0.5, 0.25, 9.0]), 1)
    module = adapters[0].modules()[0]
    expected = sum(
        w * 2.0 * a.factors[module].B.double() @ a.factors[module].A.double()
        for w, a in zip([0.5, 0.25], adapters[:2], strict=True)
    )
    torch.testing.assert_close(served.update.delta(module).double(), expected)
    assert [(c.adapter, c.value, c.group) for c in served.coefficients] == [
        (0, 0.5, "all"),
        (1, 0.25, "all"),
    ]


def test_heads_of_their_own_are_merged_with_the_coefficients(
    benchmark_16, backbone, adapters
) -> None:
    made = evaluator(benchmark_16, backbone, adapters, head_policy="per_experience")
    served = made.merged(arm(method="cat", coefficients=[0.5, 2.0, -1.0]), 2)
    x = torch.randn(4, backbone.features)
    expected = sum(
        w * linear_head(a.head)(x) for w, a in zip([0.5, 2.0, -1.0], adapters, strict=True)
    )
    torch.testing.assert_close(served.head(x), expected)


def test_shared_head_is_the_latest(benchmark_16, backbone, adapters) -> None:
    served = evaluator(benchmark_16, backbone, adapters).merged(arm(method="cat"), 1)
    x = torch.randn(4, backbone.features)
    torch.testing.assert_close(served.head(x), linear_head(adapters[1].head)(x))


@pytest.mark.parametrize("own", [True, False])
def test_prototypes_come_from_the_merged_backbone_over_the_buffer(
    benchmark_16, backbone, adapters, own: bool
) -> None:
    policy = {"head_policy": "shared"} if own else {"head_policy": "prototypes"}
    made = evaluator(benchmark_16, backbone, adapters, **policy)
    settings = {"head": "prototypes"} if own else {}
    served = made.merged(arm(method="cat", coefficients=0.3, spc=1, **settings), 1)
    buffer = np.concatenate(draw_buffer(benchmark_16, 1, 0)[:2])
    images, labels = next(batches(benchmark_16, buffer, 100))
    expected = PrototypeHead(features(backbone, served.update, images), labels, 3)
    torch.testing.assert_close(served.head.weight, expected.weight.detach(), rtol=1e-4, atol=1e-5)


def learned(**more: Any) -> Any:
    rule = {"name": "adaptive", "b_max": 3, "steps": 20, "lr": 0.2, **more.pop("rule", {})}
    return arm(method="task_arithmetic", coefficients=rule, **more)


def buffer_loss(made: ArmEvaluator, served: Any, benchmark: DomainBenchmark) -> float:
    images, labels = next(batches(benchmark, np.concatenate(made.buffers[2]), 100))
    logits = served.head(features(made.backbone, served.update, images))
    return float(torch.nn.functional.cross_entropy(logits, labels))


def test_learned_coefficients_lower_the_loss_on_the_buffer(
    benchmark_16, backbone, adapters
) -> None:
    made = evaluator(benchmark_16, backbone, adapters)
    start = made.merged(arm(method="task_arithmetic", coefficients=1.0), 2)  # (1 + b_max) / 4
    served = made.merged(learned(), 2)
    assert buffer_loss(made, served, benchmark_16) < buffer_loss(made, start, benchmark_16)
    values = [c.value for c in served.coefficients]
    assert len(values) == 3
    assert all(0 < v < 3 for v in values)
    again = made.merged(learned(), 2)
    assert [c.value for c in again.coefficients] == values


def test_own_heads_are_learned_through_as_they_are_served(benchmark_16, backbone, adapters) -> None:
    made = evaluator(benchmark_16, backbone, adapters, head_policy="per_experience")
    start = made.merged(arm(method="task_arithmetic", coefficients=1.0), 2)
    longer = made.merged(learned(rule={"steps": 60}), 2)
    assert buffer_loss(made, longer, benchmark_16) < buffer_loss(made, start, benchmark_16)
    alpha = torch.tensor([c.value for c in longer.coefficients])
    # At the optimum of what is served, a step either way along the coefficients does not help.
    for factor in (0.8, 1.25):
        moved = made.merged(
            arm(method="task_arithmetic", coefficients=(alpha * factor).tolist()), 2
        )
        assert buffer_loss(made, longer, benchmark_16) <= buffer_loss(made, moved, benchmark_16)


def test_tuned_head_goes_further_and_leaves_the_bank_alone(
    benchmark_16, backbone, adapters
) -> None:
    before = adapters[2].head["weight"].clone()
    made = evaluator(benchmark_16, backbone, adapters)
    plain, tuned = made.merged(learned(), 2), made.merged(learned(tune_head=True), 2)
    assert buffer_loss(made, tuned, benchmark_16) < buffer_loss(made, plain, benchmark_16)
    assert torch.equal(adapters[2].head["weight"], before)


@pytest.mark.parametrize(("granularity", "groups"), [("layer", 2), ("module", 4)])
def test_granularity_gives_a_row_for_each_group(
    benchmark_16, backbone, adapters, granularity: str, groups: int
) -> None:
    made = evaluator(benchmark_16, backbone, adapters)
    served = made.merged(learned(rule={"granularity": granularity}), 2)
    assert len({c.group for c in served.coefficients}) == groups
    assert len(served.coefficients) == 3 * groups


class Watched(np.ndarray):
    """Images that remember which rows were asked for."""

    asked: set[int]

    def __getitem__(self, key: Any) -> Any:
        if hasattr(self, "asked"):
            self.asked.update(int(i) for i in np.atleast_1d(np.asarray(key)))
        return np.asarray(self)[key]


@pytest.mark.parametrize("settings", [{}, {"tune_head": True}, {"head": "prototypes"}])
@pytest.mark.parametrize("rule", ["adaptive", "softmax"])
def test_no_test_sample_reaches_what_is_learned(
    benchmark_16, backbone, adapters, settings: dict[str, Any], rule: str
) -> None:
    import dataclasses

    images = np.asarray(benchmark_16.images).view(Watched)
    images.asked = set()
    watched = dataclasses.replace(benchmark_16, images=images)
    made = evaluator(watched, backbone, adapters)
    config = {"name": rule, "steps": 3, "granularity": "adapter"}
    made.merged(arm(method="ties", coefficients=config, **settings), 2)
    buffer = {int(i) for part in made.buffers[2] for i in part}
    assert images.asked == buffer
    assert not images.asked & {int(i) for part in watched.test for i in part}


def test_untrained_row_is_the_bare_backbone_under_the_initial_head(
    benchmark_16, backbone, adapters
) -> None:
    made = evaluator(benchmark_16, backbone, adapters)
    scores, _ = made.evaluate(arm(method="cat"), -1, lambda: None)
    head = new_linear_head(backbone.features, 3, seed=0)
    images, labels = next(batches(benchmark_16, benchmark_16.test[1], 100))
    right = (head(backbone(images)).argmax(1) == labels).double().mean()
    found = [s.value for s in scores if s.evaluated == 1 and s.metric == "accuracy"]
    assert found == [pytest.approx(float(right))]


def test_evaluating_leaves_the_backbone_bit_for_bit(benchmark_16, backbone, adapters) -> None:
    fingerprint = backbone.fingerprint()
    made = evaluator(benchmark_16, backbone, adapters)
    for one in (arm(method="ties", coefficients=1.0), learned(), "oracle", "last", "sequential"):
        made.evaluate(one, 2, lambda: None)
    assert backbone.fingerprint() == fingerprint


def test_wrapped_model_and_merged_update_agree(benchmark_16, backbone, adapters) -> None:
    """One adapter at weight 1 is what was trained: the same features as inside peft."""
    images, _ = next(batches(benchmark_16, benchmark_16.test[0], 100))
    made = evaluator(benchmark_16, backbone, adapters)
    served = made.merged(arm(method="cat", coefficients=1.0), 0)
    merged = features(backbone, served.update, images)
    backbone.network = inject(backbone.network, LORA, adapters[0].factors).eval()
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), merged, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "'method'"),
        ({"method": "ties", "tune_head": True}, "learned coefficients"),
        ({"method": "ties", "tune_head": "yes"}, "true or false"),
        ({"method": "ties", "head": "prototype"}, "prototypes"),
        ({"method": "ties", "rank": 0}, "rank"),
        ({"method": "ties", "space": "delt"}, "delta"),
        ({"method": "svd", "space": "factors"}, "factors"),
    ],
)
def test_bad_arm(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_arm("x", settings, spc=1, buffer_batch_size=4)
