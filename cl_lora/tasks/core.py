"""What a task is: a name, a kind and what belongs to its targets; and what a kind must say."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cl_lora.evaluation.metrics import Metric, register_metric
from cl_lora.support.errors import UserError
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
        of_tokens: whether outputs are those of a language model: the tokens of the labels, and what
            is left of its vocabulary. Only a head that is made of the labels' texts has them.
        chooses: whether outputs are logits, one for each label: then some labels can be left out.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    target_dtype: ClassVar[torch.dtype]
    of_tokens: ClassVar[bool] = False
    chooses: ClassVar[bool] = False

    @abstractmethod
    def outputs(self, task: Task) -> int:
        """Return the size of the head's output."""

    @abstractmethod
    def loss(self, task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar.

        Args:
            task: whose targets these are.
            outputs: (batch, outputs) of the head.
            targets: (batch, ...) of ``target_dtype``, in their own unit.
        """

    def predictions(self, task: Task, outputs: Tensor) -> Tensor:
        """Return what the outputs of a head mean, in the unit and shape of the targets."""
        return outputs

    def constant(self, task: Task, targets: npt.NDArray[Any]) -> Tensor:
        """Return the outputs of the trivial predictor, which knows the targets but no input.

        Args:
            task: whose targets these are.
            targets: (N, ...), of the train part.

        Returns:
            float32 (outputs,): of the majority class, the mean value, the mean shape.

        Raises:
            UserError: if the kind has none.
        """
        raise UserError(
            f"The kind {self.name!r} of task {task.name!r} says of no trivial predictor; leave the "
            "row 'trivial' out of references, or define constant()"
        )

    def drawn_loss(self, task: Task, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mean loss of a batch on targets drawn from the outputs themselves, a scalar.

        The loss is read as a negative log-likelihood, ``p(y | z) ~ exp(-loss(z, y))``, and one
        target a sample is drawn from it. No gradient flows through the draw. It is what the true
        Fisher information is made of.

        Args:
            task: whose outputs these are.
            outputs: (batch, outputs) of the head.
            generator: on the CPU; targets are drawn in the order of the batch.

        Raises:
            UserError: if the kind cannot draw targets.
        """
        raise UserError(
            f"The kind {self.name!r} of task {task.name!r} cannot draw targets from outputs, which "
            "the true Fisher information needs; choose labels=data of method 'fisher', or define "
            "drawn_loss()"
        )

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

    def check_targets(self, task: Task, targets: npt.NDArray[Any], where: str) -> None:
        """Check that targets can be learned and scored.

        Args:
            task: whose targets these are.
            targets: (N, ...), all of an experience.
            where: what they belong to, for the message.

        Raises:
            UserError: if one is not finite, or is none of the task's.
        """
        bad = ~np.isfinite(targets.reshape(len(targets), -1)).all(axis=1)
        if bad.any():
            raise UserError(
                f"Expected finite targets in {where} but number {int(bad.argmax())} of "
                f"{len(targets)} is not; correct or remove it"
            )


@dataclass(frozen=True)
class Scaling:
    """How targets are standardised while they are learned: ``(y - mean) / std``.

    Attributes:
        mean: one number for each output, or one for all.
        deviation: as many, above 0.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def of(cls, targets: npt.NDArray[Any]) -> Scaling:
        """Return the scaling by mean and standard deviation of train targets (N, ...).

        A value that never changes keeps its unit.
        """
        flat = np.asarray(targets, dtype=np.float64).reshape(len(targets), -1)
        deviation = flat.std(axis=0)
        deviation[deviation == 0] = 1.0
        return cls(tuple(flat.mean(axis=0).tolist()), tuple(deviation.tolist()))

    def to(self, targets: Tensor) -> Tensor:
        """Return targets (batch, outputs) standardised."""
        mean, deviation = self._tensors(targets)
        return (targets - mean) / deviation

    def back(self, outputs: Tensor) -> Tensor:
        """Return standardised outputs (batch, outputs) in the unit of the targets."""
        mean, deviation = self._tensors(outputs)
        return outputs * deviation + mean

    def _tensors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return (
            torch.tensor(self.mean, dtype=like.dtype, device=like.device),
            torch.tensor(self.deviation, dtype=like.dtype, device=like.device),
        )


UNSCALED = Scaling((0.0,), (1.0,))
"""Leaves targets in their unit."""


@dataclass(frozen=True)
class Task:
    """What is asked of a model.

    Attributes:
        name: for reports; tasks of one benchmark have different names.
        kind: how it is learned and scored.
        labels: names of the classes, points, ...; empty where the kind has none.
        scaling: how targets that are numbers are standardised while they are learned; None leaves
            them in their unit. Metrics are always in their unit.
        normaliser: of landmarks, the two points whose distance errors are divided by.
        period: of an angle, in radians: values that differ by it are the same.
        choices: numbers of the labels that an answer is chosen among, ascending; None for all. The
            outputs of other labels count as minus infinity, in the loss and in every score.
    """

    name: str
    kind: TaskKind
    labels: tuple[str, ...] = ()
    scaling: Scaling | None = None
    normaliser: tuple[int, int] | None = None
    period: float = 0.0
    choices: tuple[int, ...] | None = None

    def among(self, labels: Iterable[int]) -> Task:
        """Return the task with answers among some labels only; the task itself with all of them.

        Args:
            labels: their numbers, at least one.

        Raises:
            UserError: if there are none, a number is no label's, or outputs are not logits of
                labels.
        """
        chosen = tuple(sorted(set(labels)))
        if not self.kind.chooses:
            raise UserError(
                f"Expected a task whose outputs are logits of labels, of which some can be left "
                f"out, but {self.name!r} is of kind {self.kind.name!r}"
            )
        if not chosen or not 0 <= chosen[0] <= chosen[-1] < len(self.labels):
            raise UserError(
                f"Expected numbers of labels of task {self.name!r}, from 0 to "
                f"{len(self.labels) - 1}, but got {list(chosen)}"
            )
        return replace(self, choices=None if len(chosen) == len(self.labels) else chosen)

    def _restricted(self, outputs: Tensor) -> Tensor:
        """Return outputs (batch, outputs), minus infinity where a label is none of the choices."""
        if self.choices is None:
            return outputs
        hidden = torch.ones(outputs.shape[-1], dtype=torch.bool)
        hidden[list(self.choices)] = False
        return outputs.masked_fill(hidden.to(outputs.device), -math.inf)

    @property
    def outputs(self) -> int:
        """The size of the head's output."""
        return self.kind.outputs(self)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch; see :meth:`TaskKind.loss`."""
        return self.kind.loss(self, self._restricted(outputs), targets)

    def drawn_loss(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mean loss on targets drawn from the outputs; see :meth:`TaskKind.drawn_loss`.

        Raises:
            UserError: if the kind cannot draw targets.
        """
        return self.kind.drawn_loss(self, self._restricted(outputs), generator)

    def accumulator(self) -> Accumulator:
        """Return what turns batches into scores, empty."""
        accumulator = self.kind.accumulator(self)
        return accumulator if self.choices is None else _Restricted(self, accumulator)

    def hits(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Return which samples are right; see :meth:`TaskKind.hits`."""
        return self.kind.hits(self._restricted(outputs), targets)

    def predictions(self, outputs: Tensor) -> Tensor:
        """Return what outputs mean; see :meth:`TaskKind.predictions`."""
        return self.kind.predictions(self, self._restricted(outputs))

    def constant(self, targets: npt.NDArray[Any]) -> Tensor:
        """Return the trivial predictor's outputs; see :meth:`TaskKind.constant`."""
        return self.kind.constant(self, targets)

    def check_targets(self, targets: npt.NDArray[Any], where: str) -> None:
        """Check targets; see :meth:`TaskKind.check_targets`."""
        self.kind.check_targets(self, targets, where)


class _Restricted:
    """Adds up an evaluation in which answers are among some labels only."""

    def __init__(self, task: Task, accumulator: Accumulator) -> None:
        self._task, self._accumulator = task, accumulator

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self._accumulator.update(self._task._restricted(outputs), targets)

    def scores(self) -> Mapping[str, float]:
        return self._accumulator.scores()


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
