"""Baselines of tasks that each have a head: single task, baselines, and controls of a merge.

A merge may hurt a task for reasons that have nothing to do with the other one: a head that does not
fit any more, or updates that are only too large together. Each of these rows changes one thing of a
single task (Kesim and Helli 2024 compare with single task and head only).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cl_lora.experiment.adaptations import BARE
from cl_lora.experiment.banks import FRESH, FULL, BankKind
from cl_lora.experiment.references.core import CONTROL, Reference, register_reference
from cl_lora.experiment.serving import Part, Served, Workbench
from cl_lora.experiment.stages import ALONE, Stage, shots_of
from cl_lora.merging import prepare
from cl_lora.models.heads import ConstantHead, freeze

SINGLE, TRIVIAL, HEAD_ONLY = "single", "trivial", "head_only"
SINGLE_FULL = "single_full"
"""What the rows stand for in the analysis of a run."""


class _OfTasks(Reference):
    """A row that does not change from stage to stage: each task by itself."""

    def scored(self, stages: Sequence[Stage]) -> tuple[Stage, ...]:
        """Return the stages of one task each; where there are none, the last in time."""
        timely = tuple(stage for stage in stages if shots_of(stage) is None)
        return tuple(stage for stage in timely if stage.group == ALONE) or timely[-1:]


@register_reference
class Single(_OfTasks):
    """What every task reaches by itself."""

    name = "single"
    summary = "each task served by its own adapter and head"
    role = SINGLE
    yardstick = 5

    def serve(self, bench: Workbench, stage: Stage) -> Served:
        """Serve every task its own adapter and head."""
        return Served({j: bench.single(j, FRESH) for j in stage.evaluated})

    def adapter(self, stage: Stage) -> tuple[BankKind, int] | None:
        """Return the task's own adapter, at a stage of one task."""
        return (FRESH, stage.members[0]) if len(stage.members) == 1 else None


@register_reference
class SingleFull(_OfTasks):
    """What every task reaches where the whole backbone is fine-tuned on it alone."""

    name = "single_full"
    summary = "each task served by a backbone of its own, fully fine-tuned, and its head"
    role = SINGLE_FULL
    banks = (FULL,)
    yardstick = 4

    def serve(self, bench: Workbench, stage: Stage) -> Served:
        """Serve every task its own backbone and head."""
        return Served({j: bench.single(j, FULL) for j in stage.evaluated})


@register_reference
class HeadOnly(_OfTasks):
    """What a head can do without any adapter."""

    name = "head_only"
    summary = "the bare backbone under a head that was trained on it, for each task"
    role = HEAD_ONLY
    banks = ()

    def serve(self, bench: Workbench, stage: Stage) -> Served:
        """Train a head for every task on the features of the bare backbone."""
        return Served(
            {
                j: Part(None, bench.refit(None, j, BARE), "head_only", BARE, told=True)
                for j in stage.evaluated
            }
        )


@register_reference
class Trivial(_OfTasks):
    """What can be done without looking at an input."""

    name = "trivial"
    summary = "the majority class, the mean value or the mean shape of the train part"
    role = TRIVIAL
    banks = ()

    def serve(self, bench: Workbench, stage: Stage) -> Served:
        """Serve every task a constant."""
        parts = {}
        for j in stage.evaluated:
            experience = bench.benchmark.experiences[j]
            outputs = experience.task.constant(experience.targets[experience.train])
            parts[j] = Part(None, freeze(ConstantHead(outputs)), "trivial", BARE, told=True)
        return Served(parts)


@register_reference
class SingleNewHead(_OfTasks):
    """Whether the head was the trouble: a new head as of a merge, without one."""

    name = "single_new_head"
    summary = "each task's own adapter under a head that was trained anew on it"
    role = CONTROL

    def serve(self, bench: Workbench, stage: Stage) -> Served:
        """Train a head for every task on the features of its own adapter."""
        own = {j: bench.single(j, FRESH) for j in stage.evaluated}
        return Served(
            {j: Part(p.update, bench.refit(p.update, j), told=True) for j, p in own.items()}
        )


@register_reference
class OtherSeed(_OfTasks):
    """The most similar partner there is: the same task, trained from another seed."""

    name = "other_seed"
    summary = "each task's own adapter plus the one of the same task and another seed"
    role = CONTROL
    needs_partner = True

    def serve(self, bench: Workbench, stage: Stage) -> Served:
        """Serve the sum of both, under the task's own head."""
        parts = {}
        for j in stage.evaluated:
            pair = [bench.banks[FRESH.name][j], bench.partner(j)]
            update = prepare(pair, "cat").combine(torch.ones(2, dtype=torch.float64))
            parts[j] = Part(update, bench.own_head(j, FRESH), told=True)
        return Served(parts)


class _Scaled(_OfTasks):
    """The scale of an update alone: what merging n at 1 / n, or at more than 1, does to a head."""

    role = CONTROL
    factor: float

    def serve(self, bench: Workbench, stage: Stage) -> Served:
        """Serve every task its own adapter times the factor, under its own head."""
        parts = {}
        for j in stage.evaluated:
            plan = prepare([bench.banks[FRESH.name][j]], "cat")
            update = plan.combine(torch.tensor([self.factor], dtype=torch.float64))
            parts[j] = Part(update, bench.own_head(j, FRESH), told=True)
        return Served(parts)


@register_reference
class Third(_Scaled):
    """A third of the update."""

    name = "single_x0.33"
    summary = "each task's own adapter at a third of its update"
    factor = 1 / 3


@register_reference
class Half(_Scaled):
    """Half of the update."""

    name = "single_x0.5"
    summary = "each task's own adapter at half its update"
    factor = 0.5


@register_reference
class Quarter(_Scaled):
    """A quarter more."""

    name = "single_x1.25"
    summary = "each task's own adapter at 1.25 times its update"
    factor = 1.25


@register_reference
class HalfMore(_Scaled):
    """Half as much again."""

    name = "single_x1.5"
    summary = "each task's own adapter at 1.5 times its update"
    factor = 1.5
