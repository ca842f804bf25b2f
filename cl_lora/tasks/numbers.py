"""The kinds whose targets are numbers: ``scalar``, ``angle`` and ``points``. All learn by L1."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from cl_lora.evaluation.metrics import (
    ANGLE_ERROR,
    ANGLE_RMSE,
    MAE,
    NME,
    R2,
    RMSE,
    Metric,
)
from cl_lora.support.errors import UserError
from cl_lora.tasks.core import UNSCALED, Accumulator, Task, TaskKind, register_kind

_QUARTERS = ("lowest quarter", "second quarter", "third quarter", "highest quarter")

Strata = tuple[npt.NDArray[np.int64], tuple[str, ...]]


class _Meters:
    """Metrics of torchmetrics, by name, that add up predictions and targets in float64."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._meters: dict[str, Any] = self._made()

    def _made(self) -> dict[str, Any]:
        raise NotImplementedError

    def _pair(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return predictions and targets, float64 (batch,), as the metrics compare them."""
        raise NotImplementedError

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Count one batch of outputs (batch, outputs) and targets (batch, ...)."""
        pair = [part.detach().cpu().double() for part in self._pair(outputs, targets)]
        for meter in self._meters.values():
            meter.update(*pair)

    def scores(self) -> Mapping[str, float]:
        """Return every metric by name; NaN where there are too few samples for it."""
        return {name: _value(meter) for name, meter in self._meters.items()}


def _value(meter: Any) -> float:
    try:
        return float(meter.compute()) if meter.update_called else math.nan
    except ValueError:  # of too few samples
        return math.nan


def _double(meter: Any) -> Any:
    return meter.set_dtype(torch.float64)


class _ScalarMeters(_Meters):
    def _made(self) -> dict[str, Any]:
        # Imported late: torchmetrics takes a second that most commands never need.
        from torchmetrics import MeanAbsoluteError, MeanSquaredError, R2Score

        return {
            RMSE.name: _double(MeanSquaredError(squared=False)),
            MAE.name: _double(MeanAbsoluteError()),
            R2.name: _double(R2Score()),
        }

    def _pair(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return self._task.predictions(outputs), targets


class _AngleMeters(_Meters):
    def _made(self) -> dict[str, Any]:
        from torchmetrics import MeanAbsoluteError, MeanSquaredError

        return {
            ANGLE_ERROR.name: _double(MeanAbsoluteError()),
            ANGLE_RMSE.name: _double(MeanSquaredError(squared=False)),
        }

    def _pair(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        period = self._task.period
        away = self._task.predictions(outputs) - targets
        shortest = torch.remainder(away + period / 2, period) - period / 2
        return torch.rad2deg(shortest), torch.zeros_like(shortest)


class _PointMeters(_Meters):
    def _made(self) -> dict[str, Any]:
        from torchmetrics import MeanMetric

        return {NME.name: _double(MeanMetric())}

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Count the mean point error of every sample over the distance of its two named points."""
        points, truth = self._task.predictions(outputs).double(), targets.double()
        error = (points - truth).norm(dim=2).mean(dim=1) / normaliser(self._task, truth)
        self._meters[NME.name].update(error.detach().cpu())


def normaliser(task: Task, points: Tensor) -> Tensor:
    """Return the distance of the two named points (batch,) of points (batch, P, 2)."""
    assert task.normaliser is not None
    first, second = task.normaliser
    distance: Tensor = torch.linalg.vector_norm(points[:, first] - points[:, second], dim=1)
    return distance


class _NumberKind(TaskKind):
    """What is common to all: L1 on standardised targets, quarters of the values for draws."""

    target_dtype: ClassVar[torch.dtype] = torch.float32

    def drawn_loss(self, task: Task, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """Return the L1 distance to a point drawn around the outputs, in the space they live in.

        ``exp(-mean_k |z_k - y_k|)`` of K outputs is a Laplace density of scale K around each, with
        targets as they are learned: standardised, and of an angle a point of the plane.
        """
        uniform = torch.rand(outputs.shape, dtype=torch.float64, generator=generator) - 0.5
        noise = -outputs.shape[1] * uniform.sign() * torch.log1p(-2 * uniform.abs())
        return F.l1_loss(outputs, outputs.detach() + noise.to(outputs))

    def hits(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Return None: a number is never just right."""
        return None

    def strata(self, task: Task, targets: npt.NDArray[Any]) -> Strata:
        """Return the quarter in which the value of every target lies."""
        values = self._value_of(task, targets)
        edges = np.quantile(values, (0.25, 0.5, 0.75)) if len(values) else np.zeros(3)
        return np.searchsorted(edges, values, side="left").astype(np.int64), _QUARTERS

    def _value_of(self, task: Task, targets: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.asarray(targets, dtype=np.float64)


@register_kind
class ScalarKind(_NumberKind):
    """One number: L1 on the standardised value; RMSE, MAE and R2 in the target's unit."""

    name: ClassVar[str] = "scalar"
    summary: ClassVar[str] = "one number"
    metrics: ClassVar[tuple[Metric, ...]] = (RMSE, MAE, R2)

    def outputs(self, task: Task) -> int:
        """Return 1."""
        return 1

    def loss(self, task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return ``mean_n |z_n - (y_n - mean) / deviation|`` of outputs z (batch, 1)."""
        wanted = (task.scaling or UNSCALED).to(targets.to(outputs)[:, None])
        return F.l1_loss(outputs, wanted)

    def predictions(self, task: Task, outputs: Tensor) -> Tensor:
        """Return values in the target's unit, (batch,)."""
        return (task.scaling or UNSCALED).back(outputs)[:, 0]

    def constant(self, task: Task, targets: npt.NDArray[Any]) -> Tensor:
        """Return the mean, as it is learned."""
        mean = torch.tensor([[float(np.mean(targets))]], dtype=torch.float64)
        return (task.scaling or UNSCALED).to(mean)[0].float()

    def accumulator(self, task: Task) -> Accumulator:
        """Return RMSE, MAE and R2, empty."""
        return _ScalarMeters(task)


@register_kind
class AngleKind(_NumberKind):
    """An angle: L1 on the point of the unit circle; the error along the shortest way, in degrees.

    An angle y with period p is learned as ``(cos, sin)(2 pi y / p)``, which has no jump.
    """

    name: ClassVar[str] = "angle"
    summary: ClassVar[str] = "an angle, on the circle"
    metrics: ClassVar[tuple[Metric, ...]] = (ANGLE_ERROR, ANGLE_RMSE)

    def outputs(self, task: Task) -> int:
        """Return 2: cosine and sine."""
        return 2

    def loss(self, task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return ``mean_n mean(|z_n - (cos, sin)(2 pi y_n / p)|)`` of outputs z (batch, 2)."""
        return F.l1_loss(outputs, self._circle(task, targets.to(outputs)))

    def predictions(self, task: Task, outputs: Tensor) -> Tensor:
        """Return angles in radians from ``-p / 2`` to ``p / 2``, (batch,)."""
        return torch.atan2(outputs[:, 1], outputs[:, 0]) * (task.period / (2 * math.pi))

    def constant(self, task: Task, targets: npt.NDArray[Any]) -> Tensor:
        """Return the direction of the mean on the circle."""
        points = self._circle(task, torch.from_numpy(np.asarray(targets, dtype=np.float64)))
        return F.normalize(points.mean(dim=0), dim=0).float()

    def accumulator(self, task: Task) -> Accumulator:
        """Return the errors of an angle, empty."""
        return _AngleMeters(task)

    def check_targets(self, task: Task, targets: npt.NDArray[Any], where: str) -> None:
        """Check that the period is above 0 too."""
        super().check_targets(task, targets, where)
        if not task.period > 0:
            raise UserError(
                f"Expected the period of task {task.name!r} to be above 0 radians but got "
                f"{task.period}; give 2 pi for a whole turn"
            )

    @staticmethod
    def _circle(task: Task, angles: Tensor) -> Tensor:
        turn = angles * (2 * math.pi / task.period)
        return torch.stack([turn.cos(), turn.sin()], dim=1)


@register_kind
class PointsKind(_NumberKind):
    """Named points of an image: L1 on standardised coordinates; NME.

    ``NME = mean_n (mean_p |z_np - y_np|) / |y_na - y_nb|`` with the task's two named points a and
    b, for faces the outer corners of the eyes (Wu et al. 2018).
    """

    name: ClassVar[str] = "points"
    summary: ClassVar[str] = "named points of an image, as shares of its side"
    metrics: ClassVar[tuple[Metric, ...]] = (NME,)

    def outputs(self, task: Task) -> int:
        """Return two numbers for every point."""
        return 2 * len(task.labels)

    def loss(self, task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean L1 distance of outputs (batch, 2P) to standardised points (batch, P, 2).

        Every coordinate is standardised by itself.
        """
        wanted = (task.scaling or UNSCALED).to(targets.to(outputs).flatten(1))
        return F.l1_loss(outputs, wanted)

    def predictions(self, task: Task, outputs: Tensor) -> Tensor:
        """Return points (batch, P, 2) as shares of the image's side."""
        return (task.scaling or UNSCALED).back(outputs).reshape(len(outputs), -1, 2)

    def constant(self, task: Task, targets: npt.NDArray[Any]) -> Tensor:
        """Return the mean shape, as it is learned."""
        mean = torch.from_numpy(np.asarray(targets, dtype=np.float64)).mean(dim=0)
        return (task.scaling or UNSCALED).to(mean.flatten()[None])[0].float()

    def accumulator(self, task: Task) -> Accumulator:
        """Return the NME, empty."""
        return _PointMeters(task)

    def check_targets(self, task: Task, targets: npt.NDArray[Any], where: str) -> None:
        """Check that the two named points are apart in every sample too."""
        super().check_targets(task, targets, where)
        if task.normaliser is None or targets.shape[1:] != (len(task.labels), 2):
            raise UserError(
                f"Expected {where} to have {len(task.labels)} points (x, y) and two that errors "
                f"are divided by but got targets of shape {targets.shape[1:]} and "
                f"{task.normaliser}; correct the task"
            )
        distance = normaliser(task, torch.from_numpy(np.asarray(targets, dtype=np.float64)))
        zero = distance == 0
        if zero.any():
            first, second = (task.labels[i] for i in task.normaliser)
            raise UserError(
                f"Expected the points {first!r} and {second!r} of {where} apart but in number "
                f"{int(zero.int().argmax())} of {len(targets)} they are one; correct or remove it"
            )

    def _value_of(self, task: Task, targets: npt.NDArray[Any]) -> npt.NDArray[Any]:
        points = torch.from_numpy(np.asarray(targets, dtype=np.float64))
        return np.asarray(normaliser(task, points).numpy())
