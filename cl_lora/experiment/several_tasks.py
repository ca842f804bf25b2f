"""Losses of several tasks on their buffers, made alike so that they can be added."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cl_lora.adapters.injection import applied
from cl_lora.experiment.banks import BankKind
from cl_lora.experiment.serving import Samples, Workbench
from cl_lora.merging import Update
from cl_lora.models.compute import Batch
from cl_lora.models.weights import changed
from cl_lora.tasks import Task

_SMALLEST_SHARE = 0.05
"""Of the trivial predictor's loss: what the loss of a single task counts for at least."""


@dataclass(frozen=True, eq=False)
class Tasks:
    """The buffers of several tasks, with losses that can be added.

    Every loss is divided by what the task's own adapter has on the same samples, at least a
    twentieth of the trivial predictor's: an adapter that knows its buffer by heart has a loss near
    zero, by which nothing can be divided.

    Attributes:
        bench: a seed of a run.
        samples: by index of the experience its buffer, inputs and targets.
        heads: the own head of each, on the device.
        units: the loss that each is divided by.
    """

    bench: Workbench
    samples: Mapping[int, Batch]
    heads: Mapping[int, nn.Module]
    units: Mapping[int, float]

    @classmethod
    def of(cls, bench: Workbench, seen: Samples, members: Sequence[int], bank: BankKind) -> Tasks:
        """Return what may be seen of some experiences, under the heads of a bank."""
        samples = {j: bench.samples_of(seen, j) for j in members}
        heads = {j: bench.own_head(j, bank).to(bench.compute.device) for j in members}
        units = {}
        for j in members:
            single = bench.single(j, bank).update
            with changed(bench.backbone.network, single):
                own = cls(bench, samples, heads, {})._loss(j)
            units[j] = max(own, _SMALLEST_SHARE * _trivial_loss(bench, j, samples[j][1]))
        return cls(bench, samples, heads, units)

    @property
    def sizes(self) -> dict[int, int]:
        """How many samples each experience has."""
        return {j: len(targets) for j, (_, targets) in self.samples.items()}

    def loss(self, update: Update) -> float:
        """Return the mean over tasks of the loss of all samples under an update, in its unit."""
        with applied(self.bench.backbone.network, update):
            losses = [self._loss(j) / self.units[j] for j in self.samples]
        return sum(losses) / len(losses)

    def outputs(self, update: Update) -> Tensor:
        """Return what the heads answer to all samples under an update, one after another, flat."""
        with applied(self.bench.backbone.network, update):
            return torch.cat([self._outputs(j)[0].reshape(-1) for j in self.samples])

    def loss_of(self, outputs: Tensor) -> Tensor:
        """Return the mean over tasks of the loss of :meth:`outputs`, in its unit."""
        device = self.bench.compute.device
        sizes = {j: len(y) * self._task(j).outputs for j, (_, y) in self.samples.items()}
        parts = zip(self.samples, torch.split(outputs, list(sizes.values())), strict=True)
        losses = [
            self._task(j).loss(part.view(-1, self._task(j).outputs), self.samples[j][1].to(device))
            / self.units[j]
            for j, part in parts
        ]
        return torch.stack(losses).mean()

    def relative_loss(
        self, features: Callable[[Tensor], Tensor], rows: Mapping[int, Tensor]
    ) -> Tensor:
        """Return the mean over tasks of the loss of some samples, in its unit, differentiable.

        Args:
            features: inputs on the device -> features; one pass for all tasks.
            rows: of each experience the samples.
        """
        device = self.bench.compute.device
        inputs = torch.cat([self.samples[j][0][chosen] for j, chosen in rows.items()])
        sizes = [len(chosen) for chosen in rows.values()]
        parts = torch.split(features(inputs.to(device)), sizes)
        losses = []
        for (j, chosen), found in zip(rows.items(), parts, strict=True):
            targets = self.samples[j][1][chosen].to(device)
            losses.append(self._task(j).loss(self.heads[j](found), targets) / self.units[j])
        return torch.stack(losses).mean()

    @torch.no_grad()
    def _loss(self, j: int) -> float:
        """Return the loss of all samples of one experience under the backbone as it stands."""
        return float(self._task(j).loss(*self._outputs(j)))

    @torch.no_grad()
    def _outputs(self, j: int) -> Batch:
        """Return what the head of an experience answers to all its samples, and the targets."""
        bench, (inputs, targets) = self.bench, self.samples[j]
        size = bench.batch_size
        parts = ((inputs[i : i + size], targets[i : i + size]) for i in range(0, len(inputs), size))
        found = list(bench.compute.features(bench.backbone, parts))
        outputs = self.heads[j](torch.cat([f for f, _ in found]))
        return outputs, torch.cat([y for _, y in found])

    def _task(self, j: int) -> Task:
        return self.bench.own_task(j)


def _trivial_loss(bench: Workbench, j: int, targets: Tensor) -> float:
    experience = bench.benchmark.experiences[j]
    constant = experience.task.constant(experience.targets[experience.train])
    return float(bench.own_task(j).loss(constant.expand(len(targets), -1), targets))
