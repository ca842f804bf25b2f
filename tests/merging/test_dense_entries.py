"""Merges of fully fine-tuned models: dense deltas of any shape, against plain float64 numpy."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from merge_reference import check_gradient, relative_error
from numpy.typing import NDArray
from recent_reference import RECENT

from cl_lora.adapters import Adapter, LoRAFactors
from cl_lora.merging import merge, method_names, prepare
from cl_lora.merging.dare import dare_mask
from cl_lora.merging.registry import get_method, statistic_of
from cl_lora.support.errors import UserError

SHAPES: Mapping[str, tuple[int, ...]] = {
    "cls_token": (1, 1, 6),
    "patch_embed.proj": (6, 3, 2, 2),
    "patch_embed.proj.bias": (6,),
    "blocks.0.fc": (8, 6),
    "blocks.0.fc.bias": (8,),
    "blocks.0.square": (6, 6),
    "logit_scale": (),
}
MATRICES = ("blocks.0.fc", "blocks.0.square")
LINEAR = MATRICES[:1]
"""The matrices that have a Gram matrix: a table of positions has none."""

N = 3
WEIGHTS = ([1.0, 1.0, 1.0], [0.7, 0.1, 1.9], [1.3, 0.4, 0.25])
SIGNED = (*WEIGHTS, [1.3, -0.4, 0.25])

Dense = dict[str, NDArray[np.float64]]
"""Entry -> one float64 array (n, ...)."""


def raw() -> Dense:
    draw = np.random.default_rng(0)
    return {m: draw.normal(size=(N, *shape)) for m, shape in SHAPES.items()}


def statistics(i: int) -> dict[str, dict[str, torch.Tensor]]:
    """Gram matrices of the linear layer; squares of the gradients of everything."""
    draw = np.random.default_rng(100 + i)
    inputs = draw.normal(size=(20, SHAPES[LINEAR[0]][1])) @ draw.normal(size=(6, 6))
    squares = {m: np.exp(draw.normal(size=shape) - i) for m, shape in SHAPES.items()}
    fisher = {m: torch.as_tensor(f) for m, f in squares.items()}
    grams = {m: torch.from_numpy(inputs.T @ inputs / 20) for m in LINEAR}
    return {"gram": grams, "fisher_model": fisher, "fisher_data": fisher}


def models(dtype: torch.dtype = torch.float64) -> list[Adapter]:
    return [
        Adapter(
            f"m{i}",
            {},
            deltas={m: torch.as_tensor(d[i]).to(dtype) for m, d in raw().items()},
            statistics=statistics(i),
        )
        for i in range(N)
    ]


MODELS = models()


# Every method written again --------------------------------------------------------------------


def weighted(deltas: Dense, weights: list[float]) -> Dense:
    return {m: np.asarray(np.tensordot(weights, d, axes=1)) for m, d in deltas.items()}


def trimmed(deltas: Dense, density: float, over_all: bool) -> Dense:
    made = {m: np.zeros_like(d) for m, d in deltas.items()}
    groups = [list(deltas)] if over_all else [[m] for m in deltas]
    for i, group in itertools.product(range(N), groups):
        places = [(abs(v), m, at) for m in group for at, v in np.ndenumerate(deltas[m][i])]
        places.sort(key=lambda place: -place[0])
        for _, m, at in places[: int(density * len(places))]:
            made[m][(i, *at)] = deltas[m][(i, *at)]
    return made


def elected(deltas: Dense, weights: list[float], sign: str, elect: str, divisor: str) -> Dense:
    made = {}
    for m, d in deltas.items():
        result = np.zeros(d.shape[1:])
        for at in np.ndindex(*d.shape[1:]):
            values = [float(d[(i, *at)]) for i in range(N)]
            votes = [
                w * v if sign == "weighted" else v for w, v in zip(weights, values, strict=True)
            ]
            total = sum(votes) if elect == "total" else sum(np.sign(votes))
            agree = [i for i in range(N) if votes[i] and (votes[i] > 0) == (total >= 0)]
            by = {"count": len(agree), "weight_sum": sum(weights[i] for i in agree), "none": 1}
            if agree:
                result[at] = sum(weights[i] * values[i] for i in agree) / by[divisor]
        made[m] = result
    return made


def dropped(deltas: Dense, density: float) -> Dense:
    def mask(i: int, m: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
        return dare_mask(torch.Size(shape), density, 0, i, m, "delta").double().numpy()

    return {
        m: np.stack([d[i] * mask(i, m, SHAPES[m]) / density for i in range(N)])
        for m, d in deltas.items()
    }


def averaged_by_fisher(deltas: Dense, weights: list[float]) -> Dense:
    made = {}
    squares = [statistics(i)["fisher_model"] for i in range(N)]
    sizes = [np.sqrt(sum(float(f.square().sum()) for f in of.values())) for of in squares]
    for m, d in deltas.items():
        f = np.stack([of[m].numpy() / size for of, size in zip(squares, sizes, strict=True)])
        f = f + 1e-6 * f.mean()
        shares = np.array(weights).reshape(N, *[1] * (d.ndim - 1)) * f
        made[m] = (shares * d).sum(0) / shares.sum(0)
    return made


def solved(deltas: Dense, weights: list[float]) -> Dense:
    made = {m: np.average(d, axis=0, weights=weights) for m, d in deltas.items()}
    for m in LINEAR:
        grams = [statistics(i)["gram"][m].numpy() for i in range(N)]
        grams = [g + 1e-4 * np.diag(g).mean() * np.eye(len(g)) for g in grams]
        left = sum(w * d @ g for w, d, g in zip(weights, deltas[m], grams, strict=True))
        right = sum(w * g for w, g in zip(weights, grams, strict=True))
        made[m] = np.linalg.solve(right.T, left.T).T
    return made


def cut(deltas: Dense, rank: int) -> Dense:
    made = dict(deltas)
    for m in MATRICES:
        u, s, vh = np.linalg.svd(deltas[m], full_matrices=False)
        made[m] = (u[:, :rank] * s[:rank]) @ vh[:rank]
    return made


def balanced(deltas: Dense, weights: list[float]) -> Dense:
    norms = [np.sqrt(sum(np.square(d[i]).sum() for d in deltas.values())) for i in range(N)]
    return weighted(
        deltas, [w * np.mean(norms) / norm for w, norm in zip(weights, norms, strict=True)]
    )


TIES = {"sign": "unweighted", "elect": "total", "divisor": "count"}
BY_HAND: dict[str, Any] = {
    "cat": weighted,
    "linear": weighted,
    "task_arithmetic": weighted,
    "norm_balanced": balanced,
    "magnitude_prune": lambda d, w: weighted(trimmed(d, 0.2, over_all=False), w),
    "ties": lambda d, w: elected(trimmed(d, 0.2, over_all=False), w, **TIES),
    "dare_linear": lambda d, w: weighted(dropped(d, 0.2), w),
    "dare_ties": lambda d, w: elected(dropped(d, 0.2), w, **TIES),
    "svd": lambda d, w: cut(weighted(d, w), 6),
    "fisher": averaged_by_fisher,
    "regmean": solved,
    **RECENT,
}


def require_equal(update: Any, expected: Dense) -> None:
    assert update.modules() == tuple(SHAPES)
    for m, shape in SHAPES.items():
        assert tuple(update.delta(m).shape) == shape
        assert update.delta(m).dtype == torch.float64
        assert relative_error(update.delta(m), expected[m]) < 1e-9, m


def test_every_method_is_written_here_again() -> None:
    assert set(BY_HAND) == set(method_names())


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("method", BY_HAND)
def test_every_method_is_its_formula(method: str, weights: list[float]) -> None:
    require_equal(merge(MODELS, method, weights), BY_HAND[method](raw(), weights))


@pytest.mark.parametrize("weights", SIGNED)
@pytest.mark.parametrize("density", [0.3, 1.0])
@pytest.mark.parametrize(
    ("sign", "elect", "divisor"),
    [
        *itertools.product(["unweighted"], ["total", "frequency"], ["count", "none"]),
        ("weighted", "total", "weight_sum"),
        ("weighted", "frequency", "count"),
    ],
)
def test_ties_in_its_variants(sign, elect, divisor, density, weights) -> None:
    """Signs after weighting meet entries of every number of dimensions."""
    how = {"sign": sign, "elect": elect, "divisor": divisor}
    for trim in ("tensor", "global"):
        update = merge(MODELS, "ties", weights, density=density, trim=trim, **how)
        kept = trimmed(raw(), density, over_all=trim == "global")
        require_equal(update, elected(kept, weights, **how))


def test_a_global_trim_counts_the_entries_of_all_parameters() -> None:
    update = merge(MODELS[:1], "magnitude_prune", [1.0], density=0.1, trim="global")
    kept = sum(int(update.delta(m).count_nonzero()) for m in SHAPES)
    total = sum(int(np.prod(shape)) for shape in SHAPES.values())
    assert kept == int(0.1 * total)
    assert any(not update.delta(m).any() for m in SHAPES)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("method", [m for m in BY_HAND if get_method(m).linearity.text])
def test_what_is_held_in_memory_gives_the_same(method: str, weights: list[float]) -> None:
    alpha = torch.tensor(weights, dtype=torch.float64)
    plan = prepare(MODELS, method)
    one, other = plan.combine(alpha), plan.materialise().combine(alpha)
    for m in SHAPES:
        torch.testing.assert_close(other.delta(m), one.delta(m))


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "fisher", "regmean"])
def test_coefficients_of_every_entry_have_their_gradient(method: str) -> None:
    """By differences, with a row of coefficients for each entry."""
    plan = prepare(MODELS, method).materialise()
    draw = torch.Generator().manual_seed(1)
    alpha = torch.rand(len(SHAPES), N, generator=draw, dtype=torch.float64) + 0.5
    check_gradient(lambda a: [plan.combine(a).delta(m) for m in plan.modules], alpha)


# Where all singular values are equal no rank-2 approximation is better than another.
@pytest.mark.parametrize("method", sorted(set(BY_HAND) - {"svd", "iso_c", "iso_cts"}))
def test_a_rank_cuts_matrices_and_keeps_everything_else(method: str) -> None:
    weights = WEIGHTS[1]
    update = merge(MODELS, method, weights, rank=2)
    require_equal(update, cut(BY_HAND[method](raw(), weights), 2))
    for m in SHAPES:
        low_rank = isinstance(update.entries[m], LoRAFactors)
        assert low_rank == (m in MATRICES)
    exact = merge(MODELS, method, weights)
    assert all(torch.equal(update.delta(m), exact.delta(m)) for m in SHAPES if m not in MATRICES)


def test_the_largest_rank_is_that_of_the_matrices() -> None:
    assert prepare(MODELS, "svd").rank == 6


def test_half_precision_is_raised_and_wider_numbers_are_kept() -> None:
    for dtype, expected in ((torch.float16, torch.float32), (torch.float64, torch.float64)):
        update = merge(models(dtype), "task_arithmetic")
        assert {update.delta(m).dtype for m in SHAPES} == {expected}


# Beside low-rank adapters ------------------------------------------------------------------------


def as_lora(adapter: Adapter) -> Adapter:
    """Return the matrices of a model as factors of full rank, half of the scale in s."""
    factors = {}
    for m in MATRICES:
        u, s, vh = torch.linalg.svd(adapter.deltas[m], full_matrices=False)
        factors[m] = LoRAFactors(vh, u * s / 0.5, 0.5)
    return replace(adapter, factors=factors, deltas={})


def only_matrices(adapter: Adapter) -> Adapter:
    known = {
        name: {m: t for m, t in of.items() if m in MATRICES}
        for name, of in adapter.statistics.items()
    }
    return replace(adapter, deltas={m: adapter.deltas[m] for m in MATRICES}, statistics=known)


@pytest.mark.parametrize("method", BY_HAND)
def test_dense_deltas_and_factors_of_full_rank_are_the_same_merge(method: str) -> None:
    """All dense, all low-rank, and some of each."""
    dense = [only_matrices(a) for a in MODELS]
    weights = WEIGHTS[1]
    expected = merge(dense, method, weights)
    for low_rank in ((0, 1, 2), (1,), (0, 2)):
        mixed = [as_lora(a) if i in low_rank else a for i, a in enumerate(dense)]
        update = merge(mixed, method, weights)
        for m in MATRICES:
            assert relative_error(update.delta(m), expected.delta(m)) < 1e-9


def test_adapters_that_stay_apart_are_low_rank_throughout() -> None:
    dense = [only_matrices(a) for a in MODELS]
    low_rank = [as_lora(a) for a in dense]
    assert prepare(low_rank, "task_arithmetic").plain_sum
    assert not prepare(dense, "task_arithmetic").plain_sum
    assert not prepare([*dense[:2], low_rank[2]], "task_arithmetic").plain_sum


APART = [m for m in BY_HAND if "factors" in get_method(m).spaces and get_method(m).scaling is None]
"""Methods that do something else on factors; where one does the same, dense deltas are fine."""


@pytest.mark.parametrize("method", APART)
def test_factors_apart_are_refused_in_one_sentence(method: str) -> None:
    for adapters in (MODELS, [only_matrices(MODELS[0]), as_lora(only_matrices(MODELS[1]))]):
        with pytest.raises(UserError, match=r"'factors' but module .* use space 'delta'"):
            prepare(adapters, method, space="factors")


def test_what_does_not_fit_is_named() -> None:
    first, second, *_ = MODELS
    lacks = replace(second, deltas={m: d for m, d in second.deltas.items() if m != "cls_token"})
    with pytest.raises(UserError, match=r"'m0' has 'cls_token' and 'm1' lacks it"):
        merge([first, lacks])
    other = replace(second, deltas={**second.deltas, "blocks.0.fc.bias": torch.ones(7)})
    with pytest.raises(UserError, match=r"'blocks.0.fc.bias' has \(8,\) in 'm0' and \(7,\)"):
        merge([first, other])
    spoilt = {**second.deltas, "logit_scale": torch.tensor(float("nan"))}
    with pytest.raises(UserError, match=r"'logit_scale' of adapter 'm1' holds NaN"):
        merge([first, replace(second, deltas=spoilt)])
    with pytest.raises(UserError, match="same modules"):
        merge([first, as_lora(second)])


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_a_statistic_is_needed_of_every_model(method: str) -> None:
    name = statistic_of(method)
    bare = replace(MODELS[1], statistics={})
    with pytest.raises(UserError, match=rf"'m1' to have the statistic '{name}'"):
        merge([MODELS[0], bare], method)


# What comes out ----------------------------------------------------------------------------------


def test_a_merge_becomes_a_whole_model_that_is_read_again(tmp_path) -> None:
    update = merge(MODELS, "task_arithmetic", WEIGHTS[1])
    update.save(tmp_path / "merged")
    again = Adapter.load(tmp_path / "merged")
    assert not again.factors
    assert set(again.deltas) == set(SHAPES)  # a file has an order of its own
    assert all(torch.equal(again.deltas[m], update.delta(m)) for m in SHAPES)
    assert again.training["merge"]["method"] == "task_arithmetic"


def test_a_model_is_read_one_entry_at_a_time() -> None:
    """While a merge is prepared and combined no model is held."""

    class Watched(dict):  # type: ignore[type-arg]
        reads: ClassVar[list[str]] = []

        def __getitem__(self, name: str) -> torch.Tensor:
            self.reads.append(name)
            return super().__getitem__(name)

        def items(self):  # type: ignore[no-untyped-def]
            return ((name, self[name]) for name in self)

    watched = [replace(a, deltas=Watched(a.deltas)) for a in MODELS]
    plan = prepare(watched, "task_arithmetic")
    Watched.reads.clear()
    plan.combine_module("cls_token", torch.ones(N, dtype=torch.float64))
    assert set(Watched.reads) == {"cls_token"}
