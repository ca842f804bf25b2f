"""Losses of several tasks in units of the single task, and what learns coefficients by them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from task_bench import (
    arm,
    bench_of,
    dense_backbone,
    loss_by_hand,
    outputs_of,
    stages,
    unlike_tasks,
)
from torch.func import functional_call

from cl_lora.adapters import Adapter
from cl_lora.adapters.injection import applied
from cl_lora.benchmarks.draw import draw_buffer
from cl_lora.experiment.banks import FRESH
from cl_lora.experiment.merged import serve_arm
from cl_lora.experiment.serving import Workbench
from cl_lora.experiment.several_tasks import Tasks
from cl_lora.merging import merge, prepare
from cl_lora.models.heads import head_of


@pytest.fixture
def bench(backbone) -> Workbench:
    return bench_of(unlike_tasks(), backbone)


def buffer_loss(bench: Workbench, j: int, members: list[int], weights: list[float]) -> float:
    """Return the loss on the whole buffer of 2 samples a stratum, in float64."""
    adapters = bench.banks["fresh"]
    own = dense_backbone(bench.backbone, [adapters[m] for m in members], weights)
    e = bench.benchmark.experiences[j]
    rows = draw_buffer(bench.benchmark, 2, bench.seed)[j]
    outputs = torch.from_numpy(outputs_of(own, adapters[j].head, e, rows))
    return float(loss_by_hand(e.task, outputs, e.targets[rows]))


def trivial_loss(bench: Workbench, j: int) -> float:
    """Return the loss of the majority class, or of the mean of the train part."""
    e = bench.benchmark.experiences[j]
    rows, train = draw_buffer(bench.benchmark, 2, bench.seed)[j], e.targets[e.train]
    if e.task.labels and e.task.scaling is None:
        outputs = np.eye(3)[np.bincount(train).argmax()]
    else:
        outputs = np.zeros(train[0].size)  # the mean, standardised
    said = torch.from_numpy(np.tile(outputs, (len(rows), 1)))
    return float(loss_by_hand(e.task, said, e.targets[rows]))


def test_a_unit_is_the_loss_of_the_single_task_on_the_same_samples(bench) -> None:
    tasks = Tasks.of(bench, 2, (0, 1, 2), FRESH)
    assert tasks.sizes == {0: 6, 1: 8, 2: 8}  # two of each class, or of each quarter
    for j in range(3):
        expected = max(buffer_loss(bench, j, [j], [1.0]), 0.05 * trivial_loss(bench, j))
        assert tasks.units[j] == pytest.approx(expected, rel=1e-4)


def test_a_task_that_knows_its_buffer_by_heart_counts_for_a_twentieth_of_the_trivial(
    bench, monkeypatch
) -> None:
    monkeypatch.setattr(Tasks, "_loss", lambda self, j: 1e-9)
    tasks = Tasks.of(bench, 2, (0, 1, 2), FRESH)
    for j in range(3):
        assert tasks.units[j] == pytest.approx(0.05 * trivial_loss(bench, j), rel=1e-4)


def test_the_loss_of_a_merge_is_the_mean_of_the_tasks_in_their_units(bench) -> None:
    members, weights = [0, 2], [0.7, -0.4]
    tasks = Tasks.of(bench, 2, members, FRESH)
    update = merge([bench.banks["fresh"][m] for m in members], "cat", weights)
    parts = [buffer_loss(bench, j, members, weights) / tasks.units[j] for j in members]
    assert tasks.loss(update) == pytest.approx(np.mean(parts), rel=1e-4)
    alone = Tasks.of(bench, 2, [1], FRESH)
    own = merge([bench.banks["fresh"][1]], "cat", [1.0])
    assert alone.loss(own) == pytest.approx(1)  # the single task is the unit


def test_the_gradient_is_that_of_a_plain_dense_computation(bench) -> None:
    """One pass for all tasks, against one each in float64 by autograd."""
    members, adapters = (0, 1, 2), bench.banks["fresh"]
    tasks = Tasks.of(bench, 2, members, FRESH)
    rows = {0: torch.tensor([0, 4, 1]), 1: torch.tensor([7, 2]), 2: torch.tensor([3])}
    alpha = torch.tensor([0.5, -0.3, 0.9], dtype=torch.float64, requires_grad=True)
    update = prepare(adapters, "cat").combine(alpha)
    found = tasks.relative_loss(
        lambda inputs: bench.compute.merged_features(bench.backbone, update, inputs), rows
    )
    (gradient,) = torch.autograd.grad(found, [alpha])

    own = dense_backbone(bench.backbone, [], [])
    weights = {}
    for module in adapters[0].factors:
        name = f"network.{module}.weight"
        each = [a.factors[module] for a in adapters]
        deltas = [f.scaling * f.B.double() @ f.A.double() for f in each]
        weights[name] = own.get_parameter(name) + sum(
            a * d for a, d in zip(alpha, deltas, strict=True)
        )
    losses = []
    for j in members:
        e = bench.benchmark.experiences[j]
        chosen = draw_buffer(bench.benchmark, 2, 0)[j][rows[j].numpy()]
        images = bench.backbone.encode(e.inputs[chosen]).double()
        outputs = head_of(adapters[j].head).double()(functional_call(own, weights, (images,)))
        losses.append(loss_by_hand(e.task, outputs, e.targets[chosen]) / tasks.units[j])
    expected = sum(losses) / 3
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    (plain,) = torch.autograd.grad(expected, [alpha])
    assert plain.abs().min() > 1e-3
    torch.testing.assert_close(gradient, plain, rtol=2e-3, atol=1e-4)


def test_a_search_takes_the_candidate_of_the_lowest_loss(bench) -> None:
    values = [0.0, 0.4, 0.8, 1.2]
    stage = stages(bench)["pet + square"]
    rule = {"name": "grid", "values": values}
    served = serve_arm(bench, arm(method="cat", coefficients=rule), stage)
    units = Tasks.of(bench, 2, stage.members, FRESH).units
    losses = [
        np.mean([buffer_loss(bench, j, [0, 2], [v, v]) / units[j] for j in (0, 2)]) for v in values
    ]
    chosen = {c.value for c in served.coefficients}
    assert chosen == {values[int(np.argmin(losses))]}
    assert [c.adapter for c in served.coefficients] == [0, 2]


@pytest.mark.parametrize("name", ["adaptive", "softmax"])
@pytest.mark.parametrize("method", ["cat", "norm_balanced"])
def test_learned_coefficients_lower_the_loss_of_their_tasks(bench, method, name) -> None:
    """By composing where that is cheaper, by merging where it is no plain sum."""
    stage = stages(bench)["pet + light"]
    tasks = Tasks.of(bench, 2, stage.members, FRESH)

    def loss(steps: int) -> float:
        rule = {"name": name, "steps": steps, "lr": 0.1}
        served = serve_arm(bench, arm(method=method, coefficients=rule), stage)
        return tasks.loss(served.update(0))

    assert loss(25) < loss(1)


def test_the_second_order_solver_ends_where_no_step_away_is_better(bench) -> None:
    stage = stages(bench)["pet + light"]
    rule = {"name": "adaptive", "solver": "gauss_newton", "iterations": 12, "b_max": 20.0}
    served = serve_arm(bench, arm(method="cat", coefficients=rule), stage)
    tasks = Tasks.of(bench, 2, stage.members, FRESH)
    adapters = [bench.banks["fresh"][m] for m in stage.members]
    found = [c.value for c in served.coefficients]

    def loss(*weights: float) -> float:
        return tasks.loss(merge(adapters, "cat", weights))

    least = loss(*found)
    assert least < loss(0.5, 0.5)
    for way in ((0.3, 0.0), (-0.3, 0.0), (0.0, 0.3), (0.0, -0.3)):
        assert least < loss(*(v + w for v, w in zip(found, way, strict=True)))


def times(adapter: Adapter, factor: float) -> Adapter:
    """Return an adapter whose update is ``factor`` times as large."""
    factors = {m: replace(f, B=f.B * factor) for m, f in adapter.factors.items()}
    return replace(adapter, factors=factors)


def test_balanced_adapters_learn_what_rescaled_ones_do(bench, monkeypatch) -> None:
    """Composing the adapters as they are would learn something else."""
    stage = stages(bench)["pet + light"]
    rule = {"name": "adaptive", "steps": 5, "lr": 0.1}
    large = [times(a, 1.0 + 2 * (i == 0)) for i, a in enumerate(bench.banks["fresh"])]
    norms = [sum(float(f.delta().square().sum()) for f in a.factors.values()) ** 0.5 for a in large]
    mean = (norms[0] + norms[1]) / 2
    alike = [times(a, mean / norm) for a, norm in zip(large, norms, strict=True)]
    # The units are of the single task, whose size differs: the same for all here.
    make, units = Tasks.of, Tasks.of(bench, 2, stage.members, FRESH).units
    monkeypatch.setattr(Tasks, "of", lambda *given: replace(make(*given), units=units))

    def learned(method: str, adapters: list[Adapter]) -> list[float]:
        one = replace(bench, banks={"fresh": adapters})
        made = serve_arm(one, arm(method=method, coefficients=rule), stage)
        return [c.value for c in made.coefficients]

    balanced, summed = learned("norm_balanced", large), learned("cat", alike)
    assert balanced == pytest.approx(summed, rel=1e-3, abs=1e-4)
    assert balanced != pytest.approx(learned("cat", large), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    "rule", [{"name": "adaptive", "steps": 3}, {"name": "grid", "values": [1]}]
)
def test_learned_arms_serve_every_task_by_its_own_head(bench, rule) -> None:
    stage = stages(bench)["light + square"]
    served = serve_arm(bench, arm(method="cat", coefficients=rule), stage)
    for j in (1, 2):
        own = bench.banks["fresh"][j].head
        assert all(torch.equal(served.head(j).state_dict()[k], v) for k, v in own.items())
    assert served.update(1) is served.update(2)


def test_what_learns_leaves_the_backbone_as_it_was(bench) -> None:
    fingerprint = bench.backbone.fingerprint()
    rule = {"name": "adaptive", "steps": 2}
    served = serve_arm(bench, arm(method="cat", coefficients=rule), stages(bench)["pet + light"])
    assert bench.backbone.fingerprint() == fingerprint
    with applied(bench.backbone.network, served.update(0)):
        assert bench.backbone.fingerprint() != fingerprint
    assert bench.backbone.fingerprint() == fingerprint
