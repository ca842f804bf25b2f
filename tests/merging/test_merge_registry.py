"""The registry, everything that is refused, and what importing merging costs."""

import importlib
import math
import subprocess
import sys

import pytest
import torch
from merge_reference import toy_adapters

from cl_lora.adapters import Adapter, LoRAFactors
from cl_lora.merging import (
    METHODS,
    RULES,
    get_method,
    get_rule,
    is_linear,
    linear,
    merge,
    method_names,
    methods_table,
    prepare,
    register,
    validate_method,
)
from cl_lora.merging.coefficients import register_rule, softmax
from cl_lora.merging.kernels import LowRankSum
from cl_lora.merging.registry import ALWAYS
from cl_lora.support.errors import UserError


def test_the_methods_are_these():
    assert set(method_names()) >= {
        "cat",
        "dare_linear",
        "dare_ties",
        "linear",
        "magnitude_prune",
        "svd",
        "task_arithmetic",
        "ties",
    }


def test_the_table_has_a_row_per_method_with_every_cell_filled():
    rows = methods_table()
    assert [r["name"] for r in rows] == list(method_names())
    assert all(all(row.values()) for row in rows)
    ties = next(r for r in rows if r["name"] == "ties")
    assert "density=0.2" in ties["options"]
    assert ties["spaces"] == "delta, factors"


def test_one_decorator_adds_a_method(monkeypatch):
    monkeypatch.delitem(METHODS, "plain_sum", raising=False)

    @register(
        "plain_sum",
        summary="a sum",
        formula="sum",
        paper="none",
        linearity=ALWAYS,
        spaces=("delta",),
    )
    def _plain(sources, space, options):
        return LowRankSum(sources)

    adapters = toy_adapters(2)
    got, expected = merge(adapters, "plain_sum"), merge(adapters, "cat")
    del METHODS["plain_sum"]
    torch.testing.assert_close(got.delta("out"), expected.delta("out"))


def _method(name):
    return register(name, summary="a sum", formula="sum", paper="none", linearity=ALWAYS)


def test_a_method_or_rule_of_a_taken_name_is_refused():
    def mine(sources, space, options):
        return LowRankSum(sources)

    taken = get_method("ties")
    with pytest.raises(UserError, match=r"merge method of .*mine but 'ties' is registered already"):
        _method("ties")(mine)
    assert get_method("ties") is taken
    start = get_rule("softmax")
    with pytest.raises(UserError, match=r"rule of .*mine but 'softmax' .*softmax\._softmax;"):
        register_rule("softmax", formula="none", paper="none")(mine)
    assert get_rule("softmax") is start


@pytest.mark.parametrize("module", [linear, softmax])
def test_a_module_loaded_anew_registers_again(module):
    methods, rules = dict(METHODS), dict(RULES)
    try:
        importlib.reload(module)
        assert (METHODS.keys(), RULES.keys()) == (methods.keys(), rules.keys())
        assert methods != METHODS or rules != RULES
    finally:
        METHODS.update(methods)
        RULES.update(rules)


@pytest.mark.parametrize(
    ("method", "space", "options", "message"),
    [
        ("tie", "delta", {}, "Unknown merge method 'tie': did you mean 'ties'"),
        ("ties", "delt", {}, "Unknown merge space 'delt': did you mean 'delta'"),
        ("svd", "factors", {}, "'svd' has no space 'factors'; use delta"),
        ("ties", "delta", {"denisty": 0.5}, "did you mean 'density'"),
        ("task_arithmetic", "delta", {"density": 0.5}, "Unknown option of merge method"),
        ("ties", "delta", {"density": 0.0}, r"density .* in \(0, 1\] but got 0.0"),
        ("ties", "delta", {"density": 1.5}, "density"),
        ("ties", "delta", {"density": math.nan}, "density"),
        ("ties", "delta", {"density": "half"}, "density"),
        ("ties", "delta", {"density": True}, "density"),
        ("ties", "delta", {"trim": "row"}, "trim .* tensor, global but got 'row'"),
        ("ties", "delta", {"sign": "none"}, "sign"),
        ("ties", "delta", {"elect": "mean"}, "elect"),
        ("ties", "delta", {"divisor": "n"}, "divisor"),
        ("dare_ties", "delta", {"mask_seed": -1}, "mask_seed"),
        ("dare_ties", "delta", {"mask_seed": 0.5}, "mask_seed"),
        ("cat", "delta", {"rank": 0}, "rank .* at least 1 but got 0"),
        ("cat", "delta", {"rank": 2.0}, "rank"),
    ],
)
def test_bad_options_fail_before_there_are_adapters(method, space, options, message):
    with pytest.raises(UserError, match=message):
        validate_method(method, space, options)
    with pytest.raises(UserError, match=message):
        is_linear(method, space, options)
    with pytest.raises(UserError, match=message):
        prepare(toy_adapters(2), method, space=space, **options)


