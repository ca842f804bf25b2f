"""Accuracy and macro F1 of a classifier, from a confusion matrix that adds up over batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def confusion_matrix(predictions: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Return how often each target class was predicted as each class.

    ``confusion[i, j] = |{n: targets_n = i and predictions_n = j}|``

    Args:
        predictions: (N,) integer class indices, or (N, C) scores whose largest entry is taken.
        targets: (N,) integer class indices.
        classes: C, the number of classes.

    Returns:
        (C, C) int64 on the CPU; rows are targets, columns predictions. Matrices of batches add up.

    Raises:
        ValueError: if shapes do not fit or an index lies outside ``0..C-1``.

    Example:
        >>> confusion_matrix(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), classes=2)
        tensor([[1, 1],
                [0, 1]])
    """
    if predictions.ndim == 2:
        if predictions.shape[1] != classes:
            raise ValueError(
                f"Expected scores of {classes} classes but got shape {tuple(predictions.shape)}"
            )
        predictions = predictions.argmax(dim=1)
    if predictions.ndim != 1 or predictions.shape != targets.shape:
        raise ValueError(
            "Expected as many predictions as targets but got shapes "
            f"{tuple(predictions.shape)} and {tuple(targets.shape)}"
        )
    predictions, targets = predictions.cpu().long(), targets.cpu().long()
    for name, indices in (("predictions", predictions), ("targets", targets)):
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < classes:
            raise ValueError(
                f"Expected {name} in 0..{classes - 1} "
                f"but got values in {int(indices.min())}..{int(indices.max())}"
            )
    counts = torch.bincount(targets * classes + predictions, minlength=classes * classes)
    return counts.reshape(classes, classes)


def accuracy(confusion: Tensor) -> float:
    """Return the share of samples whose class was predicted: ``trace(M) / sum(M)``.

    Args:
        confusion: (C, C) counts, rows are targets.

    Returns:
        A value in [0, 1]; NaN without samples.

    Example:
        >>> accuracy(torch.tensor([[1, 1], [0, 2]]))
        0.75
    """
    total = int(confusion.sum())
    return int(confusion.diagonal().sum()) / total if total else float("nan")


def macro_f1(confusion: Tensor) -> float:
    """Return the mean over classes of ``F1_c = 2 TP_c / (2 TP_c + FP_c + FN_c)``.

    The mean runs over the classes that occur among the targets OR the predictions, so F1_c is
    always defined and no zero_division value enters. This is scikit-learn's
    ``f1_score(average="macro")`` with its default ``labels`` and torchmetrics' macro F1;
    passing ``labels=range(C)`` to scikit-learn differs: it counts absent classes as 0.

    Args:
        confusion: (C, C) counts, rows are targets.

    Returns:
        A value in [0, 1]; NaN without samples.

    Example:
        >>> macro_f1(torch.tensor([[1, 1, 0], [0, 2, 0], [0, 0, 0]]))
        0.7333333333333334
    """
    counts = confusion.double()
    twice_hits = 2 * counts.diagonal()
    # 2 TP + FP + FN: a class's row sum is TP + FN, its column sum TP + FP.
    denominator = counts.sum(dim=0) + counts.sum(dim=1)
    occurs = denominator > 0
    return float((twice_hits[occurs] / denominator[occurs]).mean())


CONFUSION_METRICS: dict[str, Callable[[Tensor], float]] = {"accuracy": accuracy, "f1": macro_f1}
"""What is computed from a confusion matrix (C, C), by the metric's name."""


class ClassificationCounts:
    """Adds up the confusion matrix of one evaluation, batch by batch.

    Example:
        >>> counts = ClassificationCounts(classes=2)
        >>> counts.update(torch.tensor([0, 1]), torch.tensor([0, 0]))
        >>> counts.scores()
        {'accuracy': 0.5, 'f1': 0.3333333333333333}
    """

    def __init__(self, classes: int) -> None:
        if classes < 1:
            raise ValueError(f"Expected classes to be a positive integer but got {classes}")
        self.classes = classes
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64)

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Count one batch; arguments as in :func:`confusion_matrix`."""
        self.confusion = self.confusion + confusion_matrix(predictions, targets, self.classes)

    def scores(self) -> dict[str, float]:
        """Return every metric of :data:`CONFUSION_METRICS`."""
        return {name: compute(self.confusion) for name, compute in CONFUSION_METRICS.items()}
