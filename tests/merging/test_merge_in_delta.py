"""Every method in space delta against dense float64 arrays written without our code."""

import itertools

import numpy as np
import pytest
import torch
from merge_reference import dense, reference, relative_error, toy_adapters

from cl_lora.merging import merge, prepare, variant_of
from cl_lora.merging.dare import dare_mask

WEIGHTS = [[1.0, 1.0, 1.0], [0.7, 0.1, 1.9], [1.3, -0.4, 0.25]]
VARIANTS = list(
    itertools.product(
        ["unweighted", "weighted"], ["total", "frequency"], ["count", "weight_sum", "none"]
    )
)


def _agree(adapters, method, weights, masks=None, **options):
    expected = reference(adapters, method, weights, masks, **options)
    update = merge(adapters, method, weights, **options)
    for module in update.modules():
        assert relative_error(update.delta(module), expected[module]) < 1e-10, module


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("method", ["task_arithmetic", "cat", "linear"])
def test_sums_are_exact_and_stay_low_rank(method, weights):
    adapters = toy_adapters(3, (2, 3, 4), dtype=torch.float64)
    expected = reference(adapters, "sum", weights)
    update = merge(adapters, method, weights)
    for module in update.modules():
        assert relative_error(update.delta(module), expected[module]) < 1e-12
        assert update.entries[module].rank == 9


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("density", [0.05, 0.37, 1.0])
@pytest.mark.parametrize("trim", ["tensor", "global"])
def test_magnitude_prune(trim, density, weights):
    adapters = toy_adapters(3, (2, 3, 4), dtype=torch.float64)
    _agree(adapters, "magnitude_prune", weights, density=density, trim=trim)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("density", [0.2, 1.0])
@pytest.mark.parametrize("trim", ["tensor", "global"])
@pytest.mark.parametrize(("sign", "elect", "divisor"), VARIANTS)
def test_ties_in_every_variant(sign, elect, divisor, trim, density, weights):
    adapters = toy_adapters(3, (2, 3, 4), dtype=torch.float64)
    options = {"sign": sign, "elect": elect, "divisor": divisor}
    _agree(adapters, "ties", weights, density=density, trim=trim, **options)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("density", [0.2, 1.0])
@pytest.mark.parametrize(
    ("method", "options"),
    [("dare_linear", {})]
    + [("dare_ties", {"sign": s, "elect": e, "divisor": d}) for s, e, d in VARIANTS],
)
def test_dare_with_its_own_masks(method, options, density, weights):
    adapters = toy_adapters(3, (2, 3, 4), dtype=torch.float64)
    masks = {
        m: np.stack([dare_mask(d[i].shape, density, 11, i, m, "delta").numpy() for i in range(3)])
        for m, d in dense(adapters).items()
    }
    expected = reference(adapters, method, weights, masks, density=density, **options)
    update = merge(adapters, method, weights, density=density, mask_seed=11, **options)
    for module in update.modules():
        assert relative_error(update.delta(module), expected[module]) < 1e-10


def test_ties_worked_by_hand():
    # Three 1x4 deltas, everything kept; columns: all agree, minority, tie of the sum, a zero.
    rows = [[1.0, 2.0, 1.0, 0.0], [2.0, 3.0, -1.0, -4.0], [3.0, -1.0, 0.0, 1.0]]
    adapters = toy_adapters(3)
    adapters = [_one(row) for row in rows]
    update = merge(adapters, "ties", [1.0, 1.0, 1.0], density=1.0)
    assert update.delta("m").tolist() == [[2.0, 2.5, 1.0, -4.0]]


def test_trim_keeps_the_floor_of_density_times_entries():
    adapters = [_one([1.0, -4.0, 2.0, 3.0, 0.5])]
    kept = merge(adapters, "magnitude_prune", [1.0], density=0.5).delta("m")
    assert kept.tolist() == [[0.0, -4.0, 0.0, 3.0, 0.0]]
    for trim in ("tensor", "global"):
        none = merge(adapters, "magnitude_prune", [1.0], density=0.1, trim=trim).delta("m")
        assert none.abs().sum() == 0


