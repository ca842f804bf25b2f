"""Identities of merging, linearity, gradients, laziness."""

import itertools
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_reference import SHAPES, check_gradient, relative_error, slope_of, toy_adapters

from cl_lora.adapters import Adapter, LoRAFactors
from cl_lora.merging import (
    dare,
    differentiability,
    get_method,
    is_linear,
    kernels,
    merge,
    method_names,
    prepare,
    pruning,
    require_learnable,
    variant_of,
)
from cl_lora.merging.plan import gather
from cl_lora.merging.spaces import DeltaSpace, FactorSpace, Stack
from cl_lora.support.errors import UserError

# Those that need statistics are averages, and are tested by themselves.
DATA_FREE = [m for m in method_names() if get_method(m).data_free]
METHODS_AND_SPACES = [(m, s) for m in DATA_FREE for s in get_method(m).spaces]
LINEAR = [
    ("task_arithmetic", {}),
    ("cat", {}),
    ("linear", {}),
    ("magnitude_prune", {}),
    ("magnitude_prune", {"trim": "global"}),
    ("dare_linear", {}),
    ("dare_ties", {}),
    ("ties", {}),
    ("ties", {"divisor": "none", "elect": "frequency"}),
]


FEW = {module: SHAPES[module] for module in ("blocks.0.fc", "out")}
"""Enough modules where every variant is tried: two shapes, and a threshold over both."""

RESHAPED = ("iso_c", "iso_cts")
"""Methods that change the spectrum of a single adapter too."""


def _dense_options(method):
    if "density" in get_method(method).options:
        return {"density": 1.0}
    return {"inner": {"name": "ties", "density": 1.0}} if method == "knots" else {}


@pytest.mark.parametrize(
    ("method", "space"), [(m, s) for m, s in METHODS_AND_SPACES if m not in RESHAPED]
)
def test_one_adapter_at_weight_one_is_itself(method, space):
    (adapter,) = toy_adapters(1)
    update = merge([adapter], method, [1.0], space=space, **_dense_options(method))
    for module, f in adapter.factors.items():
        torch.testing.assert_close(update.delta(module), f.delta(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "space"), [(m, s) for m, s in METHODS_AND_SPACES if not get_method(m).ordered]
)
def test_permuting_adapters_changes_nothing(method, space):
    adapters, weights = toy_adapters(3), [0.7, 0.1, 1.9]
    # Random masks go with the position, by design: only without dropping does order not count.
    options = _dense_options(method) if method.startswith("dare") else {}
    update = merge(adapters, method, weights, space=space, **options)
    other = merge(adapters[::-1], method, weights[::-1], space=space, **options)
    for module in update.modules():
        assert relative_error(other.delta(module), update.delta(module)) < 1e-5


@pytest.mark.parametrize(("method", "options"), LINEAR)
def test_the_exact_sum_is_the_oracle_where_nothing_is_dropped(method, options):
    """With all entries kept and adapters that agree in sign, each linear method is the sum."""
    adapters = [_positive(a) for a in toy_adapters(3, dtype=torch.float64)]
    weights = [0.7, 0.2, 1.1]
    options = {**options, **_dense_options(method)}
    if "divisor" in get_method(method).options:
        options["divisor"] = "none"
    update = merge(adapters, method, weights, **options)
    exact = merge(adapters, "task_arithmetic", weights)
    for module in update.modules():
        assert relative_error(update.delta(module), exact.delta(module)) < 1e-12


def test_weights_default_to_one_over_n():
    adapters = toy_adapters(4)
    update = merge(adapters)
    for module in update.modules():
        mean = sum(a.factors[module].delta() for a in adapters) / 4
        torch.testing.assert_close(update.delta(module), mean)


