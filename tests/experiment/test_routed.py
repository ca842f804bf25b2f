"""Routed arms and heads of statistics, against references that look at one image at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from bench import arm, dense, features, random_model, samples_of_test, serve, stage, workbench
from tiny_vit import tiny_backbone
from torch import Tensor
from torch.nn import functional as F

from cl_lora.adapters import Adapter
from cl_lora.adapters.injection import applied
from cl_lora.benchmarks import Benchmark
from cl_lora.benchmarks.batches import batches, target_tensor
from cl_lora.experiment.evaluator import Evaluator
from cl_lora.experiment.references import REFERENCES
from cl_lora.experiment.routed import Experts
from cl_lora.experiment.serving import OwnUpdate, Served, Workbench
from cl_lora.models.heads import freeze, head_of
from cl_lora.models.routing import Router
from cl_lora.models.statistics import Observed, get_statistic

BLOCK = 1
ROUTED = {"name": "routed", "block": BLOCK}
SOFT = {**ROUTED, "weights": "soft"}
STATISTICS = ("features", f"router@{BLOCK}")


@pytest.fixture(scope="module")
def bench(benchmark_16: Benchmark) -> Workbench:
    """Return a seed at random, with the statistics beside its adapters."""
    return with_statistics(workbench(benchmark_16, tiny_backbone()))


def with_statistics(bench: Workbench) -> Workbench:
    banks = {
        kind: tuple(
            observed(bench, adapter, list(range(3)) if kind == "joint" else [t])
            for t, adapter in enumerate(adapters)
        )
        for kind, adapters in bench.banks.items()
        if kind != "full"
    }
    return replace(bench, banks=banks)


def observed(bench: Workbench, adapter: Adapter, experiences: list[int]) -> Adapter:
    """Return the adapter with its statistics of some experiences, as a run gathers them."""
    found = {}
    for name in STATISTICS:
        sums = None
        for e in experiences:
            experience = bench.benchmark.experiences[e]
            part = batches(experience, experience.train, 5, bench.backbone.encode)
            what = Observed(
                *(bench.backbone, bench.compute, OwnUpdate(adapter), freeze(head_of(adapter.head))),
                *(experience.task, adapter.modules(), 0),
                experience=e,
            )
            made = get_statistic(name).gather(what, part)
            if sums is None:
                sums = made
            else:
                sums.merge(made)
        assert sums is not None
        found[name] = sums.result()
    return replace(adapter, statistics=found)


# References: everything in float64, by the formulas of docs/routing.md ---------------------------


def train(bench: Workbench, j: int) -> tuple[Tensor, Tensor]:
    experience = bench.benchmark.experiences[j]
    rows = experience.train
    return bench.backbone.encode(experience.inputs[rows]), target_tensor(experience, rows)


def looks(bench: Workbench, images: Tensor) -> Tensor:
    """Return the styles of images, one at a time."""
    vit, found = bench.backbone.network, []
    with torch.no_grad():
        for image in images:
            tokens = vit._pos_embed(vit.patch_embed(bench.backbone.normalise(image[None])))
            patches = vit.blocks[0](tokens)[0, 1:].double()
            found.append(torch.cat([patches.mean(0), patches.std(0, unbiased=False)]))
    return torch.stack(found)


def moments(values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return class means (3, d) and the scatter within the classes."""
    means = torch.stack([values[labels == c].mean(0) for c in range(3)])
    centred = values - means[labels]
    return means, centred.T @ centred


def log_densities(
    means: Tensor, scatters: list[Tensor], count: int, ridge: float, x: Tensor
) -> Tensor:
    """Return ``m S^-1 x - m S^-1 m / 2`` for means (D, C, d) and x (N, d): (N, D, C)."""
    covariance = sum(scatters) / count
    shrunk = covariance + ridge * covariance.diagonal().mean() * torch.eye(len(covariance)).double()
    turned = torch.einsum("dci,ij->dcj", means, torch.linalg.inv(shrunk))
    return torch.einsum("dcj,nj->ndc", turned, x) - (turned * means).sum(-1) / 2


