"""What an arm serves, against independent computations on a tiny bank."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import peft
import pytest
import torch
from bench import arm, dense, features, samples_of_test, serve, stage, support, workbench
from bench import with_noise_as_test as with_noise
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from cl_lora.benchmarks import Benchmark
from cl_lora.experiment.evaluator import Evaluator
from cl_lora.experiment.merged import serve_arm
from cl_lora.experiment.sampling import draws, folds
from cl_lora.experiment.serving import Workbench
from cl_lora.merging import prepare
from cl_lora.models.backbones import Backbone
from cl_lora.models.bottleneck import Bottleneck
from cl_lora.models.gaussians import Gaussians
from cl_lora.models.heads import PrototypeHead, head_of
from cl_lora.support.errors import DivergedError, UserError
from cl_lora.support.seeding import torch_generator


@pytest.fixture
def bench(benchmark_16: Benchmark, backbone: Backbone) -> Workbench:
    return workbench(benchmark_16, backbone)


class Dense:
    """An update that is made here: dense matrices."""

    def __init__(self, deltas: dict[str, torch.Tensor]) -> None:
        self.deltas = deltas

    def modules(self) -> tuple[str, ...]:
        return tuple(self.deltas)

    def delta(self, module: str) -> torch.Tensor:
        return self.deltas[module].float()


def summed(bench: Workbench, weights: list[float]) -> Dense:
    modules = bench.banks["fresh"][0].modules()
    return Dense({m: dense(bench, weights, m) for m in modules})


def values(served: Any) -> list[float]:
    return [c.value for c in served.coefficients]


# Fixed coefficients --------------------------------------------------------------------------


def test_peft_linear_arm_scores_as_peft_itself(
    bench, benchmark_16, make_backbone, tmp_path
) -> None:
    """The oracle: peft loads the folders, merges them and predicts; we count what is right."""
    served = serve(bench, 2, method="linear", space="factors", coefficients=[0.5, 0.3, 0.2])
    results = Evaluator(bench).score(served, stage(bench, 2))

    other = make_backbone()
    adapters = bench.banks["fresh"]
    for adapter in adapters:
        adapter.save(tmp_path / adapter.name)
    model = peft.PeftModel.from_pretrained(other.network, str(tmp_path / "a0"), adapter_name="a0")
    for name in ("a1", "a2"):
        model.load_adapter(str(tmp_path / name), adapter_name=name)
    model.add_weighted_adapter(["a0", "a1", "a2"], [0.5, 0.3, 0.2], "m", combination_type="linear")
    model.set_adapter("m")
    other.network = model.eval()
    head = head_of(adapters[2].head)
    for j in range(3):
        inputs, targets = samples_of_test(bench, j)
        with torch.no_grad():
            right = (head(other(inputs)).argmax(1) == targets).double().mean()
        assert results[j].scores["accuracy"] == pytest.approx(float(right))


def test_only_adapters_trained_so_far_are_merged(bench) -> None:
    served = serve(bench, 1, method="task_arithmetic", coefficients=[0.5, 0.25, 9.0])
    module = bench.banks["fresh"][0].modules()[0]
    expected = dense(bench, [0.5, 0.25], module)
    torch.testing.assert_close(served.update(0).delta(module).double(), expected)
    assert [(c.seed, c.arm, c.stage, c.adapter, c.value, c.group) for c in served.coefficients] == [
        (0, "x", 1, 0, 0.5, "all"),
        (0, "x", 1, 1, 0.25, "all"),
    ]


def test_heads_of_their_own_are_merged_with_the_coefficients(benchmark_16, backbone) -> None:
    bench = workbench(benchmark_16, backbone, head="per_experience")
    served = serve(bench, 2, method="cat", coefficients=[0.5, 2.0, -1.0])
    x = torch.randn(4, backbone.features)
    pairs = zip([0.5, 2.0, -1.0], bench.banks["fresh"], strict=True)
    torch.testing.assert_close(served.head(0)(x), sum(w * head_of(a.head)(x) for w, a in pairs))


@pytest.mark.parametrize("head", ["shared", "frozen"])
def test_a_head_of_the_stream_is_the_latest(benchmark_16, backbone, head) -> None:
    bench = workbench(benchmark_16, backbone, head=head)
    served = serve(bench, 1, method="cat")
    x = torch.randn(4, backbone.features)
    for j in range(3):
        expected = head_of(bench.banks["fresh"][1].head)(x)
        torch.testing.assert_close(served.head(j)(x), expected)


@pytest.mark.parametrize("own", [True, False])
def test_prototypes_come_from_the_merged_backbone_over_the_buffer(
    benchmark_16, backbone, own: bool
) -> None:
    bench = workbench(benchmark_16, backbone, head="shared" if own else "prototypes")
    settings = {"head": "prototypes"} if own else {}
    served = serve(bench, 1, method="cat", coefficients=0.3, spc=1, **settings)
    inputs, targets = support(bench, 1, upto=1)
    expected = PrototypeHead(features(backbone, served.update(0), inputs), targets, 3)
    torch.testing.assert_close(
        served.head(0).weight, expected.weight.detach(), rtol=1e-4, atol=1e-5
    )


# Learned by gradient -------------------------------------------------------------------------


def learned(bench: Workbench, t: int = 2, **more: Any) -> Any:
    rule = {"name": "adaptive", "b_max": 3, "steps": 20, "lr": 0.2, **more.pop("rule", {})}
    return serve(bench, t, **{"method": "task_arithmetic", "coefficients": rule, **more})


def buffer_loss(bench: Workbench, served: Any) -> float:
    inputs, targets = support(bench, 2, upto=2)
    logits = served.head(0)(features(bench.backbone, served.update(0), inputs))
    return float(F.cross_entropy(logits, targets))


def test_learned_coefficients_lower_the_loss_on_the_buffer(bench) -> None:
    start = serve(bench, 2, method="task_arithmetic", coefficients=1.0)  # (1 + b_max) / 4
    served = learned(bench)
    assert buffer_loss(bench, served) < buffer_loss(bench, start)
    assert len(values(served)) == 3
    assert all(0 < v < 3 for v in values(served))
    assert values(learned(bench)) == values(served)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "dare_ties"])
def test_coefficients_are_learned_in_pefts_space(bench, method) -> None:
    """Square roots of coefficients: differentiable, though not linear in them."""
    settings = {"method": method, "space": "factors", "rule": {"steps": 15, "b_max": 2}}
    served = learned(bench, **settings)
    assert all(0 < v < 2 for v in values(served))
    first = learned(bench, **{**settings, "rule": {"steps": 1, "lr": 1e-9, "b_max": 2}})
    assert max(abs(a - b) for a, b in zip(values(served), values(first), strict=True)) > 0.05
    assert buffer_loss(bench, served) < buffer_loss(bench, first)


def test_own_heads_are_learned_through_as_they_are_served(benchmark_16, backbone) -> None:
    bench = workbench(benchmark_16, backbone, head="per_experience")
    start = serve(bench, 2, method="task_arithmetic", coefficients=1.0)
    longer = learned(bench, rule={"steps": 60})
    assert buffer_loss(bench, longer) < buffer_loss(bench, start)
    # At the optimum of what is served, a step either way along the coefficients does not help.
    for factor in (0.8, 1.25):
        fixed = [v * factor for v in values(longer)]
        moved = serve(bench, 2, method="task_arithmetic", coefficients=fixed)
        assert buffer_loss(bench, longer) <= buffer_loss(bench, moved)


@pytest.mark.parametrize("head", ["shared", "per_experience"])
def test_tuned_head_goes_further_and_leaves_the_bank_alone(benchmark_16, backbone, head) -> None:
    bench = workbench(benchmark_16, backbone, head=head)
    before = [a.head["weight"].clone() for a in bench.banks["fresh"]]
    plain, tuned = learned(bench), learned(bench, tune_head=True)
    assert buffer_loss(bench, tuned) < buffer_loss(bench, plain)
    for adapter, weight in zip(bench.banks["fresh"], before, strict=True):
        assert torch.equal(adapter.head["weight"], weight)
    # Without a head that learns fast it is the head that the policy starts from.
    slow = dataclasses.replace(bench, head_lr=1e-12)
    torch.testing.assert_close(
        learned(slow, tune_head=True).head(0).weight,
        bench.policy.start([a.head for a in bench.banks["fresh"]])["weight"],
    )


@pytest.mark.parametrize(("granularity", "groups"), [("layer", 2), ("module", 4)])
def test_granularity_gives_a_row_for_each_group(bench, granularity: str, groups: int) -> None:
    served = learned(bench, rule={"granularity": granularity})
    assert len({c.group for c in served.coefficients}) == groups
    assert len(served.coefficients) == 3 * groups


def test_learning_that_fails_names_arm_seed_and_stage(bench) -> None:
    bench.banks["fresh"][1].head["weight"].fill_(torch.inf)
    with pytest.raises(DivergedError, match=r"Arm 'x', seed 0, stage 'cartoon': .*lr"):
        learned(bench, t=1)
    with pytest.raises(DivergedError, match=r"Arm 'x', seed 0, stage 'cartoon': .*starts"):
        solved(bench, t=1)


# Learned without a gradient -------------------------------------------------------------------


def solved(bench: Workbench, t: int = 2, **more: Any) -> Any:
    rule = {"name": "adaptive", "b_max": 3, "solver": "gauss_newton", **more.pop("rule", {})}
    return serve(bench, t, **{"method": "task_arithmetic", "coefficients": rule, **more})


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rule": {"b_max": 1, "tolerance": 1e-6}},
        {"method": "ties", "space": "factors"},
        {"method": "svd", "rank": 3, "rule": {"b_max": 1, "tolerance": 1e-6}},
        {"rule": {"granularity": "layer"}},
    ],
)
def test_gauss_newton_lowers_the_loss_of_any_merge(bench, settings) -> None:
    more = {k: v for k, v in settings.items() if k != "rule"}
    begin = (1 + settings.get("rule", {}).get("b_max", 3)) / 4
    start = serve(bench, 2, **{"method": "task_arithmetic", "coefficients": begin, **more})
    served = solved(bench, **settings)
    assert buffer_loss(bench, served) < buffer_loss(bench, start)
    assert values(solved(bench, **settings)) == values(served)


def test_gauss_newton_finds_what_a_long_run_of_adam_finds(bench) -> None:
    tight = {"tolerance": 1e-7, "iterations": 100}
    ours = solved(bench, rule=tight)
    adam = learned(bench, rule={"steps": 60, "lr": 0.2})
    assert buffer_loss(bench, ours) <= buffer_loss(bench, adam) + 1e-4


def head_loss(bench: Workbench, served: Any, rows: Any) -> float:
    inputs, targets = support(bench, 2, upto=2)
    outputs = served.head(0)(features(bench.backbone, served.update(0), inputs))
    return float(F.cross_entropy(outputs[rows], targets[rows]))


def test_gauss_newton_learns_under_merged_heads(benchmark_16, backbone) -> None:
    bench = workbench(benchmark_16, backbone, head="per_experience")
    served = solved(bench, rule={"tolerance": 1e-6})
    for factor in (0.8, 1.25):
        fixed = [v * factor for v in values(served)]
        moved = serve(bench, 2, method="task_arithmetic", coefficients=fixed)
        assert buffer_loss(bench, served) <= buffer_loss(bench, moved)


def test_gauss_newton_learns_under_class_means_of_the_other_half(bench) -> None:
    """By hand: class means of one half of each class's samples, the loss on the rest."""
    inputs, targets = support(bench, 4, upto=2)
    fit, judge = folds(len(targets), 4)

    def loss(weights: list[float]) -> float:
        seen = features(bench.backbone, summed(bench, weights), inputs)
        with torch.no_grad():
            outputs = PrototypeHead(seen[fit], targets[fit], 3)(seen[judge])
        return float(F.cross_entropy(outputs, targets[judge]))

    rule = {"tolerance": 1e-6, "iterations": 50}
    found = values(solved(bench, spc=4, head="prototypes", rule={**rule, "b_max": 1}))
    assert loss(found) < loss([0.5] * 3)
    assert loss(found) < min(loss([v * factor for v in found]) for factor in (0.7, 1.4))


