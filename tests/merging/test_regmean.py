"""RegMean against least squares, a dense float64 reference, and what holds for any models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_reference import SHAPES, check_gradient, dense, relative_error, toy_adapters

from cl_lora.adapters import Adapter, LoRAFactors
from cl_lora.merging import differentiability, merge, prepare, variant_of
from cl_lora.merging.registry import statistic_of
from cl_lora.support.errors import UserError

RANKS = (2, 3, 4)
WEIGHTS = [0.7, 0.1, 1.9]
PLAIN = "out"
"""The module that has no Gram matrix."""


def inputs(i: int, module: str, tokens: int = 40) -> np.ndarray:
    """Return the inputs (tokens, d_in) that a layer has seen in model i, correlated."""
    draw = np.random.default_rng([i, *module.encode()])
    d_in = SHAPES[module][1]
    return draw.normal(size=(tokens + 7 * i, d_in)) @ draw.normal(size=(d_in, d_in)) / 2


def with_grams(adapters: list[Adapter], plain: tuple[str, ...] = (PLAIN,)) -> list[Adapter]:
    def grams(i: int) -> dict[str, torch.Tensor]:
        seen = {m: inputs(i, m) for m in SHAPES if m not in plain}
        return {m: torch.from_numpy(x.T @ x / len(x)) for m, x in seen.items()}

    return [replace(a, statistics={"gram": grams(i)}) for i, a in enumerate(adapters)]


ADAPTERS = with_grams(toy_adapters(3, RANKS, dtype=torch.float64))


def as_models(adapters: list[Adapter]) -> list[Adapter]:
    """Return the same updates as those of fully fine-tuned models, with a bias beside them."""
    return [
        replace(
            a,
            factors={},
            deltas={m: f.delta() for m, f in a.factors.items()}
            | {"out.bias": torch.arange(7.0).double() * (i + 1)},
        )
        for i, a in enumerate(adapters)
    ]


def expected(adapters, weights, off_diagonal=1.0, ridge=1e-4) -> dict[str, np.ndarray]:
    """Return the formula, written down on dense float64 matrices."""
    result = {}
    for module, deltas in dense(adapters).items():
        if module == PLAIN:
            result[module] = np.average(deltas, axis=0, weights=weights)
            continue
        rows, total = 0.0, 0.0
        for a, delta, adapter in zip(weights, deltas, adapters, strict=True):
            g = adapter.statistics["gram"][module].numpy()
            diagonal = np.diag(np.diag(g))
            shrunk = off_diagonal * g + (1 - off_diagonal) * diagonal
            shrunk = shrunk + ridge * np.diag(g).mean() * np.eye(len(g))
            rows, total = rows + a * delta @ shrunk, total + a * shrunk
        result[module] = rows @ np.linalg.inv(total)
    return result


@pytest.mark.parametrize("options", [{}, {"off_diagonal": 0.9}, {"off_diagonal": 0, "ridge": 0.1}])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], WEIGHTS, [0.0, 2.0, 0.0]])
def test_it_is_the_formula_on_dense_matrices(weights, options) -> None:
    update = merge(ADAPTERS, "regmean", weights, **options)
    for module, matrix in expected(ADAPTERS, weights, **options).items():
        assert relative_error(update.delta(module), matrix) < 1e-10


def test_it_solves_the_least_squares_over_the_inputs_of_all_models() -> None:
    """``sum_i a_i |X_i (W - W_i)^T|^2 / N_i`` has its minimum there: numpy's solver on the rows."""
    update = merge(ADAPTERS, "regmean", WEIGHTS, ridge=1e-12)
    for module, deltas in dense(ADAPTERS).items():
        if module == PLAIN:
            continue
        rows, targets = [], []
        for i, (a, delta) in enumerate(zip(WEIGHTS, deltas, strict=True)):
            x = inputs(i, module)
            x = x * np.sqrt(a / len(x))
            rows.append(x)
            targets.append(x @ delta.T)
        solution, *_ = np.linalg.lstsq(np.concatenate(rows), np.concatenate(targets))
        assert relative_error(update.delta(module), solution.T) < 1e-8


