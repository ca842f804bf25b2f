"""Rows and arms of unlike tasks: what serves each, and that nothing learned sees a test sample."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from task_bench import (
    TEST,
    TRAIN,
    TRAINING,
    VAL,
    arm,
    bench_of,
    dense_backbone,
    head_outputs,
    loss_by_hand,
    outputs_of,
    score_by_hand,
    stages,
    unlike_tasks,
    with_noise_as_test,
)
from torch import Tensor, nn

from cl_lora.benchmarks import Benchmark
from cl_lora.benchmarks.draw import draw_buffer
from cl_lora.evaluation.metrics import ACCURACY, R2, RMSE, relative
from cl_lora.experiment.evaluator import Evaluator
from cl_lora.experiment.merged import serve_arm
from cl_lora.experiment.references import REFERENCES
from cl_lora.experiment.sampling import draws
from cl_lora.experiment.serving import Served, Workbench
from cl_lora.models.backbones import Backbone
from cl_lora.models.heads import head_of
from cl_lora.models.images import ImageBackbone

OWN_ROWS = {
    "single": 1.0,
    "single_x0.33": 1 / 3,
    "single_x0.5": 0.5,
    "single_x1.25": 1.25,
    "single_x1.5": 1.5,
}


@pytest.fixture
def bench(backbone) -> Workbench:
    return bench_of(unlike_tasks(), backbone)


def row(bench: Workbench, name: str, stage: str, protocol: str = "subsets") -> Served:
    return REFERENCES[name].serve(bench, stages(bench, protocol)[stage])


def scored(bench: Workbench, served: Served, stage: str) -> dict[int, dict[str, float]]:
    """Return every score of what is served, by experience."""
    at = stages(bench)[stage]
    evaluator = Evaluator(bench)
    rows = evaluator.as_scores("x", at, evaluator.score(served, at))
    return {j: {r.metric: r.value for r in rows if r.evaluated == j} for j in at.evaluated}


def by_hand(bench: Workbench, j: int, adapters: Any, weights: Any) -> float:
    """Return the primary score of experience j under its own head, in float64."""
    own = dense_backbone(bench.backbone, adapters, weights)
    e = bench.benchmark.experiences[j]
    head = bench.banks["fresh"][j].head
    return score_by_hand(e.task, outputs_of(own, head, e, TEST), e.targets[TEST])


def primary(bench: Workbench, j: int) -> str:
    return bench.benchmark.experiences[j].task.kind.metrics[0].name


# Rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "factor"), OWN_ROWS.items())
def test_a_single_task_is_its_own_update_under_its_own_head(bench, name, factor) -> None:
    for j, stage in enumerate(bench.benchmark.names):
        found = scored(bench, row(bench, name, stage), stage)[j]
        expected = by_hand(bench, j, bench.banks["fresh"][j : j + 1], [factor])
        assert found[primary(bench, j)] == pytest.approx(expected, rel=1e-4), name
        single = by_hand(bench, j, bench.banks["fresh"][j : j + 1], [1.0])
        better = 1 if primary(bench, j) == "accuracy" else -1
        share = 1 + better * (expected - single) / single
        assert found["relative"] == pytest.approx(share, rel=1e-3, abs=1e-6)


def test_another_seed_is_added_to_the_own_adapter(bench) -> None:
    for j, stage in enumerate(bench.benchmark.names):
        found = scored(bench, row(bench, "other_seed", stage), stage)[j]
        both = (bench.banks["fresh"][j], bench.partners[j])
        assert found[primary(bench, j)] == pytest.approx(
            by_hand(bench, j, both, [1.0, 1.0]), rel=1e-4
        )


def test_trivial_rows_know_the_train_targets_alone(bench) -> None:
    pet, light, square = (
        scored(bench, row(bench, "trivial", name), name)[j]
        for j, name in enumerate(bench.benchmark.names)
    )
    targets = [e.targets.astype(np.float64) for e in bench.benchmark.experiences]
    majority = np.bincount(targets[0][TRAIN].astype(int)).argmax()
    assert pet["accuracy"] == pytest.approx((targets[0][TEST] == majority).mean())
    away = targets[1][TEST] - targets[1][TRAIN].mean()
    assert light["rmse"] == pytest.approx(np.sqrt(np.square(away).mean()), rel=1e-5)
    assert light["mae"] == pytest.approx(np.abs(away).mean(), rel=1e-5)
    miss = np.linalg.norm(targets[2][TEST] - targets[2][TRAIN].mean(axis=0), axis=2).mean(1)
    apart = np.linalg.norm(targets[2][TEST][:, 0] - targets[2][TEST][:, 2], axis=1)
    assert square["nme"] == pytest.approx((miss / apart).mean(), rel=1e-5)


class Plain(nn.Module):
    """A head trained in float64 by a loop of its own, on features of a dense backbone."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.head = head_of(state).double()


