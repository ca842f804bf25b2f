"""Gram matrices and Fisher information against plain loops, float64 and closed forms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cl_lora.adapters import Adapter, LoRAFactors, entry_name
from cl_lora.adapters.injection import split_qkv
from cl_lora.merging import METHODS, merge
from cl_lora.models.backbones import Backbone
from cl_lora.models.class_statistics import FEATURES, ROUTER
from cl_lora.models.compute import Compute
from cl_lora.models.head_policies import HEAD_POLICIES
from cl_lora.models.heads import freeze
from cl_lora.models.statistics import (
    STATISTICS,
    Observed,
    RunningMeans,
    _Products,
    get_statistic,
    register_statistic,
)
from cl_lora.models.weights import changed
from cl_lora.support.errors import UserError
from cl_lora.tasks import CLASS, Task, get_kind

TASK = Task("things", CLASS, ("ape", "bee", "cat"))
COMPUTE = Compute(torch.device("cpu"), bf16=False)
LINEAR = ("blocks.0.attn.qkv", "blocks.0.mlp.fc1", "blocks.1.mlp.fc2")


class Delta:
    """An update of two layers."""

    def modules(self):
        return ("blocks.0.attn.qkv", "blocks.0.mlp.fc1")

    def delta(self, module):
        rows = {"blocks.0.attn.qkv": 48, "blocks.0.mlp.fc1": 64}[module]
        return torch.randn(rows, 16, generator=torch.Generator().manual_seed(rows)) / 5


def samples(count: int = 7, task: Task = TASK) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return images, torch.randint(len(task.labels), (count,), generator=generator)


def batches(size: int, count: int = 7, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    images, targets = samples(count)
    return zip(images[first:].split(size), targets[first:].split(size), strict=True)


def observe(backbone: Backbone, entries: tuple[str, ...] = LINEAR, task: Task = TASK) -> Observed:
    torch.manual_seed(1)
    head = freeze(nn.Linear(16, task.outputs))
    return Observed(backbone, COMPUTE, Delta(), head, task, entries, seed=3)


def everything(backbone: Backbone) -> tuple[str, ...]:
    return tuple(entry_name(name) for name, _ in backbone.network.named_parameters())


def near(found: dict[str, Tensor], wanted: dict[str, Tensor], rtol: float = 2e-4) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        scale = float(value.abs().max()) + 1e-12
        torch.testing.assert_close(
            found[name].double(), value.double(), rtol=rtol, atol=rtol * scale
        )


# Gram matrices -----------------------------------------------------------------------------------


def test_gram_matrices_are_those_of_all_tokens_under_the_update(backbone: Backbone) -> None:
    found = get_statistic("gram").gather(observe(backbone), batches(3)).result()
    seen: dict[str, list[Tensor]] = {name: [] for name in LINEAR}
    hooks = [
        backbone.network.get_submodule(name).register_forward_hook(
            lambda layer, inputs, output, name=name: seen[name].append(inputs[0])
        )
        for name in LINEAR
    ]
    with changed(backbone.network, Delta()), torch.no_grad():
        backbone(samples()[0])
    for hook in hooks:
        hook.remove()
    wanted = {}
    for name, (inputs,) in seen.items():
        rows = inputs.double().reshape(-1, inputs.shape[-1])
        assert len(rows) == 7 * 5  # four patches and the class token
        wanted[name] = rows.T @ rows / len(rows)
    near(found, wanted, 1e-5)
    assert {m.dtype for m in found.values()} == {torch.float32}


def test_layers_of_one_input_have_one_product(backbone: Backbone, monkeypatch) -> None:
    split_qkv(backbone.network)
    names = tuple(f"blocks.1.attn.qkv.{part}" for part in "qkv")
    made = []
    monkeypatch.setattr(
        torch, "autocast", lambda *a, f=torch.autocast, **k: (made.append(1), f(*a, **k))[1]
    )
    observed = replace(observe(backbone, names), change=None)
    found = get_statistic("gram").gather(observed, batches(7)).result()
    monkeypatch.undo()
    assert torch.equal(found[names[0]], found[names[1]])
    assert torch.equal(found[names[0]], found[names[2]])
    assert len(made) == 2  # of the forward pass, and of the only product
    assert len({m.data_ptr() for m in found.values()}) == 3  # each may be saved by itself


def test_an_input_that_was_overwritten_is_another_one() -> None:
    products, x = _Products(), torch.ones(2, 3)
    first, count = products.of(x)
    assert products.of(x)[0] is first
    assert count == 2
    assert torch.equal(products.of(x.mul_(2))[0], 4 * first)
    assert torch.equal(products.of(torch.ones(2, 3))[0], first)


def test_padded_inputs_are_seen_one_by_one(backbone: Backbone, monkeypatch) -> None:
    sizes = []
    monkeypatch.setattr(type(backbone), "pads", True)
    backbone.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    one = get_statistic("gram").gather(observe(backbone), batches(4)).result()
    assert sizes == [1] * 7
    monkeypatch.undo()
    near(one, get_statistic("gram").gather(observe(backbone), batches(4)).result(), 1e-5)


# Fisher information ------------------------------------------------------------------------------


def plain_loop(observed: Observed, entries: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the empirical Fisher information by one backward pass a sample, in float64."""
    own = {entry_name(n): p for n, p in observed.backbone.network.named_parameters()}
    parameters = [own[name].requires_grad_(True) for name in entries]
    total = {name: torch.zeros_like(own[name], dtype=torch.float64) for name in entries}
    images, targets = samples()
    with changed(observed.backbone.network, observed.change):
        for image, target in zip(images, targets, strict=True):
            z = observed.head(observed.backbone(image[None]))
            gradients = torch.autograd.grad(F.cross_entropy(z, target[None]), parameters)
            for name, gradient in zip(entries, gradients, strict=True):
                total[name] += gradient.double().square()
    for parameter in parameters:
        parameter.requires_grad_(False)
    return {name: value / len(images) for name, value in total.items()}


