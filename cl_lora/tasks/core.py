"""What a task is: a name, a registered kind and the labels; and what every kind must say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cl_lora.evaluation.metrics import Metric, register_metric
from cl_lora.support.registry import check_free, look_up


class Accumulator(Protocol):
    """Adds up one evaluation, batch by batch."""

    def update(self, outputs: Tensor, targets: Tensor, /) -> None:
        """Count one batch: the head's outputs (batch, outputs) and the targets (batch, ...)."""
        ...

    def scores(self) -> Mapping[str, float]:
        """Return the value of each of the kind's metrics by name; NaN without samples."""
        ...


class TaskKind(ABC):
    """How tasks of one kind are learned and scored; holds no state, one object serves all tasks.

    Attributes:
        name: what a kind is called.
        summary: one line for lists.
        metrics: what is measured; the first is the primary one.
        target_dtype: of the targets as tensors.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    target_dtype: ClassVar[torch.dtype]

    @abstractmethod
    def outputs(self, task: Task) -> int:
        """Return the size of the head's output."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar.

        Args:
            outputs: (batch, outputs) of the head.
            targets: (batch, ...) of ``target_dtype``.
        """

    @abstractmethod
    def accumulator(self, task: Task) -> Accumulator:
        """Return what turns batches into scores, empty."""

    @abstractmethod
    def strata(
        self, task: Task, targets: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
        """Say what a balanced draw balances: the class, a bin of values, ...

        Args:
            task: whose targets these are.
            targets: (N, ...), all candidates of a draw.

        Returns:
            The stratum of every target, int64 (N,), and the name of every stratum.
        """

    @abstractmethod
    def hits(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Return which samples are right, bool (batch,); None where a sample is never just right.

        Arguments as in :meth:`loss`.
        """


@dataclass(frozen=True)
class Task:
    """What is asked of a model.

    Attributes:
        name: for reports; tasks of one benchmark have different names.
        kind: how it is learned and scored.
        labels: names of the classes, points, ...; empty where the kind has none.
    """

    name: str
    kind: TaskKind
    labels: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        """The size of the head's output."""
        return self.kind.outputs(self)


KINDS: dict[str, TaskKind] = {}
"""Every registered kind by name."""

KindType = TypeVar("KindType", bound=type[TaskKind])


def register_kind(cls: KindType) -> KindType:
    """Register a kind of task and its metrics; a class decorator.

    Raises:
        UserError: another kind, or another metric, has its name.
    """
    check_free("task kind", cls.name, KINDS.get(cls.name), cls)
    for metric in cls.metrics:
        register_metric(metric)
    KINDS[cls.name] = cls()
    return cls


def get_kind(name: str) -> TaskKind:
    """Return the kind called ``name``.

    Raises:
        UserError: there is none; names the nearest known.
    """
    return look_up("task kind", KINDS, name)