def test_a_head_of_gaussians_is_learned_under(bench, monkeypatch) -> None:
    """The mixture stands for every head that is made of statistics; here it knows two classes."""
    made = []

    def gaussians(self, bank, members):
        made.append(tuple(members))
        means = torch.randn(3, 3, bench.backbone.features, generator=torch_generator(0, "means"))
        eye = torch.eye(bench.backbone.features, dtype=torch.float64)
        return Gaussians(torch.full((3, 3), 10.0).double(), means.double(), eye)

    monkeypatch.setattr(Workbench, "gaussians", gaussians)
    start = serve(bench, 2, method="task_arithmetic", coefficients=1.0, head="mixture")
    served = solved(bench, head="mixture")
    assert buffer_loss(bench, served) < buffer_loss(bench, start)
    assert len(made) > 5


def test_each_step_sees_all_of_the_buffer_and_no_gradient(bench) -> None:
    seen: list[int] = []
    compute = bench.compute

    class Watching(type(compute)):
        def features(self, backbone, batches):
            batches = list(batches)
            seen.append(sum(len(x) for x, _ in batches))
            return super().features(backbone, batches)

        def merged_features(self, backbone, update, inputs):
            raise AssertionError("no backward pass")

        composed_features = merged_features

    watched = dataclasses.replace(bench, compute=Watching(compute.device, compute.bf16))
    solved(watched, rule={"iterations": 1})
    assert set(seen) == {3 * 3 * 2}
    assert len(seen) == 2 + 3 + 1  # the start, half of it, three differences, a step