@st.composite
def methods_with_options(draw):
    method = draw(st.sampled_from(DATA_FREE))
    info = get_method(method)
    options = {"rank": draw(st.sampled_from([None, 2]))}
    choices = {
        "density": [0.3, 1.0],
        "trim": ["tensor", "global"],
        "sign": ["unweighted", "weighted"],
        "elect": ["total", "frequency"],
        "divisor": ["count", "weight_sum", "none"],
        "mask_seed": [0, 3],
        "inner": ["task_arithmetic", "ties", {"name": "ties", "sign": "weighted"}, "iso_c"],
        "share_of": ["matrix", "adapters"],
        "common": [0.5, 0.8],
        "pull": [1e-6, 0.1],
        "first": ["1/n", 0.3],
        "last": [1.0, 2.0],
        "share": [0.0, 0.5],
    }
    for name in info.options:
        if name != "rank":
            options[name] = draw(st.sampled_from(choices[name]))
    return method, draw(st.sampled_from(info.spaces)), options


@settings(deadline=None, max_examples=150)
@given(methods_with_options(), st.integers(0, 10_000))
def test_combining_is_linear_exactly_where_the_plan_says_so(chosen, seed):
    method, space, options = chosen
    adapters = toy_adapters(3, dtype=torch.float64, seed=seed, shapes=FEW)
    plan = prepare(adapters, method, space=space, **options)
    assert plan.linear == is_linear(method, space, options)
    assert plan.differentiability == differentiability(method, space, options)
    generator = torch.Generator().manual_seed(seed)
    worst = 0.0
    for _ in range(5):
        x, y = torch.randn(2, 3, generator=generator, dtype=torch.float64)
        left = plan.combine(2 * x - 3 * y)
        at_x, at_y = plan.combine(x), plan.combine(y)
        for m in plan.modules:
            right = 2 * at_x.delta(m) - 3 * at_y.delta(m)
            worst = max(worst, relative_error(left.delta(m), right))
        if worst >= 1e-9:
            break
    assert (worst < 1e-9) == plan.linear


def check_gradients(plan, alpha):
    """Check a materialised plan by finite differences, and the plan itself by the other's gradient.

    Both have the same values, as other tests show of every variant.
    """
    ready, merged_at_once = (
        lambda a, each=each: [each.combine(a).delta(m) for m in each.modules]
        for each in (plan.materialise(), plan)
    )
    check_gradient(ready, alpha)
    torch.testing.assert_close(slope_of(merged_at_once, alpha), slope_of(ready, alpha))


@pytest.mark.parametrize(("method", "options"), LINEAR)
@pytest.mark.parametrize("shape", [(3,), (5, 3)])
def test_gradient_of_combine_against_finite_differences(method, options, shape):
    plan = prepare(toy_adapters(3, dtype=torch.float64), method, **options)
    assert plan.linear
    alpha = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    check_gradients(plan, alpha)


CHOICES = {
    "trim": ["tensor", "global"],
    "sign": ["unweighted", "weighted"],
    "elect": ["total", "frequency"],
    "divisor": ["count", "weight_sum", "none"],
    "share_of": ["matrix", "adapters"],
    "inner": ["ties", {"name": "ties", "sign": "weighted", "divisor": "weight_sum"}],
}


def _variants():
    """Every method in every space with every word that an option can be."""
    for method, space in METHODS_AND_SPACES:
        names = [name for name in get_method(method).options if name in CHOICES]
        for words in itertools.product(*(CHOICES[name] for name in names)):
            yield method, space, dict(zip(names, words, strict=True))


LEARNABLE = [v for v in _variants() if differentiability(*v) != "no"]


@pytest.mark.parametrize(
    ("method", "space", "options"), LEARNABLE, ids=[f"{m}-{s}-{o}" for m, s, o in LEARNABLE]
)
def test_gradients_of_every_variant_against_finite_differences(method, space, options):
    """Away from the kinks: no coefficient is 0, and no election flips within a step of 1e-6."""
    if "density" in get_method(method).options:
        options = {"density": 0.5, **options}
    adapters = toy_adapters(3, dtype=torch.float64, shapes=FEW)
    plan = prepare(adapters, method, space=space, **options)
    assert plan.learnable
    for values in ([0.4, 0.9, 1.3], [0.7, -0.3, 1.1]):
        check_gradients(plan, torch.tensor(values, dtype=torch.float64))