def trained_by_hand(bench: Workbench, own: Backbone, j: int, epochs: int) -> dict[str, Tensor]:
    """AdamW and a half cosine, batches of 8 from the run's draws, from the initial head."""
    e = bench.benchmark.experiences[j]
    head = Plain(bench.initial_head(j).state_dict()).head.requires_grad_(True).train()
    with torch.no_grad():
        features = own.network(own.normalise(ImageBackbone.encode(e.inputs[TRAIN]).double()))
    steps = epochs * 3
    optimizer = torch.optim.AdamW(head.parameters(), lr=1.0, weight_decay=0.01)
    for step, rows in enumerate(draws(24, 8, steps, bench.seed, "refit-batches", e.name)):
        optimizer.param_groups[0]["lr"] = 0.02 * 0.5 * (1 + np.cos(np.pi * step / steps))
        loss = loss_by_hand(e.task, head(features[rows]), e.targets[TRAIN][rows.numpy()])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head.state_dict()


@pytest.mark.parametrize(("name", "weights"), [("head_only", None), ("single_new_head", [1.0])])
def test_a_new_head_is_trained_on_what_is_served(bench, name, weights) -> None:
    for j, stage in enumerate(bench.benchmark.names):
        adapters = [] if weights is None else [bench.banks["fresh"][j]]
        own = dense_backbone(bench.backbone, adapters, weights)
        expected = trained_by_hand(bench, own, j, epochs=2)
        head = row(bench, name, stage).head(j).state_dict()
        for key, value in expected.items():
            torch.testing.assert_close(head[key].double(), value, rtol=5e-3, atol=5e-4)
        e = bench.benchmark.experiences[j]
        score = score_by_hand(e.task, outputs_of(own, expected, e, TEST), e.targets[TEST])
        found = scored(bench, row(bench, name, stage), stage)[j][primary(bench, j)]
        assert found == pytest.approx(score, rel=1e-2)


def test_a_new_head_learns(bench) -> None:
    """With more epochs it fits the train part better than the one that it started from."""
    longer = replace(bench, training=replace(TRAINING, epochs=20))
    for j, e in enumerate(bench.benchmark.experiences):
        own = dense_backbone(bench.backbone, [], [])
        losses = []
        for head in (longer.initial_head(j), longer.refit(None, j)):
            outputs = torch.from_numpy(outputs_of(own, head.state_dict(), e, TRAIN))
            losses.append(float(loss_by_hand(e.task, outputs, e.targets[TRAIN])))
        assert losses[1] < 0.8 * losses[0], e.name


def test_with_a_patience_a_new_head_is_the_best_on_the_validation_part(bench) -> None:
    """Train targets that are shuffled: the longer it learns them, the worse it is elsewhere."""
    order = np.random.default_rng(0).permutation(24)
    shuffled = []
    for e in bench.benchmark.experiences:
        targets = e.targets.copy()
        targets[TRAIN] = targets[order]
        shuffled.append(replace(e, targets=targets))
    benchmark = replace(bench.benchmark, experiences=tuple(shuffled))
    own = dense_backbone(bench.backbone, [], [])

    def validation(j: int, **settings: Any) -> float:
        training = replace(TRAINING, head_lr=0.1, **settings)
        made = replace(bench, benchmark=benchmark, training=training)
        e = benchmark.experiences[j]
        outputs = outputs_of(own, made.refit(None, j).state_dict(), e, VAL)
        return float(loss_by_hand(e.task, torch.from_numpy(outputs), e.targets[VAL]))

    gains = []
    for j in range(3):
        kept = validation(j, epochs=20, patience=20)
        # Not worse than the last, nor than the best of fewer.
        for other in (validation(j, epochs=20), validation(j, epochs=20, patience=1)):
            assert kept <= other + 1e-6
        gains.append(validation(j, epochs=20) / kept)
    assert max(gains) > 1.05, gains


