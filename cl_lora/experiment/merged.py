"""What an arm serves: the merge of a stage's adapters, its coefficients learned if need be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cl_lora.adapters import Adapter
from cl_lora.experiment.arms import Arm
from cl_lora.experiment.serving import Part, Served, Workbench
from cl_lora.experiment.stages import Stage
from cl_lora.merging import Learned, Plan, Update, learn, prepare, search
from cl_lora.merging.coefficients import coefficient_rows
from cl_lora.models.head_policies import HeadSources
from cl_lora.models.heads import HeadState, freeze, linear_head
from cl_lora.run_folder.records import Coefficient
from cl_lora.support.errors import DivergedError, UserError
from cl_lora.support.seeding import torch_generator


def serve_arm(bench: Workbench, arm: Arm, stage: Stage) -> Served:
    """Return what ``arm`` serves at a stage after training: the merge of the stage's members.

    Raises:
        DivergedError: if learning its coefficients fails.
    """
    return _Merge(bench, arm, stage).served()


@dataclass(frozen=True, eq=False)
class _Merge:
    bench: Workbench
    arm: Arm
    stage: Stage

    @property
    def adapters(self) -> list[Adapter]:
        return [self.bench.banks["fresh"][m] for m in self.stage.members]

    @property
    def heads(self) -> list[HeadState]:
        return [adapter.head for adapter in self.adapters]

    def served(self) -> Served:
        arm, bench = self.arm, self.bench
        plan = prepare(self.adapters, arm.method, space=arm.space, seed=bench.seed, **arm.options)
        tuned: nn.Module | None = None
        if arm.rule.learned:
            alpha, tuned = self._learned(plan)
        else:
            alpha = arm.given(self.stage.members, plan.modules)
        update = plan.combine(alpha)
        head = tuned or arm.policy.serve(
            HeadSources(self.heads, alpha, lambda: bench.prototypes(update, arm.spc, self.stage))
        )
        rows = coefficient_rows(arm.rule, alpha, plan.modules)
        return Served.everywhere(Part(update, freeze(head)), self.stage, list(self._record(rows)))

    def _record(self, rows: Sequence[tuple[str, Tensor]]) -> Iterator[Coefficient]:
        for group, values in rows:
            for member, value in zip(self.stage.members, values.tolist(), strict=True):
                yield Coefficient(
                    self.bench.seed, self.arm.name, self.stage.index, group, member, value
                )

    def _learned(self, plan: Plan) -> tuple[Tensor, nn.Module | None]:
        """Return learned coefficients, and the head if it was trained along."""
        arm, bench = self.arm, self.bench
        inputs, targets = bench.support(arm.spc, self.stage)
        device = bench.compute.device
        head = linear_head(arm.policy.start(self.heads)).to(device)
        head.requires_grad_(arm.tune_head)
        outputs = self._outputs(head)

        def loss_on(update: Update, rows: Tensor) -> Tensor:
            features = bench.compute.merged_features(
                bench.backbone, update, inputs[rows].to(device)
            )
            return bench.task.kind.loss(outputs(features, update), targets[rows].to(device))

        def mean_loss(update: Update) -> float:
            parts = torch.split(torch.arange(len(targets)), arm.buffer_batch_size)
            return sum(float(loss_on(update, p)) * len(p) for p in parts) / len(targets)

        def gradient() -> Learned:
            steps = int(arm.rule.options["steps"])
            size = arm.buffer_batch_size
            order = list(draws(len(targets), size, steps, bench.seed, self.stage.index))
            extra = list(head.parameters()) if arm.tune_head else []
            return learn(
                arm.rule,
                plan,
                lambda update, step: loss_on(update, order[step]),
                extra_parameters=extra,
                extra_lr=bench.head_lr if extra else None,
            )

        try:
            by_search = arm.rule.how == "search"
            learned = search(arm.rule, plan, mean_loss) if by_search else gradient()
        except UserError as error:
            raise DivergedError(
                f"Arm {arm.name!r}, seed {bench.seed}, stage {self.stage.name!r}: {error}"
            ) from error
        return learned.alpha, head if arm.tune_head else None

    def _outputs(self, head: nn.Module) -> Callable[[Tensor, Update], Tensor]:
        """Return what turns features into outputs while coefficients are learned."""
        device = self.bench.compute.device
        heads = [{key: value.to(device) for key, value in h.items()} for h in self.heads]

        def outputs(features: Tensor, update: Update) -> Tensor:
            # Heads that are merged with the coefficients are so in every step of learning them.
            if not self.arm.tune_head and update.alpha is not None:
                merged = self.arm.policy.merged(heads, update.alpha.to(features))
                if merged is not None:
                    return F.linear(features, merged["weight"], merged["bias"])
            made: Tensor = head(features)
            return made

        return outputs


def draws(size: int, batch_size: int, steps: int, seed: int, stage: int) -> Iterator[Tensor]:
    """Yield the buffer rows of every step: shuffled passes, a whole buffer if it is small."""
    generator = torch_generator(seed, "buffer-batches", stage)
    pool = torch.empty(0, dtype=torch.int64)
    wanted = min(size, batch_size)
    for _ in range(steps):
        if len(pool) < wanted:
            pool = torch.cat([pool, torch.randperm(size, generator=generator)])
        yield pool[:wanted]
        pool = pool[wanted:]
