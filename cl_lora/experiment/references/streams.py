"""Baselines of a stream: bare backbone, last adapter, oracle, sequential, joint training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cl_lora.experiment.banks import FRESH, JOINT, SEQUENTIAL, BankKind
from cl_lora.experiment.references.core import Reference, register_reference
from cl_lora.experiment.serving import Served, Workbench
from cl_lora.experiment.stages import Stage
from cl_lora.models.class_statistics import FEATURES
from cl_lora.models.head_policies import Gaussian, Mixture


@register_reference
class Base(Reference):
    """What the backbone can do without any adapter."""

    name = "base"
    summary = "no adapter: the pre-trained backbone under the current head"
    yardstick = 1

    def serve(self, bench: Workbench, stage: Stage) -> Served:
        """Serve the bare backbone."""
        return Served(bench.bare(stage))


@register_reference
class Last(Reference):
    """What is left of the past where nothing is merged."""

    name = "last"
    summary = "the adapter trained last, alone"
    yardstick = 2

    def serve(self, bench: Workbench, stage: Stage) -> Served:
        """Serve the newest adapter."""
        return Served(bench.alone(FRESH, stage.members[-1], stage))

    def adapter(self, stage: Stage) -> tuple[BankKind, int] | None:
        """Return the newest adapter."""
        return FRESH, stage.members[-1]


@register_reference
class Oracle(Reference):
    """What the adapters can do where it is known which one an input needs."""

    name = "oracle"
    summary = "each experience served by its own adapter and head (needs to know the experience)"

    def serve(self, bench: Workbench, stage: Stage) -> Served:
        """Serve every experience its own adapter, and the newest where it has none yet.

        A head made of support samples is that of the time when the adapter was the newest.
        """
        members = {m: bench.alone(FRESH, m, stage.seen_by(m)) for m in stage.members}
        newest = members[stage.members[-1]]
        parts = {j: members.get(j, newest)[j] for j in stage.evaluated}
        return Served({j: replace(part, told=True) for j, part in parts.items()})


@register_reference
class Sequential(Reference):
    """What plain fine-tuning does."""

    name = "sequential"
    summary = "one LoRA trained on from experience to experience"
    banks = (FRESH, SEQUENTIAL)
    yardstick = 3

    def serve(self, bench: Workbench, stage: Stage) -> Served:
        """Serve the state after the newest experience."""
        return Served(bench.alone(SEQUENTIAL, stage.members[-1], stage))

    def adapter(self, stage: Stage) -> tuple[BankKind, int] | None:
        """Return the state after the newest experience."""
        return SEQUENTIAL, stage.members[-1]


@register_reference
class OracleSequential(Reference):
    """What the states of one adapter can do where it is known which one an input needs."""

    name = "oracle_sequential"
    summary = "each experience served by the sequential state after it (needs to know which)"
    banks = (FRESH, SEQUENTIAL)

    def serve(self, bench: Workbench, stage: Stage) -> Served:
        """Serve every experience the state after it, and the newest where it has not come."""
        members = {m: bench.alone(SEQUENTIAL, m, stage.seen_by(m)) for m in stage.members}
        newest = members[stage.members[-1]]
        parts = {j: members.get(j, newest)[j] for j in stage.evaluated}
        return Served({j: replace(part, told=True) for j, part in parts.items()})


@register_reference
class SequentialMixture(Sequential):
    """What plain fine-tuning does under a head that remembers every experience."""

    name = "sequential_mixture"
    summary = "sequential under the mixture head: a Gaussian for each class of each experience"
    yardstick = 0
    statistics = (FEATURES,)
    of_statistics = (SEQUENTIAL.name,)
    head = Mixture

    def serve(self, bench: Workbench, stage: Stage) -> Served:
        """Serve the state after the newest experience."""
        newest = stage.members[-1]
        policy = Mixture()
        return Served(bench.alone(SEQUENTIAL, newest, stage, policy, known=stage.members))


@register_reference
class Joint(Reference):
    """What could be done if all data were there at once."""

    name = "joint"
    summary = "one LoRA trained on all experiences at once, scored at the end"
    banks = (FRESH, JOINT)

    def scored(self, stages: Sequence[Stage]) -> tuple[Stage, ...]:
        """Return the stages that merge all there is, and the one before any training.

        Where no stage merges everything, the last stands for them.
        """
        everything = {member for stage in stages for member in stage.members}
        whole = [s for s in stages if set(s.members) == everything] or [stages[-1]]
        return tuple(s for s in stages if s.index < 0 or s in whole)

    def serve(self, bench: Workbench, stage: Stage) -> Served:
        """Serve the one adapter."""
        policy = None if self.head is None else self.head()
        return Served(bench.alone(JOINT, 0, stage, policy))

    def adapter(self, stage: Stage) -> tuple[BankKind, int] | None:
        """Return the one adapter."""
        return JOINT, 0


class _JointUnder(Joint):
    """Joint training under a head of statistics: what arms with such a head are measured by."""

    statistics = (FEATURES,)
    of_statistics = (JOINT.name,)

    def scored(self, stages: Sequence[Stage]) -> tuple[Stage, ...]:
        """Return the stages that merge all there is: before any training there is no statistic."""
        return tuple(stage for stage in super().scored(stages) if stage.index >= 0)


@register_reference
class JointGaussian(_JointUnder):
    """Joint training under half its trained head and half class-Gaussians."""

    name = "joint_gaussian"
    summary = "joint under the gaussian head, the fair bound of arms with head=gaussian"
    head = Gaussian


@register_reference
class JointMixture(_JointUnder):
    """Joint training under class-Gaussians alone."""

    name = "joint_mixture"
    summary = "joint under the mixture head, the fair bound of arms with head=mixture"
    head = Mixture
