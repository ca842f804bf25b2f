"""The merges of the last two years on adapters of unlike rank, against their papers' equations."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_reference import SHAPES, dense, relative_error, toy_adapters
from recent_reference import (
    RECENT,
    core_space,
    iso_c,
    iso_cts,
    knots,
    lines,
    opcm,
    ties,
    tsv_m,
    wudi,
)

from cl_lora.adapters import Adapter, LoRAFactors
from cl_lora.merging import get_method, merge, prepare, validate_method, variant_of
from cl_lora.merging.dare import dare_mask
from cl_lora.support.errors import UserError

RANKS = (2, 3, 4)
ADAPTERS = toy_adapters(3, RANKS, dtype=torch.float64)
WEIGHTS = ([1.0, 1.0, 1.0], [0.7, 0.1, 1.9], [1.3, -0.4, 0.25])
SPECTRAL = ("core_space", "iso_c", "iso_cts", "knots", "opcm", "tsv_m", "wudi")


def factors_of(module: str, adapters: list[Adapter] = ADAPTERS) -> list[Any]:
    return [(f.B.numpy(), f.A.numpy()) for f in (a.factors[module] for a in adapters)]


def agree(
    method: str, expected: Any, weights: Any, adapters: Any = ADAPTERS, **options: Any
) -> None:
    alpha = torch.tensor(weights, dtype=torch.float64)
    plan = prepare(adapters, method, **options)
    for made in (plan, plan.materialise()):
        update = made.combine(alpha)
        for m in SHAPES:
            assert relative_error(update.delta(m), expected[m]) < 1e-9, m


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("method", sorted(set(RECENT) - {"core_space"}))
def test_each_is_its_equations(method: str, weights: list[float]) -> None:
    agree(method, RECENT[method](dense(ADAPTERS), weights), weights)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(
    ("method", "options", "merge_one"),
    [
        ("tsv_m", {"share_of": "adapters"}, lambda d, w: tsv_m(d, w, most=1)),
        ("iso_cts", {"common": 0.5}, lambda d, w: iso_cts(d, w, 0.5)),
        ("iso_cts", {"common": 0.1}, lambda d, w: iso_cts(d, w, 0.1)),
        ("iso_cts", {"common": 1.0}, iso_c),
        ("wudi", {"pull": 0.3}, lambda d, w: wudi(d, w, 0.3)),
    ],
)
def test_options_are_those_of_the_equations(
    method: str, options: dict[str, Any], merge_one: Any, weights: list[float]
) -> None:
    agree(
        method, {m: merge_one(d, weights) for m, d in dense(ADAPTERS).items()}, weights, **options
    )


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_opcm_takes_away_the_block_that_it_says(share: float, weights: list[float]) -> None:
    agree("opcm", opcm(dense(ADAPTERS), weights, share), weights, share=share)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(
    ("inner", "merge_one"),
    [
        ("tsv_m", tsv_m),
        ("iso_c", iso_c),
        ("wudi", wudi),
        ({"name": "ties", "density": 0.5}, lambda d, w: ties(d, w, 0.5)),
    ],
)
def test_the_core_space_of_unlike_ranks(inner: Any, merge_one: Any, weights: list[float]) -> None:
    expected = {
        m: core_space(d, weights, merge_one, factors_of(m)) for m, d in dense(ADAPTERS).items()
    }
    agree("core_space", expected, weights, inner=inner)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_inner_method_s_own_options_hold_in_the_shared_basis(weights: list[float]) -> None:
    inner = {"name": "ties", "density": 0.5}
    expected = knots(dense(ADAPTERS), weights, lambda d, w: ties(d, w, 0.5))
    agree("knots", expected, weights, inner=inner)


def test_a_global_trim_counts_the_entries_of_all_representations() -> None:
    inner = {"name": "ties", "density": 0.3, "trim": "global"}
    update = merge(ADAPTERS[:1], "core_space", [1.0], inner=inner)
    kept = 0
    for m in SHAPES:
        left = np.linalg.svd(ADAPTERS[0].factors[m].B.numpy(), full_matrices=False)[0]
        right = np.linalg.svd(ADAPTERS[0].factors[m].A.numpy(), full_matrices=False)[2]
        kept += int((np.abs(left.T @ update.delta(m).numpy() @ right.T) > 1e-12).sum())
    assert kept == int(0.3 * len(SHAPES) * 4)  # cores of 2 by 2


@pytest.mark.parametrize("method", ["knots", "core_space", "lines"])
def test_sums_inside_are_sums_outside(method: str) -> None:
    """Frames lose nothing: what is linear there is the same as without them."""
    expected = {
        m: sum(w * d[i] for i, w in enumerate(WEIGHTS[1])) for m, d in dense(ADAPTERS).items()
    }
    flat = {"first": 1.0} if method == "lines" else {}
    agree(method, expected, WEIGHTS[1], inner="task_arithmetic", **flat)


@pytest.mark.parametrize("inner", ["tsv_m", "iso_c", "opcm"])
def test_what_depends_on_singular_values_alone_is_the_same_in_its_core(inner: str) -> None:
    shares = {"share_of": "adapters"} if inner == "tsv_m" else {}
    inside = merge(ADAPTERS, "core_space", WEIGHTS[1], inner={"name": inner, **shares})
    outside = merge(ADAPTERS, inner, WEIGHTS[1], **shares)
    for m in SHAPES:
        assert relative_error(inside.delta(m), outside.delta(m)) < 1e-9


def test_layers_are_scaled_by_their_depth() -> None:
    expected = lines(dense(ADAPTERS), WEIGHTS[1], 0.5, 2.0)
    agree("lines", expected, WEIGHTS[1], first=0.5, last=2.0)
    names = {"h.0.q": 1.0, "h.1.q": 1.5, "h.2.q": 2.0, "embed": 1.0}
    one = Adapter("one", {m: LoRAFactors(torch.ones(1, 2), torch.ones(2, 1)) for m in names})
    update = merge([one], "lines", [1.0], first=1.0, last=2.0)
    assert {m: float(update.delta(m)[0, 0]) for m in names} == names


def test_the_spectrum_is_flat_and_the_rank_that_of_the_sum() -> None:
    for method in ("iso_c", "iso_cts"):
        update = merge(ADAPTERS, method, [1.0] * 3)
        for m in SHAPES:
            values = torch.linalg.svdvals(update.delta(m))
            rank = min(9, *SHAPES[m])
            torch.testing.assert_close(values[:rank], values[:1].expand(rank))
            assert values[rank:].abs().sum() < 1e-9


def test_vectors_of_different_tasks_are_orthogonal() -> None:
    """Each task alone, by its coefficient: neither rows nor columns meet those of another."""
    plan = prepare(toy_adapters(3, 2, dtype=torch.float64), "tsv_m")
    alone = [plan.combine(alpha) for alpha in torch.eye(3, dtype=torch.float64)]
    for one, two in itertools.combinations(alone, 2):
        for m in SHAPES:
            assert (one.delta(m).T @ two.delta(m)).abs().max() < 1e-9
            assert (one.delta(m) @ two.delta(m).T).abs().max() < 1e-9


def test_without_a_pull_nothing_interferes_where_rows_are_apart() -> None:
    """Nine rows in ten or more columns: every task keeps its own outputs on its own rows."""
    update = merge(ADAPTERS, "wudi", [1.0] * 3, pull=1e-9)
    for m, d in dense(ADAPTERS).items():
        for i in range(3):
            assert relative_error(update.delta(m) @ torch.tensor(d[i].T), d[i] @ d[i].T) < 1e-3


def test_a_strong_pull_is_the_sum() -> None:
    update, exact = (merge(ADAPTERS, *m) for m in (("wudi", [1.0] * 3), ("cat", [1.0] * 3)))
    near = merge(ADAPTERS, "wudi", [1.0] * 3, pull=1e5)
    for m in SHAPES:
        assert relative_error(near.delta(m), exact.delta(m)) < 1e-4
        assert relative_error(update.delta(m), exact.delta(m)) > 1e-2


def test_opcm_has_the_mean_norm_and_depends_on_the_order() -> None:
    update = merge(ADAPTERS, "opcm", [1.0] * 3)
    other = merge(ADAPTERS[::-1], "opcm", [1.0] * 3)
    each = np.sqrt(sum(np.square(d).sum((1, 2)) for d in dense(ADAPTERS).values()))
    for made in (update, other):
        norm = np.sqrt(sum(float(made.delta(m).square().sum()) for m in SHAPES))
        assert norm == pytest.approx(each.mean())
    assert any(relative_error(other.delta(m), update.delta(m)) > 0.01 for m in SHAPES)
    assert get_method("opcm").ordered


def test_the_first_of_equal_magnitudes_wins() -> None:
    rows = ([1.0, -2.0, 0.0], [-1.0, 1.0, 0.0])
    pair = [
        Adapter("one", {"m": LoRAFactors(torch.tensor([row]), torch.ones(1, 1))}) for row in rows
    ]
    assert merge(pair, "magmax", [1.0, 1.0]).delta("m").tolist() == [[1.0, -2.0, 0.0]]
    assert merge(pair[::-1], "magmax", [1.0, 1.0]).delta("m").tolist() == [[-1.0, -2.0, 0.0]]


@pytest.mark.parametrize("method", sorted(set(RECENT) - {"magmax"}))
def test_low_rank_updates_stay_low_rank(method: str) -> None:
    update = merge(ADAPTERS, method, [1.0] * 3)
    for m, shape in SHAPES.items():
        entry = update.entries[m]
        assert isinstance(entry, LoRAFactors)
        assert entry.rank <= 9
        assert method in ("lines", "running_average") or entry.rank <= min(shape)


CASES = st.tuples(
    st.sampled_from(sorted(RECENT)),
    st.integers(0, 10**6),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.floats(0.05, 20),
)


@settings(deadline=None, max_examples=40)
@given(CASES)
def test_scaling_every_coefficient_or_every_adapter_scales_the_merge(case: Any) -> None:
    method, seed, ranks, factor = case
    adapters = toy_adapters(len(ranks), tuple(ranks), dtype=torch.float64, seed=seed)
    larger = [
        replace(a, factors={m: replace(f, B=f.B * factor) for m, f in a.factors.items()})
        for a in adapters
    ]
    once = merge(adapters, method, [1.0] * len(ranks))
    by_alpha = merge(adapters, method, [factor] * len(ranks))
    by_size = merge(larger, method, [1.0] * len(ranks))
    for m in SHAPES:
        assert relative_error(by_alpha.delta(m), factor * once.delta(m)) < 1e-8
        assert relative_error(by_size.delta(m), factor * once.delta(m)) < 1e-6


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(SPECTRAL), st.integers(0, 10**6), st.integers(1, 4))
def test_rotating_outputs_and_inputs_rotates_the_merge(method: str, seed: int, rank: int) -> None:
    """Singular values know no axes; TIES does, so a sum is taken inside KnOTS."""
    inner = {"inner": "task_arithmetic"} if method == "knots" else {}
    draw = torch.Generator().manual_seed(seed)
    shape = {"m": (9, 7)}
    adapters = toy_adapters(3, rank, dtype=torch.float64, seed=seed, shapes=shape)
    left, right = (
        torch.linalg.qr(torch.randn(n, n, generator=draw, dtype=torch.float64))[0] for n in (9, 7)
    )
    turned = [
        replace(a, factors={"m": replace(f, A=f.A @ right, B=left @ f.B)})
        for a in adapters
        for f in a.factors.values()
    ]
    first, other = (merge(a, method, WEIGHTS[1], **inner) for a in (adapters, turned))
    assert relative_error(other.delta("m"), left @ first.delta("m") @ right) < 1e-6


@pytest.mark.parametrize(
    ("method", "options", "times"),
    [
        ("core_space", {}, 1),
        ("knots", {"inner": {"name": "ties", "density": 1.0}}, 1),
        ("magmax", {}, 1),
        ("opcm", {}, 1),
        ("running_average", {}, 1),
        ("tsv_m", {}, 1),
        ("wudi", {"pull": 1e-9}, 1),
        ("core_space", {"inner": "task_arithmetic"}, 2),
        ("lines", {"first": 1.0}, 2),
        ("iso_c", {}, 2),
        ("iso_cts", {}, 2),
    ],
)
def test_two_copies_are_one_adapter_or_their_sum(
    method: str, options: dict[str, Any], times: int
) -> None:
    """A stack of vectors of lower rank is made orthogonal, and no direction is made up."""
    one = ADAPTERS[0]
    alone, twice = (merge(a, method, [1.0] * len(a), **options) for a in ([one], [one, one]))
    for m in SHAPES:
        assert relative_error(twice.delta(m), times * alone.delta(m)) < 1e-6, m


@pytest.mark.parametrize("method", sorted(RECENT))
def test_adapters_that_change_nothing_are_merged_to_nothing(method: str) -> None:
    nothing = [
        replace(a, factors={m: replace(f, B=torch.zeros_like(f.B)) for m, f in a.factors.items()})
        for a in ADAPTERS
    ]
    update = merge(nothing, method, [1.0] * 3)
    assert all(not update.delta(m).any() for m in SHAPES)
    some = merge([ADAPTERS[0], *nothing[1:]], method, [1.0] * 3)
    assert all(bool(some.delta(m).isfinite().all()) for m in SHAPES)


def test_float32_adapters_are_merged_to_their_precision() -> None:
    for method in RECENT:
        narrow = merge(toy_adapters(3, RANKS), method, WEIGHTS[1])
        wide = merge(
            [
                replace(
                    a,
                    factors={
                        m: LoRAFactors(f.A.double(), f.B.double(), f.scaling)
                        for m, f in a.factors.items()
                    },
                )
                for a in toy_adapters(3, RANKS)
            ],
            method,
            WEIGHTS[1],
        )
        for m in SHAPES:
            assert narrow.delta(m).dtype == torch.float32
            assert relative_error(narrow.delta(m), wide.delta(m)) < 1e-5, method


# The inner method -------------------------------------------------------------------------------


def test_what_is_recorded_holds_every_option_of_the_inner_method() -> None:
    inner = variant_of("core_space", options={"inner": "dare_linear"})["inner"]
    assert inner == {"name": "dare_linear", "density": 0.2, "mask_seed": 0}
    assert variant_of("core_space", options={"inner": inner})["inner"] == inner
    assert variant_of("knots")["inner"]["name"] == "ties"


def test_random_masks_inside_depend_on_the_run_s_seed() -> None:
    inner = {"name": "dare_linear", "density": 0.5}

    def made(seed: int | None) -> Any:
        return merge(ADAPTERS[:1], "core_space", [1.0], inner=inner, seed=seed)

    first, again, other = made(0), made(0), made(1)
    assert torch.equal(first.delta("out"), again.delta("out"))
    assert not torch.equal(first.delta("out"), other.delta("out"))
    assert first.variant["seed"] == 0
    assert "seed" not in merge(ADAPTERS, "core_space", WEIGHTS[0], inner="ties", seed=0).variant
    (B, A), s = factors_of("out")[0], ADAPTERS[0].factors["out"].scaling
    left = np.linalg.svd(B, full_matrices=False)[0]
    right = np.linalg.svd(A, full_matrices=False)[2]
    mask = dare_mask(torch.Size((2, 2)), 0.5, 0, 0, "out", "delta", seed=0).double().numpy()
    core = s * left.T @ B @ A @ right.T
    assert relative_error(first.delta("out"), left @ (core * mask / 0.5) @ right) < 1e-9


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        ("tis", "Unknown merge method 'tis': did you mean 'ties'"),
        ("fisher", "needs no data"),
        ("svd", "truncates nothing"),
        ("knots", "no inner one itself"),
        (3, "inner .* a merge method, or a mapping"),
        ({"density": 0.5}, "inner .* a mapping of its name"),
        ({"name": "ties", "density": 2}, r"density of inner method 'ties' to be .*\(0, 1\]"),
        ({"name": "ties", "densty": 2}, "did you mean 'density'"),
        ({"name": "ties", "rank": 2}, "give it to the outer method"),
    ],
)
@pytest.mark.parametrize("method", ["knots", "core_space", "lines"])
def test_what_cannot_be_inside_is_refused_before_there_are_adapters(
    method: str, inner: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        validate_method(method, options={"inner": inner})


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("tsv_m", {"share_of": "tasks"}),
        ("iso_cts", {"common": 0.0}),
        ("wudi", {"pull": 0.0}),
        ("lines", {"first": "1/2"}),
        ("lines", {"last": "deep"}),
        ("opcm", {"share": 1.5}),
    ],
)
def test_values_that_no_equation_takes(method: str, options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(UserError, match=f"Expected {name} of merge method {method!r} to be"):
        validate_method(method, options=options)
    with pytest.raises(UserError, match="has no space 'factors'; use delta"):
        validate_method(method, "factors")