def test_global_threshold_in_float32_is_exact():
    adapters = toy_adapters(3)
    plan = prepare(adapters, "magnitude_prune", density=0.3, trim="global")
    for i in range(3):
        update = plan.combine(torch.eye(3)[i])
        got = torch.cat([update.delta(m).flatten() for m in plan.modules])
        full = torch.cat([f.delta().flatten() for f in adapters[i].factors.values()])
        kept = full.abs().topk(int(0.3 * full.numel())).indices
        assert sorted(got.nonzero().flatten().tolist()) == sorted(kept.tolist())
        torch.testing.assert_close(got[kept], full[kept])


def test_dare_masks_depend_on_no_other_adapter_nor_on_the_order_of_combining():
    four = toy_adapters(4)
    alone = prepare(four[:2], "dare_linear", mask_seed=5)
    more = prepare(four, "dare_linear", mask_seed=5)
    first = alone.combine(torch.tensor([1.0, 0.5]))
    again = more.combine(torch.tensor([1.0, 0.5, 0.0, 0.0]))
    for module in reversed(alone.modules):
        torch.testing.assert_close(again.delta(module), first.delta(module))
        torch.testing.assert_close(
            alone.combine_module(module, torch.tensor([1.0, 0.5])), first.delta(module)
        )


def test_dare_keeps_the_expected_share_and_another_seed_gives_other_masks():
    mask = dare_mask(torch.Size((300, 300)), 0.2, 0, 0, "m", "delta")
    assert abs(mask.double().mean() - 0.2) < 0.01
    assert not torch.equal(mask, dare_mask(torch.Size((300, 300)), 0.2, 1, 0, "m", "delta"))
    assert not torch.equal(mask, dare_mask(torch.Size((300, 300)), 0.2, 0, 1, "m", "delta"))


def test_masks_derive_from_the_run_s_seed_too():
    shape = torch.Size((40, 40))
    site = (1, "m", "delta")
    masks = [dare_mask(shape, 0.5, 3, *site, seed=seed) for seed in (None, 0, 1, 2)]
    masks += [dare_mask(shape, 0.5, 4, *site, seed=1)]
    for one, two in itertools.combinations(masks, 2):
        assert not torch.equal(one, two)
    assert torch.equal(masks[2], dare_mask(shape, 0.5, 3, *site, seed=1))


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("space", ["delta", "factors"])
def test_a_plan_of_another_seed_drops_other_entries(method, space):
    adapters, alpha = toy_adapters(2), torch.ones(2)

    def deltas(**seed):
        update = prepare(adapters, method, space=space, **seed).combine(alpha)
        return torch.cat([update.delta(m).flatten() for m in update.modules()]), update.variant

    (plain, variant), (none, _), (first, of_first), (again, _), (second, _) = (
        deltas(**s) for s in ({}, {"seed": None}, {"seed": 0}, {"seed": 0}, {"seed": 1})
    )
    assert torch.equal(plain, none)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, plain)
    assert of_first == {**variant, "seed": 0}
    update = merge(adapters, method, alpha, space=space, seed=1)
    assert torch.equal(torch.cat([update.delta(m).flatten() for m in update.modules()]), second)


def test_the_seed_changes_nothing_where_nothing_is_random():
    adapters = toy_adapters(2)
    first, second = (prepare(adapters, "ties", seed=s).combine(torch.ones(2)) for s in (0, 1))
    assert first.variant == second.variant == variant_of("ties")
    for module in first.modules():
        assert torch.equal(first.delta(module), second.delta(module))


def _one(row):
    from cl_lora.adapters import Adapter, LoRAFactors

    return Adapter("row", {"m": LoRAFactors(torch.tensor([row]), torch.ones(1, 1))})