def test_which_stages_a_row_is_scored_at(bench) -> None:
    subsets, time = (tuple(stages(bench, p).values()) for p in ("subsets", "prefixes"))
    for name, made in REFERENCES.items():
        if made.role:
            assert {s.name for s in made.scored(subsets)} == set(bench.benchmark.names), name
            assert [s.name for s in made.scored(time)] == ["square"], name
    roles = {name: made.role for name, made in REFERENCES.items() if made.role}
    assert [n for n, r in roles.items() if r == "control"] == [
        "single_new_head", "other_seed", "single_x0.33", "single_x0.5", "single_x1.25",
        "single_x1.5",
    ]  # fmt: skip
    assert {n: r for n, r in roles.items() if n == r} == {
        n: n for n in ("single", "single_full", "head_only", "trivial")
    }


# Arms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["pet + light", "light + square"])
@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({"method": "cat", "coefficients": 1}, [1.0, 1.0]),
        ({"method": "task_arithmetic"}, [0.5, 0.5]),
        ({"method": "cat", "coefficients": [0.2, -0.3, 0.9]}, None),
    ],
)
def test_a_merge_serves_each_task_under_its_own_head(bench, stage, settings, weights) -> None:
    at = stages(bench)[stage]
    given = weights or [settings["coefficients"][m] for m in at.members]
    found = scored(bench, serve_arm(bench, arm(**settings), at), stage)
    adapters = [bench.banks["fresh"][m] for m in at.members]
    assert set(found) == set(at.members)
    for j in at.members:
        expected = by_hand(bench, j, adapters, given)
        assert found[j][primary(bench, j)] == pytest.approx(expected, rel=1e-4)


def test_a_refitted_arm_trains_a_head_on_the_merge(bench) -> None:
    at = stages(bench)["pet + square"]
    served = serve_arm(bench, arm(method="cat", coefficients=1, head="refit"), at)
    own = dense_backbone(bench.backbone, [bench.banks["fresh"][m] for m in (0, 2)], [1.0, 1.0])
    for j in at.members:
        expected = trained_by_hand(bench, own, j, epochs=2)
        for key, value in served.head(j).state_dict().items():
            torch.testing.assert_close(value.double(), expected[key], rtol=5e-3, atol=5e-4)


@pytest.mark.parametrize("head", [None, "refit"])
def test_what_has_not_come_yet_is_served_by_the_initial_head(bench, head) -> None:
    at = stages(bench, "prefixes")["light"]
    served = serve_arm(bench, arm(method="cat", coefficients=1, head=head), at)
    assert at.evaluated == (0, 1, 2)
    assert at.members == (0, 1)
    initial = bench.initial_head(2).state_dict()
    assert all(torch.equal(served.head(2).state_dict()[k], v) for k, v in initial.items())
    own = [bench.banks["fresh"][j].head for j in (0, 1)]
    if head is None:
        for j, state in enumerate(own):
            assert all(torch.equal(served.head(j).state_dict()[k], v) for k, v in state.items())
    # So do the rows of one adapter, and nothing at all.
    for made in (row(bench, "last", "light", "prefixes"), bench.untrained(at)):
        assert all(torch.equal(made.head(2).state_dict()[k], v) for k, v in initial.items())


# The share of the single task ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "single", "metric", "share"),
    [
        (0.6, 0.8, ACCURACY, 0.75),
        (0.9, 0.75, ACCURACY, 1.2),
        (12.0, 10.0, RMSE, 0.8),
        (5.0, 10.0, RMSE, 1.5),
        (30.0, 10.0, RMSE, -1.0),
        (-0.3, -0.2, R2, 0.5),  # R2 below 0: worse is worse
    ],
)
def test_share_of_the_single_task_by_hand(value, single, metric, share) -> None:
    assert relative(value, single, metric) == pytest.approx(share)
    assert relative(single, single, metric) == 1.0


def test_named_subsets_of_the_test_part_are_scored_by_themselves(bench) -> None:
    light = bench.benchmark.experiences[1]
    dark = light.targets < np.median(light.targets[TEST])
    marked = replace(light, subsets={"dark": dark, "nobody": np.zeros(44, dtype=bool)})
    experiences = (bench.benchmark.experiences[0], marked, bench.benchmark.experiences[2])
    made = replace(bench, benchmark=replace(bench.benchmark, experiences=experiences))
    found = scored(made, row(made, "single", "light"), "light")[1]
    own = dense_backbone(bench.backbone, bench.banks["fresh"][1:2], [1.0])
    rows = TEST[dark[TEST]]
    outputs = outputs_of(own, bench.banks["fresh"][1].head, light, rows)
    expected = score_by_hand(light.task, outputs, light.targets[rows])
    assert found["rmse_dark"] == pytest.approx(expected, rel=1e-4)
    assert found["rmse_dark"] != pytest.approx(found["rmse"], rel=1e-3)
    assert set(found) == {"relative", "rmse", "mae", "r2", "rmse_dark"}