def test_outputs_are_nearer_to_the_models_than_those_of_the_mean() -> None:
    near, mean = (merge(ADAPTERS, method) for method in ("regmean", "task_arithmetic"))

    def distance(update, module):
        return sum(
            np.square(inputs(i, module) @ (update.delta(module).numpy() - delta).T).mean()
            for i, delta in enumerate(dense(ADAPTERS)[module])
        )

    for module in SHAPES:
        assert module == PLAIN or distance(near, module) < 0.9 * distance(mean, module)


def test_low_rank_updates_stay_low_rank_and_are_those_of_dense_models() -> None:
    low, full = (merge(of, "regmean", WEIGHTS) for of in (ADAPTERS, as_models(ADAPTERS)))
    for module in SHAPES:
        entry = low.entries[module]
        assert isinstance(entry, LoRAFactors)
        assert entry.rank == sum(RANKS)
        torch.testing.assert_close(entry.delta(), full.delta(module), rtol=1e-9, atol=1e-11)
    bias = torch.arange(7.0) * np.average([1, 2, 3], weights=WEIGHTS)
    torch.testing.assert_close(full.delta("out.bias"), bias.double())


def test_float32_factors_are_solved_in_float64() -> None:
    half = [
        replace(a, factors={m: LoRAFactors(f.A.float(), f.B.float(), f.scaling) for m, f in
                            a.factors.items()})
        for a in ADAPTERS
    ]  # fmt: skip
    update = merge(half, "regmean", WEIGHTS)
    for module, matrix in expected(half, WEIGHTS).items():
        assert update.delta(module).dtype == torch.float32
        assert relative_error(update.delta(module), matrix) < 1e-6


shares = st.lists(st.floats(0.01, 10), min_size=3, max_size=3)


@settings(deadline=None, max_examples=20)
@given(shares, st.floats(1e-3, 1e3), st.permutations(range(3)))
def test_only_ratios_of_coefficients_count_and_no_order(weights, factor, order) -> None:
    one = merge(ADAPTERS, "regmean", weights)
    other = merge([ADAPTERS[i] for i in order], "regmean", [factor * weights[i] for i in order])
    for module in one.modules():
        torch.testing.assert_close(one.delta(module), other.delta(module), rtol=1e-8, atol=1e-9)


@settings(deadline=None, max_examples=15)
@given(st.floats(0, 1), st.floats(1e-8, 1), st.floats(0.1, 10))
def test_one_model_alone_is_itself(off_diagonal, ridge, weight) -> None:
    options = {"off_diagonal": off_diagonal, "ridge": ridge}
    update = merge(ADAPTERS[:1], "regmean", [weight], **options)
    for module, (delta,) in dense(ADAPTERS[:1]).items():
        assert relative_error(update.delta(module), delta) < 1e-6


@settings(deadline=None, max_examples=15)
@given(shares, st.floats(0, 1))
def test_equal_models_are_the_model_whatever_their_inputs(weights, off_diagonal) -> None:
    alike = [replace(a, factors=ADAPTERS[0].factors) for a in ADAPTERS]
    update = merge(alike, "regmean", weights, off_diagonal=off_diagonal)
    for module, f in ADAPTERS[0].factors.items():
        torch.testing.assert_close(update.delta(module), f.delta(), rtol=1e-7, atol=1e-8)


def test_a_coefficient_of_zero_leaves_a_model_out() -> None:
    one = merge(ADAPTERS, "regmean", [0.5, 0.0, 1.0])
    other = merge([ADAPTERS[0], ADAPTERS[2]], "regmean", [0.5, 1.0])
    for module in one.modules():
        torch.testing.assert_close(one.delta(module), other.delta(module), rtol=1e-9, atol=1e-10)


def test_without_off_diagonal_entries_every_column_is_a_mean() -> None:
    update = merge(ADAPTERS, "regmean", WEIGHTS, off_diagonal=0, ridge=1e-12)
    for module in SHAPES:
        if module == PLAIN:
            continue
        sizes = np.stack([a.statistics["gram"][module].diagonal().numpy() for a in ADAPTERS])
        column = np.array(WEIGHTS)[:, None] * sizes
        mean = np.einsum("nj,noj->oj", column / column.sum(0), dense(ADAPTERS)[module])
        assert relative_error(update.delta(module), mean) < 1e-9


