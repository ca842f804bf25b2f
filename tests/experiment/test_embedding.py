"""The picture of features: which samples, which labels, repeatable, and nothing depends on it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from task_bench import bench_of, unlike_tasks

from cl_lora.experiment.embedding import embed, place
from cl_lora.experiment.feature_store import FeatureStore
from cl_lora.experiment.serving import Served


@pytest.fixture
def bench(backbone):
    return bench_of(unlike_tasks(), backbone)


def served(bench, j) -> dict[str, Served]:
    """Two rows: each task's own adapter, and that of the next."""
    n = len(bench.benchmark.experiences)
    return {
        "single": Served({j: bench.single(j)}),
        "other": Served({j: bench.single((j + 1) % n)}),
    }


def test_the_test_samples_and_their_classes_are_placed_for_each_arm(bench) -> None:
    count = []
    found = embed(bench, served(bench, 0), 0, lambda: count.append(1))
    assert len(count) == 2
    experience = bench.benchmark.experiences[0]
    for name in ("single", "other"):
        rows = [e for e in found if e.arm == name]
        assert [e.sample for e in rows] == experience.test.tolist()
        assert [e.label for e in rows] == experience.targets[experience.test].tolist()
        assert {(e.seed, e.evaluated) for e in rows} == {(0, 0)}
    one, other = ({(e.x, e.y) for e in found if e.arm == name} for name in ("single", "other"))
    assert not one & other
    assert embed(bench, served(bench, 0), 0) == found


def test_a_task_of_values_is_coloured_by_quarter(bench) -> None:
    found = embed(bench, served(bench, 1), 1)
    experience = bench.benchmark.experiences[1]
    values = experience.targets[experience.test].astype(float)
    edges = np.quantile(values, (0.25, 0.5, 0.75))
    labels = [e.label for e in found if e.arm == "single"]
    assert labels == [int((v > edges).sum()) for v in values]


def test_unknown_labels_are_left_out_and_too_few_are_said(bench, caplog) -> None:
    first, *others = bench.benchmark.experiences
    targets = first.targets.copy()
    targets[first.test[:2]] = -1
    some = replace(first, targets=targets)
    bench = replace(bench, benchmark=replace(bench.benchmark, experiences=(some, *others)))
    found = embed(bench, served(bench, 0), 0)
    assert {e.sample for e in found} == set(first.test[2:].tolist())
    targets[first.test[3:]] = -1
    assert embed(bench, served(bench, 0), 0) == []
    assert "no picture of the features of 'pet': expected at least 4 test samples but got 1" in (
        caplog.text
    )


def test_nothing_is_kept_of_what_was_computed(bench) -> None:
    embed(bench, served(bench, 0), 0)
    assert bench.store._known == {}


def test_an_arm_whose_features_are_all_alike_has_no_rows(bench, monkeypatch, caplog) -> None:
    def collapsed(self, key, change, j, indices):
        return torch.ones(len(indices), 16)

    monkeypatch.setattr(FeatureStore, "get", collapsed)
    assert embed(bench, {"single": Served({0: bench.single(0)})}, 0) == []
    assert "under 'single': they are all alike" in caplog.text


def test_groups_that_lie_apart_stay_apart() -> None:
    draw = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 20)
    features = 8 * np.eye(5)[labels] + draw.normal(size=(60, 5))
    places = place(features, 7)
    assert places.shape == (60, 2)
    near = KNeighborsClassifier(3).fit(places, labels)
    assert near.score(places, labels) == 1
    np.testing.assert_array_equal(places, place(features, 7))
    assert place(np.full((10, 3), 2.0), 0) is None
    assert place(np.full((10, 3), np.nan), 0) is None
