"""How alike adapters are in a run, against dense float64: weights and features written out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from task_bench import bench_of, dense_backbone, unlike_tasks, with_noise_as_test

from cl_lora.adapters import LoRAFactors
from cl_lora.experiment import relations as module
from cl_lora.experiment.relations import facts, relations, variance_share


@pytest.fixture
def bench(backbone):
    return bench_of(unlike_tasks(), backbone)


def long(adapter) -> torch.Tensor:
    return torch.cat([f.delta().double().ravel() for f in adapter.factors.values()])


def features(bench, i: int, j: int) -> np.ndarray:
    """All train images of task j under adapter i alone; there are fewer than are asked for."""
    own = dense_backbone(bench.backbone, [bench.banks["fresh"][i]], [1])
    e = bench.benchmark.experiences[j]
    with torch.no_grad():
        images = bench.backbone.encode(e.inputs[e.train]).double()
        return own.network(own.normalise(images)).numpy()


def cka_by_kernels(x: np.ndarray, y: np.ndarray) -> float:
    centre = np.eye(len(x)) - 1 / len(x)
    a, b = (centre @ (z @ z.T) @ centre for z in (x, y))
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def test_every_pair_has_every_measure(bench) -> None:
    count = []
    found = {(r.measure, r.first, r.second): r for r in relations(bench, lambda: count.append(1))}
    assert len(count) == 3
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert set(found) == {(m, *p) for m in ("cosine", "subspace", "cka") for p in pairs}
    assert {r.seed for r in found.values()} == {0}
    for a, b in pairs:
        x, y = (long(bench.banks["fresh"][i]) for i in (a, b))
        expected = float(torch.nn.functional.cosine_similarity(x, y, dim=0))
        assert found["cosine", a, b].value == pytest.approx(expected, abs=1e-7)
        one, other = (
            np.concatenate([features(bench, i, a), features(bench, i, b)]) for i in (a, b)
        )
        assert found["cka", a, b].value == pytest.approx(cka_by_kernels(one, other), rel=1e-4)


def test_facts_are_those_of_dense_updates_and_features(bench) -> None:
    found = {(f.adapter, f.quantity): f.value for f in facts(bench)}
    for j, adapter in enumerate(bench.banks["fresh"]):
        assert found[j, "norm"] == pytest.approx(float(long(adapter).norm()), rel=1e-6)
        f = features(bench, j, j)
        share = np.trace(np.cov(f.T, bias=True)) / np.square(f).sum(axis=1).mean()
        assert found[j, "feature_variance_share"] == pytest.approx(share, rel=1e-4)
        parts = {q: v for (i, q), v in found.items() if i == j and q.startswith("share_")}
        assert set(parts) == {f"share_{m.rpartition('.')[2]}" for m in adapter.modules()}
        assert sum(parts.values()) == pytest.approx(1)


def test_no_test_image_is_looked_at(bench, backbone) -> None:
    noisy = bench_of(with_noise_as_test(bench.benchmark), backbone)
    assert relations(noisy) == relations(bench)
    assert facts(noisy) == facts(bench)


def test_an_adapter_that_changes_nothing_is_said_and_does_not_stop_the_rest(bench, caplog) -> None:
    still = bench.banks["fresh"][1]
    zero = {m: LoRAFactors(f.A, torch.zeros_like(f.B)) for m, f in still.factors.items()}
    bank = list(bench.banks["fresh"])
    bank[1] = replace(still, factors=zero)
    bench = replace(bench, banks={"fresh": tuple(bank)})
    found = {(r.measure, r.first, r.second) for r in relations(bench)}
    assert ("cosine", 0, 2) in found
    assert ("cosine", 0, 1) not in found
    assert ("cka", 0, 1) in found
    assert "no cosine of 'pet' and 'light'" in caplog.text
    quantities = {f.quantity for f in facts(bench) if f.adapter == 1}
    assert quantities == {"norm", "feature_variance_share"}


def test_the_share_of_variance_of_features_that_are_all_alike() -> None:
    assert variance_share(np.ones((5, 3))) == 0
    assert variance_share(np.zeros((5, 3))) == 0
    assert variance_share(np.array([[1.0], [-1.0]])) == 1


def test_of_large_tasks_so_many_images_are_looked_at_and_no_more(bench, monkeypatch) -> None:
    """There are 24: more than is compared and than is looked at of an adapter's own."""
    monkeypatch.setattr(module, "_COMPARED", 3)
    monkeypatch.setattr(module, "_OWN", 5)
    looked_at: list[int] = []
    get = type(bench.store).get

    def spy(store, key, change, j, indices):
        looked_at.append(len(indices))
        return get(store, key, change, j, indices)

    monkeypatch.setattr(type(bench.store), "get", spy)
    relations(bench, lambda: None)
    assert looked_at == [3] * 9
    looked_at.clear()
    facts(bench)
    assert looked_at == [5] * 3