def domain_scores(bench: Workbench, seen: int, images: Tensor) -> Tensor:
    """Return the router's scores (N, seen) of images."""
    parts = [(looks(bench, x), y) for x, y in (train(bench, d) for d in range(seen))]
    found = [moments(z, y) for z, y in parts]
    count = sum(len(y) for _, y in parts)
    means = torch.stack([m for m, _ in found])
    z = looks(bench, images)
    return log_densities(means, [s for _, s in found], count, 0.01, z).logsumexp(2)


def own_features(bench: Workbench, kind: str, member: int, images: Tensor) -> Tensor:
    update = OwnUpdate(bench.banks[kind][member])
    return torch.cat([features(bench.backbone, update, image[None]) for image in images])


def linear(adapter: Adapter, f: Tensor) -> Tensor:
    return F.linear(f, adapter.head["weight"], adapter.head["bias"])


def class_gaussians(
    bench: Workbench, kind: str, members: list[int], ridge: float, f: Tensor, shift: Tensor | None
) -> Tensor:
    """Return ``logsumexp_d l_dc`` of features f, from the train features under each adapter."""
    parts = []
    for m in members:
        images, labels = train(bench, m)
        parts.append((own_features(bench, kind, m, images).double(), labels))
    found = [moments(values, labels) for values, labels in parts]
    means = torch.stack([m for m, _ in found])
    means = means if shift is None else means + shift
    count = sum(len(labels) for _, labels in parts)
    return log_densities(means, [s for _, s in found], count, ridge, f.double()).logsumexp(1)


