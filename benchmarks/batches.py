"""Plain batches of a benchmark, for evaluation without Avalanche."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from cl_lora.benchmarks.cache import Pixels
from cl_lora.benchmarks.core import DomainBenchmark, Indices
from cl_lora.support.errors import UserError


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
        yield to_tensor(benchmark.images[chosen]), torch.from_numpy(benchmark.labels[chosen])


def to_tensor(pixels: Pixels) -> torch.Tensor:
    """Copy channels-last pixels out of the memory map into a contiguous channels-first tensor."""
    return torch.from_numpy(np.moveaxis(pixels, -1, -3).copy())