def test_a_head_cannot_be_trained_without_a_gradient(bench) -> None:
    with pytest.raises(UserError, match="tune_head trains the head by its gradient"):
        solved(bench, tune_head=True)
    with pytest.raises(UserError, match="differentiable in its coefficients"):
        learned(bench, method="svd", rank=2)


# Where learning starts ------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["adam", "gauss_newton"])
def test_learning_starts_from_the_stage_before(bench, solver, monkeypatch) -> None:
    """A chain that is made stage by stage is the one that is made at once, to the last bit."""
    short = {"steps": 3} if solver == "adam" else {"iterations": 1}
    rule = {"name": "adaptive", "b_max": 3, "solver": solver, "start": "previous", **short}
    settings = {"method": "task_arithmetic", "coefficients": rule}
    one_by_one = [values(serve(bench, t, **settings)) for t in range(3)]
    again = dataclasses.replace(bench, learned={})
    assert values(serve(again, 2, **settings)) == one_by_one[2]
    fresh = {**settings, "coefficients": {**rule, "start": "fresh"}}
    assert values(serve(bench, 0, **fresh)) == one_by_one[0]
    assert values(serve(bench, 2, **fresh)) != one_by_one[2]
    still = {"steps": 1, "lr": 1e-12} if solver == "adam" else {"tolerance": 1e6}
    began = values(serve(again, 2, method="task_arithmetic", coefficients={**rule, **still}))
    assert began[2] == pytest.approx(1.0)  # (1 + b_max) / 4


