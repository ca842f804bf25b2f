"""What is served at a stage: for every experience an update of the backbone and a head."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from cl_lora.adapters import Adapter, Entry, entry_delta, entry_numbers
from cl_lora.adapters.injection import LoRAConfig, SupportsDelta, applied
from cl_lora.benchmarks.batches import target_tensor
from cl_lora.benchmarks.core import Benchmark
from cl_lora.benchmarks.draw import draw_support
from cl_lora.benchmarks.splits import Indices
from cl_lora.experiment.adaptations import BARE
from cl_lora.experiment.banks import BANKS, FRESH, BankKind, Banks
from cl_lora.experiment.feature_store import FeatureStore
from cl_lora.experiment.refit import refit_head
from cl_lora.experiment.stages import Stage, shots_of
from cl_lora.merging.residuals import TaskUpdate
from cl_lora.models.backbones import Backbone
from cl_lora.models.bottleneck import Composition
from cl_lora.models.class_statistics import FEATURES, results_of
from cl_lora.models.compute import Batch, Compute
from cl_lora.models.gaussians import Gaussians, shrunk_drift
from cl_lora.models.head_policies import HeadPolicy, HeadSources
from cl_lora.models.heads import PrototypeHead, freeze, head_of
from cl_lora.models.weights import Change, Weights
from cl_lora.run_folder.records import Account, Coefficient
from cl_lora.strategies.config import TrainingConfig
from cl_lora.tasks import Task


@dataclass(frozen=True, eq=False)
class Part:
    """A change of the backbone (None: the bare one) and a head.

    Attributes:
        update: what is added to the backbone's weights, or takes their place.
        head: outputs of features, frozen.
        key: parts with equal keys give the same scores, whatever arm and stage they serve; None
            where that is not known.
        features: names the update in the store of features; None where it is served but once.
        told: whether it serves an experience because it is known which one a sample is of: then
            answers are among the labels of that experience, not among all that were seen.
        answers: index of an experience -> outputs and targets of its test samples, where what is
            done to the backbone depends on the sample; None where ``update`` says it.
        serve: makes the same outputs of a batch of inputs as they come, with nothing stored; None
            where ``update`` and ``head`` do.
    """

    update: Change
    head: nn.Module
    key: Hashable | None = None
    features: Hashable | None = None
    told: bool = False
    answers: Callable[[int], list[Batch]] | None = None
    serve: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Served:
    """What an arm or a baseline serves at a stage.

    Attributes:
        parts: by index of the experience that is scored.
        coefficients: what was merged with, for the record.
        passes: forward passes of the backbone an input needs.
        accounts: what it cost to make it, for the record.
        beside: numbers that are stored beside the updates and heads of its parts.
    """

    parts: Mapping[int, Part]
    coefficients: tuple[Coefficient, ...] = ()
    passes: float = 1.0
    accounts: tuple[Account, ...] = ()
    beside: int = 0

    @classmethod
    def everywhere(
        cls, part: Part, stage: Stage, coefficients: Iterable[Coefficient] = ()
    ) -> Served:
        """Serve one part to every experience of a stage."""
        return cls(dict.fromkeys(stage.evaluated, part), tuple(coefficients))

    def update(self, j: int) -> Change:
        """Return the change of the backbone that serves experience ``j``."""
        return self.parts[j].update

    def head(self, j: int) -> nn.Module:
        """Return the head that serves experience ``j``."""
        return self.parts[j].head

    @property
    def parameters(self) -> int:
        """How many numbers must be stored beside the backbone to serve every experience."""
        updates = {id(p.update): p.update for p in self.parts.values() if p.update is not None}
        heads = {id(p.head): p.head for p in self.parts.values()}
        kept = (
            tensor.numel()
            for head in heads.values()
            for tensor in (*head.parameters(), *head.buffers())
        )
        return self.beside + sum(map(numbers_of, updates.values())) + sum(kept)


class OwnUpdate:
    """The update of one adapter alone."""

    def __init__(self, adapter: Adapter) -> None:
        self.entries: Mapping[str, Entry] = adapter.entries

    def modules(self) -> tuple[str, ...]:
        """Return the names of the adapted modules."""
        return tuple(self.entries)

    def delta(self, module: str) -> Tensor:
        """Return the dense update of one module, in the shape of its parameter."""
        return entry_delta(self.entries[module])


def numbers_of(update: SupportsDelta | Composition | Weights) -> int:
    """Return how many numbers a change takes: factors, or a dense matrix where that is less."""
    if isinstance(update, Composition):
        stacked = update.bottleneck.stacked.values()
        return sum(f.A.numel() + f.B.numel() for f in stacked) + update.alpha.numel()
    if isinstance(update, Weights):
        return sum(value.numel() for value in update.values.values())
    if isinstance(update, TaskUpdate):
        return update.residue.numbers + sum(map(entry_numbers, (update.base or {}).values()))
    entries: Mapping[str, Entry] = getattr(update, "entries", {})
    return sum(
        entry_numbers(entries[m]) if m in entries else update.delta(m).numel()
        for m in update.modules()
    )


def count_parameters(network: nn.Module) -> int:
    """Return how many numbers a network has, such as a backbone without a head."""
    return sum(p.numel() for p in network.parameters())


def numbers_to_serve(served: Served, backbone: int) -> int:
    """Return how many numbers serve all experiences together, heads left out.

    A change that serves every experience is folded into the backbone and costs nothing; what
    experiences have of their own stands beside it: the factors of an adapter, or a residual whose
    base all share. Whole models need no backbone beside them, so n of them cost n backbones.

    Args:
        served: what serves them.
        backbone: how many numbers the backbone has.
    """
    updates = {id(part.update): part.update for part in served.parts.values()}
    beside = served.beside
    if len(updates) == 1:
        return backbone + beside
    for update in updates.values():
        if isinstance(update, TaskUpdate):
            beside += update.residue.numbers
        elif update is not None:
            beside += numbers_of(update)
    return min(backbone + beside, len(updates) * backbone)


Samples = int | None
"""What learned or chosen coefficients see: so many samples per class of the buffer; None: the whole
validation part, which no adapter was trained on."""


@dataclass(frozen=True, eq=False)
class LearnedStart:
    """Coefficients that were learned once for the arms that start from them.

    Attributes:
        alpha: the coefficients, (n,) or (M, n).
        seconds: how long learning them took.
        arm: which arm it was done for.
    """

    alpha: Tensor
    seconds: float
    arm: str


@dataclass(frozen=True, eq=False)
class Workbench:
    """All that serving needs of one seed of a run.

    Attributes:
        benchmark: the stream; only its train parts reach learned coefficients and heads.
        backbone: the bare backbone, q, k and v split as the adapters need them.
        banks: the trained adapters.
        compute: device and precision.
        seed: the run's seed.
        policy: how the heads were trained, and serve where an arm does not say otherwise.
        buffers: samples per class -> for each experience the indices of its buffer.
        spc: samples per class of the class means that baselines serve.
        batch_size: inputs per forward pass.
        head_lr: learning rate of a head that is tuned with the coefficients.
        lora: the shape of a LoRA that is trained on a support set.
        training: how adapters and their heads were trained; new heads are as well.
        learned: coefficients that were learned at a stage, for arms that start from them.
        relative: whether scores are also told as a share of the single task's.
        partners: the adapters of another seed, for controls; none where there is no other.
    """

    benchmark: Benchmark
    backbone: Backbone
    banks: Banks
    compute: Compute
    seed: int
    policy: HeadPolicy
    buffers: Mapping[int, tuple[Indices, ...]]
    spc: int
    batch_size: int
    head_lr: float
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    learned: dict[Hashable, LearnedStart] = field(default_factory=dict)
    relative: bool = False
    partners: Sequence[Adapter] = ()
    _support: dict[tuple[Samples, tuple[int, ...]], Batch] = field(default_factory=dict)
    _updates: dict[tuple[str, int], OwnUpdate] = field(default_factory=dict)

    def task_at(self, stage: Stage) -> Task:
        """Return the task that all experiences share, among the labels seen at a stage."""
        return self.benchmark.asked(stage.members[0], stage.members)

    def own_task(self, j: int) -> Task:
        """Return the task of experience ``j`` where it is known that a sample is of it."""
        return self.benchmark.asked(j, (j,))

    @cached_property
    def store(self) -> FeatureStore:
        """Features that are computed once per seed."""
        return FeatureStore(
            self.benchmark, self.backbone, self.compute, self.batch_size, self.lora.first_block
        )

    def support_indices(self, stage: Stage) -> Indices:
        """Return the support set of a stage with K samples per class, drawn by the run's seed."""
        k = shots_of(stage)
        assert k
        experience = self.benchmark.experiences[stage.evaluated[0]]
        return draw_support(experience, k, self.seed, stage.draw)

    @property
    def main_bank(self) -> BankKind:
        """The bank whose adapters scores are told as a share of: the first that arms may merge."""
        return next(
            kind
            for kind in BANKS.values()
            if kind.for_arms and kind.own_heads and kind.name in self.banks
        )

    def own_head(self, j: int, bank: BankKind | None = None) -> nn.Module:
        """Return the head that was trained on experience ``j`` with an adapter of a bank."""
        return freeze(head_of(self.banks[(bank or self.main_bank).name][j].head))

    def head_at(self, stage: Stage, j: int, bank: BankKind | None = None) -> nn.Module:
        """Return the head of experience ``j`` at a stage: its own, or a new one before its turn."""
        come = stage.few_shot or j in stage.members
        return self.own_head(j, bank) if come else self.initial_head(j)

    def initial_head(self, j: int) -> nn.Module:
        """Return the head from which training experience ``j`` starts."""
        task = self.benchmark.experiences[j].task
        return freeze(self.training.initial_head(self.backbone, task, self.seed))

    def single(self, j: int, bank: BankKind | None = None) -> Part:
        """Return the own adapter of experience ``j`` in a bank, and its head."""
        bank = bank or self.main_bank
        update = OwnUpdate(self.banks[bank.name][j])
        return Part(update, self.own_head(j, bank), ("single", bank.name, j), told=True)

    def partner(self, j: int) -> Adapter:
        """Return the adapter of experience ``j`` that was trained from another seed."""
        return self.partners[j]

    def refit(self, update: Change, j: int, features: Hashable | None = None) -> nn.Module:
        """Return a new head of experience ``j``, trained on its train part under an update.

        Args:
            update: what is added to the backbone.
            j: index of the experience.
            features: names the update in the store of features; None where it comes but once.
        """
        experience = self.benchmark.experiences[j]

        def samples(indices: Indices) -> Batch:
            found = self.store.get(features, update, j, indices)
            return found, target_tensor(experience, indices).to(found.device)

        stops = self.training.patience is not None and len(experience.val)
        return refit_head(
            self.initial_head(j),
            samples(experience.train),
            samples(experience.val) if stops else None,
            self.own_task(j),
            self.training,
            self.seed,
            experience.name,
        )

    def samples_of(self, samples: Samples, j: int) -> Batch:
        """Return what may be seen of experience ``j``, inputs and targets: see :data:`Samples`."""
        val = self.benchmark.experiences[j].val
        return self._samples(j, val if samples is None else self.buffers[samples][j])

    def support(self, samples: Samples, stage: Stage) -> Batch:
        """Return the inputs and targets that learned coefficients and heads may see at a stage."""
        key = (samples, stage.support)
        if key not in self._support:
            batches = [self.samples_of(samples, j) for j in stage.support]
            inputs, targets = zip(*batches, strict=True)
            self._support.clear()  # one stage at a time is needed
            self._support[key] = (torch.cat(inputs), torch.cat(targets))
        return self._support[key]

    def _samples(self, j: int, indices: Indices) -> Batch:
        experience = self.benchmark.experiences[j]
        return self.backbone.encode(experience.inputs[indices]), target_tensor(experience, indices)

    def prototypes(
        self, update: SupportsDelta | None, spc: int, stage: Stage, rows: Tensor | None = None
    ) -> nn.Module:
        """Return class means of the support samples' features under an update.

        Args:
            update: what is added to the backbone.
            spc: samples per class of each experience.
            stage: whose support is taken.
            rows: which of its samples; None for all.
        """
        inputs, targets = self.support(spc, stage)
        if rows is not None:
            inputs, targets = inputs[rows], targets[rows]
        size = self.batch_size
        pairs = (
            (inputs[i : i + size], targets[i : i + size]) for i in range(0, len(targets), size)
        )
        with applied(self.backbone.network, update):
            parts = list(self.compute.features(self.backbone, pairs))
        features, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        return PrototypeHead(features, labels, self.task_at(stage).outputs)

    def untrained(self, stage: Stage) -> Served:
        """Return the bare backbone under a new head."""
        return Served(
            {j: Part(None, self.initial_head(j), "untrained", BARE) for j in stage.evaluated}
        )

    def bare(self, stage: Stage) -> Mapping[int, Part]:
        """Return the bare backbone under the head of the newest adapter of a stage."""
        newest = self.banks[FRESH.name][stage.members[-1]]
        return self._under_heads(None, newest, stage, None, BARE, FRESH)

    def alone(
        self,
        bank: BankKind,
        member: int,
        stage: Stage,
        policy: HeadPolicy | None = None,
        known: Sequence[int] = (),
    ) -> Mapping[int, Part]:
        """Return one adapter of a bank under its own head, or each experience's own.

        Args:
            bank: which bank.
            member: index of the adapter.
            stage: at which it is served.
            policy: the head policy, where it is not the run's.
            known: adapters whose statistics the head is made of; default: the one that is served.
        """
        adapter, update = self.banks[bank.name][member], self._alone(bank, member)
        used = policy or self.policy
        # Heads made of the support change with it.
        of_support = stage.support if used.needs_support else ()
        key = (bank.name, member, used.name, tuple(known), of_support)
        features = self._key_alone(bank, member)
        if used.apart and bank.own_heads:
            return self._under_heads(update, adapter, stage, key, features, bank)
        head = freeze(self.head_alone(bank, member, stage, used, known))
        return dict.fromkeys(stage.evaluated, Part(update, head, key, features))

    def _alone(self, bank: BankKind, member: int) -> OwnUpdate:
        return self._updates.setdefault(
            (bank.name, member), OwnUpdate(self.banks[bank.name][member])
        )

    @staticmethod
    def _key_alone(bank: BankKind, member: int) -> Hashable:
        return ("alone", bank.name, member)

    def features_alone(self, bank: BankKind, member: int, j: int, indices: Indices) -> Tensor:
        """Return features of samples of experience ``j`` under one adapter, computed once."""
        update = self._alone(bank, member)
        return self.store.get(self._key_alone(bank, member), update, j, indices)

    def head_alone(
        self,
        bank: BankKind,
        member: int,
        stage: Stage,
        policy: HeadPolicy,
        known: Sequence[int] = (),
        spc: int | None = None,
    ) -> nn.Module:
        """Return the one head that serves an adapter by itself; arguments as of :meth:`alone`.

        ``spc``: samples per class of a head that is made of the buffer, where not the run's.
        """
        members, spc = tuple(known) or (member,), spc or self.spc
        adapter, update = self.banks[bank.name][member], self._alone(bank, member)
        return policy.serve(
            HeadSources(
                [adapter.head],
                None,
                lambda: self.prototypes(update, spc, stage),
                gaussians=lambda: self.gaussians(bank, members),
                moved=lambda: self.moved(bank, members, update, spc),
            )
        )

    def gaussians(self, bank: BankKind, members: Sequence[int]) -> Gaussians:
        """Return Gaussians of the features of every class and experience, as they were kept."""
        found = [results_of(self.banks[bank.name][m].statistics[FEATURES]) for m in members]
        return Gaussians.of([results for of_adapter in found for results in of_adapter])

    def moved(self, bank: BankKind, members: Sequence[int], update: Change, spc: int) -> Gaussians:
        """Return :meth:`gaussians` with means that follow what is served instead.

        How far the features of an experience have moved is told by its buffer samples, whose
        features under the adapter and under what is served differ by the drift.
        """
        gaussians = self.gaussians(bank, members)
        classes = gaussians.means.shape[1]
        shifts = []
        for member in members:
            experience, rows = self.benchmark.experiences[member], self.buffers[spc][member]
            now = self.store.get(None, update, member, rows)
            before = self.features_alone(bank, member, member, rows)
            targets = target_tensor(experience, rows)
            shifts.append(shrunk_drift(now - before, targets, classes))
        return gaussians.moved(torch.stack(shifts))

    def _under_heads(
        self,
        update: SupportsDelta | None,
        adapter: Adapter,
        stage: Stage,
        key: Hashable | None,
        features: Hashable | None,
        bank: BankKind,
    ) -> Mapping[int, Part]:
        """Return for every experience of a stage a backbone under the head that serves it."""
        # Of other banks an adapter has the one head that was trained on with it.
        if self.policy.apart and bank.own_heads:
            return {j: self._apart(update, stage, j, key, features, bank) for j in stage.evaluated}
        sources = HeadSources(
            [adapter.head], None, lambda: self.prototypes(update, self.spc, stage)
        )
        part = Part(update, freeze(self.policy.serve(sources)), key, features)
        return dict.fromkeys(stage.evaluated, part)

    def _apart(
        self,
        update: SupportsDelta | None,
        stage: Stage,
        j: int,
        key: Hashable | None,
        features: Hashable | None,
        bank: BankKind,
    ) -> Part:
        """Return a backbone under the head of experience ``j``, which changes when it has come."""
        come = None if key is None else (key, stage.few_shot or j in stage.members)
        return Part(update, self.head_at(stage, j, bank), come, features, told=True)
