"""Updates of one size, against dense float64 arrays, and what holds for any adapters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_reference import dense, relative_error, toy_adapters

from cl_lora.adapters import Adapter, entry_delta
from cl_lora.merging import merge, prepare, variant_of
from cl_lora.merging.geometry import inner
from cl_lora.merging.registry import is_linear
from cl_lora.support.errors import UserError

RANKS = (2, 3, 4)
ADAPTERS = toy_adapters(3, RANKS, dtype=torch.float64)


def norms(adapters: list[Adapter]) -> np.ndarray:
    """Return the Frobenius norm of each update over all modules together."""
    squares = [np.square(d).sum(axis=(1, 2)) for d in dense(adapters).values()]
    return np.sqrt(sum(squares))


def expected(adapters: list[Adapter], weights: list[float]) -> dict[str, np.ndarray]:
    each = norms(adapters)
    shares = np.array(weights) * each.mean() / each
    return {m: np.einsum("n,nij->ij", shares, d) for m, d in dense(adapters).items()}


def times(adapter: Adapter, factor: float) -> Adapter:
    """Return an adapter whose update is ``factor`` times as large, by its B."""
    factors = {m: replace(f, B=f.B * factor) for m, f in adapter.factors.items()}
    return replace(adapter, factors=factors)


@pytest.mark.parametrize("space", ["delta", "factors"])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.7, -0.1, 1.9], [0.0, 2.0, 0.0]])
def test_it_is_the_sum_of_updates_of_one_norm(weights, space) -> None:
    update = merge(ADAPTERS, "norm_balanced", weights, space=space)
    for module, dense_sum in expected(ADAPTERS, weights).items():
        assert relative_error(update.delta(module), dense_sum) < 1e-12
        assert update.entries[module].rank == sum(RANKS)  # exact, and stays low rank


def test_every_part_has_the_mean_norm() -> None:
    """Each alone with coefficient 1; unlike norms before, or nothing would be shown."""
    each = norms(ADAPTERS)
    assert each.max() > 1.5 * each.min()
    plan = prepare(ADAPTERS, "norm_balanced")
    for i in range(3):
        update = plan.combine(torch.eye(3, dtype=torch.float64)[i])
        total = sum(update.delta(m).square().sum() for m in update.modules()) ** 0.5
        assert float(total) == pytest.approx(each.mean(), rel=1e-12)


def test_the_norm_needs_no_product() -> None:
    for adapter in ADAPTERS:
        for f in adapter.factors.values():
            assert inner(f, f) == pytest.approx(float(f.delta().square().sum()), rel=1e-12)


factor = st.floats(1e-3, 1e3)


@settings(deadline=None, max_examples=40)
@given(factor, st.integers(0, 2), st.lists(st.floats(-2, 2), min_size=3, max_size=3))
def test_it_is_the_same_direction_however_large_an_adapter_is(size, which, weights) -> None:
    """Making one adapter larger moves the mean norm alone: nothing dominates."""
    grown = [times(a, size) if i == which else a for i, a in enumerate(ADAPTERS)]
    one, other = (merge(list(a), "norm_balanced", weights) for a in (ADAPTERS, grown))
    share = norms(grown).mean() / norms(ADAPTERS).mean()
    for module in one.modules():
        torch.testing.assert_close(
            other.delta(module), share * one.delta(module), rtol=1e-9, atol=1e-12
        )


@settings(deadline=None, max_examples=20)
@given(factor)
def test_all_adapters_larger_make_the_sum_larger_by_as_much(size: float) -> None:
    one = merge(ADAPTERS, "norm_balanced", [1.0, 0.5, -1.0])
    other = merge([times(a, size) for a in ADAPTERS], "norm_balanced", [1.0, 0.5, -1.0])
    for module in one.modules():
        torch.testing.assert_close(other.delta(module), size * one.delta(module), rtol=1e-9, atol=0)


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(3)))
def test_the_order_of_adapters_changes_nothing(order: list[int]) -> None:
    weights = [0.7, -0.1, 1.9]
    one = merge(ADAPTERS, "norm_balanced", weights)
    other = merge([ADAPTERS[i] for i in order], "norm_balanced", [weights[i] for i in order])
    for module in one.modules():
        torch.testing.assert_close(one.delta(module), other.delta(module), rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=20)
@given(*[st.lists(st.floats(-3, 3), min_size=3, max_size=3)] * 2, st.floats(-2, 2))
def test_it_is_linear_in_the_coefficients(one, other, factor) -> None:
    plan = prepare(ADAPTERS, "norm_balanced")
    a, b = (torch.tensor(v, dtype=torch.float64) for v in (one, other))
    left, right, both = (plan.combine(v) for v in (a, b, a + factor * b))
    for module in plan.modules:
        torch.testing.assert_close(
            both.delta(module),
            left.delta(module) + factor * right.delta(module),
            rtol=1e-9,
            atol=1e-10,
        )


def test_one_adapter_alone_is_as_it_was() -> None:
    update = merge(ADAPTERS[:1], "norm_balanced", [1.0])
    for module, (delta,) in dense(ADAPTERS[:1]).items():
        assert relative_error(update.delta(module), delta) < 1e-14


def test_equal_norms_make_it_the_plain_sum() -> None:
    alike = [times(a, 1 / n) for a, n in zip(ADAPTERS, norms(ADAPTERS), strict=True)]
    one, other = (merge(alike, method, [1.0, 0.5, 2.0]) for method in ("norm_balanced", "cat"))
    for module in one.modules():
        torch.testing.assert_close(one.delta(module), other.delta(module), rtol=1e-9, atol=1e-12)


def test_coefficients_may_differ_from_module_to_module() -> None:
    plan = prepare(ADAPTERS, "norm_balanced")
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    update = plan.combine(rows)
    for row, module in zip(rows.tolist(), plan.modules, strict=True):
        assert relative_error(update.delta(module), expected(ADAPTERS, row)[module]) < 1e-12


def test_it_is_no_plain_sum_of_the_adapters() -> None:
    """Adapters that stay apart would have their own norms: composing is not used for it."""
    plan = prepare(ADAPTERS, "norm_balanced")
    assert not plan.plain_sum
    assert prepare(ADAPTERS, "cat").plain_sum
    assert plan.linear
    assert is_linear("norm_balanced")
    for made in (plan, plan.materialise()):
        assert not made.plain_sum


def test_a_materialised_plan_has_the_same_update_and_gradient() -> None:
    plan = prepare(ADAPTERS, "norm_balanced")
    for made in (plan, plan.materialise()):
        alpha = torch.tensor([0.7, -0.1, 1.9], dtype=torch.float64, requires_grad=True)
        update = made.combine(alpha)
        sum(entry_delta(e).sum() for e in update.entries.values()).backward()
        each = norms(ADAPTERS)
        sums = sum(d.sum(axis=(1, 2)) for d in dense(ADAPTERS).values())
        np.testing.assert_allclose(alpha.grad.numpy(), sums * each.mean() / each, rtol=1e-9)
        for module, dense_sum in expected(ADAPTERS, [0.7, -0.1, 1.9]).items():
            assert relative_error(update.delta(module).detach(), dense_sum) < 1e-12


def test_what_is_recorded_says_it() -> None:
    assert variant_of("norm_balanced")["method"] == "norm_balanced"
    assert merge(ADAPTERS, "norm_balanced", [1.0] * 3).variant == variant_of("norm_balanced")


def test_an_adapter_that_changes_nothing_is_refused() -> None:
    nothing = times(ADAPTERS[1], 0.0)
    with pytest.raises(UserError, match=r"number 1 of 3 has an update of norm 0, .*; leave it out"):
        prepare([ADAPTERS[0], nothing, ADAPTERS[2]], "norm_balanced")