def test_members_that_stay_start_where_they_were(bench) -> None:
    rule = {"name": "unbounded", "granularity": "adapter", "start": "previous"}
    rule |= {"solver": "gauss_newton"}
    settings = {"method": "task_arithmetic", "members": 2}
    before = values(serve(bench, 1, coefficients=rule, **settings))
    kept = dict(bench.learned)
    still = {**rule, "tolerance": 1e6}
    bench.learned.clear()
    bench.learned.update(kept)
    assert values(serve(bench, 2, coefficients=still, **settings)) == before


# A head that is held back ---------------------------------------------------------------------


def test_an_anchor_holds_a_tuned_head_back(bench) -> None:
    """By hand: with the coefficients held still, the head that Adam finds under the penalty."""
    still = {"steps": 40, "lr": 1e-12}
    start = head_of(bench.policy.start([a.head for a in bench.banks["fresh"]]))
    inputs, targets = support(bench, 2, upto=2)
    seen = features(bench.backbone, summed(bench, [1.0] * 3), inputs)
    moved = []
    for anchor in (0.01, 1.0):
        served = learned(bench, rule=still, tune_head={"anchor": anchor})
        head = head_of(bench.policy.start([a.head for a in bench.banks["fresh"]]))
        head.requires_grad_(True)
        optimizer = torch.optim.Adam(head.parameters(), lr=bench.head_lr)
        for _ in range(40):
            optimizer.zero_grad()
            pull = sum(
                (p - q.detach()).square().sum()
                for p, q in zip(head.parameters(), start.parameters(), strict=True)
            )
            (F.cross_entropy(head(seen), targets) + anchor * pull).backward()
            optimizer.step()
        torch.testing.assert_close(
            served.head(0).weight, head.weight.detach(), rtol=1e-3, atol=1e-4
        )
        moved.append(float((served.head(0).weight - start.weight).detach().norm()))
    assert moved[1] < moved[0] / 2


