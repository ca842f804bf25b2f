"""A new head for a task, trained on its train part on the features of what is served."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cl_lora.experiment.sampling import draws
from cl_lora.models.features import fit_head
from cl_lora.models.heads import freeze
from cl_lora.strategies.config import TrainingConfig
from cl_lora.tasks import Task

Samples = tuple[Tensor, Tensor]
"""Features (N, d) and targets (N, ...)."""


def refit_head(
    head: nn.Module,
    train: Samples,
    validation: Samples | None,
    task: Task,
    training: TrainingConfig,
    seed: int,
    key: str,
) -> nn.Module:
    """Train a head as long as an adapter with its head is trained, and return it frozen.

    Epochs, batch size, rate and patience are those of the training; the rate falls along a half
    cosine. With a patience the weights of the epoch with the lowest validation loss are kept.

    Args:
        head: where to start; stays as it is.
        train: features and targets to learn from.
        validation: those to stop early by; None where the training has no patience.
        task: what is learned.
        training: how.
        seed: of the run.
        key: of the draws of the batches, such as the name of the experience.

    Raises:
        UserError: if the loss is not finite.
    """
    features, targets = train
    size = min(training.batch_size, len(targets))
    epoch = math.ceil(len(targets) / size)
    steps = training.epochs * epoch

    def judge(candidate: nn.Module) -> float:
        assert validation is not None
        with torch.no_grad():
            return float(task.loss(candidate(validation[0]), validation[1]))

    fitted = fit_head(
        head,
        features,
        targets,
        draws(len(targets), size, steps, seed, "refit-batches", key),
        task.loss,
        lr=training.head_lr,
        weight_decay=training.weight_decay,
        decay=True,
        judge=judge if training.patience is not None and validation is not None else None,
        every=epoch,
        patience=training.patience or training.epochs,
    )
    return freeze(fitted.head)
