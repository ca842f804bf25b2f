"""Benchmarks as Avalanche streams; the only module here that imports Avalanche (seconds)."""

from __future__ import annotations

import numpy as np
import torch
from avalanche.benchmarks import CLScenario, benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset, as_classification_dataset
from torch.utils.data import Dataset

from cl_lora.benchmarks.batches import to_tensor
from cl_lora.benchmarks.core import DomainBenchmark, Indices


class IndexedImages(Dataset[tuple[torch.Tensor, int]]):
    """Some samples of a benchmark; an item is (uint8 (3, H, W), label).

    Attributes:
        targets: the labels, in order; Avalanche asks for this name.
    """

    def __init__(self, benchmark: DomainBenchmark, indices: Indices) -> None:
        self._images = benchmark.images
        self._indices = indices
        self.targets: list[int] = benchmark.labels[indices].tolist()

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, item: int) -> tuple[torch.Tensor, int]:
        return to_tensor(self._images[self._indices[item]]), self.targets[item]


def avalanche_benchmark(benchmark: DomainBenchmark) -> CLScenario:
    """Return the domain-incremental stream: one experience a domain, without task labels."""
    return benchmark_from_datasets(
        train=[_dataset(benchmark, indices) for indices in benchmark.train],
        test=[_dataset(benchmark, indices) for indices in benchmark.test],
    )


def joint_benchmark(benchmark: DomainBenchmark) -> CLScenario:
    """Return the stream of joint training: one train experience with the data of all domains.

    The test stream still has one experience a domain.
    """
    return benchmark_from_datasets(
        train=[_dataset(benchmark, np.concatenate(benchmark.train))],
        test=[_dataset(benchmark, indices) for indices in benchmark.test],
    )


def _dataset(benchmark: DomainBenchmark, indices: Indices) -> AvalancheDataset:
    return as_classification_dataset(IndexedImages(benchmark, indices))