@pytest.mark.parametrize("dead", [slice(0, 3), slice(None)])
def test_directions_without_inputs_take_the_weighted_mean(dead) -> None:
    module = "blocks.0.q"

    def without(adapter: Adapter) -> Adapter:
        gram = adapter.statistics["gram"][module].clone()
        gram[dead], gram[:, dead] = 0, 0
        return replace(adapter, statistics={"gram": {module: gram}})

    update = merge([without(a) for a in ADAPTERS], "regmean", [1.0, 1.0, 1.0], ridge=1e-9)
    mean = dense(ADAPTERS)[module].mean(axis=0)
    found = update.delta(module)[:, dead]
    if dead == slice(None):  # nothing at all is known: no Gram matrix tells the models apart
        assert relative_error(found, mean) < 1e-9
    else:  # each ridge is relative to its own model
        ridges = np.array([float(without(a).statistics["gram"][module].diagonal().mean())
                           for a in ADAPTERS])  # fmt: skip
        mean = np.average(dense(ADAPTERS)[module], axis=0, weights=ridges)[:, dead]
        assert relative_error(found, mean) < 1e-6


@pytest.mark.parametrize("make", [lambda: ADAPTERS, lambda: as_models(ADAPTERS)])
def test_its_gradient_is_right_and_a_materialised_plan_is_the_same(make) -> None:
    plan = prepare(make(), "regmean")
    assert not plan.linear
    assert plan.learnable
    assert differentiability("regmean") == "differentiable"
    alpha = torch.tensor(WEIGHTS, dtype=torch.float64)
    for each in (plan, plan.materialise(), plan.materialise().materialise()):
        check_gradient(lambda a, each=each: [each.combine(a).delta(m) for m in each.modules], alpha)
        for module in plan.modules:
            torch.testing.assert_close(
                each.combine(alpha).delta(module), plan.combine(alpha).delta(module)
            )


def test_coefficients_may_differ_from_module_to_module() -> None:
    plan = prepare(ADAPTERS, "regmean")
    rows = torch.rand(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    update = plan.combine(rows)
    for row, module in zip(rows.tolist(), plan.modules, strict=True):
        assert relative_error(update.delta(module), expected(ADAPTERS, row)[module]) < 1e-10


def test_it_says_what_it_needs() -> None:
    assert statistic_of("regmean") == "gram"
    assert variant_of("regmean")["off_diagonal"] == 1.0
    assert not prepare(ADAPTERS, "regmean").plain_sum


def spoiled(module: str, gram: torch.Tensor | None) -> list[Adapter]:
    """Return the adapters with another Gram matrix, or none, in number 1."""
    others = {m: g for m, g in ADAPTERS[1].statistics["gram"].items() if m != module}
    grams = others if gram is None else {**others, module: gram}
    return [ADAPTERS[0], replace(ADAPTERS[1], statistics={"gram": grams}), ADAPTERS[2]]


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        (toy_adapters(2), r"'e0' to have the statistic 'gram' but it has none"),
        (spoiled("blocks.0.q", None), r"'blocks.0.q' from every .* number 1 of 3 lacks it"),
        (spoiled("blocks.0.q", torch.ones(3, 3)), r"'blocks.0.q' to be \(10, 10\) but .* \(3, 3\)"),
        (spoiled("blocks.0.q", torch.full((10, 10), torch.nan)), r"model number 1 holds NaN"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(adapters, message) -> None:
    with pytest.raises(UserError, match=message):
        prepare(adapters, "regmean")


@pytest.mark.parametrize("weights", [[1.0, -0.1, 1.0], [0.0, 0.0, 0.0]])
def test_coefficients_that_are_no_shares_are_refused(weights) -> None:
    with pytest.raises(UserError, match=r"'regmean' to be shares, at least 0 and not all 0"):
        merge(ADAPTERS, "regmean", weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"off_diagonal": 1.1}, r"off_diagonal of .* in \[0, 1\] but got 1.1"),
        ({"ridge": 0}, r"ridge of merge method 'regmean' .* at least 1e-12 but got 0"),
        ({"space": "factors"}, "has no space 'factors'; use delta"),
    ],
)
def test_options_out_of_range_are_refused(options, message) -> None:
    with pytest.raises(UserError, match=message):
        prepare(ADAPTERS, "regmean", **options)