def test_squared_gradients_are_those_of_a_plain_loop(backbone: Backbone) -> None:
    observed = observe(backbone)
    near(
        get_statistic("fisher_data").gather(observed, batches(5)).result(),
        plain_loop(observed, LINEAR),
    )


def test_so_are_those_of_every_parameter(backbone: Backbone) -> None:
    """Biases, norms, the position embedding and the convolution; and linear layers among them."""
    entries = everything(backbone)
    observed = observe(backbone, entries)
    found = get_statistic("fisher_data").gather(observed, batches(5)).result()
    assert {"cls_token", "pos_embed", "patch_embed.proj", "norm.bias"} < set(found)
    near(found, plain_loop(observed, entries))
    linear = get_statistic("fisher_data").gather(observe(backbone), batches(5)).result()
    near({name: found[name] for name in LINEAR}, linear)


def test_large_layers_are_squared_a_few_samples_at_a_time(backbone: Backbone, monkeypatch) -> None:
    wanted = get_statistic("fisher_data").gather(observe(backbone), batches(7)).result()
    monkeypatch.setattr("cl_lora.models.statistics._NUMBERS", 1)
    monkeypatch.setattr("cl_lora.models.statistics._SAMPLES", 3)
    near(get_statistic("fisher_data").gather(observe(backbone), batches(7)).result(), wanted, 1e-5)


class OneLayer(Backbone):
    """Features ``W x`` of vectors x, through a layer that may be used twice."""

    def __init__(self, size: int, times: int = 1) -> None:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(size, size, bias=False, dtype=torch.float64))
        super().__init__(network.requires_grad_(False), size, {})
        self.times = times
        self.eval()

    def encode(self, samples):
        return torch.from_numpy(samples)

    def forward(self, inputs: Tensor) -> Tensor:
        for _ in range(self.times):
            inputs = self.network(inputs)
        return inputs