def test_all_but_truncated_methods_can_be_learned():
    assert {m for m, s, o in _variants() if differentiability(m, s, o) == "no"} == {
        "svd",
        *RESHAPED,
    }
    for method, space, options in LEARNABLE:
        assert differentiability(method, space, {**options, "rank": 2}) == "no"


def test_the_gradient_of_a_root_is_not_finite_at_zero():
    """Why learned rules start away from 0: declared, so that nobody relies on it."""
    plan = prepare(toy_adapters(2), "linear", space="factors")
    alpha = torch.tensor([0.5, 0.0], requires_grad=True)
    (slope,) = torch.autograd.grad(plan.combine(alpha).delta("out").square().sum(), alpha)
    assert slope[0].isfinite()
    assert not slope[1].isfinite()


@pytest.mark.parametrize(
    ("method", "space", "options"),
    [*LEARNABLE, ("svd", "delta", {}), ("ties", "delta", {"rank": 2})],
)
def test_a_materialised_plan_of_any_variant_gives_the_same_again_and_again(method, space, options):
    adapters = toy_adapters(3, dtype=torch.float64, shapes=FEW)
    plan = prepare(adapters, method, space=space, **options)
    ready = plan.materialise()
    for seed in range(2):  # the second time shows a stack that the first has overwritten
        generator = torch.Generator().manual_seed(seed)
        alpha = torch.randn(len(FEW), 3, generator=generator, dtype=torch.float64)
        update, expected = ready.combine(alpha), plan.combine(alpha)
        for module in plan.modules:
            torch.testing.assert_close(update.delta(module), expected.delta(module))


@pytest.mark.parametrize(
    ("method", "space", "options"),
    [("ties", "factors", {"sign": "weighted"}), ("dare_ties", "delta", {"divisor": "weight_sum"})],
)
def test_learning_by_merging_again_neither_sparsifies_nor_stacks_again(
    method, space, options, monkeypatch
):
    ready = prepare(toy_adapters(3), method, space=space, **options).materialise()
    for kind in (DeltaSpace, FactorSpace):
        monkeypatch.setattr(kind, "stack", None)
    monkeypatch.setattr(dare, "dare_mask", None)
    monkeypatch.setattr(pruning, "top_mask", None)
    ready.combine(torch.ones(3))


@pytest.mark.parametrize(("method", "options"), LINEAR)
@pytest.mark.parametrize("shape", [(3,), (5, 3)])
def test_a_materialised_plan_gives_the_same_without_merging_again(
    method, options, shape, monkeypatch
):
    plan = prepare(toy_adapters(3), method, **options)
    alpha = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    lazy, fast = plan.combine(alpha), plan.materialise()
    # From here on a delta computed anew would be an error.
    monkeypatch.setattr(DeltaSpace, "stack", None)
    monkeypatch.setattr(LoRAFactors, "delta", lambda self: self.scaling * (self.B @ self.A))
    assert fast.variant == plan.variant
    assert fast.materialise().linear
    update = fast.combine(alpha)
    for module in plan.modules:
        assert relative_error(update.delta(module), lazy.delta(module)) < 1e-5


def test_a_row_of_coefficients_per_module():
    adapters = toy_adapters(2)
    plan = prepare(adapters, "ties")
    rows = torch.rand(5, 2, generator=torch.Generator().manual_seed(0))
    update = plan.combine(rows)
    for module, row in zip(plan.modules, rows, strict=True):
        torch.testing.assert_close(update.delta(module), plan.combine(row).delta(module))
        torch.testing.assert_close(update.delta(module), plan.combine_module(module, row))


@pytest.mark.parametrize("method", ["ties", "dare_ties", "magnitude_prune"])
def test_at_most_one_module_is_dense_at_a_time(method, monkeypatch):
    stacks, most = [], 0
    original = Stack.rows

    def rows(self, first, last):
        nonlocal most
        most = max(most, 1 + sum(alive() is not None for alive in stacks))
        result = original(self, first, last)
        stacks.append(weakref.ref(result))
        return result

    monkeypatch.setattr(Stack, "rows", rows)
    trim = {"trim": "global"} if "trim" in get_method(method).options else {}
    plan = prepare(toy_adapters(4), method, **trim)
    update = plan.combine(torch.ones(4))
    assert len(update.modules()) == len(SHAPES)
    assert most == 1


