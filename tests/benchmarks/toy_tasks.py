"""Kinds of tasks that the package does not have, to show that benchmarks need not know them."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cl_lora.benchmarks import Benchmark, Experience
from cl_lora.evaluation.metrics import Metric
from cl_lora.tasks import Accumulator, Task, TaskKind


class _Error:
    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.total += float((outputs.squeeze(1) - targets).abs().sum())
        self.count += len(targets)

    def scores(self) -> dict[str, float]:
        return {"toy_mae": self.total / self.count if self.count else float("nan")}


class ScalarKind(TaskKind):
    """One number a sample; a draw balances three quantile bins."""

    name: ClassVar[str] = "toy_scalar"
    summary: ClassVar[str] = "one number"
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("toy_mae", "Toy error", "px", False, 0.0),)
    target_dtype: ClassVar[torch.dtype] = torch.float32
    bins = 3

    def outputs(self, task: Task) -> int:
        return 1

    def loss(self, task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.l1_loss(outputs.squeeze(1), targets)

    def accumulator(self, task: Task) -> Accumulator:
        return _Error()

    def strata(self, task: Task, targets: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
        edges = np.quantile(targets, np.arange(1, self.bins) / self.bins)
        return np.searchsorted(edges, targets).astype(np.int64), ("low", "middle", "high")

    def hits(self, outputs: Tensor, targets: Tensor) -> None:
        return None


class PointsKind(ScalarKind):
    """Two coordinates a sample."""

    name: ClassVar[str] = "toy_points"

    def outputs(self, task: Task) -> int:
        return 2

    def loss(self, task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.l1_loss(outputs, targets)


def make_experience(name: str, task: Task, targets: np.ndarray, **parts: Any) -> Experience:
    """An experience with inputs of its own: red is the sample's number, green the name's."""
    count = len(targets)
    inputs = np.zeros((count, 2, 2, 3), dtype=np.uint8)
    inputs[..., 0] = np.arange(count)[:, None, None]
    inputs[..., 1] = ord(name[0])
    everything = {
        "train": np.arange(count - 4),
        "val": np.array([], dtype=np.int64),
        "test": np.arange(count - 4, count),
    }
    return Experience(name, task, inputs, targets, **(everything | parts))


def scalars() -> Benchmark:
    """Two experiences with one scalar task, float64 targets and inputs of their own."""
    task = Task("size", ScalarKind())
    rng = np.random.default_rng(0)
    first = make_experience("p", task, rng.uniform(0, 1, 40))
    return Benchmark("toy", (first, make_experience("q", task, rng.uniform(0, 1, 25))), "x")
