"""Fisher merging against a dense float64 reference, and what holds for any models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_reference import SHAPES, check_gradient, dense, relative_error, toy_adapters

from cl_lora.adapters import Adapter
from cl_lora.merging import differentiability, merge, prepare, variant_of
from cl_lora.merging.registry import statistic_of
from cl_lora.support.errors import UserError

RANKS = (2, 3, 4)
WEIGHTS = [0.7, 0.1, 1.9]
PLAIN = "out"
"""The module that has no Fisher information."""

FLOOR = 1e-6


def with_fisher(adapters: list[Adapter], name: str = "fisher_model") -> list[Adapter]:
    """Give model i squares over many orders of magnitude, of a size of its own."""

    def of(i: int) -> dict[str, torch.Tensor]:
        draw = np.random.default_rng(i)
        return {
            m: torch.from_numpy(np.exp(3 * draw.normal(size=shape) - 5 * i))
            for m, shape in SHAPES.items()
            if m != PLAIN
        }

    return [replace(a, statistics={name: of(i)}) for i, a in enumerate(adapters)]


ADAPTERS = with_fisher(toy_adapters(3, RANKS, dtype=torch.float64))


def expected(adapters, weights, normalise="model", floor=FLOOR) -> dict[str, np.ndarray]:
    """Return the formula, entry by entry, on dense float64 arrays."""
    found = [a.statistics["fisher_model"] for a in adapters]
    sizes = [np.sqrt(sum(np.square(f.numpy()).sum() for f in of.values())) for of in found]
    alpha = np.array(weights)[:, None, None]
    result = {}
    for module, deltas in dense(adapters).items():
        if module == PLAIN:
            result[module] = np.average(deltas, axis=0, weights=weights)
            continue
        f = np.stack([of[module].numpy() for of in found])
        if normalise == "model":
            f = f / np.array(sizes)[:, None, None]
        f = f + floor * f.mean()
        result[module] = (alpha * f * deltas).sum(axis=0) / (alpha * f).sum(axis=0)
    return result


@pytest.mark.parametrize("options", [{}, {"normalise": "none"}, {"floor": 0.5}])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], WEIGHTS, [0.0, 2.0, 0.0]])
def test_it_is_the_formula_entry_by_entry(weights, options) -> None:
    update = merge(ADAPTERS, "fisher", weights, **options)
    for module, matrix in expected(ADAPTERS, weights, **options).items():
        assert relative_error(update.delta(module), matrix) < 1e-12


def test_by_hand() -> None:
    """Two models of one layer of two weights: 3 : 1 in the first, 0 : 1 in the second."""
    models = [
        Adapter(
            name, {}, deltas={"fc": torch.tensor([row])}, statistics={"fisher_data": {"fc": known}}
        )
        for name, row, known in (
            ("a", [4.0, 4.0], torch.tensor([[3.0, 0.0]])),
            ("b", [0.0, 2.0], torch.tensor([[1.0, 1.0]])),
        )
    ]
    update = merge(models, "fisher", [1.0, 1.0], labels="data", normalise="none", floor=1e-9)
    torch.testing.assert_close(update.delta("fc"), torch.tensor([[3.0, 2.0]]))


def test_normalising_makes_the_size_of_a_models_information_irrelevant() -> None:
    larger = {m: 1e6 * f for m, f in ADAPTERS[0].statistics["fisher_model"].items()}
    grown = [replace(ADAPTERS[0], statistics={"fisher_model": larger}), *ADAPTERS[1:]]
    for normalise, same in (("model", True), ("none", False)):
        one, other = (merge(of, "fisher", normalise=normalise) for of in (ADAPTERS, grown))
        near = relative_error(other.delta("blocks.0.q"), one.delta("blocks.0.q")) < 1e-9
        assert near == same


def constant(value: float, normalise: str) -> tuple[list[Adapter], dict[str, str]]:
    flat = {m: torch.full(SHAPES[m], value) for m in SHAPES if m != PLAIN}
    return [replace(a, statistics={"fisher_model": flat}) for a in ADAPTERS], {
        "normalise": normalise
    }


@pytest.mark.parametrize(("value", "normalise"), [(1e-12, "model"), (7.0, "none"), (0.0, "none")])
def test_information_that_tells_nothing_apart_gives_the_weighted_mean(value, normalise) -> None:
    """Also where it is zero throughout."""
    adapters, options = constant(value, normalise)
    update = merge(adapters, "fisher", WEIGHTS, **options)
    for module, deltas in dense(adapters).items():
        mean = np.average(deltas, axis=0, weights=WEIGHTS)
        assert relative_error(update.delta(module), mean) < 1e-9


def test_where_no_model_is_sure_it_is_the_weighted_mean() -> None:
    module = "blocks.0.q"

    def blank(adapter: Adapter) -> Adapter:
        known = adapter.statistics["fisher_model"][module].clone()
        known[:4] = 0
        return replace(adapter, statistics={"fisher_model": {module: known}})

    update = merge([blank(a) for a in ADAPTERS], "fisher", WEIGHTS)
    mean = np.average(dense(ADAPTERS)[module], axis=0, weights=WEIGHTS)
    assert relative_error(update.delta(module)[:4], mean[:4]) < 1e-12
    assert relative_error(update.delta(module)[4:], mean[4:]) > 0.1


shares = st.lists(st.floats(0.01, 10), min_size=3, max_size=3)


@settings(deadline=None, max_examples=20)
@given(shares, st.floats(1e-3, 1e3), st.permutations(range(3)))
def test_only_ratios_of_coefficients_count_and_no_order(weights, factor, order) -> None:
    one = merge(ADAPTERS, "fisher", weights)
    other = merge([ADAPTERS[i] for i in order], "fisher", [factor * weights[i] for i in order])
    for module in one.modules():
        torch.testing.assert_close(one.delta(module), other.delta(module), rtol=1e-9, atol=1e-11)


@settings(deadline=None, max_examples=15)
@given(shares)
def test_every_number_lies_between_those_of_the_models(weights) -> None:
    update = merge(ADAPTERS, "fisher", weights)
    for module, deltas in dense(ADAPTERS).items():
        found = update.delta(module).numpy()
        assert (found <= deltas.max(axis=0) + 1e-9).all()
        assert (found >= deltas.min(axis=0) - 1e-9).all()


@settings(deadline=None, max_examples=15)
@given(shares, st.sampled_from(["model", "none"]))
def test_equal_models_are_the_model_and_one_alone_is_itself(weights, normalise) -> None:
    alike = [replace(a, factors=ADAPTERS[0].factors) for a in ADAPTERS]
    for update in (
        merge(alike, "fisher", weights, normalise=normalise),
        merge(ADAPTERS[:1], "fisher", weights[:1], normalise=normalise),
    ):
        for module, f in ADAPTERS[0].factors.items():
            torch.testing.assert_close(update.delta(module), f.delta(), rtol=1e-9, atol=1e-11)


def test_entries_of_any_shape_are_merged() -> None:
    """Of fully fine-tuned models: a bias, a convolution and a single number too."""
    shapes = {"fc.bias": (3,), "patch": (4, 3, 2, 2), "scale": ()}
    draw = torch.Generator().manual_seed(0)

    def model(name: str) -> Adapter:
        deltas = {m: torch.randn(s, generator=draw) for m, s in shapes.items()}
        known = {m: torch.rand(s, generator=draw) for m, s in shapes.items()}
        return Adapter(name, {}, deltas=deltas, statistics={"fisher_model": known})

    models = [model("a"), model("b")]
    update = merge(models, "fisher", normalise="none", floor=1e-9)
    for module in shapes:
        f = [m.statistics["fisher_model"][module].double() for m in models]
        d = [m.deltas[module].double() for m in models]
        mean = (f[0] * d[0] + f[1] * d[1]) / (f[0] + f[1])
        torch.testing.assert_close(update.delta(module).double(), mean, rtol=1e-5, atol=1e-6)


def test_its_gradient_is_right_and_a_materialised_plan_is_the_same() -> None:
    plan = prepare(ADAPTERS, "fisher")
    assert not plan.linear
    assert plan.learnable
    assert differentiability("fisher") == "differentiable"
    alpha = torch.tensor(WEIGHTS, dtype=torch.float64)
    for each in (plan, plan.materialise(), plan.materialise().materialise()):
        check_gradient(lambda a, each=each: [each.combine(a).delta(m) for m in each.modules], alpha)
        for module in plan.modules:
            torch.testing.assert_close(
                each.combine(alpha).delta(module), plan.combine(alpha).delta(module)
            )


def test_coefficients_may_differ_from_module_to_module() -> None:
    plan = prepare(ADAPTERS, "fisher")
    rows = torch.rand(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    update = plan.combine(rows)
    for row, module in zip(rows.tolist(), plan.modules, strict=True):
        assert relative_error(update.delta(module), expected(ADAPTERS, row)[module]) < 1e-12


def test_the_labels_say_which_statistic_it_needs() -> None:
    assert statistic_of("fisher") == "fisher_model"
    assert statistic_of("fisher", options={"labels": "data"}) == "fisher_data"
    assert variant_of("fisher")["labels"] == "model"
    with pytest.raises(UserError, match=r"'e0' to have the statistic 'fisher_data' but it has fis"):
        prepare(ADAPTERS, "fisher", labels="data")


def spoiled(module: str, known: torch.Tensor | None) -> list[Adapter]:
    """Return the adapters with other Fisher information, or none, in number 1."""
    others = {m: f for m, f in ADAPTERS[1].statistics["fisher_model"].items() if m != module}
    found = others if known is None else {**others, module: known}
    return [ADAPTERS[0], replace(ADAPTERS[1], statistics={"fisher_model": found}), ADAPTERS[2]]


def full(value: float) -> torch.Tensor:
    return torch.full((12, 10), value)


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        (spoiled("blocks.0.q", None), r"'blocks.0.q' from every .* number 1 of 3 lacks it"),
        (spoiled("blocks.0.q", torch.ones(10, 12)), r"to be \(12, 10\) but it is \(10, 12\)"),
        (spoiled("blocks.0.q", full(torch.inf)), r"model number 1 holds NaN or infinity"),
        (spoiled("blocks.0.q", full(-1.0)), r"model number 1 has numbers below 0"),
        (constant(0.0, "model")[0], r"model number 0 of 3 is 0 everywhere.*normalise=none"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(adapters, message) -> None:
    with pytest.raises(UserError, match=message):
        prepare(adapters, "fisher")


@pytest.mark.parametrize("weights", [[1.0, -0.1, 1.0], [0.0, 0.0, 0.0]])
def test_coefficients_that_are_no_shares_are_refused(weights) -> None:
    with pytest.raises(UserError, match=r"'fisher' to be shares, at least 0 and not all 0"):
        merge(ADAPTERS, "fisher", weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "datum"}, "labels .* model, data but got 'datum'"),
        ({"normalise": True}, "normalise .* model, none but got True"),
        ({"floor": 0}, "floor .* a number above 0 but got 0"),
        ({"space": "factors"}, "has no space 'factors'; use delta"),
    ],
)
def test_options_out_of_range_are_refused(options, message) -> None:
    with pytest.raises(UserError, match=message):
        prepare(ADAPTERS, "fisher", **options)
