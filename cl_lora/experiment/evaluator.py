"""Evaluating arms on a bank: merge after every experience, score on every experience."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cl_lora.adapters import Adapter, LoRAFactors
from cl_lora.adapters.injection import SupportsDelta, applied
from cl_lora.benchmarks.batches import batches, to_tensor
from cl_lora.benchmarks.core import DomainBenchmark, Indices
from cl_lora.evaluation.classification import ClassificationCounts
from cl_lora.evaluation.scores import UNTRAINED, Score
from cl_lora.experiment.arms import Arm
from cl_lora.experiment.banks import Banks
from cl_lora.merging import Plan, Update, coefficient_rows, learn, prepare
from cl_lora.models.backbones import Backbone
from cl_lora.models.compute import Batch, Compute, freeze
from cl_lora.models.heads import PrototypeHead, linear_head, merge_heads, new_linear_head
from cl_lora.support.errors import DivergedError, UserError
from cl_lora.support.seeding import torch_generator


@dataclass(frozen=True)
class Coefficient:
    """One row of ``coefficients.csv``: the coefficient of one adapter in one group of modules."""

    seed: int
    arm: str
    stage: int
    group: str
    adapter: int
    value: float


@dataclass(frozen=True)
class Served:
    """What an arm serves after an experience: an update (None: the bare backbone) and a head."""

    update: SupportsDelta | None
    head: nn.Module
    coefficients: tuple[Coefficient, ...] = ()


class _OwnUpdate:
    """The update of one adapter alone."""

    def __init__(self, adapter: Adapter) -> None:
        self.factors: dict[str, LoRAFactors] = dict(adapter.factors)

    def modules(self) -> tuple[str, ...]:
        return tuple(self.factors)

    def delta(self, module: str) -> Tensor:
        return self.factors[module].delta()


class ArmEvaluator:
    """Scores arms on the adapters of one seed.

    Args:
        benchmark: the stream; only its train images reach the buffer, only its test images the
            scores.
        backbone: the bare backbone, q, k and v split as the adapters need them.
        banks: the trained adapters.
        compute: device and precision.
        seed: the run's seed.
        head_policy: how the heads were trained and are joined.
        buffers: SPC -> for each experience the indices of its buffer.
        spc: SPC of the prototypes of reference rows.
        batch_size: images a forward pass.
        head_lr: learning rate of a head that is tuned with the coefficients.
    """

    def __init__(
        self,
        *,
        benchmark: DomainBenchmark,
        backbone: Backbone,
        banks: Banks,
        compute: Compute,
        seed: int,
        head_policy: str,
        buffers: dict[int, tuple[Indices, ...]],
        spc: int,
        batch_size: int,
        head_lr: float,
    ) -> None:
        self.benchmark, self.backbone, self.banks = benchmark, backbone, banks
        self.compute, self.seed, self.head_policy = compute, seed, head_policy
        self.buffers, self.spc, self.batch_size = buffers, spc, batch_size
        self.head_lr = head_lr
        self.experiences = len(benchmark.domains)
        self._bare: dict[int, list[Batch]] = {}
        self._alone: dict[int, list[dict[str, float]]] = {}

    # What each arm serves -------------------------------------------------------------------

    def merged(self, arm: Arm, t: int) -> Served:
        """Return what ``arm`` serves after experience ``t``: the merge of adapters 0..t."""
        adapters = self.banks.fresh[: t + 1]
        plan = prepare(adapters, arm.method, space=arm.space, **arm.options)
        head: nn.Module = linear_head(self.banks.fresh[t].head)
        if arm.rule.learned:
            if self._head_policy(arm) == "per_experience":
                head = linear_head(_average_head(adapters))
            alpha, head = self._learn(arm, t, plan, head)
        else:
            values = arm.rule.options.get("value")
            if isinstance(values, Sequence):
                alpha = torch.tensor(list(values[: t + 1]), dtype=torch.float64)
            else:
                alpha = arm.rule.state(plan.n, plan.modules).alpha()
        update = plan.combine(alpha)
        policy = self._head_policy(arm)
        if policy == "per_experience" and not arm.tune_head:
            merged = merge_heads([a.head for a in adapters], alpha.float())
            head = linear_head(merged)
        elif policy == "prototypes":
            head = self._prototypes(update, arm.spc, t)
        rows = coefficient_rows(arm.rule, alpha, plan.modules)
        return Served(update, freeze(head), tuple(self._rows(arm.name, t, rows)))

    def _head_policy(self, arm: Arm) -> str:
        return arm.head or self.head_policy

    def _learn(self, arm: Arm, t: int, plan: Plan, head: nn.Module) -> tuple[Tensor, nn.Module]:
        indices = self._buffer(arm.spc, t)
        images, labels = self._images(indices)
        device = self.compute.device
        head = head.to(device).requires_grad_(arm.tune_head)
        steps = int(arm.rule.options["steps"])
        order = list(self._draws(len(indices), arm.buffer_batch_size, steps, t))

        # Heads that are merged with the coefficients are so in every step of learning them too.
        heads = [
            {key: value.to(device) for key, value in adapter.head.items()}
            for adapter in self.banks.fresh[: t + 1]
            if self._head_policy(arm) == "per_experience" and not arm.tune_head
        ]

        def loss(update: Update, step: int) -> Tensor:
            rows = order[step]
            features = self.compute.merged_features(self.backbone, update, images[rows].to(device))
            if heads and update.alpha is not None:
                merged = merge_heads(heads, update.alpha.to(features))
                logits = F.linear(features, merged["weight"], merged["bias"])
            else:
                logits = head(features)
            return F.cross_entropy(logits, labels[rows].to(device))

        extra = list(head.parameters()) if arm.tune_head else []
        lr = self.head_lr if extra else None
        try:
            learned = learn(arm.rule, plan, loss, extra_parameters=extra, extra_lr=lr)
        except UserError as error:
            raise DivergedError(
                f"Arm {arm.name!r}, seed {self.seed}, after experience {t}: {error}"
            ) from error
        return learned.alpha, head

    def _draws(self, size: int, batch_size: int, steps: int, t: int) -> Iterator[Tensor]:
        """Yield the buffer rows of every step: shuffled passes, a whole buffer if it is small."""
        generator = torch_generator(self.seed, "buffer-batches", t)
        pool = torch.empty(0, dtype=torch.int64)
        wanted = min(size, batch_size)
        for _ in range(steps):
            if len(pool) < wanted:
                pool = torch.cat([pool, torch.randperm(size, generator=generator)])
            yield pool[:wanted]
            pool = pool[wanted:]

    def _prototypes(self, update: SupportsDelta | None, spc: int, t: int) -> nn.Module:
        images, labels = self._images(self._buffer(spc, t))
        with applied(self.backbone.vit, update):
            size = self.batch_size
            starts = range(0, len(labels), size)
            pairs = ((images[i : i + size], labels[i : i + size]) for i in starts)
            parts = list(self.compute.features(self.backbone, pairs))
        features = torch.cat([f for f, _ in parts])
        targets = torch.cat([y for _, y in parts])
        return PrototypeHead(features, targets, len(self.benchmark.classes))

    def _buffer(self, spc: int, t: int) -> list[int]:
        return [int(i) for part in self.buffers[spc][: t + 1] for i in part]

    def _images(self, indices: Sequence[int]) -> Batch:
        chosen = list(indices)
        pixels = to_tensor(self.benchmark.images[chosen])
        return pixels, torch.from_numpy(self.benchmark.labels[chosen])

    def _rows(self, arm: str, t: int, rows: Sequence[tuple[str, Tensor]]) -> Iterator[Coefficient]:
        for group, values in rows:
            for i, value in enumerate(values.tolist()):
                yield Coefficient(self.seed, arm, t, group, i, value)

    def reference(self, name: str, t: int) -> Served:
        """Return what ``base``, ``sequential`` or ``joint`` serves after experience ``t``."""
        prototypes = self.head_policy == "prototypes"
        if name == "base":
            head = linear_head(self.banks.fresh[t].head)
            return Served(None, freeze(self._prototypes(None, self.spc, t) if prototypes else head))
        adapter = self.banks.joint if name == "joint" else self.banks.sequential[t]
        assert adapter is not None
        return self._alone_served(adapter, t)

    def _alone_served(self, adapter: Adapter, t: int) -> Served:
        update = _OwnUpdate(adapter)
        if self.head_policy == "prototypes":
            return Served(update, freeze(self._prototypes(update, self.spc, t)))
        return Served(update, freeze(linear_head(adapter.head)))

    # Scoring ---------------------------------------------------------------------------------

    def rows(self, arm: Arm | str) -> tuple[int, ...]:
        """Return after which experiences an arm is scored; -1 is before any training."""
        last = self.experiences - 1
        return (UNTRAINED, last) if arm == "joint" else (UNTRAINED, *range(self.experiences))

    def evaluate(
        self, arm: Arm | str, t: int, advance: Callable[[], None]
    ) -> tuple[list[Score], tuple[Coefficient, ...]]:
        """Score one arm (or reference row, by name) on all experiences after experience ``t``."""
        name = arm if isinstance(arm, str) else arm.name
        coefficients: tuple[Coefficient, ...] = ()
        if t == UNTRAINED:
            head = new_linear_head(self.backbone.features, len(self.benchmark.classes), self.seed)
            values = self._score(Served(None, freeze(head)), advance)
        elif name == "oracle":
            # Own adapter and head for what was seen, the newest adapter for what was not.
            values = [self._alone_on(min(j, t), j, advance) for j in range(self.experiences)]
        elif name == "last":
            values = [self._alone_on(t, j, advance) for j in range(self.experiences)]
        else:
            served = self.reference(arm, t) if isinstance(arm, str) else self.merged(arm, t)
            coefficients = served.coefficients
            values = self._score(served, advance)
        scores = [
            Score(self.seed, name, t, j, metric, value, True)
            for j, metrics in enumerate(values)
            for metric, value in metrics.items()
        ]
        return scores, coefficients

    def _alone_on(self, adapter: int, j: int, advance: Callable[[], None]) -> dict[str, float]:
        """Score one adapter alone, once: ``last`` and ``oracle`` share these passes."""
        if adapter not in self._alone:
            served = self._alone_served(self.banks.fresh[adapter], adapter)
            self._alone[adapter] = self._score(served, lambda: None)
        advance()
        return self._alone[adapter][j]

    def _score(self, served: Served, advance: Callable[[], None]) -> list[dict[str, float]]:
        head = served.head.to(self.compute.device)
        values = []
        with applied(self.backbone.vit, served.update), torch.no_grad():
            for j in range(self.experiences):
                counts = ClassificationCounts(len(self.benchmark.classes))
                batches = self._bare_features(j) if served.update is None else self._features(j)
                for features, labels in batches:
                    counts.update(head(features), labels)
                values.append(counts.scores())
                advance()
        return values

    def _features(self, j: int) -> Iterator[Batch]:
        return self.compute.features(
            self.backbone, batches(self.benchmark, self.benchmark.test[j], self.batch_size)
        )

    def _bare_features(self, j: int) -> list[Batch]:
        """Return the bare backbone's features of an experience, computed once a seed."""
        if j not in self._bare:
            self._bare[j] = list(self._features(j))
        return self._bare[j]


def _average_head(adapters: Sequence[Adapter]) -> dict[str, Tensor]:
    n = len(adapters)
    return merge_heads([a.head for a in adapters], torch.full((n,), 1 / n))