def vectors(count: int, size: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(count, size, dtype=torch.float64, generator=draw)
    return x, torch.randint(size, (count,), generator=draw)


def softmax_model(draws: int = 1) -> tuple[Observed, Tensor, Tensor, Tensor]:
    """Return a linear softmax model, its samples, their targets and its predictions."""
    model = OneLayer(3)
    x, y = vectors(6, 3)
    observed = Observed(model, COMPUTE, None, nn.Identity(), TASK, ("0",), 0, draws=draws)
    return observed, x, y, model(x).softmax(1)


def test_of_a_softmax_model_with_labels_it_is_the_closed_form() -> None:
    """``d log p(y | x) / dW_kj = ([y = k] - p_k) x_j``."""
    observed, x, y, p = softmax_model()
    found = get_statistic("fisher_data").gather(observed, [(x, y)]).result()
    wanted = torch.einsum("nk,nj->kj", (F.one_hot(y, 3) - p).square(), x.square()) / 6
    near(found, {"0": wanted}, 1e-5)


def test_of_a_softmax_model_with_its_own_labels_it_is_the_closed_form_on_average() -> None:
    """``E_y ([y = k] - p_k)^2 = p_k (1 - p_k)``: the mean of many draws comes near."""
    draws = 4000
    observed, x, y, p = softmax_model(draws)
    found = get_statistic("fisher_model").gather(observed, [(x, y)]).result()
    wanted = torch.einsum("nk,nj->kj", p * (1 - p), x.square()) / 6
    near(found, {"0": wanted}, 0.05)
    # Labels that are shuffled change nothing: none is looked at.
    other = get_statistic("fisher_model").gather(replace(observed, draws=2), [(x, y)]).result()
    same = get_statistic("fisher_model").gather(replace(observed, draws=2), [(x, 0 * y)]).result()
    assert torch.equal(other["0"], same["0"])


def test_a_layer_that_is_used_twice_has_one_gradient() -> None:
    model = OneLayer(3, times=2)
    x, y = vectors(6, 3)
    observed = Observed(model, COMPUTE, None, nn.Identity(), TASK, ("0",), 0)
    found = get_statistic("fisher_data").gather(observed, [(x, y)]).result()
    weight = model.network[0].weight.requires_grad_(True)
    squares = [
        torch.autograd.grad(F.cross_entropy(model(a[None]).float(), b[None]), weight)[0].square()
        for a, b in zip(x, y, strict=True)
    ]
    near(found, {"0": torch.stack(squares).mean(0)}, 1e-4)


@pytest.mark.parametrize(
    "task",
    [
        TASK,
        Task("age", get_kind("scalar")),
        Task("turn", get_kind("angle"), period=6.0),
        Task("face", get_kind("points"), ("left", "right"), normaliser=(0, 1)),
    ],
)
def test_every_kind_of_task_draws_its_own_targets(backbone: Backbone, task: Task) -> None:
    """One pass over linear layers draws as one sample after the other does, in any batches."""
    statistic = get_statistic("fisher_model")
    found = statistic.gather(observe(backbone, LINEAR, task), batches(7)).result()
    assert all(float(value.sum()) > 0 for value in found.values())
    again = statistic.gather(observe(backbone, LINEAR, task), batches(2)).result()
    near(again, found, 1e-4)
    single = statistic.gather(observe(backbone, (*LINEAR, "cls_token"), task), batches(7)).result()
    near({name: single[name] for name in LINEAR}, found)
    other = replace(observe(backbone, LINEAR, task), keys=(1,))
    drawn = statistic.gather(other, batches(7)).result()
    if task.outputs > 1:  # of one output only the sign is drawn, which its square forgets
        assert not torch.allclose(drawn[LINEAR[0]], found[LINEAR[0]], rtol=1e-3, atol=0)


def test_the_information_of_a_regression_is_that_of_a_laplace_density() -> None:
    """Of K outputs z = W x the gradient of the loss is ``s_k x_j / K`` with random signs s."""
    model = OneLayer(4)
    x, _ = vectors(6, 4)
    task = Task("face", get_kind("points"), ("left", "right"), normaliser=(0, 1))
    observed = Observed(model, COMPUTE, None, nn.Identity(), task, ("0",), 0)
    found = get_statistic("fisher_model").gather(observed, [(x, x)]).result()
    near(found, {"0": x.square().mean(0).expand(4, 4) / 16}, 1e-5)


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("all_of_it", [False, True])
def test_nothing_of_the_model_is_changed(backbone: Backbone, name: str, all_of_it: bool) -> None:
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    entries = everything(backbone) if all_of_it else LINEAR
    get_statistic(name).gather(observe(backbone, entries), batches(4)).result()
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.modules())


