"""Coefficients by damped Gauss-Newton: optima of others, merges without a gradient, bad input."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_reference import toy_adapters
from scipy.optimize import minimize
from torch.nn import functional as F

from cl_lora.merging import learn, make_rule, minimise, prepare
from cl_lora.merging.coefficients import SOLVERS, get_solver, register_solver
from cl_lora.support.errors import UserError

N, CLASSES = 24, 3
TIGHT = {"solver": "gauss_newton", "tolerance": 1e-13, "iterations": 200}
MODULE = "out"


def problem(seed: int = 0):
    """Return outputs of a linear model on toy inputs, and the cross-entropy: convex in alpha."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = toy_adapters(1)[0].factors[MODULE].shape
    inputs = torch.randn(N, columns, dtype=torch.float64, generator=generator) / columns**0.5
    head = torch.randn(CLASSES, rows, dtype=torch.float64, generator=generator) / 4
    targets = torch.randint(0, CLASSES, (N,), generator=generator)

    def outputs(update):
        return inputs @ update.delta(MODULE).double().T @ head.T

    return outputs, lambda z: F.cross_entropy(z, targets)


def flat(update):
    return torch.cat([update.delta(m).flatten() for m in update.modules()])


@pytest.mark.parametrize("seed", range(4))
def test_the_minimum_of_a_convex_loss_is_that_of_scipy(seed):
    outputs, loss = problem(seed)
    plan = prepare(toy_adapters(3), "task_arithmetic")
    rule = make_rule({"name": "unbounded", "granularity": "adapter", **TIGHT})

    def by_hand(alpha):
        return float(loss(outputs(plan.combine(torch.tensor(alpha)))))

    expected = minimize(by_hand, [0.0] * 3, method="Nelder-Mead", options={"fatol": 1e-12})
    found = minimise(rule, plan, outputs, loss)
    assert found.trace[-1].loss == pytest.approx(expected.fun, abs=1e-5)


def test_bounded_coefficients_are_those_of_scipy_within_bounds():
    outputs, loss = problem(1)
    plan = prepare(toy_adapters(2), "task_arithmetic")
    found = minimise(make_rule({"name": "adaptive", **TIGHT}), plan, outputs, loss)

    def by_hand(alpha):
        return float(loss(outputs(plan.combine(torch.tensor(alpha)))))

    expected = minimize(by_hand, [0.5] * 2, method="Nelder-Mead", bounds=[(0, 1)] * 2)
    assert found.trace[-1].loss == pytest.approx(expected.fun, abs=1e-3)


@pytest.mark.parametrize(
    "config",
    [
        {"name": "adaptive"},
        {"name": "adaptive", "b_max": 3},
        {"name": "softmax", "granularity": "adapter"},
        {"name": "unbounded", "granularity": "layer"},
    ],
)
def test_a_long_run_of_adam_on_a_linear_plan_ends_no_lower(config):
    outputs, loss = problem(2)
    plan = prepare(toy_adapters(3), "ties")
    assert plan.linear
    ours = minimise(make_rule({**config, **TIGHT}), plan, outputs, loss)
    adam = learn(
        make_rule({**config, "steps": 200, "lr": 0.1}), plan, lambda u, _: loss(outputs(u))
    )
    assert ours.trace[-1].loss <= adam.trace[-1].loss + 2e-4


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("task_arithmetic", {}),
        ("task_arithmetic", {"space": "factors"}),
        ("ties", {"space": "factors"}),
        ("svd", {"rank": 2}),
        ("ties", {"rank": 3}),
        ("dare_ties", {"sign": "weighted", "divisor": "none"}),
    ],
)
@pytest.mark.parametrize(
    ("config", "alpha"),
    [
        ({"name": "adaptive", "b_max": 3}, [0.3, 1.7, 0.9]),
        ({"name": "softmax", "granularity": "adapter"}, [0.2, 0.7, 0.1]),
    ],
)
def test_known_coefficients_of_any_merge_are_recovered(method, options, config, alpha):
    plan = prepare(toy_adapters(3), method, **options)
    target = flat(plan.combine(torch.tensor(alpha)))
    rule = make_rule({**config, **TIGHT})
    found = minimise(rule, plan, flat, lambda z: (z - target).square().mean())
    torch.testing.assert_close(
        found.alpha, torch.tensor(alpha, dtype=torch.float64), rtol=0, atol=1e-2
    )
    assert not found.alpha.requires_grad