TALL = {"tall": (300, 7), "wide": (5, 200)}


@pytest.mark.parametrize("space", ["delta", "factors"])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ties", {}),
        ("ties", {"trim": "global", "density": 0.37}),
        ("magnitude_prune", {"density": [0.1, 0.5, 1.0]}),
        ("dare_linear", {"density": 0.6}),
        ("dare_ties", {"density": [0.3, 0.9, 1.0]}),
    ],
)
def test_a_stack_taken_in_parts_gives_the_same_numbers(method, options, space, monkeypatch):
    adapters = toy_adapters(3, shapes=TALL)
    whole = merge(adapters, method, space=space, **options)
    monkeypatch.setattr(kernels, "CHUNK", 1)
    monkeypatch.setattr(pruning, "CHUNK", 1)
    parts = merge(adapters, method, space=space, **options)
    for module in whole.modules():
        assert torch.equal(whole.delta(module), parts.delta(module))


def test_of_equal_magnitudes_the_first_are_kept_in_whatever_parts(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    # Few different magnitudes, so that nearly every threshold is met many times.
    delta = torch.randint(-2, 3, (300, 7), generator=generator).float()
    adapter = Adapter("one", {}, deltas={"tall": delta})
    monkeypatch.setattr(kernels, "CHUNK", 1)
    for density in (0.0001, 0.01, 0.3, 0.5, 0.77, 0.99):
        merged = merge([adapter], "magnitude_prune", [1.0], density=density).delta("tall")
        assert torch.equal(merged, delta * pruning.top_mask(delta, density)), density


def test_each_adapter_has_its_own_density():
    adapters = toy_adapters(2)
    both = merge(adapters, "magnitude_prune", [1.0, 1.0], density=[0.1, 0.6])
    apart = [
        merge([adapter], "magnitude_prune", [1.0], density=density)
        for adapter, density in zip(adapters, (0.1, 0.6), strict=True)
    ]
    for module in both.modules():
        torch.testing.assert_close(both.delta(module), sum(u.delta(module) for u in apart))


def test_as_many_densities_as_adapters():
    with pytest.raises(UserError, match=r"one density, or one for each of 2 adapters, but got 3"):
        merge(toy_adapters(2), "ties", density=[0.1, 0.2, 0.3])


@pytest.mark.parametrize("rank", [1, 2, 5, 40])
def test_truncation_equals_the_svd_of_the_dense_sum(rank):
    adapters, weights = toy_adapters(3, (2, 3, 4), dtype=torch.float64), [0.5, -1.0, 2.0]
    exact = merge(adapters, "task_arithmetic", weights)
    for update in (
        merge(adapters, "svd", weights, rank=rank),
        merge(adapters, "task_arithmetic", weights, rank=rank),
        exact.truncate(rank),
    ):
        for module in update.modules():
            u, s, vh = torch.linalg.svd(exact.delta(module), full_matrices=False)
            expected = (u[:, :rank] * s[:rank]) @ vh[:rank]
            assert relative_error(update.delta(module), expected) < 1e-10
            assert update.entries[module].rank <= max(rank, 9)
    assert merge(adapters, "svd", weights, rank=2).entries["out"].rank == 2


def test_half_precision_adapters_are_merged_in_float32():
    from cl_lora.adapters import Adapter

    adapters = [
        Adapter(
            a.name,
            {m: LoRAFactors(f.A.half(), f.B.half(), f.scaling) for m, f in a.factors.items()},
        )
        for a in toy_adapters(2)
    ]
    for method in ("task_arithmetic", "ties"):
        assert merge(adapters, method).delta("out").dtype == torch.float32


def test_the_variant_says_all_that_defines_the_result():
    plan = prepare(toy_adapters(2), "dare_ties", density=0.5, mask_seed=4, divisor="none", rank=2)
    assert plan.combine(torch.ones(2)).variant == {
        "method": "dare_ties",
        "space": "delta",
        "scaling": "alpha * s * B A",
        "density": 0.5,
        "mask_seed": 4,
        "sign": "unweighted",
        "elect": "total",
        "divisor": "none",
        "rank": 2,
    }
    assert prepare(toy_adapters(2), "ties", space="factors").variant["scaling"].startswith("sqrt")
    assert prepare(toy_adapters(2), "cat", space="factors").variant["scaling"].startswith("alpha")


@pytest.mark.parametrize(("method", "space"), METHODS_AND_SPACES)
@pytest.mark.parametrize("options", [{}, {"rank": 2}, {"rank": None}])
def test_the_variant_is_known_before_there_are_adapters(method, space, options):
    expected = variant_of(method, space, options)
    assert prepare(toy_adapters(2), method, space=space, **options).variant == expected
    settings = {k: v for k, v in expected.items() if k in get_method(method).options}
    assert variant_of(method, space, settings) == expected


@pytest.mark.parametrize("method", ["svd", "ties"])
def test_the_largest_rank_is_that_of_the_adapters(method):
    adapters = toy_adapters(3, (2, 4, 3))
    largest, expected = merge(adapters, method, rank="largest"), merge(adapters, method, rank=4)
    for module in largest.modules():
        assert largest.entries[module].rank == 4
        assert torch.equal(largest.delta(module), expected.delta(module))
    assert largest.variant["rank"] == "largest"
    assert merge(adapters, "svd").entries["out"].rank == 4


def test_learned_coefficients_are_refused_where_the_merge_is_not_differentiable():
    for target in ("ties", prepare(toy_adapters(2), "ties")):
        require_learnable(target)
    require_learnable("ties", "factors")
    require_learnable("ties", options={"sign": "weighted"})
    for target in (
        lambda: require_learnable("svd"),
        lambda: require_learnable("task_arithmetic", options={"rank": 4}),
        lambda: require_learnable(prepare(toy_adapters(2), "svd")),
    ):
        with pytest.raises(UserError, match="differentiable in its coefficients"):
            target()


def _positive(adapter):
    from cl_lora.adapters import Adapter

    factors = {m: LoRAFactors(f.A.abs(), f.B.abs(), f.scaling) for m, f in adapter.factors.items()}
    return Adapter(adapter.name, factors)


def test_a_spread_sees_whole_tensors_unless_it_says_otherwise(monkeypatch):
    monkeypatch.setattr(kernels, "_BLOCK", 1)
    sources = gather(toy_adapters(3))

    def normed(stack, weights):
        return stack / stack.norm()

    pipeline = kernels.Pipeline(DeltaSpace(sources), spread=normed)
    alpha = torch.tensor([0.7, 0.2, 1.1])
    whole = pipeline.materialise().combine("out", alpha)
    assert relative_error(pipeline.combine("out", alpha), whole) < 1e-6


@pytest.mark.parametrize(("method", "space", "options"), [*LEARNABLE, ("svd", "delta", {})])
@pytest.mark.parametrize("entries", [1, 50, 77])
def test_rows_may_be_merged_in_blocks(method, space, options, entries, monkeypatch):
    """Blocks of one row, of some rows, and of a number that leaves a rest, against all at once."""
    alpha = torch.tensor([0.7, -0.2, 1.1], dtype=torch.float64).requires_grad_()
    merged = []
    for block in (10**9, entries):
        monkeypatch.setattr(kernels, "_BLOCK", block)
        adapters = toy_adapters(3, dtype=torch.float64, shapes=FEW)
        update = prepare(adapters, method, space=space, **options).combine(alpha)
        deltas = [update.delta(module) for module in update.modules()]
        (slope,) = torch.autograd.grad(sum(delta.square().sum() for delta in deltas), alpha)
        merged.append([*deltas, slope])
    for whole, blocks in zip(*merged, strict=True):
        torch.testing.assert_close(blocks, whole, rtol=1e-12, atol=1e-12)
