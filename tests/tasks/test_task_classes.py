"""The kind of classification."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from torch import nn

from cl_lora.tasks import CLASS, Task, get_kind

TASK = Task("animals", CLASS, ("ape", "bee", "cat"))


def batch(count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(count, 3, generator=generator)
    return outputs, torch.randint(3, (count,), generator=generator)


def test_it_is_registered_and_has_an_output_for_each_label():
    assert get_kind("class") is CLASS
    assert TASK.outputs == 3
    assert [metric.name for metric in CLASS.metrics] == ["accuracy", "f1"]
    assert CLASS.target_dtype == torch.int64


def test_loss_is_the_mean_negative_log_likelihood():
    outputs, targets = batch()
    z = outputs.double()
    dense = (z.exp().sum(1).log() - z[torch.arange(40), targets]).mean()
    assert CLASS.loss(TASK, outputs, targets).item() == pytest.approx(dense.item(), rel=1e-6)
    assert torch.equal(TASK.loss(outputs, targets), nn.CrossEntropyLoss()(outputs, targets))


def test_scores_of_batches_are_those_of_scikit_learn():
    outputs, targets = batch()
    counts = CLASS.accumulator(TASK)
    for start in range(0, 40, 7):
        counts.update(outputs[start : start + 7], targets[start : start + 7])
    scores = counts.scores()
    predicted = outputs.argmax(1)
    assert list(scores) == ["accuracy", "f1"]
    assert scores["accuracy"] == pytest.approx(accuracy_score(targets, predicted))
    assert scores["f1"] == pytest.approx(f1_score(targets, predicted, average="macro"))


def test_hits_add_up_to_the_accuracy():
    outputs, targets = batch()
    hits = CLASS.hits(outputs, targets)
    assert hits is not None
    assert hits.dtype == torch.bool
    assert hits.shape == (40,)
    counts = CLASS.accumulator(TASK)
    counts.update(outputs, targets)
    assert hits.double().mean().item() == pytest.approx(counts.scores()["accuracy"])


def test_a_draw_balances_the_labels():
    strata, names = CLASS.strata(TASK, np.array([2, 0, 0]))
    assert strata.tolist() == [2, 0, 0]
    assert strata.dtype == np.int64
    assert names == ("ape", "bee", "cat")


def test_labels_are_drawn_from_the_predictions():
    """The loss of one sample tells its label; over many draws they come as often as predicted."""
    z = torch.tensor([[2.0, 0.0, -1.0]])
    losses = z.logsumexp(1) - z[0]
    generator, count = torch.Generator().manual_seed(0), 4000
    drawn = torch.stack([TASK.drawn_loss(z, generator) for _ in range(count)])
    labels = (drawn[:, None] - losses).abs().argmin(dim=1)
    shares = torch.bincount(labels, minlength=3) / count
    torch.testing.assert_close(shares, z.softmax(1)[0], rtol=0, atol=0.025)


def test_draws_depend_on_the_seed_and_on_no_batches():
    outputs, _ = batch()

    def drawn(size, seed=1):
        generator = torch.Generator().manual_seed(seed)
        parts = outputs.split(size)
        return sum(len(z) * TASK.drawn_loss(z, generator).item() for z in parts) / len(outputs)

    assert drawn(7) == pytest.approx(drawn(40), rel=1e-6)
    assert drawn(40, seed=2) != pytest.approx(drawn(40), rel=1e-3)


def test_no_gradient_flows_through_a_draw():
    z = torch.randn(5, 3, requires_grad=True)
    TASK.drawn_loss(z, torch.Generator().manual_seed(0)).backward()
    gradient = 5 * z.grad  # of a cross-entropy: softmax less one label a row
    labels = z.detach().softmax(1) - gradient
    torch.testing.assert_close(labels.sort(dim=1).values, torch.eye(3)[-1].expand(5, 3))
