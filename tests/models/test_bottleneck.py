"""Adapters that stay apart compute what their weighted sum in the weights does."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from cl_lora.adapters import Adapter, LoRAFactors
from cl_lora.adapters.injection import LoRAConfig, inject, remove, split_qkv, target_modules
from cl_lora.models.backbones import EMBEDDED, Backbone, ModelConfig, load_backbone
from cl_lora.models.bottleneck import Bottleneck, composed
from cl_lora.models.compute import Compute
from cl_lora.support.errors import UserError

RANKS = (3, 1, 5)
SCALINGS = (2.0, 0.5, 1.0)
FP32 = Compute(torch.device("cpu"), bf16=False)
BF16 = Compute(torch.device("cpu"), bf16=True)


def make_adapters(network: nn.Module, targets: Sequence[str]) -> list[Adapter]:
    """Return adapters of different ranks and scalings that change features by about a tenth."""
    generator = torch.Generator().manual_seed(1)

    def factors(rank: int, scaling: float, name: str) -> LoRAFactors:
        d_out, d_in = network.get_submodule(name).weight.shape
        A = torch.randn(rank, d_in, generator=generator) / d_in**0.5
        return LoRAFactors(A, torch.randn(d_out, rank, generator=generator) * 0.05, scaling)

    names = target_modules(network, targets)
    return [
        Adapter(f"a{i}", {name: factors(*shape, name) for name in names})
        for i, shape in enumerate(zip(RANKS, SCALINGS, strict=True))
    ]


def images(backbone: Backbone) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    size = (3, 3, backbone.img_size, backbone.img_size)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)


def weights(adapters: Sequence[Adapter], by_module: bool) -> Tensor:
    shape = (len(adapters[0].factors), len(adapters)) if by_module else (len(adapters),)
    generator = torch.Generator().manual_seed(3)
    return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()


def by_dense_sum(backbone: Backbone, adapters: Sequence[Adapter], alpha: Tensor) -> Tensor:
    """Return the features under W0 + sum_i alpha_i s_i B_i A_i, written out in float64."""
    changed = {}
    for m, name in enumerate(adapters[0].factors):
        weight = backbone.network.get_submodule(name).weight.double()
        for i, adapter in enumerate(adapters):
            f = adapter.factors[name]
            one = alpha[m, i] if alpha.ndim == 2 else alpha[i]
            weight = weight + one * f.scaling * (f.B.double() @ f.A.double())
        changed[f"network.{name}.weight"] = weight.float()
    return functional_call(backbone, changed, (images(backbone),))


@pytest.fixture(params=["tiny qkv", "tiny q v fc1 fc2", "embedded"])
def case(request: pytest.FixtureRequest, backbone: Backbone) -> tuple[Backbone, list[Adapter]]:
    if request.param == "embedded":
        backbone, targets = load_backbone(ModelConfig(EMBEDDED)), ["qkv", "proj", "fc1", "fc2"]
    else:
        targets = request.param.split()[1:]
    if "q" in targets:
        split_qkv(backbone.network)
        backbone.network.requires_grad_(False)
    return backbone, make_adapters(backbone.network, targets)


@pytest.mark.parametrize("by_module", [False, True])
def test_features_and_gradients_are_those_of_the_merge(case, by_module):
    backbone, adapters = case
    alpha = weights(adapters, by_module)
    expected = by_dense_sum(backbone, adapters, alpha)
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4))
    (gradient,) = torch.autograd.grad([(expected * direction).sum()], [alpha])

    composition = Bottleneck.of(backbone.network, adapters).weighted(alpha)
    features = FP32.composed_features(backbone, composition, images(backbone))
    assert (features - expected).norm() < 1e-5 * expected.norm()
    bare = backbone(images(backbone))
    assert (features - bare).norm() > 1e-2 * bare.norm(), "the adapters change nothing"
    (found,) = torch.autograd.grad([(features * direction).sum()], [alpha])
    assert found.dtype == torch.float64
    assert (found - gradient).norm() < 1e-4 * gradient.norm()


def test_each_weight_of_zero_takes_its_adapter_out(backbone):
    adapters = make_adapters(backbone.network, ["qkv", "fc1"])
    apart = Bottleneck.of(backbone.network, adapters)
    for i, adapter in enumerate(adapters):
        alpha = torch.nn.functional.one_hot(torch.tensor(i), len(adapters)).double()
        alone = Bottleneck.of(backbone.network, [adapter]).weighted(torch.ones(1))
        one = FP32.composed_features(backbone, alone, images(backbone))
        among = FP32.composed_features(backbone, apart.weighted(alpha), images(backbone))
        torch.testing.assert_close(among, one, rtol=1e-5, atol=1e-6)


def test_a_step_makes_no_matrix_of_the_weights_size(backbone):
    """What is kept for the backward pass grows with the ranks, not with d_out x d_in."""
    adapters = make_adapters(backbone.network, ["qkv", "fc1", "fc2"])
    composition = Bottleneck.of(backbone.network, adapters).weighted(weights(adapters, False))
    own = {p.data_ptr() for p in backbone.parameters()}
    shapes = {backbone.network.get_submodule(m).weight.shape for m in adapters[0].factors}
    shapes |= {shape[::-1] for shape in shapes}
    made = []

    def keep(tensor: Tensor) -> Tensor:
        if tensor.shape in shapes and tensor.data_ptr() not in own:
            made.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        FP32.composed_features(backbone, composition, images(backbone)).sum().backward()
        assert not made
        by_dense_sum(backbone, adapters, weights(adapters, False))
        assert made


def test_autocast_computes_in_bfloat16_close_to_float32(case):
    backbone, adapters = case
    alpha = weights(adapters, by_module=True)
    composition = Bottleneck.of(backbone.network, adapters).weighted(alpha)
    exact = FP32.composed_features(backbone, composition, images(backbone))
    seen = set()
    name = adapters[0].modules()[0]
    watch = backbone.network.get_submodule(name).register_forward_hook(
        lambda layer, inputs, output: seen.add(output.dtype)
    )
    rounded = BF16.composed_features(backbone, composition, images(backbone))
    watch.remove()
    assert seen == {torch.bfloat16}
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).norm() < 3e-2 * exact.norm()
    (gradient,) = torch.autograd.grad([exact.square().mean()], [alpha])
    (found,) = torch.autograd.grad([rounded.square().mean()], [alpha])
    assert torch.cosine_similarity(found.flatten(), gradient.flatten(), dim=0) > 0.99


def stop_inside(network: nn.Module, composition) -> None:
    with composed(network, composition):
        raise RuntimeError("stop")


def test_the_network_is_the_same_afterwards_even_after_an_error(backbone):
    adapters = make_adapters(backbone.network, ["qkv", "fc2"])
    composition = Bottleneck.of(backbone.network, adapters).weighted(torch.ones(3))
    fingerprint, before = backbone.fingerprint(), backbone(images(backbone))
    with composed(backbone.network, composition):
        assert not torch.equal(backbone(images(backbone)), before)
        assert backbone.fingerprint() == fingerprint
    with pytest.raises(RuntimeError, match="stop"):
        stop_inside(backbone.network, composition)
    assert torch.equal(backbone(images(backbone)), before)
    assert backbone.fingerprint() == fingerprint
    assert not any(module._forward_hooks for module in backbone.modules())


def test_a_fresh_lora_trains_on_top_of_a_composition(backbone):
    adapters = make_adapters(backbone.network, ["qkv"])
    composition = Bottleneck.of(backbone.network, adapters).weighted(torch.full((3,), 0.5))
    expected = FP32.composed_features(backbone, composition, images(backbone))
    with composed(backbone.network, composition):
        backbone.network = inject(backbone.network, LoRAConfig(rank=2, dropout=0.0), None)
        features = backbone(images(backbone))
        torch.testing.assert_close(features.detach(), expected, rtol=1e-5, atol=1e-6)
        features.sum().backward()
        trained = [n for n, p in backbone.named_parameters() if p.grad is not None]
        assert trained
        assert all("lora_" in name for name in trained)
        backbone.network = remove(backbone.network)
    assert not any(module._forward_hooks for module in backbone.modules())


def test_stacks_go_to_the_dtype_of_the_network(backbone):
    adapters = make_adapters(backbone.network, ["qkv"])
    double = [
        Adapter(a.name, {m: LoRAFactors(f.A.double(), f.B.double(), f.scaling)})
        for a in adapters
        for m, f in a.factors.items()
        if m == "blocks.0.attn.qkv"
    ]
    made = Bottleneck.of(backbone.network, double)
    assert made.stacked["blocks.0.attn.qkv"].A.dtype == torch.float32
    assert made.stacked["blocks.0.attn.qkv"].A.shape == (sum(RANKS), 16)


def one_adapter(module: str, d_out: int, d_in: int, value: float = 1.0) -> list[Adapter]:
    factors = LoRAFactors(torch.full((1, d_in), value), torch.ones(d_out, 1))
    return [Adapter("foreign", {module: factors})]


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        ([], "at least one adapter"),
        (one_adapter("blocks.9.attn.qkv", 48, 16), "no module 'blocks.9.attn.qkv'.*another back"),
        (one_adapter("blocks.0.attn.qkv", 48, 8), r"\(48, 8\) but its weight is \(48, 16\)"),
        (one_adapter("blocks.0.attn.qkv", 48, 16, float("nan")), "NaN or infinity"),
        (one_adapter("patch_embed.proj", 16, 192), "is Conv2d; merge them"),
        (
            [*one_adapter("blocks.0.attn.qkv", 48, 16), *one_adapter("blocks.0.mlp.fc1", 64, 16)],
            "same modules",
        ),
    ],
)
def test_adapters_that_do_not_fit_are_refused(backbone, adapters, message):
    with pytest.raises(UserError, match=message):
        Bottleneck.of(backbone.network, adapters)


def test_a_layer_that_keeps_its_weight_transposed_is_refused():
    from transformers.pytorch_utils import Conv1D

    network = nn.ModuleDict({"fc": Conv1D(4, 6)})
    with pytest.raises(UserError, match=r"'fc' to be a linear layer.* is Conv1D; merge"):
        Bottleneck.of(network, one_adapter("fc", 4, 6))


def flops(step) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
def test_whether_the_bottleneck_multiplies_less_is_what_torch_counts(rank):
    layer = nn.ModuleDict({"fc": nn.Linear(12, 24)}).requires_grad_(False)
    A, B = torch.randn(rank, 12), torch.randn(24, rank)
    made = Bottleneck.of(layer, [Adapter("one", {"fc": LoRAFactors(A, B)})])
    x = torch.randn(7, 12, requires_grad=True)
    alpha = torch.ones(1, requires_grad=True)
    merged = (layer["fc"].weight + B @ A).requires_grad_()

    def apart() -> None:
        with composed(layer, made.weighted(alpha)):
            layer["fc"](x).sum().backward()

    kept, dense = flops(apart), flops(lambda: F.linear(x, merged).sum().backward())
    assert made.multiplies_less is (kept <= dense)
    assert kept - flops(lambda: layer["fc"](x).sum().backward()) == 2 * 7 * 2 * rank * (12 + 24)


def test_the_sizes_of_all_modules_decide_which_way_multiplies_less(backbone):
    # 2 R (d_in + d_out) against d_in d_out: qkv 16 -> 48 up to R = 6, fc1 16 -> 64 up to 6.4.
    adapters = make_adapters(backbone.network, ["qkv", "fc1"])
    assert sum(RANKS) == 9
    assert not Bottleneck.of(backbone.network, adapters).multiplies_less
    assert Bottleneck.of(backbone.network, adapters[:2]).multiplies_less


def test_a_first_layer_goes_back_no_further_than_its_bottleneck(backbone):
    """Where nothing below is learned the gradient stops at the bottleneck."""
    adapters = make_adapters(backbone.network, ["qkv"])[:1]
    name, layer = "blocks.0.attn.qkv", backbone.network.get_submodule("blocks.0.attn.qkv")
    first = [Adapter("first", {name: adapters[0].factors[name]})]
    made = Bottleneck.of(backbone.network, first)
    x, alpha = torch.randn(7, 16), torch.ones(1, requires_grad=True)

    def step() -> None:
        with composed(backbone.network, made.weighted(alpha)):
            layer(x).sum().backward()

    rank = RANKS[0]
    assert flops(step) == 2 * 7 * (16 * 48 + rank * 16 + 2 * rank * 48)


@pytest.mark.parametrize(
    ("alpha", "message"),
    [
        (torch.ones(2), r"shape \(3,\) .* or \(4, 3\) .* but got \(2,\)"),
        (torch.ones(3, 4), r"got \(3, 4\)"),
        (torch.tensor([1.0, float("nan"), float("inf")]), "2 of 3 are NaN or infinite"),
    ],
)
def test_bad_weights_are_refused(backbone, alpha, message):
    made = Bottleneck.of(backbone.network, make_adapters(backbone.network, ["qkv", "fc1"]))
    assert len(made.modules) == 4
    with pytest.raises(UserError, match=message):
        made.weighted(alpha)


def test_a_composition_of_another_network_changes_nothing(backbone):
    made = Bottleneck.of(backbone.network, make_adapters(backbone.network, ["qkv"]))
    other = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 2)])})
    with (
        pytest.raises(UserError, match="another backbone"),
        composed(other, made.weighted(torch.ones(3))),
    ):
        pass
    assert not any(module._forward_hooks for module in other.modules())
