"""An arm adapted to the support set of a stage; what is served then.

Every arm goes the same way (Asadi et al. 2024, with what a fair comparison needs): the head begins,
is warmed up alone on features of where the arm starts, then everything the arm trains is trained
together. All arms see the same samples in the same batches for the same number of steps. A head
that the model makes of texts stays what it is.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from cl_lora.adapters import Adapter
from cl_lora.benchmarks.batches import target_tensor
from cl_lora.benchmarks.core import Experience
from cl_lora.benchmarks.splits import Indices
from cl_lora.experiment.adaptations import (
    Coefficients,
    Opening,
    Start,
    Trained,
    get_adaptation,
)
from cl_lora.experiment.arms import MERGE, Adaptation, Arm
from cl_lora.experiment.banks import FRESH
from cl_lora.experiment.head_starts import StartSources, Zero, get_head_start
from cl_lora.experiment.merged import as_coefficients
from cl_lora.experiment.sampling import draws, held_out
from cl_lora.experiment.serving import LearnedStart, Part, Served, Workbench
from cl_lora.experiment.stages import Stage, shots_of
from cl_lora.merging import Plan, Update, prepare, search
from cl_lora.models.bottleneck import Bottleneck
from cl_lora.models.features import descend, fit_head
from cl_lora.models.heads import PrototypeHead, freeze
from cl_lora.models.weights import Change
from cl_lora.run_folder.records import Account, Coefficient
from cl_lora.strategies.config import VAL
from cl_lora.support.errors import DivergedError, UserError
from cl_lora.support.memory import peak_memory
from cl_lora.support.seeding import seed_everything

_JUDGED = 0.2
"""Share of the support set that a choice is made on."""


def adapt_arm(bench: Workbench, arm: Arm, stage: Stage) -> Served:
    """Return what ``arm`` serves after it was adapted to the support set of a stage.

    Raises:
        DivergedError: if training fails.
    """
    try:
        return _Adapting(bench, arm, stage).served()
    except UserError as error:
        raise DivergedError(
            f"Arm {arm.name!r}, seed {bench.seed}, stage {stage.name!r} of "
            f"{bench.benchmark.names[stage.evaluated[0]]!r}: {error}"
        ) from error


@dataclass(frozen=True, eq=False)
class _Fitted:
    """The outcome of one training.

    Attributes:
        change: what is done to the backbone.
        head: the trained head.
        alpha: the coefficients; None where nothing was merged.
        count: trained parameters without the head.
        key: names ``change`` among features that are computed once; None if it is new.
    """

    change: Change
    head: nn.Module
    alpha: Tensor | None
    count: int
    key: Any


@dataclass(frozen=True, eq=False)
class _Adapting:
    bench: Workbench
    arm: Arm
    stage: Stage

    @property
    def how(self) -> Adaptation:
        assert self.arm.adaptation is not None
        return self.arm.adaptation

    @property
    def j(self) -> int:
        return self.stage.evaluated[0]

    @property
    def experience(self) -> Experience:
        return self.bench.benchmark.experiences[self.j]

    @property
    def draw_keys(self) -> tuple[str, str, int]:
        """What the draws of training depend on beside the seed: never the arm."""
        return self.experience.name, self.stage.name, self.stage.draw

    @cached_property
    def indices(self) -> Indices:
        return self.bench.support_indices(self.stage)

    @cached_property
    def adapters(self) -> list[Adapter]:
        return [self.bench.banks[FRESH.name][m] for m in self.arm.of(self.stage)]

    def served(self) -> Served:
        if shots_of(self.stage) == 0:
            return self._without_samples()
        began = time.monotonic()
        with peak_memory(self.bench.compute.device) as peak:
            start = self._start()
            fitted, factor = self._chosen(start)
        account = {
            "trainable_parameters": float(fitted.count),
            # What was learned once for several arms is time that each of them needs.
            "seconds": time.monotonic() - began + self._borrowed,
            "peak_memory_mb": peak.mb,
            "learning_rate_factor": factor,
        }
        return self._serve(fitted, account)

    @property
    def _borrowed(self) -> float:
        """Seconds that learning the start took, where it was there already."""
        if self.arm.rule.how != "gradient" or self.how.kind.learns_coefficients:
            return 0.0  # learned nothing, or learned it itself
        there = self.bench.learned.get(self._learner_key)
        return there.seconds if there is not None and there.arm != self.arm.name else 0.0

    def _serve(self, fitted: _Fitted, account: Mapping[str, float | None]) -> Served:
        arm, bench, stage = self.arm, self.bench, self.stage
        coefficients: tuple[Coefficient, ...] = ()
        if fitted.alpha is not None:
            modules = self.adapters[0].modules()
            coefficients = as_coefficients(
                arm.rule, fitted.alpha, modules, bench.seed, arm.name, stage.index, arm.of(stage)
            )
        return Served(
            {self.j: Part(fitted.change, freeze(fitted.head), features=fitted.key)},
            coefficients,
            accounts=tuple(
                Account(bench.seed, arm.name, stage.index, quantity, value)
                for quantity, value in account.items()
                if value is not None
            ),
        )

    # Where the arm starts ---------------------------------------------------------------------

    def _start(self) -> Start:
        """Return where the arm starts; what is learned or chosen of it sees the support only."""
        arm = self.arm
        if self.how.start != MERGE:
            return Start()
        plan = prepare(
            self.adapters, str(arm.method), space=arm.space, seed=self.bench.seed, **arm.options
        )
        return self._start_at(plan, self._coefficients(plan))

    def _start_at(self, plan: Plan, alpha: Tensor) -> Start:
        update: Update = plan.combine(alpha)
        # Features of the warm-up come through the same forward as those of training after it.
        apart = self.how.kind.keeps_apart and plan.plain_sum
        change: Change = update
        if apart:
            network = self.bench.backbone.network
            change = Bottleneck.of(network, self.adapters).weighted(alpha)
        if self.how.truncate:
            change = update = update.truncate(self.bench.lora.rank)
        return Start(
            update=update,
            change=change,
            key=(*self._merge_key, str(alpha.tolist()), apart, self.how.truncate),
            alpha=alpha,
            adapters=self.adapters,
            plan=plan,
            rule=self.arm.rule,
        )

    @property
    def _merge_key(self) -> tuple[str, ...]:
        return merge_key(self.arm, self.stage)

    def _coefficients(self, plan: Plan) -> Tensor:
        arm = self.arm
        if arm.rule.how == "fixed":
            return arm.given(arm.of(self.stage), plan.modules)
        if arm.rule.how == "search":
            return self._searched(plan)
        if self.how.kind.learns_coefficients or shots_of(self.stage) == 0:
            return arm.rule.state(plan.n, plan.modules).alpha().detach()
        return self._learned()

    def _learned(self) -> Tensor:
        """Return the coefficients that learning the composition by itself ends with."""
        key = self._learner_key
        if key not in self.bench.learned:
            began = time.monotonic()
            there = _Adapting(self.bench, self._learner, self.stage)
            fitted, _ = there._chosen(there._start())
            assert fitted.alpha is not None
            self.bench.learned.clear()  # one stage at a time is needed
            seconds = time.monotonic() - began
            self.bench.learned[key] = LearnedStart(fitted.alpha, seconds, self.arm.name)
        return self.bench.learned[key].alpha

    @property
    def _learner(self) -> Arm:
        """The arm that learns the composition by itself."""
        begin = self.how.head_start
        how = replace(
            self.how,
            kind=get_adaptation(Coefficients.name),
            head_start=begin if begin.from_backbone else get_head_start(Zero.name),
            truncate=False,
        )
        return replace(self.arm, adaptation=how)

    @property
    def _learner_key(self) -> tuple[int, str]:
        variant = json.dumps(self._learner.variant, sort_keys=True, default=str)
        return self.stage.index, variant

    def _searched(self, plan: Plan) -> Tensor:
        """Return the candidate whose warmed-up head has the lowest loss.

        The head is warmed up on a part of the support set and judged on the rest; where a class
        has a single sample, on the whole set both times.
        """
        parts = held_out(self._strata(self.indices), _JUDGED)
        whole = torch.arange(len(self.indices))
        fit, judge = parts or (whole, whole)

        def loss(update: Update) -> float:
            assert update.alpha is not None
            start = self._start_at(plan, update.alpha)
            with torch.enable_grad():  # a search needs none of its own
                head = self._warmed_up(start, self.indices[fit.numpy()])
            return self._loss(start.change, start.key, head, self.indices[judge.numpy()])

        return search(self.arm.rule, plan, loss).alpha

    # Training -----------------------------------------------------------------------------------

    def _chosen(self, start: Start) -> tuple[_Fitted, float | None]:
        """Return the arm trained with the best factor of its grid, and the factor if it was chosen.

        A factor whose training fails is never the best.

        Raises:
            UserError: if training fails with every factor.
        """
        grid, config = self.how.config.grid, self.how.config
        parts = held_out(self._strata(self.indices), _JUDGED)
        on_val = config.select_on == VAL
        # One sample per class leaves none to judge on.
        if len(grid) == 1 or not self.how.kind.trains or not (parts or on_val):
            return self._fitted(start, self.indices, 1.0), None
        if on_val or parts is None:
            fit, judge = self.indices, self.experience.val
        else:
            fit, judge = (self.indices[rows.numpy()] for rows in parts)
        best: tuple[float, float, _Fitted] | None = None
        failure: UserError | None = None
        for factor in grid:
            try:
                fitted = self._fitted(start, fit, factor)
                loss = self._loss(fitted.change, fitted.key, fitted.head, judge)
            except UserError as error:
                failure = error
                continue
            if math.isfinite(loss) and (best is None or loss < best[0]):
                best = loss, factor, fitted
        if best is None:
            raise failure or UserError("no learning rate of adaptation.grid gives a finite loss")
        _, chosen, fitted = best
        return (fitted if on_val else self._fitted(start, self.indices, chosen)), chosen

    def _loss(self, change: Change, key: Any, head: nn.Module, indices: Indices) -> float:
        features = self.bench.store.get(key, change, self.j, indices)
        with torch.no_grad():
            outputs = head.to(features.device)(features)
            return float(self.experience.task.loss(outputs, self._targets(indices)))

    def _fitted(self, start: Start, indices: Indices, factor: float) -> _Fitted:
        how, bench = self.how, self.bench
        config = how.config
        head = self._warmed_up(start, indices)
        # Whatever draws from the global generators, such as a LoRA's first factors, is paired.
        seed_everything(bench.seed, "adaptation", *self.draw_keys)
        opening = Opening(
            bench.backbone, bench.compute, bench.lora, start, config, factor, how.truncate
        )
        with how.kind.opened(opening) as trained:
            if how.kind.trains:
                head = self._trained(trained, start, head, indices, factor)
            change, alpha = trained.result()
        key = start.key if trained.features is None else None
        return _Fitted(change, head.eval(), alpha, trained.count, key)

    def _warmed_up(self, start: Start, indices: Indices) -> nn.Module:
        bench, config = self.bench, self.how.config
        targets = self._targets(indices)

        def features() -> Tensor:
            return bench.store.get(start.key, start.change, self.j, indices)

        upstream = [bench.banks[FRESH.name][m].head for m in self.arm.of(self.stage)]
        sources = StartSources(
            bench.backbone.features,
            self.experience.task.outputs,
            upstream,
            features,
            targets,
            self._of_labels,
        )
        head = self.how.head_start.make(sources).to(bench.compute.device)
        if self._fixed_head or not (self.how.kind.trains and config.warmup_steps):
            return head
        rows = self._rows(len(indices), config.warmup_steps, "warm-up")
        return fit_head(
            head,
            features(),
            targets,
            rows,
            self.experience.task.loss,
            lr=config.head_lr,
            weight_decay=config.weight_decay,
        ).head

    def _trained(
        self, trained: Trained, start: Start, head: nn.Module, indices: Indices, factor: float
    ) -> nn.Module:
        """Train the head, unless texts say what it is, and what is open beside it."""
        config, bench, loss = self.how.config, self.bench, self.experience.task.loss
        rows = self._rows(len(indices), config.steps_for(len(indices)), "adaptation")
        if trained.features is None:
            return fit_head(
                head,
                bench.store.get(start.key, start.change, self.j, indices),
                self._targets(indices),
                rows,
                loss,
                lr=config.head_lr * factor,  # nothing else has a learning rate to choose
                weight_decay=config.weight_decay,
                decay=True,
            ).head
        forward = trained.features
        head = freeze(head) if self._fixed_head else head.requires_grad_(True).train()
        device, inputs = bench.compute.device, self.experience.inputs

        def step_loss(step: int) -> Tensor:
            chosen = indices[rows[step].numpy()]
            features = forward(bench.backbone.encode(inputs[chosen]).to(device))
            return loss(head(features), self._targets(chosen))

        own = {"lr": config.head_lr, "weight_decay": config.weight_decay}
        heads = [] if self._fixed_head else [{"params": list(head.parameters()), **own}]
        descend(
            [*trained.groups, *heads],
            step_loss,
            len(rows),
            decay=True,
            what="adapting it; try lower learning rates in adaptation, or precision=fp32",
        )
        return head

    @property
    def _fixed_head(self) -> bool:
        """Whether texts say what the head is."""
        return self.how.head_start.from_backbone

    def _of_labels(self) -> nn.Module:
        return self.bench.backbone.task_head(self.experience.task)

    def _rows(self, size: int, steps: int, purpose: str) -> list[Tensor]:
        batch_size = self.how.config.batch_size
        return list(draws(size, batch_size, steps, self.bench.seed, purpose, *self.draw_keys))

    def _targets(self, indices: Indices) -> Tensor:
        return target_tensor(self.experience, indices).to(self.bench.compute.device)

    def _strata(self, indices: Indices) -> Tensor:
        task = self.experience.task
        strata, _ = task.kind.strata(task, self.experience.targets[indices])
        return torch.from_numpy(strata)

    # Without samples ----------------------------------------------------------------------------

    def _without_samples(self) -> Served:
        """Return where the arm starts under the head of texts, or class means of upstream features.

        The class means are of the train parts of all upstream experiences.
        """
        start = self._start()
        bench = self.bench
        if self._fixed_head:
            zero_shot = self._of_labels().to(bench.compute.device)
            fitted = _Fitted(start.change, zero_shot, start.alpha, 0, start.key)
            return self._serve(fitted, {"trainable_parameters": 0.0})
        features: list[Tensor] = []
        labels: list[Tensor] = []
        for m in self.arm.of(self.stage):
            upstream = bench.benchmark.experiences[m]
            features.append(bench.store.get(start.key, start.change, m, upstream.train))
            labels.append(target_tensor(upstream, upstream.train))
        means = PrototypeHead(
            torch.cat(features),
            torch.cat(labels).to(bench.compute.device),
            self.experience.task.outputs,
        )
        fitted = _Fitted(start.change, means, start.alpha, 0, start.key)
        return self._serve(fitted, {"trainable_parameters": 0.0})


def merge_key(arm: Arm, stage: Stage) -> tuple[str, ...]:
    """Return what names the merge of an arm at a stage, whatever its coefficients."""
    variant = {k: v for k, v in arm.merge_variant.items() if k != "coefficients"}
    return json.dumps(variant, sort_keys=True), str(arm.of(stage))


def edges(chosen: Mapping[str, Sequence[float]], grid: Sequence[float]) -> list[str]:
    """Return a sentence for every arm some of whose choices lie at an end of its grid.

    Args:
        chosen: arm -> the factors that were chosen.
        grid: the factors to choose from.
    """
    said = []
    for arm, factors in chosen.items():
        at = [f"{sum(f == end for f in factors)} at {end:g}" for end in (grid[0], grid[-1])]
        count = sum(f in (grid[0], grid[-1]) for f in factors)
        if len(grid) > 1 and count:
            said.append(
                f"{count} of {len(factors)} learning rates chosen for {arm} lie at the edge of the "
                f"grid ({', '.join(at)}); widen adaptation.grid"
            )
    return said