def test_bf16_comes_near(backbone: Backbone) -> None:
    for name in ("gram", "fisher_data"):
        exact, coarse = (
            get_statistic(name)
            .gather(
                replace(observe(backbone), compute=Compute(torch.device("cpu"), bf16)), batches(7)
            )
            .result()
            for bf16 in (False, True)
        )
        for module in LINEAR:
            assert coarse[module].dtype == torch.float32
            assert float((coarse[module] - exact[module]).norm() / exact[module].norm()) < 0.1


def own(backbone: Backbone, i: int, whole: bool) -> Adapter:
    """Return a LoRA of the linear layers, or a change of every parameter, with its statistics."""
    draw = torch.Generator().manual_seed(i)

    def noise(*shape: int) -> Tensor:
        return 0.1 * torch.randn(shape, generator=draw)

    parameters = {entry_name(n): p for n, p in backbone.network.named_parameters()}
    if whole:
        adapter = Adapter(f"e{i}", {}, deltas={m: noise(*p.shape) for m, p in parameters.items()})
    else:
        shapes = {m: parameters[m].shape for m in LINEAR}
        factors = {m: LoRAFactors(noise(2, s[1]), noise(s[0], 2)) for m, s in shapes.items()}
        adapter = Adapter(f"e{i}", factors)
    change = merge([adapter], weights=[1.0])
    observed = replace(observe(backbone, adapter.modules()), change=change, keys=(i,))
    made = {n: s.gather(observed, batches(7)).result() for n, s in STATISTICS.items()}
    return replace(adapter, statistics=made)


@pytest.mark.parametrize("whole", [False, True])
def test_what_is_gathered_is_what_merges_need(backbone: Backbone, whole: bool) -> None:
    """Of LoRA, and of whole models, where not every parameter has a Gram matrix."""
    models = [own(backbone, i, whole) for i in range(2)]
    mean = merge(models)
    options = ({"labels": "model"}, {"labels": "data"})
    updates = [merge(models, "regmean"), *(merge(models, "fisher", **o) for o in options)]
    for update in updates:
        assert update.modules() == models[0].modules()
        with changed(backbone.network, update):
            assert backbone(samples()[0]).isfinite().all()
        assert not torch.allclose(update.delta(LINEAR[2]), mean.delta(LINEAR[2]), rtol=1e-2)
    if not whole:  # no layer before the first one differs, so that its inputs are all the same
        found, plain = updates[0].delta(LINEAR[0]), mean.delta(LINEAR[0])
        torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-6)
    if whole:
        torch.testing.assert_close(updates[0].delta("norm.bias"), mean.delta("norm.bias"))


# Running sums ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gram", "fisher_data"])
def test_sums_of_two_passes_are_those_of_one(backbone: Backbone, name: str) -> None:
    gather = get_statistic(name).gather
    images, targets = samples()
    whole = gather(observe(backbone), [(images, targets)]).result()
    first = gather(observe(backbone), [(images[:3], targets[:3])])
    first.merge(gather(observe(backbone), [(images[3:], targets[3:])]))
    near(first.result(), whole, 1e-5)


def test_sums_go_on_from_means_that_were_kept() -> None:
    sums = RunningMeans()
    sums.add("a", torch.tensor([2.0, 4.0]), 2)
    assert torch.equal(sums.result()["a"], torch.tensor([1.0, 2.0]))
    on = RunningMeans.of(sums.result(), 2)
    on.add("a", torch.tensor([4.0, 8.0]), 2)
    assert torch.equal(on.result()["a"], torch.tensor([1.5, 3.0]))
    assert torch.equal(sums.result()["a"], torch.tensor([1.0, 2.0]))


def test_sums_keep_what_float32_would_lose() -> None:
    sums = RunningMeans()
    sums.add("a", torch.tensor([2.0**24]), 1)
    for _ in range(64):
        sums.add("a", torch.tensor([1.0]), 0)
    assert float(sums.result()["a"]) == 2.0**24 + 64


# What is refused, and the choice of samples ------------------------------------------------------


