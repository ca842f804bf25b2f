"""Features that are computed once, and heads trained on them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cl_lora.models.backbones import Backbone
from cl_lora.models.compute import Batch, Compute
from cl_lora.support.errors import UserError


def cached_features(
    compute: Compute, backbone: Backbone, batches: Iterable[Batch]
) -> tuple[Tensor, Tensor]:
    """Return the features of every sample, computed once, and the targets.

    What is served is the caller's: the backbone as it stands, or inside
    :func:`~cl_lora.adapters.injection.applied` or :func:`~cl_lora.models.bottleneck.composed`.
    The forward pass is the run's, so that features of warming up a head and of training after it
    are the same; they are kept in float32.

    Args:
        compute: where and how precisely.
        backbone: frozen, in eval mode.
        batches: (inputs, targets).

    Returns:
        Features float32 (N, d) and targets (N, ...), in the order of the batches, on the device.

    Raises:
        UserError: if there are no samples, the backbone would give other features the next time, or
            a feature is not finite.
    """
    return kept_features(backbone, compute.features(backbone, batches))


def kept_features(backbone: Backbone, pairs: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """Return what :func:`cached_features` does, of features that come batch by batch.

    Args:
        backbone: what computes them.
        pairs: (features, targets).

    Raises:
        UserError: as :func:`cached_features`.
    """
    if any(module.training for module in backbone.modules()):
        raise UserError(
            "Expected a backbone in eval mode, to compute its features once, but part of it is in "
            "training mode, where dropout gives others every time; call eval() first"
        )
    found = list(pairs)
    if not found:
        raise UserError("Expected at least one sample to compute features of but got none")
    features = torch.cat([f for f, _ in found])
    if not features.isfinite().all():
        raise UserError(
            "Expected finite features but some are NaN or infinite; check the samples, or use "
            "precision=fp32"
        )
    return features, torch.cat([y for _, y in found])


@dataclass(frozen=True)
class FittedHead:
    """A trained head.

    Attributes:
        head: on the device of the features.
        losses: the loss of every step, before it.
    """

    head: nn.Module
    losses: tuple[float, ...]


def fit_head(
    head: nn.Module,
    features: Tensor,
    targets: Tensor,
    rows: Iterable[Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    lr: float,
    weight_decay: float = 0.0,
    decay: bool = False,
    judge: Callable[[nn.Module], float] | None = None,
    every: int = 1,
    patience: int = 1,
) -> FittedHead:
    """Train a copy of ``head`` by AdamW on cached features; the warm-up of Asadi et al. 2024.

    A step is the same as one through the frozen backbone with the same samples, but for rounding:
    a sample's features do not depend on its batch. No rows leave the head as it is.

    Args:
        head: where to start; stays as it is.
        features: float tensor (N, d).
        targets: (N, ...).
        rows: int64 (b,) for each step, the samples of its batch. The caller draws them.
        loss: (outputs, targets) -> scalar, the task's.
        lr: the learning rate.
        weight_decay: of AdamW.
        decay: whether the learning rate falls to zero along a half cosine; else it stays.
        judge: the loss of a head on other samples; the weights of the lowest are kept then. None
            keeps the last.
        every: judged after so many steps, and at the end.
        patience: training ends after so many judgements without a lower one.

    Raises:
        UserError: if features and targets differ in number, ``lr`` is not above 0, or a loss is
            not finite.
    """
    if len(features) != len(targets):
        raise UserError(
            f"Expected as many features as targets but got {len(features)} and {len(targets)}; "
            "cache both from the same batches"
        )
    if not (math.isfinite(lr) and lr > 0):
        raise UserError(f"Expected the head's learning rate to be above 0 but got {lr}")
    head = copy.deepcopy(head).to(features.device).requires_grad_(True).train()
    order = [batch.to(features.device) for batch in rows]
    best = _Best(head, judge, every, patience, len(order))
    losses = descend(
        [{"params": list(head.parameters()), "lr": lr, "weight_decay": weight_decay}],
        lambda step: loss(head(features[order[step]]), targets[order[step]]),
        len(order),
        decay=decay,
        what=f"training the head on cached features; lower its learning rate, now {lr:g}",
        enough=best.after,
    )
    best.restore()
    return FittedHead(head.eval(), losses)


class _Best:
    """Keeps the weights of the best judgement of a head."""

    def __init__(
        self,
        head: nn.Module,
        judge: Callable[[nn.Module], float] | None,
        every: int,
        patience: int,
        steps: int,
    ) -> None:
        self._head, self._judge = head, judge
        self._every, self._patience, self._steps = every, patience, steps
        self._lowest, self._since = math.inf, 0
        self._weights: dict[str, Tensor] | None = None

    def after(self, step: int) -> bool:
        """Judge after a step where it is time; return whether training has done enough."""
        last = step == self._steps - 1
        if self._judge is None or not (last or (step + 1) % self._every == 0):
            return False
        self._head.eval()
        loss = self._judge(self._head)
        self._head.train()
        self._since += 1
        if loss < self._lowest:
            self._lowest, self._since = loss, 0
            self._weights = {k: v.detach().clone() for k, v in self._head.state_dict().items()}
        return self._since >= self._patience

    def restore(self) -> None:
        """Put the best weights back, if any were judged."""
        if self._weights is not None:
            self._head.load_state_dict(self._weights)


def descend(
    groups: Sequence[dict[str, Any]],
    loss: Callable[[int], Tensor],
    steps: int,
    *,
    decay: bool = False,
    what: str,
    enough: Callable[[int], bool] = lambda step: False,
) -> tuple[float, ...]:
    """Take steps of AdamW on a loss, and return the loss before each.

    Args:
        groups: of parameters, each with ``params``, ``lr`` and, where wanted, ``weight_decay``.
        loss: the step from 0 -> a scalar.
        steps: how many.
        decay: whether the learning rates fall to zero along a half cosine.
        what: what is trained, and what to do where the loss is not finite, for the error.
        enough: called after each step; True ends training.

    Raises:
        UserError: if a loss is not finite.
    """
    if not steps:
        return ()
    optimizer = torch.optim.AdamW([{"weight_decay": 0.0, **group} for group in groups])
    peaks = [group["lr"] for group in optimizer.param_groups]
    losses = []
    for step in range(steps):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * (0.5 * (1 + math.cos(math.pi * step / steps)) if decay else 1.0)
        value = loss(step)
        losses.append(float(value.detach()))
        if not math.isfinite(losses[-1]):
            raise UserError(f"The loss is {losses[-1]} at step {step} of {what}")
        optimizer.zero_grad()
        torch.autograd.backward([value])
        optimizer.step()
        if enough(step):
            break
    return tuple(losses)