# Chosen by search ----------------------------------------------------------------------------

GRID = [0.05, 0.3, 1.0, -0.5]


def grid(bench: Workbench, t: int = 2, **more: Any) -> Any:
    rule = {"name": "grid", "values": more.pop("values", GRID)}
    return serve(bench, t, **{"method": "task_arithmetic", "coefficients": rule, **more})


@pytest.mark.parametrize("t", [0, 1, 2])
def test_grid_chooses_the_lowest_loss_on_the_buffer(bench, t) -> None:
    """Dense sums in float64, one batch, cross-entropy by hand."""
    inputs, targets = support(bench, 2, upto=t)
    head = head_of(bench.banks["fresh"][t].head)
    losses = []
    for value in GRID:
        with torch.no_grad():
            update = summed(bench, [value] * (t + 1))
            z = head(features(bench.backbone, update, inputs)).double()
        losses.append(float((z.logsumexp(1) - z[torch.arange(len(z)), targets]).mean()))
    best = GRID[int(np.argmin(losses))]
    for values_ in (GRID, GRID[::-1]):
        assert values(grid(bench, t, values=values_)) == [best] * (t + 1)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "svd", "rank": 2},
        {"method": "ties", "sign": "weighted"},
        {"method": "dare_ties", "space": "factors"},
    ],
)
def test_grid_goes_with_merges_that_have_no_gradient(bench, settings) -> None:
    inputs, targets = support(bench, 2, upto=2)
    head = head_of(bench.banks["fresh"][2].head)
    options = {k: v for k, v in settings.items() if k not in ("method", "space")}
    space = settings.get("space", "delta")
    adapters = list(bench.banks["fresh"])
    plan = prepare(adapters, settings["method"], space=space, seed=0, **options)
    tried = GRID[:3] if space == "factors" else GRID  # a square root has no negative coefficients
    losses = []
    for value in tried:
        update = plan.combine(torch.full((3,), value, dtype=torch.float64))
        with torch.no_grad():
            outputs = head(features(bench.backbone, update, inputs))
        losses.append(float(F.cross_entropy(outputs, targets)))
    best = tried[int(np.argmin(losses))]
    assert values(grid(bench, values=tried, **settings)) == [best] * 3