@given(seed=st.integers(0, 50), name=st.sampled_from(["adaptive", "softmax", "unbounded"]))
@settings(max_examples=8, deadline=None)
def test_the_loss_never_rises_and_is_that_of_the_coefficients(seed, name):
    outputs, loss = problem(seed)
    plan = prepare(toy_adapters(3), "ties", space="factors", density=0.7)
    rule = make_rule({"name": name, "granularity": "adapter", "solver": "gauss_newton"})
    found = minimise(rule, plan, outputs, loss)
    losses = [step.loss for step in found.trace]
    assert all(later < earlier for earlier, later in pairwise(losses))
    assert [step.step for step in found.trace] == list(range(len(losses)))
    assert float(loss(outputs(plan.combine(found.alpha)))) == pytest.approx(losses[-1])
    again = minimise(rule, plan, outputs, loss)
    assert torch.equal(again.alpha, found.alpha)


@pytest.mark.parametrize(
    ("config", "directions", "starts"),
    [
        ({"name": "adaptive"}, 4, 2),  # a bound of 1 does not move
        ({"name": "adaptive", "b_max": 3}, 4, 2),  # no other has more directions than 4 numbers
        ({"name": "softmax", "granularity": "adapter"}, 3, 1),  # they sum to 1: no half of them
        ({"name": "unbounded", "granularity": "adapter"}, 4, 2),
    ],
)
def test_an_iteration_takes_a_pass_for_each_direction(config, directions, starts):
    plan = prepare(toy_adapters(4), "task_arithmetic")
    outputs, loss = problem()
    seen = []

    def counted(update):
        seen.append(update.alpha)
        assert not update.alpha.requires_grad
        return outputs(update)

    rule = make_rule({**config, "solver": "gauss_newton", "iterations": 1})
    found = minimise(rule, plan, counted, loss)
    assert len(seen) == found.evaluations == starts + directions + 1
    if starts == 2:  # whether half of the start is far better
        torch.testing.assert_close(seen[1], seen[0] / 2)


def test_a_start_that_is_far_too_long_is_halved():
    """The loss grows with the square of the length, so that each half has a quarter of it."""
    plan = prepare(toy_adapters(2), "task_arithmetic")
    target = 0.01 * flat(plan.combine(torch.tensor([1.0, 1.0])))
    lengths = []

    def counted(update):
        lengths.append(float(update.alpha.max()))
        return flat(update)

    def distance(z):
        return (z - target).square().mean()

    rule = make_rule({"name": "unbounded", "granularity": "adapter", "init": 8.0, **TIGHT})
    found = minimise(rule, plan, counted, distance)
    assert lengths[:10] == [8 / 2**k for k in range(10)]
    assert found.trace[0].alpha.tolist() == [8 / 2**10] * 2
    # A start that was given is where learning starts.
    lengths.clear()
    minimise(rule, plan, counted, distance, previous=torch.tensor([8.0, 8.0]))
    assert lengths[1] > 4


def test_a_tolerance_ends_it_and_so_do_iterations():
    outputs, loss = problem()
    plan = prepare(toy_adapters(3), "task_arithmetic")

    def steps(**options):
        rule = {"name": "adaptive", "b_max": 3, "solver": "gauss_newton", **options}
        return minimise(make_rule(rule), plan, outputs, loss).trace

    assert len(steps(iterations=1)) == 2
    usual, tight = steps(), steps(tolerance=1e-9)
    assert len(usual) < len(tight)
    # What a tight tolerance finds below is in the order of the usual one of 1e-3.
    assert usual[0].loss - usual[-1].loss > 1e-2
    assert usual[-1].loss - tight[-1].loss < 2e-3
    assert len(steps(tolerance=1e5)) == 1  # no step is worth its pass


def test_a_loss_that_is_linear_has_no_curvature_and_is_still_lowered():
    plan = prepare(toy_adapters(2), "task_arithmetic")
    target = flat(plan.combine(torch.tensor([0.2, 0.9])))
    rule = make_rule({"name": "adaptive", "solver": "gauss_newton", "tolerance": 1e-9})
    found = minimise(rule, plan, flat, lambda z: (z - target).abs().mean())
    assert found.trace[-1].loss < 0.5 * found.trace[0].loss


def test_a_step_that_cannot_be_merged_is_no_success():
    plan = prepare(toy_adapters(2), "task_arithmetic")
    rule = make_rule({"name": "unbounded", "granularity": "adapter", **TIGHT})

    def outputs(update):
        if float(update.alpha[0]) > 0.8:
            raise UserError("too large; choose smaller")
        return update.alpha

    found = minimise(rule, plan, outputs, lambda z: (z - 2).square().sum())
    assert float(found.alpha[0]) <= 0.8
    assert found.trace[-1].loss < found.trace[0].loss


