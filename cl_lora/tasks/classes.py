"""The kind ``class``: one of several labels for every sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from cl_lora.evaluation.classification import CONFUSION_METRICS, ClassificationCounts
from cl_lora.evaluation.metrics import ACCURACY, F1, Metric, register_metric
from cl_lora.support.errors import UserError
from cl_lora.support.registry import check_free
from cl_lora.tasks.core import Accumulator, Task, TaskKind, get_kind, register_kind

Compute = Callable[[Tensor], float]


@register_kind
class ClassKind(TaskKind):
    """One of ``task.labels``: cross-entropy; accuracy and macro F1; a draw balances the labels."""

    name: ClassVar[str] = "class"
    summary: ClassVar[str] = "one of several labels"
    metrics: ClassVar[tuple[Metric, ...]] = (ACCURACY, F1)
    target_dtype: ClassVar[torch.dtype] = torch.int64
    chooses: ClassVar[bool] = True

    def outputs(self, task: Task) -> int:
        """Return the number of labels: one logit each."""
        return len(task.labels)

    def loss(self, task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy ``mean_n(logsumexp(z_n) - z_n[y_n])``.

        Args:
            task: whose targets these are.
            outputs: logits z (batch, labels).
            targets: int64 (batch,), indices y into the labels.
        """
        return F.cross_entropy(outputs, targets)

    def drawn_loss(self, task: Task, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """Return the cross-entropy with labels drawn from ``softmax(z_n)``."""
        below = outputs.detach().double().softmax(dim=1).cumsum(dim=1).cpu()
        # Inversion takes one number per sample, so that the draws do not depend on the batches.
        drawn = torch.rand(len(outputs), 1, dtype=torch.float64, generator=generator)
        labels = (drawn >= below).sum(dim=1).clamp(max=outputs.shape[1] - 1)
        return F.cross_entropy(outputs, labels.to(outputs.device))

    def predictions(self, task: Task, outputs: Tensor) -> Tensor:
        """Return the label with the largest logit, int64 (batch,)."""
        return outputs.argmax(dim=1)

    def constant(self, task: Task, targets: npt.NDArray[Any]) -> Tensor:
        """Return logits of the majority class, the first of several."""
        counts = np.bincount(np.asarray(targets, dtype=np.int64), minlength=len(task.labels))
        return F.one_hot(torch.tensor(int(counts.argmax())), len(task.labels)).float()

    def check_targets(self, task: Task, targets: npt.NDArray[Any], where: str) -> None:
        """Check that every target is an index into the labels; -1 stands for none."""
        super().check_targets(task, targets, where)
        require_labels(task, targets, where)

    def accumulator(self, task: Task) -> Accumulator:
        """Return an empty confusion matrix."""
        return ClassificationCounts(len(task.labels))

    def strata(
        self, task: Task, targets: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
        """Return the labels themselves and their names."""
        return targets.astype(np.int64, copy=False), task.labels

    def hits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return where the largest logit is the target's, bool (batch,)."""
        return outputs.argmax(dim=1) == targets


def require_labels(task: Task, targets: npt.NDArray[Any], where: str) -> None:
    """Check that every target is an index into a task's labels; -1 stands for none.

    Raises:
        UserError: naming the range that they have.
    """
    if len(targets) and not (targets.min() >= -1 and targets.max() < len(task.labels)):
        raise UserError(
            f"Expected targets of {where} from 0 to {len(task.labels) - 1}, the labels of task "
            f"{task.name!r}, but got {targets.min()} to {targets.max()}; correct them"
        )


def class_metric(metric: Metric) -> Callable[[Compute], Compute]:
    """Register the decorated function as a metric of every task with classes.

    The function takes the confusion matrix, int64 (C, C) with targets as rows, and returns the
    value. Runs that were scored without it are scored again; no adapter is trained again.

    Raises:
        UserError: if another function or metric has its name.
    """

    def register(compute: Compute) -> Compute:
        check_free("metric", metric.name, CONFUSION_METRICS.get(metric.name), compute)
        register_metric(metric)
        CONFUSION_METRICS[metric.name] = compute
        if metric not in ClassKind.metrics:
            ClassKind.metrics = (*ClassKind.metrics, metric)
        return compute

    return register


CLASS = get_kind(ClassKind.name)
"""The kind of classification, which every benchmark of classes uses."""
