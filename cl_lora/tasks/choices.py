"""The kind ``choice``: one of several options, answered by a language model with its letter."""

from __future__ import annotations

import math
import string
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from cl_lora.evaluation.metrics import EXACT_MATCH, OPTION_ACCURACY, Metric
from cl_lora.tasks.classes import CLASS, require_labels
from cl_lora.tasks.core import Accumulator, Task, TaskKind, get_kind, register_kind

LETTERS = tuple(string.ascii_uppercase)
"""What options are called, in their order: the labels of a task are the first of them."""

_REST = 2
"""Outputs beside those of the letters: the log-sum-exp and the largest logit of other tokens."""


@register_kind
class ChoiceKind(TaskKind):
    """One of ``task.labels``, the letters of the options, as the first token of an answer.

    The outputs z (batch, n + 2) are the logits of the n letters' tokens, the log-sum-exp of the
    logits of all other tokens of the vocabulary, and the largest of those. So the loss is the
    language model's own, and a model that says anything else than a letter is wrong.
    """

    name: ClassVar[str] = "choice"
    summary: ClassVar[str] = "one of several options, by its letter, in the words of a model"
    metrics: ClassVar[tuple[Metric, ...]] = (EXACT_MATCH, OPTION_ACCURACY)
    target_dtype: ClassVar[torch.dtype] = torch.int64
    of_tokens: ClassVar[bool] = True

    def outputs(self, task: Task) -> int:
        """Return the number of options plus two."""
        return len(task.labels) + _REST

    def loss(self, task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of the first token over the whole vocabulary.

        ``mean_i(logsumexp(z_i1, ..., z_in, r_i) - z_i[y_i])``, where r is the log-sum-exp of all
        other tokens.

        Args:
            task: whose targets these are.
            outputs: z (batch, n + 2).
            targets: int64 (batch,), indices y into the labels.
        """
        return F.cross_entropy(outputs[:, :-1], targets)

    def drawn_loss(self, task: Task, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """Return the cross-entropy with answers drawn from the model's: a letter, or any other."""
        return CLASS.drawn_loss(task, outputs[:, :-1], generator)

    def predictions(self, task: Task, outputs: Tensor) -> Tensor:
        """Return the option that is answered, int64 (batch,); -1 where the answer is no letter."""
        return _answers(outputs)

    def constant(self, task: Task, targets: npt.NDArray[Any]) -> Tensor:
        """Return outputs that answer the option that is right most often, the first of several."""
        counts = np.bincount(np.asarray(targets, dtype=np.int64), minlength=len(task.labels))
        letter = F.one_hot(torch.tensor(int(counts.argmax())), len(task.labels)).float()
        return torch.cat([letter, torch.full((_REST,), -1.0)])

    def check_targets(self, task: Task, targets: npt.NDArray[Any], where: str) -> None:
        """Check that every target is an index into the labels; -1 stands for none."""
        super().check_targets(task, targets, where)
        require_labels(task, targets, where)

    def accumulator(self, task: Task) -> Accumulator:
        """Return empty counts."""
        return _Counts()

    def strata(
        self, task: Task, targets: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
        """Return the right letters; those that are never right are no strata.

        Few sets have as many options in every question: the last letters may not occur.
        """
        present, strata = np.unique(targets, return_inverse=True)
        return strata.astype(np.int64, copy=False), tuple(task.labels[i] for i in present)

    def hits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return where the likeliest token of the vocabulary is the right letter, bool (batch,)."""
        return _answers(outputs) == targets


def _answers(outputs: Tensor) -> Tensor:
    """Return the option whose letter is the likeliest token of all, int64 (batch,), or -1."""
    best, option = outputs[:, :-_REST].max(dim=1)
    return torch.where(best > outputs[:, -1], option, -1)


class _Counts:
    """Counts answers that are right, in the whole vocabulary and among the options.

    ``exact_match = |{i: argmax over the vocabulary is the letter y_i}| / N``

    ``option_accuracy = |{i: argmax over the n letters is y_i}| / N``
    """

    def __init__(self) -> None:
        self._right, self._chosen, self._all = 0, 0, 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Count one batch of outputs (batch, n + 2) and targets int64 (batch,)."""
        self._right += int((_answers(outputs) == targets).sum())
        self._chosen += int((outputs[:, :-_REST].argmax(dim=1) == targets).sum())
        self._all += len(targets)

    def scores(self) -> Mapping[str, float]:
        """Return both metrics by name; NaN without samples."""
        return {
            EXACT_MATCH.name: self._right / self._all if self._all else math.nan,
            OPTION_ACCURACY.name: self._chosen / self._all if self._all else math.nan,
        }


CHOICE = get_kind(ChoiceKind.name)
"""The kind of multiple choice in words."""