# What is learned sees no test sample ---------------------------------------------------------


class Watched(np.ndarray):
    """Inputs that remember which rows were asked for."""

    asked: set[int]

    def __getitem__(self, key: Any) -> Any:
        if hasattr(self, "asked"):
            self.asked.update(int(i) for i in np.atleast_1d(np.asarray(key)))
        return np.asarray(self)[key]


def watched(bench: Workbench) -> tuple[Workbench, list[set[int]]]:
    """Return a bench that notes the rows of each experience that are read."""
    asked: list[set[int]] = []
    experiences = []
    for e in bench.benchmark.experiences:
        inputs = np.asarray(e.inputs).view(Watched)
        inputs.asked = set()
        asked.append(inputs.asked)
        experiences.append(replace(e, inputs=inputs))
    made = replace(bench.benchmark, experiences=tuple(experiences))
    return replace(bench, benchmark=made), asked


LEARNED = [
    {"coefficients": {"name": "grid", "values": [0.5, 1.0]}},
    {"coefficients": {"name": "adaptive", "steps": 3}},
    {"coefficients": {"name": "softmax", "steps": 3}},
]


@pytest.mark.parametrize("settings", LEARNED)
def test_coefficients_see_the_buffers_of_their_members_alone(bench, settings) -> None:
    made, asked = watched(bench)
    serve_arm(made, arm(method="cat", **settings), stages(bench)["pet + square"])
    buffers = draw_buffer(bench.benchmark, 2, 0)
    assert asked == [set(buffers[0].tolist()), set(), set(buffers[2].tolist())]


@pytest.mark.parametrize("patience", [None, 1])
def test_a_new_head_sees_train_and_where_it_may_stop_validation(bench, patience) -> None:
    made, asked = watched(replace(bench, training=replace(TRAINING, patience=patience)))
    at = stages(bench)["pet + square"]
    serve_arm(made, arm(method="cat", coefficients=1, head="refit"), at)
    seen = {*TRAIN.tolist(), *(VAL.tolist() if patience else ())}
    assert asked == [seen, set(), seen]


def test_given_coefficients_see_nothing(bench) -> None:
    made, asked = watched(bench)
    serve_arm(made, arm(method="norm_balanced", coefficients=1), stages(bench)["pet + light"])
    assert asked == [set(), set(), set()]


def states(served: Served) -> list[Tensor]:
    heads = [v for part in served.parts.values() for v in part.head.state_dict().values()]
    return [*heads, torch.tensor([c.value for c in served.coefficients])]


@pytest.mark.parametrize("which", ["head_only", "single_new_head", "trivial", *range(4)])
def test_noise_as_test_data_changes_nothing_that_is_learned(make_backbone, which) -> None:
    settings = [*LEARNED, {"coefficients": 1, "head": "refit"}]

    def served(benchmark: Benchmark) -> Served:
        bench = bench_of(benchmark, make_backbone(), training=replace(TRAINING, patience=1))
        if isinstance(which, str):
            return row(bench, which, "square")
        return serve_arm(bench, arm(method="cat", **settings[which]), stages(bench)["pet + light"])

    clean, noisy = unlike_tasks(), with_noise_as_test(unlike_tasks())
    one, other = states(served(clean)), states(served(noisy))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    for e, poisoned in zip(clean.experiences, noisy.experiences, strict=True):
        assert not np.array_equal(e.inputs[TEST], poisoned.inputs[TEST])
        assert np.array_equal(e.inputs[TRAIN], poisoned.inputs[TRAIN])


def test_the_reference_in_numpy_is_that_of_torch(bench) -> None:
    """Of the tests here: what they compare with."""
    features = torch.randn(4, 16, dtype=torch.float64)
    for adapter in bench.banks["fresh"]:
        expected = head_of(adapter.head).double()(features).detach().numpy()
        np.testing.assert_allclose(head_outputs(adapter.head, features.numpy()), expected)