@pytest.mark.parametrize("spc", [2, 4])
def test_a_head_of_the_buffer_is_judged_on_the_other_half(bench, spc) -> None:
    """Class means of the first half of each class's samples, the loss on the rest."""
    inputs, targets = support(bench, spc, upto=2)
    fit = np.concatenate([np.arange(i, i + spc // 2) for i in range(0, len(targets), spc)])
    judge = np.setdiff1d(np.arange(len(targets)), fit)
    losses = []
    for value in GRID:
        seen = features(bench.backbone, summed(bench, [value] * 3), inputs)
        head = PrototypeHead(seen[fit], targets[fit], 3)
        with torch.no_grad():
            losses.append(float(F.cross_entropy(head(seen[judge]), targets[judge])))
    best = GRID[int(np.argmin(losses))]
    served = grid(bench, spc=spc, head="prototypes")
    assert values(served) == [best] * 3
    # What is served is made of all of them.
    expected = PrototypeHead(features(bench.backbone, served.update(0), inputs), targets, 3)
    torch.testing.assert_close(
        served.head(0).weight, expected.weight.detach(), rtol=1e-4, atol=1e-5
    )


@given(classes=st.integers(1, 5), spc=st.integers(1, 7))
def test_folds_split_every_class_alike(classes, spc) -> None:
    fit, judge = folds(classes * spc, spc)
    if spc == 1:
        assert fit.tolist() == judge.tolist() == list(range(classes))
        return
    assert sorted([*fit.tolist(), *judge.tolist()]) == list(range(classes * spc))
    labels = np.repeat(np.arange(classes), spc)
    assert set(Counter(labels[fit.numpy()]).values()) == {(spc + 1) // 2}
    assert set(Counter(labels[judge.numpy()]).values()) == {spc // 2}


# What learning sees --------------------------------------------------------------------------


@given(
    size=st.integers(1, 40),
    batch=st.integers(1, 50),
    steps=st.integers(0, 60),
    seed=st.integers(0, 3),
    stage_=st.integers(0, 3),
)
def test_batches_of_the_buffer(size, batch, steps, seed, stage_) -> None:
    """No row twice in a batch; whole passes hold every row equally often."""
    found = [rows.tolist() for rows in draws(size, batch, steps, seed, "buffer-batches", stage_)]
    assert len(found) == steps
    for rows in found:
        assert len(rows) == min(size, batch)
        assert len(set(rows)) == len(rows)
        assert set(rows) <= set(range(size))
    flat = [row for rows in found for row in rows]
    for end in range(size, len(flat) + 1, size):
        assert set(Counter(flat[:end]).values()) == {end // size}
    again = [rows.tolist() for rows in draws(size, batch, steps, seed, "buffer-batches", stage_)]
    assert again == found


def test_batches_of_the_buffer_depend_on_seed_and_stage() -> None:
    orders = {
        tuple(torch.cat(list(draws(30, 4, 10, seed, "buffer-batches", t))).tolist())
        for seed in range(3)
        for t in range(3)
    }
    assert len(orders) == 9


def test_learning_takes_the_batches_that_are_drawn(bench) -> None:
    """A second pass over a buffer that is no multiple of the batch goes on with other rows."""
    seen: list[int] = []
    compute = bench.compute

    class Watching(type(compute)):
        def merged_features(self, backbone, update, inputs):
            seen.append(len(inputs))
            return super().merged_features(backbone, update, inputs)

        def composed_features(self, backbone, composition, inputs):
            seen.append(len(inputs))
            return super().composed_features(backbone, composition, inputs)

    watched = dataclasses.replace(bench, compute=Watching(compute.device, compute.bf16))
    learned(watched, rule={"steps": 5}, buffer_batch_size=8)
    assert seen == [8] * 5


def test_plain_sums_are_learned_with_adapters_apart_where_that_is_less_work(
    bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the bottleneck, and TIES by merging; what is learned is the same either way."""
    used: list[str] = []
    compute = bench.compute

    class Watching(type(compute)):
        def merged_features(self, backbone, update, inputs):
            used.append("merged")
            return super().merged_features(backbone, update, inputs)

        def composed_features(self, backbone, composition, inputs):
            used.append("apart")
            return super().composed_features(backbone, composition, inputs)

    watched = dataclasses.replace(bench, compute=Watching(compute.device, compute.bf16))
    found = learned(watched, rule={"steps": 2})
    assert used == ["apart"] * 2
    used.clear()
    learned(watched, rule={"steps": 2}, method="ties")
    assert used == ["merged"] * 2
    used.clear()
    monkeypatch.setattr(Bottleneck, "multiplies_less", False)
    merged = learned(watched, rule={"steps": 2})
    assert used == ["merged"] * 2
    weights = [c.value for c in found.coefficients]
    assert weights == pytest.approx([c.value for c in merged.coefficients], rel=1e-4)


class Watched(np.ndarray):
    """Inputs that remember which rows were asked for."""

    asked: set[int]

    def __getitem__(self, key: Any) -> Any:
        if hasattr(self, "asked"):
            self.asked.update(int(i) for i in np.atleast_1d(np.asarray(key)))
        return np.asarray(self)[key]


def rules() -> list[dict[str, Any]]:
    """Every way to learn or choose something."""
    gradient = [{"name": name, "steps": 3} for name in ("adaptive", "softmax")]
    searched = {"name": "grid", "values": GRID}
    more: list[dict[str, Any]] = [{}, {"head": "prototypes"}, {"tune_head": True}]
    return [
        *({"coefficients": rule, **extra} for rule in gradient for extra in more),
        *({"coefficients": searched, **extra} for extra in more[:2]),
        {"coefficients": 0.5, "head": "prototypes"},
    ]


@pytest.mark.parametrize("settings", rules())
def test_no_test_sample_is_read_by_what_is_learned(benchmark_16, backbone, settings) -> None:
    inputs = np.asarray(benchmark_16.experiences[0].inputs).view(Watched)
    inputs.asked = set()
    watched = [dataclasses.replace(e, inputs=inputs) for e in benchmark_16.experiences]
    bench = workbench(dataclasses.replace(benchmark_16, experiences=tuple(watched)), backbone)
    serve(bench, 2, method="ties", **settings)
    assert inputs.asked == {int(i) for part in bench.buffers[2] for i in part}
    assert not inputs.asked & {int(i) for e in watched for i in e.test}


@pytest.mark.parametrize("settings", rules())
def test_noise_as_test_data_changes_nothing_that_is_learned(
    benchmark_16, make_backbone, settings
) -> None:
    found = []
    for benchmark in (benchmark_16, with_noise(benchmark_16)):
        bench = workbench(benchmark, make_backbone())
        served = serve_arm(bench, arm(method="task_arithmetic", **settings), stage(bench, 2))
        found.append((values(served), served.head(0).state_dict()))
    (one, head), (other, other_head) = found
    assert one == other
    assert all(torch.equal(head[key], other_head[key]) for key in head)
    # The noise is there: what is scored is not the same.
    clean, noisy = (e.experiences[0] for e in (benchmark_16, with_noise(benchmark_16)))
    assert not np.array_equal(clean.inputs[clean.test], noisy.inputs[noisy.test])


def test_support_is_what_the_stage_says(bench) -> None:
    """Not what its members are: protocols may keep the two apart."""
    narrow = dataclasses.replace(stage(bench, 2), support=(1,))
    _, targets = bench.support(2, narrow)
    assert len(targets) == 3 * 2
    _, all_targets = bench.support(2, stage(bench, 2))
    assert len(all_targets) == 3 * 3 * 2
