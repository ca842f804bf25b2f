"""A second kind of task in one small file: a scalar with its RMSE, and a benchmark that asks it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanSquaredError

from cl_lora.benchmarks.config import benchmark_kind
from cl_lora.benchmarks.core import Benchmark
from cl_lora.benchmarks.sources.shapes.benchmark import ShapesConfig
from cl_lora.evaluation.metrics import Metric
from cl_lora.support.files import digest
from cl_lora.tasks import Task, TaskKind, get_kind, register_kind


class Errors:
    """Adds up squared errors."""

    def __init__(self) -> None:
        self.squared = MeanSquaredError(squared=False)

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.squared.update(outputs[:, 0].cpu(), targets.cpu())

    def scores(self) -> Mapping[str, float]:
        return {"area_rmse": float(self.squared.compute())}


@register_kind
class AreaKind(TaskKind):
    """One number for each image; a balanced draw takes as many from either half."""

    name, summary = "area", "the share of the image that an object covers"
    metrics = (Metric("area_rmse", "RMSE", "px", higher_is_better=False, low=0.0),)
    target_dtype = torch.float32

    def outputs(self, task: Task) -> int:
        return 1

    def loss(self, task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.l1_loss(outputs[:, 0], targets)

    def accumulator(self, task: Task) -> Errors:
        return Errors()

    def strata(self, task: Task, targets: Any) -> tuple[Any, tuple[str, ...]]:
        return (targets > np.median(targets)).astype(np.int64), ("small", "large")

    def hits(self, outputs: Tensor, targets: Tensor) -> None:
        return None


@benchmark_kind("areas")
@dataclass(frozen=True, kw_only=True)
class AreasConfig(ShapesConfig):
    """The shapes, asked for their areas in pixels."""

    def build(self, image_size: int) -> Benchmark:
        drawn = super().build(image_size)
        areas = (drawn.annotations["area"] * image_size**2).astype(np.float32)
        task = Task("area", get_kind("area"))
        experiences = tuple(replace(e, task=task, targets=areas) for e in drawn.experiences)
        return replace(
            drawn, experiences=experiences, fingerprint=digest(drawn.fingerprint, "area")
        )
