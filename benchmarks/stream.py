"""Benchmarks as Avalanche streams, and as plain batches for evaluation.

The only module here that imports Avalanche, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from avalanche.benchmarks import CLScenario, benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset, as_classification_dataset
from torch.utils.data import Dataset

from cl_lora.benchmarks.cache import Pixels
from cl_lora.benchmarks.core import DomainBenchmark, Indices
from cl_lora.errors import UserError


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
        return _tensor(self._images[self._indices[item]]), self.targets[item]


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


def batches(
    benchmark: DomainBenchmark, indices: Indices, batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield images uint8 (B, 3, H, W) and labels int64 (B,) in the order of ``indices``.

    Args:
        benchmark: where to read.
        indices: int64 (N,) into ``benchmark.images``.
        batch_size: B; the last batch may be smaller.

    Raises:
        UserError: ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise UserError(f"Expected batch_size to be at least 1 but got {batch_size!r}")
    for start in range(0, len(indices), batch_size):
        chosen = indices[start : start + batch_size]
        yield _tensor(benchmark.images[chosen]), torch.from_numpy(benchmark.labels[chosen])


def _dataset(benchmark: DomainBenchmark, indices: Indices) -> AvalancheDataset:
    return as_classification_dataset(IndexedImages(benchmark, indices))


def _tensor(pixels: Pixels) -> torch.Tensor:
    """Copy channels-last pixels out of the memory map into a contiguous channels-first tensor."""
    return torch.from_numpy(np.moveaxis(pixels, -1, -3).copy())