def test_validation_fills_in_the_defaults():
    complete = validate_method("dare_ties", options={"density": 0.5})
    assert complete["density"] == 0.5
    assert (complete["mask_seed"], complete["sign"], complete["rank"]) == (0, "unweighted", None)
    assert set(complete) == set(get_method("dare_ties").options)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "2 weights, one per adapter"),
        ([1.0, 2.0, 3.0], "2 weights"),
        ([1.0, math.nan], "finite coefficients"),
        ([1.0, math.inf], "finite coefficients"),
    ],
)
def test_bad_weights(weights, message):
    with pytest.raises(UserError, match=message):
        merge(toy_adapters(2), weights=weights)


def test_bad_coefficients_of_a_plan():
    plan = prepare(toy_adapters(2), "ties")
    with pytest.raises(UserError, match=r"shape \(2,\).*or \(5, 2\).*but got \(3,\)"):
        plan.combine(torch.ones(3))
    with pytest.raises(UserError, match=r"but got \(4, 2\)"):
        plan.combine(torch.ones(4, 2))
    with pytest.raises(UserError, match="finite"):
        plan.combine(torch.tensor([1.0, math.nan]))
    with pytest.raises(UserError, match="Unknown module of the plan 'ouf': did you mean 'out'"):
        plan.combine_module("ouf", torch.ones(2))
    with pytest.raises(UserError, match="2 coefficients"):
        plan.combine_module("out", torch.ones(3))
    with pytest.raises(UserError, match="finite"):
        plan.combine_module("out", torch.full((2,), math.inf))


def test_no_adapters_and_no_modules():
    with pytest.raises(UserError, match="at least one adapter"):
        merge([])
    with pytest.raises(UserError, match="'empty' to have modules"):
        merge([Adapter("empty", {})])


def _with(adapter, module, factors):
    return Adapter("odd", {**adapter.factors, module: factors})


def test_adapters_that_do_not_fit_each_other():
    first, second = toy_adapters(2)
    lacking = Adapter("odd", {m: f for m, f in second.factors.items() if m != "out"})
    for pair in ([first, lacking], [lacking, first]):
        with pytest.raises(UserError, match="'e0' has 'out' and 'odd' lacks it"):
            merge(pair)
    other = _with(second, "out", LoRAFactors(torch.ones(3, 11), torch.ones(7, 3)))
    with pytest.raises(UserError, match=r"'out' has \(7, 10\) in 'e0' and \(7, 11\) in 'odd'"):
        merge([first, other])
    broken = _with(second, "out", LoRAFactors(torch.full((3, 10), math.nan), torch.ones(7, 3)))
    with pytest.raises(UserError, match="'out' of adapter 'odd' holds NaN"):
        merge([first, broken])


def test_mixed_ranks_are_fine_but_where_factors_are_summed():
    adapters = toy_adapters(2, (2, 4))
    for method in method_names():
        if get_method(method).data_free:
            merge(adapters, method)
    merge(adapters, "cat", space="factors")
    for method in ("linear", "task_arithmetic", "ties", "dare_linear", "magnitude_prune"):
        with pytest.raises(UserError, match=r"'blocks.0.q' has ranks \[2, 4\]"):
            prepare(adapters, method, space="factors")


def test_modules_may_come_in_another_order():
    first, second = toy_adapters(2)
    turned = Adapter("e1", dict(reversed(second.factors.items())))
    got, expected = merge([first, turned], "ties"), merge([first, second], "ties")
    assert got.modules() == expected.modules()
    for module in got.modules():
        assert torch.equal(got.delta(module), expected.delta(module))


def test_importing_merging_loads_no_framework():
    code = (
        "import sys, cl_lora.merging; heavy = 'avalanche', 'timm', 'peft', 'hydra', 'torchvision'; "
        "print([m for m in heavy if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
