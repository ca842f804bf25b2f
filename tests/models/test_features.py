"""Features computed once, and heads trained on them as through the backbone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cl_lora.adapters.injection import applied
from cl_lora.models.compute import Compute
from cl_lora.models.features import cached_features, fit_head
from cl_lora.support.errors import UserError

COMPUTE = Compute(torch.device("cpu"), bf16=False)
CLASSES = 3


def samples(count: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return inputs, torch.arange(count) % CLASSES


def in_batches(inputs: Tensor, targets: Tensor, size: int = 5) -> list[tuple[Tensor, Tensor]]:
    return list(zip(inputs.split(size), targets.split(size), strict=True))


def steps(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(6)
    return [torch.randperm(12, generator=generator)[:4] for _ in range(count)]


def new_head() -> nn.Linear:
    head = nn.Linear(16, CLASSES)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


class Shift:
    """An update of the weights, to be served."""

    def modules(self) -> tuple[str, ...]:
        return ("blocks.0.attn.qkv",)

    def delta(self, module: str) -> Tensor:
        return torch.randn(48, 16, generator=torch.Generator().manual_seed(7))


def test_every_sample_goes_through_the_backbone_once_in_order(backbone):
    inputs, targets = samples()
    seen = []
    watch = backbone.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    features, kept = cached_features(COMPUTE, backbone, in_batches(inputs, targets))
    watch.remove()
    assert seen == [5, 5, 2]
    assert torch.equal(kept, targets)
    assert not features.requires_grad
    torch.testing.assert_close(features, backbone(inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("served", [None, Shift()])
def test_training_on_cached_features_is_training_through_the_backbone(
    backbone, served, weight_decay
):
    inputs, targets = samples()
    with applied(backbone.network, served):
        features, kept = cached_features(COMPUTE, backbone, in_batches(inputs, targets))
        fitted = fit_head(
            new_head(),
            features,
            kept,
            steps(50),
            F.cross_entropy,
            lr=0.05,
            weight_decay=weight_decay,
        )

        plain = new_head()
        optimizer = torch.optim.AdamW(plain.parameters(), lr=0.05, weight_decay=weight_decay)
        losses = []
        for rows in steps(50):
            with torch.no_grad():
                found = backbone(inputs[rows])
            loss = F.cross_entropy(plain(found), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    for name, value in plain.state_dict().items():
        difference = (fitted.head.state_dict()[name] - value).norm()
        assert difference < 1e-3 * value.norm(), name
    assert fitted.losses == pytest.approx(losses, rel=1e-3)
    assert losses[-1] < losses[0]


def test_the_update_that_is_served_is_what_is_cached(backbone):
    batches = in_batches(*samples())
    bare, _ = cached_features(COMPUTE, backbone, batches)
    with applied(backbone.network, Shift()):
        changed, _ = cached_features(COMPUTE, backbone, batches)
    assert (changed - bare).abs().max() > 1e-2


def test_features_are_kept_in_float32_under_autocast(backbone):
    batches = in_batches(*samples())
    exact, _ = cached_features(COMPUTE, backbone, batches)
    rounded, _ = cached_features(Compute(torch.device("cpu"), bf16=True), backbone, batches)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).norm() < 3e-2 * exact.norm()


def test_the_head_that_is_given_stays_as_it_is():
    head, (features, targets) = new_head(), (torch.randn(12, 16), samples()[1])
    fitted = fit_head(head, features, targets, steps(3), F.cross_entropy, lr=0.1)
    assert not head.weight.any()
    assert fitted.head.weight.any()
    assert not fitted.head.training
    unchanged = fit_head(head, features, targets, [], F.cross_entropy, lr=0.1)
    assert unchanged.losses == ()
    assert torch.equal(unchanged.head.weight, head.weight)


def test_what_cannot_be_cached_is_refused(backbone):
    batches = in_batches(*samples())
    with pytest.raises(UserError, match="at least one sample"):
        cached_features(COMPUTE, backbone, [])
    backbone.network.blocks[0].train()
    with pytest.raises(UserError, match="eval mode"):
        cached_features(COMPUTE, backbone, batches)
    backbone.eval()
    with torch.no_grad():
        backbone.network.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match="finite features"):
        cached_features(COMPUTE, backbone, batches)


@pytest.mark.parametrize(
    ("features", "lr", "message"),
    [
        (torch.ones(11, 16), 0.1, "as many features as targets but got 11 and 12"),
        (torch.ones(12, 16), 0.0, "learning rate to be above 0 but got 0.0"),
        (torch.ones(12, 16), float("nan"), "learning rate"),
        (torch.full((12, 16), float("inf")), 0.1, "loss is nan at step 0 .* now 0.1"),
    ],
)
def test_bad_input_of_training_a_head(features, lr, message):
    with pytest.raises(UserError, match=message):
        fit_head(new_head(), features, samples()[1], steps(2), F.cross_entropy, lr=lr)


# Stopping early ------------------------------------------------------------------------------


def judged(losses: list[float], every: int, patience: int, count: int) -> tuple[object, list[int]]:
    """Train on random features with a judge that says ``losses``; also when it was asked."""
    features, targets = (
        torch.randn(12, 16, generator=torch.Generator().manual_seed(0)),
        samples()[1],
    )
    order = steps(count)
    states: list[dict[str, Tensor]] = []

    def judge(head: nn.Module) -> float:
        assert not head.training
        states.append({k: v.clone() for k, v in head.state_dict().items()})
        return losses[len(states) - 1]

    fitted = fit_head(
        new_head(), features, targets, order, F.cross_entropy,
        lr=0.1, judge=judge, every=every, patience=patience,
    )  # fmt: skip
    lowest = min(range(len(states)), key=lambda i: losses[i])
    assert all(torch.equal(fitted.head.state_dict()[k], v) for k, v in states[lowest].items())
    return fitted, [len(states), lowest]


@pytest.mark.parametrize(
    ("losses", "patience", "asked", "kept", "taken"),
    [
        ([3, 2, 1, 2, 3, 0], 2, 5, 2, 15),  # stops after two without a lower one
        ([3, 2, 1, 1, 1, 0], 2, 5, 2, 15),  # as low is not lower
        ([1, 2, 3, 4, 5, 6], 1, 2, 0, 6),
        ([6, 5, 4, 3, 2, 1], 1, 6, 5, 17),  # the last judgement is at the end
        ([3, 2, 1, 2, 3, 0], 9, 6, 5, 17),
    ],
)
def test_the_head_of_the_lowest_judgement_is_kept(losses, patience, asked, kept, taken) -> None:
    fitted, found = judged([float(v) for v in losses], every=3, patience=patience, count=17)
    assert found == [asked, kept]
    assert len(fitted.losses) == taken
    assert not fitted.head.training


def test_without_a_judge_the_last_head_is_kept() -> None:
    """And a judge that is never asked before the end changes nothing."""
    features, targets = (
        torch.randn(12, 16, generator=torch.Generator().manual_seed(0)),
        samples()[1],
    )
    plain = fit_head(new_head(), features, targets, steps(5), F.cross_entropy, lr=0.1)
    same, _ = judged([1.0], every=9, patience=1, count=5)
    assert plain.losses == same.losses
    assert torch.equal(plain.head.weight, same.head.weight)
