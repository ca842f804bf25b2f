"""Singular-value decay of a run's adapters, against dense float64 SVD."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from task_bench import bench_of, unlike_tasks

from cl_lora.adapters import LoRAFactors
from cl_lora.experiment.spectra import profile, singular_values, spectra


@pytest.fixture
def bench(backbone):
    return bench_of(unlike_tasks(), backbone)


def dense(deltas) -> tuple[np.ndarray, np.ndarray]:
    """Decay and energy by numpy's SVD of every dense delta."""
    values = [np.linalg.svd(d.double().numpy(), compute_uv=False) for d in deltas]
    count = max(map(len, values))
    decay = np.zeros(count)
    squares = np.zeros(count)
    for s in values:
        decay[: len(s)] += s / s[0] / len(values)
        squares[: len(s)] += s**2
    return decay, squares.cumsum() / squares.sum()


def rows(found, adapter):
    kept = [s for s in found if s.adapter == adapter]
    assert [s.index for s in kept] == list(range(1, len(kept) + 1))
    return np.array([s.value for s in kept]), np.array([s.energy for s in kept])


def test_factors_give_what_the_dense_updates_do(bench) -> None:
    count = []
    found = spectra(bench, "fresh", lambda: count.append(1))
    assert len(count) == 3
    assert {(s.seed, s.bank) for s in found} == {(0, "fresh")}
    for i, adapter in enumerate(bench.banks["fresh"]):
        decay, energy = dense(f.delta() for f in adapter.factors.values())
        value, share = rows(found, i)
        assert len(value) == 2  # the rank
        np.testing.assert_allclose(value, decay[:2], rtol=1e-5)
        np.testing.assert_allclose(share, energy[:2], rtol=1e-5)
        assert share[-1] == pytest.approx(1)


def test_a_whole_model_has_the_spectra_of_its_matrices(bench) -> None:
    draw = torch.Generator().manual_seed(1)
    deltas = {
        "a": torch.randn(6, 4, generator=draw),
        "b": torch.randn(3, 5, generator=draw),
        "a.bias": torch.randn(6, generator=draw),
        "patch_embed.proj": torch.randn(4, 3, 2, 2, generator=draw),
        "still": torch.zeros(4, 4),
    }
    first = bench.banks["fresh"][0]
    whole = replace(first, factors={}, deltas=deltas)
    bench = replace(bench, banks={**bench.banks, "full": (whole,)})
    value, share = rows(spectra(bench, "full"), 0)
    decay, energy = dense([deltas["a"], deltas["b"]])
    np.testing.assert_allclose(value, decay, rtol=1e-5)
    np.testing.assert_allclose(share, energy, rtol=1e-5)


def test_an_adapter_that_changes_nothing_has_no_rows(bench) -> None:
    first, second, third = bench.banks["fresh"]
    zero = {m: replace(f, B=torch.zeros_like(f.B)) for m, f in second.factors.items()}
    bench = replace(bench, banks={"fresh": (first, replace(second, factors=zero), third)})
    assert {s.adapter for s in spectra(bench, "fresh")} == {0, 2}
    assert [a.size for a in profile([])] == [0, 0]


def test_the_scaling_enters_and_what_is_no_matrix_has_none() -> None:
    a, b = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0], [2.0], [0.0]])
    np.testing.assert_allclose(singular_values(LoRAFactors(a, b, 0.5)), [5.0])
    assert singular_values(torch.ones(3)) is None
    assert singular_values(torch.ones(1, 2, 3)) is None
