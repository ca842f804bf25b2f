"""Size and likeness of updates from their factors, against dense algebra in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cl_lora.adapters import LoRAFactors
from cl_lora.merging import geometry
from cl_lora.support.errors import UserError

SHAPES = {"blocks.0.attn.qkv.k": (7, 5), "blocks.0.attn.qkv.v": (6, 9), "blocks.1.mlp.fc1": (8, 4)}


def adapter(seed: int, rank: int = 3, shapes=SHAPES) -> dict[str, LoRAFactors]:
    draw = torch.Generator().manual_seed(seed)
    return {
        m: LoRAFactors(
            torch.randn(rank, d_in, generator=draw),
            torch.randn(d_out, rank, generator=draw),
            0.5 + 0.1 * i,
        )
        for i, (m, (d_out, d_in)) in enumerate(shapes.items())
    }


def dense(factors) -> dict[str, torch.Tensor]:
    return {m: f.scaling * f.B.double() @ f.A.double() for m, f in factors.items()}


def long(factors) -> torch.Tensor:
    return torch.cat([d.ravel() for d in dense(factors).values()])


def scaled(factors, by: float) -> dict[str, LoRAFactors]:
    return {m: LoRAFactors(f.A, f.B, by * f.scaling) for m, f in factors.items()}


def test_norm_and_cosine_are_those_of_the_dense_updates() -> None:
    a, b = adapter(0), adapter(1, rank=2)
    assert geometry.norm(a) == pytest.approx(float(long(a).norm()), rel=1e-9)
    expected = torch.nn.functional.cosine_similarity(long(a), long(b), dim=0)
    assert geometry.cosine(a, b) == pytest.approx(float(expected), rel=1e-9)


def test_a_module_of_one_adapter_alone_counts_for_its_norm_only() -> None:
    a = adapter(0)
    part = {m: f for m, f in a.items() if "attn" in m}
    expected = geometry.norm(part) / geometry.norm(a)
    assert geometry.cosine(a, part) == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_overlap_is_that_of_dense_singular_vectors(k: int) -> None:
    a, b = adapter(0), adapter(1, rank=2)
    found = []
    for x, y in zip(dense(a).values(), dense(b).values(), strict=True):
        (u, _, vh), (w, _, zh) = torch.linalg.svd(x), torch.linalg.svd(y)
        n = min(k, 2)  # no more than the smaller rank
        cosines = torch.linalg.svdvals(u[:, :n].T @ w[:, :n])
        others = torch.linalg.svdvals(vh[:n] @ zh[:n].T)
        found.append(float((cosines.square().mean() + others.square().mean()) / 2))
    expected = sum(found) / len(found)
    assert geometry.subspace_overlap(a, b, k) == pytest.approx(expected, rel=1e-6)


def test_stable_rank_and_shares_are_those_of_dense_matrices() -> None:
    a = adapter(3)
    ranks = [float(d.norm() ** 2 / torch.linalg.matrix_norm(d, 2) ** 2) for d in dense(a).values()]
    assert geometry.stable_rank(a) == pytest.approx(sum(ranks) / 3, rel=1e-9)
    squared = [float(d.square().sum()) for d in dense(a).values()]
    expected = dict(zip(("k", "v", "fc1"), (s / sum(squared) for s in squared), strict=True))
    assert geometry.shares(a) == pytest.approx(expected, rel=1e-9)


@given(st.integers(0, 10**6), st.integers(1, 4), st.floats(0.01, 100))
def test_identities(seed: int, rank: int, factor: float) -> None:
    a, b = adapter(seed, rank), adapter(seed + 1, rank)
    assert geometry.cosine(a, a) == pytest.approx(1)
    assert geometry.cosine(a, scaled(b, factor)) == pytest.approx(geometry.cosine(a, b))
    assert geometry.cosine(a, scaled(a, -factor)) == pytest.approx(-1)
    assert geometry.cosine(a, b) == pytest.approx(geometry.cosine(b, a))
    overlap = geometry.subspace_overlap(a, b)
    assert 0 <= overlap <= 1
    assert overlap == pytest.approx(geometry.subspace_overlap(b, a), rel=1e-6)
    assert geometry.subspace_overlap(scaled(a, factor), scaled(a, 2)) == pytest.approx(1)
    assert geometry.norm(scaled(a, factor)) == pytest.approx(factor * geometry.norm(a))
    assert 1 <= geometry.stable_rank(a) <= rank + 1e-9
    assert geometry.stable_rank(scaled(a, factor)) == pytest.approx(geometry.stable_rank(a))
    assert math.fsum(geometry.shares(a).values()) == pytest.approx(1)


@given(st.integers(0, 10**6))
def test_another_basis_of_the_same_rank_changes_nothing(seed: int) -> None:
    """B A = (B M) (M^-1 A): factors are not unique, updates are."""
    a = adapter(seed)
    M = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)) + 4 * torch.eye(3)
    same = {m: LoRAFactors(torch.linalg.inv(M) @ f.A, f.B @ M, f.scaling) for m, f in a.items()}
    assert geometry.cosine(a, same) == pytest.approx(1, abs=1e-4)
    assert geometry.subspace_overlap(a, same) == pytest.approx(1, abs=1e-4)


def test_a_rank_larger_than_the_matrix_and_a_module_that_is_not_changed() -> None:
    a = adapter(0, rank=12)
    assert geometry.subspace_overlap(a, a) == pytest.approx(1)
    one = dict(a)
    one["blocks.1.mlp.fc1"] = LoRAFactors(torch.randn(2, 4), torch.zeros(8, 2))
    assert geometry.subspace_overlap(one, a) == pytest.approx(1)
    assert geometry.shares(one)["fc1"] == 0


def test_what_is_not_defined_is_said() -> None:
    still = {"q": LoRAFactors(torch.randn(2, 4), torch.zeros(3, 2))}
    for measure in (geometry.stable_rank, geometry.shares):
        with pytest.raises(UserError, match="update is zero; train it"):
            measure(still)
    with pytest.raises(UserError, match="update is zero"):
        geometry.cosine(adapter(0), still)
    with pytest.raises(UserError, match="there is none"):
        geometry.subspace_overlap(adapter(0), still)
    with pytest.raises(UserError, match="at least 1 singular direction but got 0"):
        geometry.subspace_overlap(adapter(0), adapter(0), 0)
    with pytest.raises(UserError, match="updates of one weight"):
        geometry.cosine(adapter(0), adapter(0, shapes=dict.fromkeys(SHAPES, (3, 3))))