def test_samples_are_chosen_by_seed_and_experience() -> None:
    statistic, indices = get_statistic("fisher_data"), np.arange(5, 105)
    some = statistic.choose(indices, "photo", seed=1, limit=20)
    assert len(set(some.tolist())) == 20
    assert (np.diff(some) > 0).all()
    assert set(some.tolist()) <= set(indices.tolist())
    assert np.array_equal(some, get_statistic("fisher_model").choose(indices, "photo", 1, 20))
    assert not np.array_equal(some, statistic.choose(indices, "photo", 2, 20))
    assert not np.array_equal(some, statistic.choose(indices, "sketch", 1, 20))
    for limit in (None, 100, 1000):
        assert np.array_equal(statistic.choose(indices, "photo", 1, limit), indices)


def test_every_statistic_that_a_method_needs_is_there() -> None:
    needed = {
        info.statistic({**{o: s.default for o, s in info.options.items()}, **chosen})
        for info in METHODS.values()
        if info.statistic is not None
        for chosen in ({}, {"labels": "data"})
    }
    needed |= {name for policy in HEAD_POLICIES.values() for name in policy.statistics}
    assert needed | {ROUTER} == set(STATISTICS)
    assert {s.name: s.part for s in STATISTICS.values()} == {
        "gram": "train",
        "fisher_model": "val",
        "fisher_data": "val",
        FEATURES: "train",
        ROUTER: "train",
    }


def test_no_samples_are_refused(backbone: Backbone) -> None:
    none = np.array([], dtype=np.int64)
    with pytest.raises(
        UserError, match=r"val samples of 'photo' .* set benchmark.val_fraction=0.1"
    ):
        get_statistic("fisher_model").choose(none, "photo", 0)
    with pytest.raises(UserError, match=r"train samples of 'photo'.*'gram' .* there are none"):
        get_statistic("gram").choose(none, "photo", 0)
    with pytest.raises(UserError, match=r"at least 1 sample .* limit is 0"):
        get_statistic("gram").choose(np.arange(3), "photo", 0, 0)
    with pytest.raises(UserError, match="at least one sample to gather a statistic of"):
        get_statistic("gram").gather(observe(backbone), []).result()


def test_models_that_do_not_fit_are_refused(backbone: Backbone) -> None:
    for name, entries, message in (
        ("gram", ("norm", "cls_token"), r"linear layers, .* none among norm, cls_token;"),
        ("fisher_data", ("blocks.9.attn.qkv",), r"no parameter of the entry 'blocks.9.attn.qkv'"),
    ):
        with pytest.raises(UserError, match=message):
            get_statistic(name).gather(observe(backbone, entries), batches(7))
    backbone.train()
    for name in STATISTICS:
        with pytest.raises(UserError, match=r"in training mode; call eval\(\) first"):
            get_statistic(name).gather(observe(backbone), batches(7))


def test_layers_that_mix_samples_are_refused() -> None:
    class Mixing(OneLayer):
        def forward(self, inputs: Tensor) -> Tensor:
            return self.network(inputs.mean(0, keepdim=True)).expand(len(inputs), -1)

    x, y = vectors(6, 3)
    observed = Observed(Mixing(3), COMPUTE, None, nn.Identity(), TASK, ("0",), 0)
    with pytest.raises(
        UserError, match=r"layer '0' .* told apart by sample but got \(1, 3\) for 6"
    ):
        get_statistic("fisher_data").gather(observed, [(x, y)])


def test_what_is_not_finite_is_refused(backbone: Backbone) -> None:
    sums = RunningMeans()
    sums.add("fc", torch.tensor([1.0, torch.inf]), 1)
    with pytest.raises(UserError, match=r"'fc' holds NaN or infinity; use precision=fp32"):
        sums.result()
    with pytest.raises(UserError, match="at least one draw of targets for a sample but got 0"):
        replace(observe(backbone), draws=0)


def test_a_name_belongs_to_one_statistic() -> None:
    with pytest.raises(UserError, match="Unknown statistic 'grams': did you mean 'gram'"):
        get_statistic("grams")
    with pytest.raises(UserError, match=r"'gram' is registered already, by .*statistics.gram"):
        register_statistic("gram", summary="another", part="train")(lambda o, b: RunningMeans())