def same_posterior(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(
        found.double().softmax(1), expected.double().softmax(1), atol=2e-3, rtol=0
    )


# What is served ---------------------------------------------------------------


def outputs(served: Served, j: int) -> Tensor:
    """Return what a routed arm answers on the test samples of an experience."""
    answers = served.parts[j].answers
    assert answers is not None
    return torch.cat([out for out, _ in answers(j)])


@pytest.mark.parametrize("kind", ["fresh", "sequential"])
@pytest.mark.parametrize("t", [1, 2])
def test_hard_is_every_image_by_its_own_adapter_and_head(
    bench: Workbench, kind: str, t: int
) -> None:
    served = serve(bench, t, method="task_arithmetic", coefficients=ROUTED, bank=kind)
    chosen = set()
    for j in range(3):
        images, _ = samples_of_test(bench, j)
        routes = domain_scores(bench, t + 1, images).argmax(1).tolist()
        chosen.update(routes)
        expected = [
            linear(bench.banks[kind][d], own_features(bench, kind, d, image[None]))[0]
            for image, d in zip(images, routes, strict=True)
        ]
        torch.testing.assert_close(outputs(served, j), torch.stack(expected), atol=1e-4, rtol=1e-4)
    assert chosen == set(range(t + 1))  # and no domain that has not come


def test_soft_is_every_image_under_a_sum_of_its_own_with_mixed_heads(bench: Workbench) -> None:
    served = serve(bench, 2, method="task_arithmetic", coefficients={**SOFT, "temperature": 30.0})
    adapters = bench.banks["fresh"]
    images, _ = samples_of_test(bench, 1)
    weights = (domain_scores(bench, 3, images) / 30).softmax(1)
    assert float(weights.max(1).values.min()) < 0.9  # it does mix
    for image, row, found in zip(images, weights, outputs(served, 1), strict=True):
        deltas = {m: dense(bench, row.tolist(), m).float() for m in adapters[0].factors}
        with applied(bench.backbone.network, OwnUpdate(Adapter("x", {}, deltas=deltas))):
            f = bench.backbone(image[None])
        heads = torch.stack([linear(a, f)[0].softmax(0) for a in adapters]).double()
        torch.testing.assert_close(
            found.double().exp(), (row[:, None] * heads).sum(0), atol=1e-4, rtol=1e-3
        )


def test_the_temperature_is_4_where_none_is_given(bench: Workbench) -> None:
    images, _ = samples_of_test(bench, 0)
    experts = Experts.of(
        bench, arm(bench, method="task_arithmetic", coefficients=SOFT), stage(bench, 2)
    )
    expected = (domain_scores(bench, 3, images) / 4).softmax(1)
    torch.testing.assert_close(experts.weights(0).double(), expected, atol=2e-3, rtol=0)


def test_a_router_that_is_right_makes_the_oracle(bench: Workbench) -> None:
    class Right(Router):
        def __init__(self, j: int) -> None:
            self.j = j

        def hard(self, styles: Tensor) -> Tensor:
            return torch.full((len(styles),), self.j)

    for kind, row in (("fresh", "oracle"), ("sequential", "oracle_sequential")):
        given = arm(bench, method="task_arithmetic", coefficients=ROUTED, bank=kind)
        experts = Experts.of(bench, given, stage(bench, 2))
        known = REFERENCES[row].serve(bench, stage(bench, 2))
        for j in range(3):
            ((found, targets),) = replace(experts, router=Right(j)).answers(j)
            images, labels = samples_of_test(bench, j)
            part = known.parts[j]
            assert isinstance(part.update, OwnUpdate)
            expected = part.head(features(bench.backbone, part.update, images))
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
            assert targets.equal(labels)


@pytest.mark.parametrize("coefficients", [ROUTED, SOFT])
def test_what_is_recorded_is_how_images_were_routed(
    bench: Workbench, coefficients: dict[str, object]
) -> None:
    served = serve(bench, 1, method="task_arithmetic", coefficients=coefficients)
    names = bench.benchmark.names
    for j, name in enumerate(names):
        rows = {c.adapter: c.value for c in served.coefficients if c.group == name}
        assert sum(rows.values()) == pytest.approx(1)
        images, _ = samples_of_test(bench, j)
        scores = domain_scores(bench, 2, images)
        weights = (
            (scores / 4).softmax(1)
            if coefficients is SOFT
            else F.one_hot(scores.argmax(1), 2).double()
        )
        assert [rows[0], rows[1]] == pytest.approx(weights.mean(0).tolist(), abs=2e-3)


def test_scores_are_those_of_the_answers(bench: Workbench) -> None:
    served = serve(bench, 2, method="task_arithmetic", coefficients=ROUTED)
    results = Evaluator(bench).score(served, stage(bench, 2))
    for j, result in results.items():
        right = outputs(served, j).argmax(1) == samples_of_test(bench, j)[1]
        assert result.scores["accuracy"] == pytest.approx(float(right.float().mean()))
        assert result.hits is not None
        assert result.hits.tolist() == right.tolist()


def test_members_limit_the_experts(bench: Workbench) -> None:
    served = serve(bench, 2, method="task_arithmetic", coefficients=ROUTED, members=2)
    assert {c.adapter for c in served.coefficients} == {0, 1}


# One pass for router and adapters ---------------------------------------------------------------


def above(bench: Workbench, block: int) -> Workbench:
    """Return the same adapters without what is below a block."""
    kept = {
        kind: tuple(
            replace(
                a,
                factors={m: f for m, f in a.factors.items() if int(m.split(".")[1]) >= block},
            )
            for a in adapters
        )
        for kind, adapters in bench.banks.items()
    }
    return replace(bench, banks=kept, _updates={}, _support={}, learned={})


@pytest.mark.parametrize("coefficients", [ROUTED, SOFT])
@pytest.mark.parametrize("first_block", [0, BLOCK])
def test_a_batch_as_it_comes_is_served_what_is_scored(
    bench: Workbench, coefficients: dict[str, object], first_block: int
) -> None:
    there = with_statistics(above(bench, first_block)) if first_block else bench
    given = arm(there, method="task_arithmetic", coefficients=coefficients, head="gaussian")
    experts = Experts.of(there, given, stage(there, 2))
    assert experts.shares_prefix is bool(first_block)
    assert experts.passes == (1.0 if first_block else 1.5)
    for j in range(3):
        images, _ = samples_of_test(there, j)
        found = experts.serve(images)
        torch.testing.assert_close(found, experts.answers(j)[0][0], atol=1e-4, rtol=1e-4)


def test_serving_gives_the_network_back(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    given = arm(bench, method="task_arithmetic", coefficients=ROUTED)
    experts = Experts.of(bench, given, stage(bench, 2))
    images, _ = samples_of_test(bench, 0)
    network = bench.backbone.network
    before = {name: (p.data_ptr(), p.clone()) for name, p in network.named_parameters()}
    first = experts.serve(images)
    assert torch.equal(experts.serve(images), first)

    def fail(tokens: Tensor, block: int) -> Tensor:
        raise RuntimeError("no features")

    monkeypatch.setattr(bench.backbone, "resume", fail)
    with pytest.raises(RuntimeError, match="no features"):
        experts.serve(images)
    for name, parameter in network.named_parameters():
        place, value = before[name]
        assert parameter.data_ptr() == place
        assert torch.equal(parameter, value)


def test_whole_models_share_nothing_with_the_router(bench: Workbench) -> None:
    models = tuple(observed(bench, random_model(bench.backbone, 30 + t), [t]) for t in range(3))
    there = replace(bench, banks={**bench.banks, "fresh": models}, _updates={}, _support={})
    given = arm(there, method="task_arithmetic", coefficients=ROUTED)
    experts = Experts.of(there, given, stage(there, 2))
    assert experts.passes == 1.5
    images, _ = samples_of_test(there, 1)
    found = experts.serve(images)
    torch.testing.assert_close(found, experts.answers(1)[0][0], atol=1e-4, rtol=1e-4)


def test_shared_blocks_are_computed_once(bench: Workbench) -> None:
    there = with_statistics(above(bench, BLOCK))
    calls = []
    first, last = there.backbone.network.blocks
    hooks = [first.register_forward_hook(lambda *_: calls.append("first"))]
    hooks.append(last.register_forward_hook(lambda _, x, __: calls.append(len(x[0]))))
    given = arm(there, method="task_arithmetic", coefficients=ROUTED)
    experts = Experts.of(there, given, stage(there, 2))
    images = torch.cat([samples_of_test(there, j)[0] for j in range(3)])
    calls.clear()
    experts.serve(images)
    for hook in hooks:
        hook.remove()
    assert calls.count("first") == 1
    assert sum(n for n in calls if n != "first") == len(images)  # each by one adapter alone


def test_what_is_stored_is_counted(bench: Workbench) -> None:
    served = serve(bench, 2, method="task_arithmetic", coefficients=ROUTED, head="gaussian")
    adapters = sum(
        f.A.numel() + f.B.numel() for a in bench.banks["fresh"] for f in a.factors.values()
    )
    d, z, c = 16, 32, 3
    router = 3 * c * z + 3 * c + z
    heads = 3 * (c * d + c) + 3 * (c * d + c + d)
    assert served.parameters == adapters + router + heads


# Heads of statistics ---------------------------------------------------------------


def test_the_gaussian_head_is_half_trained_and_half_gaussian(bench: Workbench) -> None:
    given = arm(bench, method="task_arithmetic", coefficients=ROUTED, head="gaussian")
    experts = Experts.of(bench, given, stage(bench, 2))
    images, _ = samples_of_test(bench, 1)
    for d, head in enumerate(experts.heads):
        f = own_features(bench, "fresh", d, images)
        trained = linear(bench.banks["fresh"][d], f).double().softmax(1)
        gaussian = class_gaussians(bench, "fresh", [d], 0.05, f, None).softmax(1)
        torch.testing.assert_close(
            head(f).double().exp(), (trained + gaussian) / 2, atol=2e-3, rtol=0
        )


def drift(bench: Workbench, served: Served, members: list[int]) -> Tensor:
    """Return how the means of every domain and class have moved, by 2 buffer images a class."""
    shifts = []
    for m in members:
        experience, rows = bench.benchmark.experiences[m], bench.buffers[2][m]
        images, labels = (
            bench.backbone.encode(experience.inputs[rows]),
            target_tensor(experience, rows),
        )
        now = torch.cat(
            [features(bench.backbone, served.parts[0].update, image[None]) for image in images]
        )
        moved = (now - own_features(bench, "fresh", m, images)).double()
        shifts.append(
            torch.stack(
                [(moved[labels == c].sum(0) + 10 * moved.mean(0)) / (2 + 10) for c in range(3)]
            )
        )
    return torch.stack(shifts)


@pytest.mark.parametrize("head", ["mixture", "mixture_moved"])
@pytest.mark.parametrize("t", [0, 2])
def test_a_merge_under_a_gaussian_for_each_class_of_each_domain(
    bench: Workbench, head: str, t: int
) -> None:
    served = serve(bench, t, method="task_arithmetic", coefficients=0.5, head=head)
    members = list(range(t + 1))
    images, _ = samples_of_test(bench, 2)
    f = features(bench.backbone, served.parts[2].update, images)
    shift = drift(bench, served, members) if head == "mixture_moved" else None
    expected = class_gaussians(bench, "fresh", members, 0.1, f, shift)
    same_posterior(served.parts[2].head(f), expected)
    if shift is not None:
        assert float(shift.abs().mean()) > 1e-3


def test_means_that_are_moved_see_the_buffer_alone(bench: Workbench) -> None:
    given = arm(bench, method="task_arithmetic", coefficients=0.5, head="mixture_moved")
    assert given.needs_buffer
    assert not arm(bench, method="task_arithmetic", coefficients=0.5, head="mixture").needs_buffer


@pytest.mark.parametrize(
    ("row", "kind", "members", "ridge"),
    [
        ("sequential_mixture", "sequential", [0, 1, 2], 0.1),
        ("joint_mixture", "joint", [0], 0.1),
        ("joint_gaussian", "joint", [0], 0.05),
    ],
)
def test_rows_under_heads_of_statistics(
    bench: Workbench, row: str, kind: str, members: list[int], ridge: float
) -> None:
    served = REFERENCES[row].serve(bench, stage(bench, 2))
    images, _ = samples_of_test(bench, 0)
    newest = bench.banks[kind][-1]
    f = own_features(bench, kind, len(bench.banks[kind]) - 1, images)
    if kind == "joint":  # one adapter, three domains
        parts = []
        for j in range(3):
            x, y = train(bench, j)
            parts.append((own_features(bench, kind, 0, x).double(), y))
        found = [moments(*part) for part in parts]
        means = torch.stack([m for m, _ in found])
        count = sum(len(y) for _, y in parts)
        expected = log_densities(means, [s for _, s in found], count, ridge, f.double()).logsumexp(
            1
        )
    else:
        expected = class_gaussians(bench, kind, members, ridge, f, None)
    part = served.parts[0]
    assert isinstance(part.update, OwnUpdate)
    torch.testing.assert_close(features(bench.backbone, part.update, images), f)
    if row == "joint_gaussian":
        both = (linear(newest, f).double().softmax(1) + expected.softmax(1)) / 2
        torch.testing.assert_close(part.head(f).double().exp(), both, atol=2e-3, rtol=0)
    else:
        same_posterior(part.head(f), expected)


def test_arms_may_merge_the_states_of_one_adapter(bench: Workbench) -> None:
    served = serve(bench, 2, method="task_arithmetic", coefficients=0.5, bank="sequential")
    update = served.parts[0].update
    assert update is not None
    states = bench.banks["sequential"]
    for module in states[0].factors:
        expected = 0.5 * sum(a.factors[module].delta() for a in states)
        torch.testing.assert_close(update.delta(module), expected, atol=1e-5, rtol=1e-5)
    head = served.parts[0].head
    images, _ = samples_of_test(bench, 0)
    f = features(bench.backbone, update, images)
    torch.testing.assert_close(head(f), linear(states[-1], f))
