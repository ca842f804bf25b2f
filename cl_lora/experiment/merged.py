"""What an arm serves: the merge of a stage's adapters, its coefficients learned if need be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cl_lora.adapters import Adapter
from cl_lora.adapters.injection import applied
from cl_lora.experiment.arms import Arm
from cl_lora.experiment.routed import serve_routed
from cl_lora.experiment.sampling import draws, folds
from cl_lora.experiment.serving import LearnedStart, Part, Served, Workbench
from cl_lora.experiment.several_tasks import Tasks
from cl_lora.experiment.stages import Stage
from cl_lora.merging import (
    CoefficientRule,
    Plan,
    Update,
    coefficient_rows,
    learn,
    prepare,
    search,
)
from cl_lora.merging.coefficients import minimise
from cl_lora.merging.residuals import ResidualChoice, TaskUpdate
from cl_lora.models.bottleneck import Bottleneck
from cl_lora.models.head_policies import HeadSources
from cl_lora.models.heads import HeadState, freeze, head_of
from cl_lora.models.weights import Change, begins_at
from cl_lora.run_folder.records import Coefficient
from cl_lora.support.errors import DivergedError, UserError


def serve_arm(bench: Workbench, arm: Arm, stage: Stage) -> Served:
    """Return what ``arm`` serves at a stage after training: the merge of the stage's members.

    Raises:
        DivergedError: if learning its coefficients fails.
    """
    serve = serve_routed if arm.rule.routed else _serve_merge
    return serve(bench, arm, stage)


def _serve_merge(bench: Workbench, arm: Arm, stage: Stage) -> Served:
    return _Merge(bench, arm, stage).served()


@dataclass(frozen=True, eq=False)
class _Merge:
    bench: Workbench
    arm: Arm
    stage: Stage

    @property
    def members(self) -> tuple[int, ...]:
        return self.arm.of(self.stage)

    @property
    def adapters(self) -> list[Adapter]:
        return [self.bench.banks[self.arm.bank.name][m] for m in self.members]

    @property
    def heads(self) -> list[HeadState]:
        return [adapter.head for adapter in self.adapters]

    def served(self) -> Served:
        arm = self.arm
        update, tuned, coefficients = self._merged()
        if arm.residual is not None:
            return Served(self._with_residuals(arm.residual, update), coefficients)
        assert update is not None
        if arm.policy.apart:
            heads = {j: freeze(self._head_of(update, j)) for j in self.stage.evaluated}
            parts = {j: Part(update, head, told=True) for j, head in heads.items()}
            return Served(parts, coefficients)
        assert update.alpha is not None
        head = tuned or self._head(update, update.alpha)
        return Served.everywhere(Part(update, freeze(head)), self.stage, coefficients)

    def _merged(self) -> tuple[Update | None, nn.Module | None, tuple[Coefficient, ...]]:
        """Return the merge, a head that was trained with its coefficients, and these.

        Nothing where the arm merges nothing.
        """
        arm, bench = self.arm, self.bench
        if arm.method is None:
            return None, None, ()
        plan = self._plan()
        try:
            if arm.rule.learned:
                alpha, tuned = self._LEARN[arm.rule.how](self, plan)
            else:
                alpha, tuned = arm.given(self.members, plan.modules), None
            update = plan.combine(alpha)
        except UserError as error:
            raise DivergedError(
                f"Arm {arm.name!r}, seed {bench.seed}, stage {self.stage.name!r}: {error}"
            ) from error
        coefficients = as_coefficients(
            arm.rule, alpha, plan.modules, bench.seed, arm.name, self.stage.index, self.members
        )
        return update, tuned, coefficients

    def _plan(self) -> Plan:
        arm = self.arm
        assert arm.method is not None
        return prepare(
            self.adapters, arm.method, space=arm.space, seed=self.bench.seed, **arm.options
        )

    def _with_residuals(self, residual: ResidualChoice, base: Update | None) -> dict[int, Part]:
        """Return for each experience the base with what is kept of its own adapter beside it.

        An experience that has none yet is served as the newest, as the oracle does.
        """
        shared = None if base is None else base.entries
        served: dict[int, tuple[TaskUpdate, nn.Module | None]] = {}
        for member in self.members:
            adapter = self.bench.banks[self.arm.bank.name][member]
            update = TaskUpdate(shared, residual.take(adapter.entries, shared))
            served[member] = update, self._head_beside(update, adapter, member)
        parts = {}
        for j in self.stage.evaluated:
            update, head = served[j if j in served else self.members[-1]]
            parts[j] = Part(update, freeze(head or self._head_of(update, j)), told=True)
        return parts

    def _head_beside(self, update: TaskUpdate, adapter: Adapter, member: int) -> nn.Module | None:
        """Return the head that serves one adapter; None where every experience has its own.

        One that is made of support samples is that of the time when the adapter was the newest.
        """
        bench, arm = self.bench, self.arm
        if arm.policy.apart:
            return None
        stage = self.stage.seen_by(member)
        return arm.policy.serve(
            HeadSources([adapter.head], None, lambda: bench.prototypes(update, arm.spc, stage))
        )

    def _head_of(self, update: Change, j: int) -> nn.Module:
        """Return the head that serves experience ``j`` where every experience has its own."""
        bench, bank = self.bench, self.arm.bank
        if j not in self.stage.members:
            return bench.head_at(self.stage, j, bank)
        own = bench.banks[bank.name][j].head
        return self.arm.policy.serve(
            HeadSources(self.heads, None, _none, own, lambda: bench.refit(update, j))
        )

    def _head(self, update: Update, alpha: Tensor, rows: Tensor | None = None) -> nn.Module:
        """Return the head that serves an update; ``rows``: the support samples it may see."""
        bench, spc, bank = self.bench, self.arm.spc, self.arm.bank
        return self.arm.policy.serve(
            HeadSources(
                self.heads,
                alpha,
                lambda: bench.prototypes(update, spc, self.stage, rows),
                gaussians=lambda: bench.gaussians(bank, self.members),
                moved=lambda: bench.moved(bank, self.members, update, spc),
            )
        )

    def _judged(self) -> tuple[Callable[[Update], Tensor], Callable[[Tensor], Tensor]]:
        """Return what answers to the support samples as an update would be served, and the loss.

        A head that is made of support samples sees one half of each class's, and the loss is
        taken on the other: on samples that it was made of any head does well.
        """
        arm, bench = self.arm, self.bench
        if arm.policy.apart:
            tasks = self._tasks()
            return tasks.outputs, tasks.loss_of
        inputs, targets = bench.support(arm.sees, self.stage)
        fit, judge = folds(len(targets), arm.spc if arm.policy.needs_support else 1)
        task, device = bench.task_at(self.stage), bench.compute.device
        batches = [(inputs[rows], targets[rows]) for rows in torch.split(judge, bench.batch_size)]
        passes = bench.store.passes(batches)

        def outputs(update: Update) -> Tensor:
            assert update.alpha is not None
            head = freeze(self._head(update, update.alpha, fit)).to(device)
            with applied(bench.backbone.network, update):
                features = torch.cat([f for f, _ in passes(begins_at(update))])
            made: Tensor = head(features)
            return made

        def loss(made: Tensor) -> Tensor:
            return task.loss(made, targets[judge].to(device))

        return outputs, loss

    def _searched(self, plan: Plan) -> tuple[Tensor, nn.Module | None]:
        """Return the candidate with the lowest loss on the support samples."""
        arm = self.arm
        if arm.policy.apart:
            return search(arm.rule, plan, self._tasks().loss).alpha, None
        outputs, loss = self._judged()
        return search(arm.rule, plan, lambda update: float(loss(outputs(update)))).alpha, None

    def _tasks(self) -> Tasks:
        return Tasks.of(self.bench, self.arm.sees, self.members, self.arm.bank)

    def _learned(self, plan: Plan) -> tuple[Tensor, nn.Module | None]:
        """Return learned coefficients, and the head if it was trained along."""
        before = self._before()
        learn = self._by_gradient if self.arm.rule.solver.in_batches else self._minimised
        alpha, head = learn(plan, before)
        if self.arm.rule.follows:
            self.bench.learned[self._key(self.stage)] = LearnedStart(alpha, 0.0, self.arm.name)
        return alpha, head

    def _before(self) -> Tensor | None:
        """Return the coefficients of the stage before, where learning starts from them.

        They are learned again where this process has not learned them, as in a run that goes on:
        learning is deterministic, so that they are the same.
        """
        stage, arm = self.stage, self.arm
        if not arm.rule.follows or len(stage.members) < 2:
            return None
        before = replace(
            stage.seen_by(stage.members[-2]), index=stage.index - 1, members=stage.members[:-1]
        )
        if self._key(before) not in self.bench.learned:
            there = _Merge(self.bench, arm, before)
            there._learned(there._plan())
        return self.bench.learned[self._key(before)].alpha

    def _key(self, stage: Stage) -> tuple[str, int]:
        return self.arm.name, stage.index

    def _minimised(self, plan: Plan, previous: Tensor | None) -> tuple[Tensor, nn.Module | None]:
        """Return coefficients learned on all support samples at once, without a gradient."""
        outputs, loss = self._judged()
        return minimise(self.arm.rule, plan, outputs, loss, previous=previous).alpha, None

    def _by_gradient(self, plan: Plan, previous: Tensor | None) -> tuple[Tensor, nn.Module | None]:
        """Return coefficients learned by gradient, and the head if it was trained along."""
        arm, bench = self.arm, self.bench
        if arm.policy.apart:
            return self._learned_apart(plan, previous), None
        inputs, targets = bench.support(arm.sees, self.stage)
        device = bench.compute.device
        head = head_of(arm.policy.start(self.heads)).to(device)
        head.requires_grad_(arm.tune_head)
        outputs = self._outputs(head)

        steps = int(arm.rule.options["steps"])
        size, index = arm.buffer_batch_size, self.stage.index
        order = list(draws(len(targets), size, steps, bench.seed, "buffer-batches", index))

        features_of = self._features(plan)
        task = bench.task_at(self.stage)
        extra = list(head.parameters()) if arm.tune_head else []
        started = [parameter.detach().clone() for parameter in extra]

        def loss(update: Update, step: int) -> Tensor:
            rows = order[step]
            features = features_of(update, inputs[rows].to(device))
            value = task.loss(outputs(features, update), targets[rows].to(device))
            if not arm.anchor:
                return value
            moved = ((p - s).square().sum() for p, s in zip(extra, started, strict=True))
            return value + arm.anchor * sum(moved)

        lr = bench.head_lr if extra else None
        learned = learn(
            arm.rule, plan, loss, extra_parameters=extra, extra_lr=lr, previous=previous
        )
        return learned.alpha, head if arm.tune_head else None

    def _learned_apart(self, plan: Plan, previous: Tensor | None) -> Tensor:
        """Return coefficients learned by the losses of several tasks, each under its own head.

        A step sees as many samples of every task; the buffer batch is shared out among them.
        """
        arm, bench = self.arm, self.bench
        tasks = self._tasks()
        size = max(1, arm.buffer_batch_size // len(self.members))
        steps, index = int(arm.rule.options["steps"]), self.stage.index
        order = {
            j: list(draws(n, size, steps, bench.seed, "buffer-batches", index, j))
            for j, n in tasks.sizes.items()
        }
        features_of = self._features(plan)

        def loss(update: Update, step: int) -> Tensor:
            rows = {j: of_j[step] for j, of_j in order.items()}
            return tasks.relative_loss(lambda inputs: features_of(update, inputs), rows)

        return learn(arm.rule, plan, loss, previous=previous).alpha

    def _features(self, plan: Plan) -> Callable[[Update, Tensor], Tensor]:
        """Return what turns inputs into features, differentiable in the coefficients.

        The adapters of a plain sum stay apart where that takes fewer products.
        """
        compute, backbone = self.bench.compute, self.bench.backbone
        bottleneck = Bottleneck.of(backbone.network, self.adapters) if plan.plain_sum else None
        if bottleneck is None or not bottleneck.multiplies_less:
            return partial(compute.merged_features, backbone)

        def features(update: Update, inputs: Tensor) -> Tensor:
            assert update.alpha is not None
            return compute.composed_features(backbone, bottleneck.weighted(update.alpha), inputs)

        return features

    def _outputs(self, head: nn.Module) -> Callable[[Tensor, Update], Tensor]:
        """Return what turns features into outputs while coefficients are learned."""
        device = self.bench.compute.device
        heads = [{key: value.to(device) for key, value in h.items()} for h in self.heads]

        def outputs(features: Tensor, update: Update) -> Tensor:
            # Heads that are merged with the coefficients are so in every step of learning them.
            if not self.arm.tune_head and update.alpha is not None:
                merged = self.arm.policy.merged(heads, update.alpha.to(features))
                if merged is not None:
                    made: Tensor = functional_call(head, dict(merged), (features,))
                    return made
            out: Tensor = head(features)
            return out

        return outputs

    _LEARN: ClassVar[Mapping[str, Callable[..., tuple[Tensor, nn.Module | None]]]] = {
        "gradient": _learned,
        "search": _searched,
    }


def _none() -> nn.Module:
    raise AssertionError("no class means where every experience has its own head")


def as_coefficients(
    rule: CoefficientRule,
    alpha: Tensor,
    modules: Sequence[str],
    seed: int,
    arm: str,
    stage: int,
    members: Sequence[int],
) -> tuple[Coefficient, ...]:
    """Return coefficients (n,) or (M, n) as the rows that are recorded, by group and member."""
    return tuple(
        Coefficient(seed, arm, stage, group, member, value)
        for group, values in coefficient_rows(rule, alpha, modules)
        for member, value in zip(members, values.tolist(), strict=True)
    )
