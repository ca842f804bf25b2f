"""Coefficient rules: formulas, bounds, groups, learning."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from merge_reference import SHAPES, toy_adapters

from cl_lora.merging import (
    RULES,
    coefficient_rows,
    learn,
    make_rule,
    module_groups,
    prepare,
    rule_names,
    rules_table,
    search,
)
from cl_lora.merging.coefficients import Given, adaptive_alpha, register_rule
from cl_lora.merging.registry import choice
from cl_lora.support.errors import UserError

MODULES = tuple(SHAPES)


def _close(tensor, expected):
    torch.testing.assert_close(tensor, torch.tensor(expected, dtype=torch.float64))


def test_adaptive_formula_worked_by_hand():
    # sigmoid(0) = 1/2, sigmoid(ln 3) = 3/4, sigmoid(-ln 3) = 1/4; b = 1 + 4 * 3/4 = 4.
    c = torch.tensor([0.0, math.log(3), -math.log(3)], dtype=torch.float64)
    b_raw = torch.tensor(math.log(3), dtype=torch.float64)
    _close(adaptive_alpha(c, b_raw, 5.0), [2.0, 3.0, 1.0])


@given(
    st.lists(st.floats(-30, 30), min_size=1, max_size=6),
    st.floats(-30, 30),
    st.floats(1, 100),
)
def test_adaptive_coefficients_lie_between_zero_and_b_max(c, b_raw, b_max):
    alpha = adaptive_alpha(
        torch.tensor(c, dtype=torch.float64), torch.tensor(b_raw, dtype=torch.float64), b_max
    )
    assert (alpha > 0).all()
    assert (alpha < b_max).all()


@pytest.mark.parametrize(
    ("config", "n", "expected"),
    [
        ({"name": "fixed", "value": 3}, 2, [3.0, 3.0]),
        ({"name": "fixed", "value": [0.5, -1.0]}, 2, [0.5, -1.0]),
        ({"name": "fixed"}, 2, [1.0, 1.0]),
        ({"name": "uniform"}, 4, [0.25] * 4),
        ({"name": "adaptive", "b_max": 1}, 2, [0.5, 0.5]),
        ({"name": "adaptive", "b_max": 5}, 2, [1.5, 1.5]),
        ({"name": "adaptive", "b_max": 3, "init": 0.7}, 2, [0.7, 0.7]),
        ({"name": "adaptive", "b_max": 3, "init": "uniform"}, 4, [0.25] * 4),
        ({"name": "adaptive", "b_max": 1, "init": "uniform"}, 1, [0.95]),
        ({"name": "softmax", "granularity": "adapter"}, 4, [0.25] * 4),
        ({"name": "softmax", "granularity": "layer"}, 2, [[0.5, 0.5]] * 5),
        ({"name": "softmax"}, 2, [[0.5, 0.5]] * 5),
        ({"name": "unbounded", "granularity": "adapter"}, 4, [0.25] * 4),
        ({"name": "unbounded", "granularity": "layer", "init": -1}, 2, [[-1.0, -1.0]] * 5),
        ({"name": "unbounded", "init": 0}, 2, [[0.0, 0.0]] * 5),
        ({"name": "unbounded"}, 2, [[0.5, 0.5]] * 5),
    ],
)
def test_where_the_coefficients_start(config, n, expected):
    _close(make_rule(config).state(n, MODULES).alpha().detach(), expected)


@pytest.mark.parametrize(("granularity", "groups"), [("adapter", 1), ("layer", 3), ("module", 5)])
def test_parameters_and_rows_follow_the_granularity(granularity, groups):
    state = make_rule({"name": "adaptive", "granularity": granularity}).state(2, MODULES)
    assert state.parameters["c"].shape == (groups, 2)
    assert state.parameters["b_raw"].shape == (groups, 1)
    with torch.no_grad():
        state.parameters["c"].copy_(torch.arange(groups * 2.0).view(groups, 2))
    alpha = state.alpha()
    assert alpha.shape == ((2,) if groups == 1 else (5, 2))
    assert alpha.requires_grad
    names = module_groups(granularity, MODULES)
    rows = alpha.expand(5, 2)
    for i, first in enumerate(names):
        for j, second in enumerate(names):
            assert torch.equal(rows[i], rows[j]) == (first == second)


@pytest.mark.parametrize(("granularity", "groups"), [("adapter", 1), ("layer", 3), ("module", 5)])
def test_unbounded_coefficients_are_their_parameters(granularity, groups):
    state = make_rule({"name": "unbounded", "granularity": granularity}).state(2, MODULES)
    assert state.parameters["v"].shape == (groups, 2)
    values = torch.tensor([[-7.0, 0.0], [1.5, 40.0], [3.0, -0.1], [0.2, 0.3], [5.0, 6.0]])
    with torch.no_grad():
        state.parameters["v"].copy_(values[:groups])
    order = {
        name: row for row, name in enumerate(dict.fromkeys(module_groups(granularity, MODULES)))
    }
    rows = [order[name] for name in module_groups(granularity, MODULES)]
    expected = values[0] if groups == 1 else values[rows]
    torch.testing.assert_close(state.alpha(), expected.double())
    assert state.alpha().requires_grad


def test_layers_are_the_numbers_of_blocks():
    modules = ["blocks.3.attn.q", "vit.blocks.3.fc", "blocks.12.fc", "head", "myblocks.3.fc"]
    names = ["blocks.3", "blocks.3", "blocks.12", "outside", "outside"]
    assert module_groups("layer", modules) == names


@pytest.mark.parametrize(
    ("module", "group"),
    [
        ("model.layers.3.self_attn.q_proj", "layers.3"),
        ("layer.3.fc", "layer.3"),
        ("net.block.3", "block.3"),
        ("transformer.h.3.attn.c_attn", "h.3"),
        ("vit.encoder.layer.3.attention.query", "encoder.layer.3"),
        ("model.encoder.layers.3.fc1", "encoder.layers.3"),
        ("model.decoder.layers.3.fc1", "decoder.layers.3"),
        ("decoder.block.3.layer.0.SelfAttention.q", "decoder.block.3"),
        ("visual.transformer.resblocks.3.mlp.c_fc", "resblocks.3"),
        ("layers.0.blocks.1.attn.qkv", "layers.0.blocks.1"),
        ("layers.0.downsample.reduction", "layers.0"),
        ("stages.2.blocks.1.mlp.fc1", "stages.2.blocks.1"),
        ("Blocks.3.fc", "outside"),
        ("blocks.fc", "outside"),
        ("blocks.3b.fc", "outside"),
    ],
)
def test_the_layer_is_found_in_any_dotted_name(module, group):
    assert module_groups("layer", [module, "blocks.0.fc"]) == [group, "blocks.0"]


def _as_lists(rows):
    return [(group, values.tolist()) for group, values in rows]


def test_coefficients_of_whole_adapters_are_one_row():
    rule = make_rule({"name": "uniform"})
    alpha = rule.state(2, MODULES).alpha()
    assert _as_lists(coefficient_rows(rule, alpha, MODULES)) == [("all", [0.5, 0.5])]


@pytest.mark.parametrize(
    ("granularity", "groups"),
    [("layer", ["blocks.0", "blocks.1", "outside"]), ("module", list(MODULES))],
)
def test_a_rule_by_groups_has_a_row_for_each(granularity, groups):
    rule = make_rule({"name": "softmax", "granularity": granularity})
    state = rule.state(2, MODULES)
    with torch.no_grad():
        state.parameters["v"][:, 0] = torch.arange(len(groups)).log()
    rows = coefficient_rows(rule, state.alpha().detach(), MODULES)
    assert [group for group, _ in rows] == groups
    for g, (_, values) in enumerate(rows):
        _close(values, [g / (g + 1), 1 / (g + 1)])


@pytest.mark.parametrize("options", [{}, {"granularity": choice("layer", help="")}])
def test_a_rule_with_a_row_per_module_loses_none(options, monkeypatch):
    monkeypatch.delitem(RULES, "by_module", raising=False)

    @register_rule("by_module", formula="row / 10", paper="none", options=options)
    def _by_module(options, n, modules):
        return Given(torch.arange(len(modules) * n).view(-1, n) / 10)

    rule = make_rule({"name": "by_module"})
    del RULES["by_module"]
    alpha = rule.state(2, MODULES).alpha()
    rows = coefficient_rows(rule, alpha, MODULES)
    assert _as_lists(rows) == list(zip(MODULES, alpha.tolist(), strict=True))


@pytest.mark.parametrize("name", ["adaptive", "softmax", "unbounded"])
def test_layers_are_refused_where_no_module_has_one(name):
    rule = make_rule({"name": name, "granularity": "layer"})
    with pytest.raises(UserError, match=r"none of these has a layer's index: fc, head; use gran"):
        rule.state(2, ("fc", "head"))


@pytest.mark.parametrize(
    ("config", "alpha"),
    [
        ({"name": "adaptive", "b_max": 3}, [0.3, 1.7, 0.9]),
        ({"name": "adaptive", "b_max": 3, "init": "uniform"}, [0.3, 1.7, 0.9]),
        ({"name": "softmax", "granularity": "adapter"}, [0.2, 0.7, 0.1]),
        ({"name": "unbounded", "granularity": "adapter"}, [-0.6, 2.5, 0.0]),
    ],
)
@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_learning_recovers_known_coefficients(method, config, alpha):
    plan = prepare(toy_adapters(3), method)
    target = plan.combine(torch.tensor(alpha))
    learned = learn(
        make_rule({**config, "steps": 300, "lr": 0.1}), plan, lambda u, step: _distance(u, target)
    )
    torch.testing.assert_close(
        learned.alpha, torch.tensor(alpha, dtype=torch.float64), rtol=0, atol=2e-2
    )
    assert [s.step for s in learned.trace] == list(range(300))
    assert learned.trace[-1].loss < 1e-2 * learned.trace[0].loss
    assert not learned.alpha.requires_grad


@pytest.mark.parametrize(
    ("method", "space", "options"),
    [
        ("task_arithmetic", "factors", {}),
        ("ties", "factors", {}),
        ("dare_ties", "factors", {"density": 0.7}),
        ("ties", "delta", {"sign": "weighted", "divisor": "none"}),
        ("ties", "factors", {"sign": "weighted", "divisor": "none"}),
    ],
)
def test_learning_by_merging_again_recovers_known_coefficients(method, space, options):
    plan = prepare(toy_adapters(3), method, space=space, **options)
    assert not plan.linear
    alpha = [0.3, 1.7, 0.9]
    target = plan.combine(torch.tensor(alpha))
    rule = make_rule({"name": "adaptive", "b_max": 3, "steps": 300, "lr": 0.1})
    learned = learn(rule, plan, lambda u, step: _distance(u, target))
    torch.testing.assert_close(
        learned.alpha, torch.tensor(alpha, dtype=torch.float64), rtol=0, atol=2e-2
    )


def test_learning_by_merging_again_recovers_shares_of_a_weight_sum():
    # A divisor of weights makes the scale of alpha count for nothing: only shares can be found.
    plan = prepare(toy_adapters(3), "ties", divisor="weight_sum")
    alpha = torch.tensor([0.2, 0.7, 0.1])
    target = plan.combine(alpha)
    rule = make_rule({"name": "softmax", "granularity": "adapter", "steps": 300, "lr": 0.1})
    learned = learn(rule, plan, lambda u, step: _distance(u, target))
    torch.testing.assert_close(learned.alpha, alpha.double(), rtol=0, atol=2e-2)


@pytest.mark.parametrize("value", [0.25, "1/n", 1.5])
@pytest.mark.parametrize(
    ("method", "space", "options"),
    [
        ("task_arithmetic", "delta", {}),
        ("ties", "factors", {}),
        ("svd", "delta", {"rank": 2}),
        ("dare_ties", "delta", {"sign": "weighted", "elect": "frequency", "rank": 1}),
    ],
)
def test_a_search_finds_the_value_that_made_the_target(method, space, options, value):
    plan = prepare(toy_adapters(3), method, space=space, **options)
    number = 1 / 3 if value == "1/n" else value
    target = plan.combine(torch.full((3,), number))
    rule = make_rule({"name": "grid", "values": [1.0, 0.25, "1/n", 1.5, -0.5]})
    found = search(rule, plan, lambda update: float(_distance(update, target)))
    _close(found.alpha, [number] * 3)
    assert [s.alpha[0].item() for s in found.trace] == pytest.approx([1, 0.25, 1 / 3, 1.5, -0.5])
    assert min(s.loss for s in found.trace) == pytest.approx(0, abs=1e-9)
    assert found.parameters == {}


def test_each_candidate_is_tried_once_and_the_first_of_equals_wins():
    tried = []

    def loss(update):
        tried.append(update.alpha.tolist())
        assert not update.delta("out").requires_grad
        return 1.0

    rule = make_rule({"name": "grid", "values": [0.5, 1, "1/n", 1.0]})
    found = search(rule, prepare(toy_adapters(2), "ties"), loss)
    assert tried == [[0.5, 0.5], [1.0, 1.0]]
    _close(found.alpha, [0.5, 0.5])


def test_losses_that_are_not_finite_never_win():
    rule = make_rule({"name": "grid", "values": [0.1, 0.2, 0.3, 0.4]})
    plan = prepare(toy_adapters(2), "ties")
    losses = iter([math.nan, -math.inf, 2.0, math.inf])
    found = search(rule, plan, lambda update: next(losses))
    _close(found.alpha, [0.3, 0.3])
    assert len(found.trace) == 4
    with pytest.raises(UserError, match="finite loss for one of the 4 candidates"):
        search(rule, plan, lambda update: math.nan)


@pytest.mark.parametrize("name", ["adaptive", "uniform"])
def test_only_rules_with_candidates_can_search(name):
    with pytest.raises(UserError, match=f"candidates to choose from but got {name!r}"):
        search(make_rule({"name": name}), prepare(toy_adapters(2), "ties"), lambda update: 0.0)


def test_learning_by_module_recovers_a_row_for_each():
    plan = prepare(toy_adapters(2), "task_arithmetic")
    rows = torch.rand(5, 2, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    target = plan.combine(rows)
    rule = make_rule({"name": "adaptive", "granularity": "module", "steps": 400, "lr": 0.1})
    learned = learn(rule, plan, lambda u, step: _distance(u, target))
    torch.testing.assert_close(learned.alpha, rows.double(), rtol=0, atol=2e-2)
    assert set(learned.parameters) == {"c", "b_raw"}


def test_learning_twice_gives_the_same_bits():
    plan = prepare(toy_adapters(3), "ties")
    target = plan.combine(torch.tensor([0.2, 0.4, 0.6]))
    rule = make_rule({"name": "adaptive", "steps": 15})
    one, two = (learn(rule, plan, lambda u, step: _distance(u, target)) for _ in range(2))
    assert torch.equal(one.alpha, two.alpha)
    assert [s.loss for s in one.trace] == [s.loss for s in two.trace]


def test_extra_parameters_train_along_at_their_own_rate():
    plan = prepare(toy_adapters(2), "task_arithmetic")
    shift = torch.zeros(7, 10, requires_grad=True)
    learn(
        make_rule({"name": "adaptive", "steps": 1, "lr": 0.1}),
        plan,
        lambda u, step: (u.delta("out") + shift - 1).square().sum(),
        extra_parameters=[shift],
        extra_lr=0.5,
    )
    # The first step of Adam moves every parameter by its learning rate.
    torch.testing.assert_close(shift.abs(), torch.full((7, 10), 0.5), rtol=1e-3, atol=1e-3)


def test_a_loss_that_is_not_finite_says_what_to_try():
    plan = prepare(toy_adapters(2), "task_arithmetic")
    rule = make_rule({"name": "adaptive"})
    with pytest.raises(UserError, match=r"loss is nan at step 0.*lower their learning rate"):
        learn(rule, plan, lambda u, step: u.delta("out").sum() * math.nan)


def test_a_loss_without_the_update_is_refused():
    plan = prepare(toy_adapters(2), "task_arithmetic")
    with pytest.raises(UserError, match="depends on the merged update"):
        learn(make_rule({"name": "softmax"}), plan, lambda u, step: torch.ones(()))


def test_only_learned_rules_and_differentiable_plans_can_learn():
    adapters = toy_adapters(2)
    with pytest.raises(UserError, match="'uniform' has nothing to learn"):
        learn(make_rule({"name": "uniform"}), prepare(adapters, "ties"), lambda u, step: None)
    with pytest.raises(UserError, match=r"'grid' has nothing to learn so; .* or search"):
        learn(make_rule({"name": "grid"}), prepare(adapters, "ties"), lambda u, step: None)
    with pytest.raises(UserError, match="differentiable in its coefficients"):
        learn(make_rule({"name": "softmax"}), prepare(adapters, "svd"), lambda u, step: None)
    with pytest.raises(UserError, match="extra_lr"):
        learn(
            make_rule({"name": "softmax"}),
            prepare(adapters, "ties"),
            lambda u, step: None,
            extra_lr=0.0,
        )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "rule with a name"),
        ({"name": "adaptve"}, "did you mean 'adaptive'"),
        ({"name": "adaptive", "bmax": 3}, "did you mean 'b_max'"),
        ({"name": "adaptive", "b_max": 0.5}, "b_max .* at least 1 but got 0.5"),
        ({"name": "adaptive", "b_max": math.inf}, "b_max"),
        ({"name": "adaptive", "steps": 0}, "steps"),
        ({"name": "adaptive", "steps": 1.5}, "steps"),
        ({"name": "adaptive", "lr": 0.0}, "lr .* above 0"),
        ({"name": "adaptive", "lr": math.nan}, "lr"),
        ({"name": "adaptive", "granularity": "block"}, "granularity .* adapter, layer, module"),
        ({"name": "adaptive", "init": -1}, "init"),
        ({"name": "unbounded", "init": "zero"}, "init .* uniform or a finite number"),
        ({"name": "unbounded", "init": math.inf}, "init"),
        ({"name": "unbounded", "granularity": "block"}, "granularity .* module, adapter, layer"),
        ({"name": "unbounded", "b_max": 2}, "option of coefficient rule 'unbounded'"),
        ({"name": "fixed", "value": math.nan}, "value"),
        ({"name": "fixed", "value": [1.0, math.inf]}, "value"),
        ({"name": "fixed", "value": []}, "value"),
        ({"name": "fixed", "value": "one"}, "value"),
        ({"name": "grid", "values": []}, "values"),
        ({"name": "grid", "values": 0.5}, "values"),
        ({"name": "grid", "values": "1/n"}, "values"),
        ({"name": "grid", "values": [0.5, "n"]}, "values .* or 1/n for the mean"),
        ({"name": "grid", "values": [math.nan]}, "values"),
        ({"name": "uniform", "value": 1}, "option of coefficient rule 'uniform'"),
    ],
)
def test_a_bad_rule_fails_when_it_is_made(config, message):
    with pytest.raises(UserError, match=message):
        make_rule(config)


def test_bad_states():
    with pytest.raises(UserError, match="3 fixed coefficients, one per adapter, but got 2"):
        make_rule({"name": "fixed", "value": [1.0, 2.0]}).state(3, MODULES)
    with pytest.raises(UserError, match="at least one adapter"):
        make_rule({"name": "uniform"}).state(0, MODULES)
    with pytest.raises(UserError, match=r"below \(1 \+ b_max\) / 2 = 1.0"):
        make_rule({"name": "adaptive", "init": 1.0}).state(2, MODULES)
    with pytest.raises(UserError, match=r"Unknown granularity 'lyer'.*'layer'"):
        module_groups("lyer", MODULES)


def test_a_rule_is_made_again_from_its_config():
    rule = make_rule({"name": "adaptive", "b_max": 3})
    assert make_rule(rule.config) == rule
    assert rule.learned
    assert make_rule({"name": "grid"}).learned
    assert make_rule({"name": "grid"}).how == "search"
    assert not make_rule({"name": "fixed"}).learned


def test_the_table_has_a_row_per_rule():
    rows = rules_table()
    assert [r["name"] for r in rows] == list(rule_names())
    assert all(r["formula"] and r["paper"] for r in rows)
    assert {r["name"]: r["learned"] for r in rows} == {
        "adaptive": "by gradient",
        "best": "by search",
        "ema": "no",
        "fixed": "no",
        "grid": "by search",
        "routed": "for each input",
        "softmax": "by gradient",
        "unbounded": "by gradient",
        "uniform": "no",
    }


def _distance(update, target):
    return sum(((update.delta(m) - target.delta(m)) ** 2).mean() for m in update.modules())