@pytest.mark.parametrize("granularity", ["adapter", "layer", "module"])
@pytest.mark.parametrize(
    ("name", "most"), [("adaptive", 1), ("adaptive", 3), ("unbounded", 0), ("softmax", 0)]
)
def test_a_rule_starts_from_earlier_coefficients(name, most, granularity):
    modules = tuple(toy_adapters(1)[0].modules())
    rule = make_rule(
        {"name": name, "granularity": granularity, **({"b_max": most} if most else {})}
    )
    with torch.no_grad():
        earlier = rule.state(2, modules)
        for tensor in earlier.parameters.values():
            tensor.copy_(torch.linspace(-1, 1, tensor.numel()).view_as(tensor))
        known = earlier.alpha()
        fresh, found = rule.state(3, modules).alpha(), rule.state(3, modules, known).alpha()
    new = found[..., 2]
    torch.testing.assert_close(new, fresh[..., 2], rtol=0, atol=1e-2)
    share = 2 / 3 if name == "softmax" else 1.0
    torch.testing.assert_close(found[..., :2], known * share, rtol=0, atol=1e-2)


@pytest.mark.parametrize("name", ["adaptive", "softmax"])
def test_coefficients_at_an_edge_start_inside_it(name):
    rule = make_rule({"name": name, "granularity": "adapter"})
    found = rule.state(3, ("m",), torch.tensor([1.0, 0.0], dtype=torch.float64)).alpha()
    assert all(0.005 < float(a) < 0.96 for a in found)


def test_a_rule_that_cannot_start_from_coefficients_says_so():
    with pytest.raises(UserError, match="'uniform' cannot start from earlier coefficients"):
        make_rule({"name": "uniform"}).state(2, ("m",), torch.ones(1))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"solver": "newton"}, "solver .* one of adam, gauss_newton but got 'newton'"),
        ({"solver": ["adam"]}, "solver .* one of"),
        ({"solver": "gauss_newton", "steps": 3}, "steps is an option of solver=adam but .* leave"),
        ({"solver": "gauss_newton", "lr": 0.1}, "lr is an option of solver=adam"),
        ({"tolerance": 0.1}, "tolerance is an option of solver=gauss_newton"),
        ({"solver": "gauss_newton", "tolerance": -1e-3}, "tolerance .* at least 0"),
        ({"solver": "gauss_newton", "tolerance": math.nan}, "tolerance"),
        ({"solver": "gauss_newton", "tolerance": 1e7}, "tolerance .* at most 1,000,000"),
        ({"solver": "gauss_newton", "iterations": 0}, "iterations .* at least 1"),
        ({"solver": "gauss_newton", "iterations": 10**5}, "iterations .* at most 10,000"),
        ({"start": "before"}, "start .* one of fresh, previous"),
    ],
)
def test_bad_options(config, message):
    with pytest.raises(UserError, match=message):
        make_rule({"name": "adaptive", **config})


def test_solvers_and_functions_go_together():
    outputs, loss = problem()
    plan = prepare(toy_adapters(2), "ties")
    with pytest.raises(UserError, match=r"'adaptive' has solver=adam; give solver=gauss_newton"):
        minimise(make_rule({"name": "adaptive"}), plan, outputs, loss)
    with pytest.raises(UserError, match="'grid' has nothing to learn"):
        minimise(make_rule({"name": "grid"}), plan, outputs, loss)
    with pytest.raises(UserError, match=r"use minimise\(\), or solver=adam"):
        learn(make_rule({"name": "adaptive", **TIGHT}), plan, lambda u, step: loss(outputs(u)))
    assert list(SOLVERS) == ["adam", "gauss_newton"]
    with pytest.raises(UserError, match="did you mean 'adam'"):
        get_solver("adm")
    assert register_solver(SOLVERS["adam"]) is SOLVERS["adam"]


def test_what_cannot_be_minimised_says_so():
    outputs, _ = problem()
    plan = prepare(toy_adapters(2), "ties")
    rule = make_rule({"name": "adaptive", "solver": "gauss_newton"})
    with pytest.raises(UserError, match="loss is nan where learning coefficients starts"):
        minimise(rule, plan, outputs, lambda z: z.sum() * math.nan)
    with pytest.raises(UserError, match="a loss that can be differentiated"):
        minimise(rule, plan, outputs, lambda z: (z > 0).double().mean())


def test_what_is_written_down_of_a_rule_names_what_is_not_usual():
    """Rules of runs before there were solvers are written as they were."""
    usual = make_rule({"name": "adaptive"}).config
    assert usual == {
        "name": "adaptive",
        "b_max": 1.0,
        "init": "zero",
        "granularity": "adapter",
        "steps": 100,
        "lr": 0.05,
    }
    rule = make_rule({"name": "softmax", "solver": "gauss_newton", "start": "previous"})
    assert rule.config == {
        "name": "softmax",
        "granularity": "module",
        "solver": "gauss_newton",
        "start": "previous",
        "tolerance": 1e-3,
        "iterations": 20,
    }
    assert make_rule(rule.config) == rule
