"""Benchmarks as Avalanche streams and as batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cl_lora.benchmarks import DomainBenchmark, make_benchmark
from cl_lora.benchmarks.batches import batches
from cl_lora.benchmarks.stream import avalanche_benchmark, joint_benchmark
from cl_lora.support.errors import UserError


@pytest.fixture
def data(folder_config) -> DomainBenchmark:
    return make_benchmark(folder_config, 8)


def check(dataset, data: DomainBenchmark, indices: np.ndarray) -> None:
    assert len(dataset) == len(indices)
    assert list(dataset.targets) == data.labels[indices].tolist()
    for item, index in enumerate(indices):
        image, label = dataset[item]
        assert image.dtype == torch.uint8
        assert image.shape == (3, 8, 8)
        assert image.is_contiguous()
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), data.images[index])
        assert type(label) is int
        assert label == data.labels[index]


def test_stream_has_an_experience_for_each_domain_and_no_task_labels(data):
    streams = avalanche_benchmark(data)
    assert len(streams.train_stream) == len(streams.test_stream) == 2
    for number, experience in enumerate(streams.train_stream):
        assert experience.current_experience == number
        check(experience.dataset, data, data.train[number])
        assert not hasattr(experience.dataset, "targets_task_labels")
    for number, experience in enumerate(streams.test_stream):
        check(experience.dataset, data, data.test[number])


def test_joint_stream_has_all_train_data_in_one_experience(data):
    streams = joint_benchmark(data)
    assert len(streams.train_stream) == 1
    check(streams.train_stream[0].dataset, data, np.concatenate(data.train))
    assert len(streams.test_stream) == 2


def test_a_loader_collates_items(data):
    dataset = avalanche_benchmark(data).train_stream[1].dataset
    images, labels = next(iter(DataLoader(dataset, batch_size=5)))
    assert images.shape == (5, 3, 8, 8)
    assert images.dtype == torch.uint8
    assert labels.tolist() == data.labels[data.train[1][:5]].tolist()


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_batches_cover_the_indices_in_order(data, batch_size):
    indices = data.train[1][::-1].copy()
    images, labels = zip(*batches(data, indices, batch_size), strict=True)
    assert all(len(batch) == batch_size for batch in images[:-1])
    together = torch.cat(images)
    assert together.dtype == torch.uint8
    np.testing.assert_array_equal(together.permute(0, 2, 3, 1).numpy(), data.images[indices])
    assert torch.cat(labels).dtype == torch.int64
    np.testing.assert_array_equal(torch.cat(labels).numpy(), data.labels[indices])


def test_batches_can_be_written_to_without_touching_the_cache(data):
    before = data.images[data.test[0][0]].copy()
    images, _ = next(batches(data, data.test[0], 2))
    images.zero_()
    np.testing.assert_array_equal(data.images[data.test[0][0]], before)


def test_batch_size_must_be_positive(data):
    with pytest.raises(UserError, match="at least 1 but got 0"):
        next(batches(data, data.test[0], 0))


def test_benchmarks_do_not_import_avalanche_or_datasets():
    root = Path(__file__).parents[2]
    heavy = "{'avalanche', 'datasets', 'timm', 'peft'}"
    code = f"import cl_lora.benchmarks, sys; print({heavy} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "set()"
