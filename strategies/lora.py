"""The Avalanche strategy that trains one adapter per experience: a LoRA, or a whole backbone."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cl_lora.adapters import Adapter
from cl_lora.adapters.injection import LoRAConfig
from cl_lora.models.backbones import Backbone
from cl_lora.models.heads import head_of
from cl_lora.strategies.config import ANEW, Lineage, TrainingConfig, schedule
from cl_lora.strategies.tunings import LORA, Opened, Tuned, Tuning
from cl_lora.support import progress
from cl_lora.support.errors import UserError
from cl_lora.support.seeding import seed_everything
from cl_lora.tasks import Accumulator, Task

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Makes batches of inputs and targets, anew each time."""


class LoRAModel(nn.Module):
    """A frozen backbone (bare or wrapped by peft) and a head."""

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, inputs: Tensor) -> Tensor:
        """Return float32 outputs (batch, outputs) of a batch of the backbone's inputs."""
        out: Tensor = self.head(self.backbone(inputs))
        return out.float()

    def train(self, mode: bool = True) -> LoRAModel:
        """Switch dropout on or off; statistics of the frozen backbone never move."""
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self


class _Meter(SupervisedPlugin):  # type: ignore[misc]
    """Shows how many training steps of an experience are done."""

    def __init__(self) -> None:
        super().__init__()
        self._stack = contextlib.ExitStack()
        self._advance: Callable[[], None] = lambda: None
        self.description = "training"

    def before_training_exp(self, strategy: Any, *_: Any, **__: Any) -> None:
        total = len(strategy.dataloader) * strategy.train_epochs
        self._advance = self._stack.enter_context(progress.meter(self.description, total))

    def after_training_iteration(self, strategy: Any, *_: Any, **__: Any) -> None:
        self._advance()

    def close(self) -> None:
        self._stack.close()


class _Curve(SupervisedPlugin):  # type: ignore[misc]
    """Keeps the mean loss and the primary metric of every epoch of an experience."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task
        self.epochs: list[dict[str, float]] = []

    @property
    def metric(self) -> str:
        return self.task.kind.metrics[0].name

    def before_training_exp(self, strategy: Any, *_: Any, **__: Any) -> None:
        self.epochs = []

    def before_training_epoch(self, strategy: Any, *_: Any, **__: Any) -> None:
        self._scores: Accumulator = self.task.accumulator()
        self._loss, self._count = 0.0, 0

    def after_training_iteration(self, strategy: Any, *_: Any, **__: Any) -> None:
        size = len(strategy.mb_y)
        self._loss += float(strategy.loss.detach()) * size
        self._count += size
        self._scores.update(strategy.mb_output.detach(), strategy.mb_y)

    def after_training_epoch(self, strategy: Any, *_: Any, **__: Any) -> None:
        value = float(self._scores.scores()[self.metric])
        entry = {"epoch": len(self.epochs) + 1, "loss": self._loss / self._count}
        self.epochs.append({**entry, self.metric: value})


class _EarlyStopping(SupervisedPlugin):  # type: ignore[misc]
    """Measures the validation loss of every epoch, keeps the best weights, and may end training."""

    def __init__(self, patience: int | None) -> None:
        super().__init__()
        self.patience = patience
        self.batches: Batches | None = None
        self.best_epoch: int | None = None
        self._best: dict[str, Tensor] = {}

    def before_training_exp(self, strategy: Any, *_: Any, **__: Any) -> None:
        self.best_epoch, self._lowest, self._best = None, math.inf, {}

    def after_training_epoch(self, strategy: Any, *_: Any, **__: Any) -> None:
        if self.patience is None or self.batches is None:
            return
        epochs = strategy.curve
        loss = strategy.validation_loss(self.batches())
        epochs[-1]["val_loss"] = loss
        if loss < self._lowest:
            self.best_epoch, self._lowest = len(epochs), loss
            self._best = {name: p.detach().clone() for name, p in _trainable(strategy.model)}
        elif len(epochs) - (self.best_epoch or 0) >= self.patience:
            strategy.stop_training()

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """Put the weights of the best epoch back."""
        for name, parameter in _trainable(model):
            if name in self._best:
                parameter.copy_(self._best[name])
        self._best = {}


def _trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


class LoRAStrategy(SupervisedTemplate):  # type: ignore[misc]
    """Trains one adapter per experience; between experiences the backbone is bare.

    Args:
        backbone: the frozen Vision Transformer; it is wrapped while an experience is trained and
            given back untouched.
        task: what is learned: the head's outputs, the loss, what is measured.
        lora: shape of the adapters.
        training: optimisation and head policy.
        seed: the run's seed; adapters, batches and dropout are drawn from (seed, lineage,
            experience), the head from (seed).
        lineage: whether each adapter is fresh or trained on.
        tuning: what is trained of the backbone: a LoRA, or all of its weights.
        device: where to train.
        bf16: autocast the forward pass to bfloat16.
        plugins: Avalanche plugins, such as its replay or EWC.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        task: Task,
        lora: LoRAConfig,
        training: TrainingConfig,
        seed: int,
        lineage: Lineage = ANEW,
        tuning: Tuning = LORA,
        device: torch.device | str = "cpu",
        bf16: bool = False,
        plugins: Sequence[SupervisedPlugin] = (),
    ) -> None:
        self.lora = lora
        self.training = training
        self.seed = seed
        self.lineage = lineage
        self.tuning = tuning
        self.bf16 = bf16
        self._backbone = backbone  # before there is a model that has it
        self._meter = _Meter()
        self._curve = _Curve(task)
        self._stopping = _EarlyStopping(training.patience)
        self._take(task)
        self._tuned: Tuned | None = None
        self._opened: Opened | None = None
        self._trained_before = False
        self._step = self._steps = 0
        model = LoRAModel(backbone, head_of(self._initial_head.state_dict()))
        with warnings.catch_warnings():
            # Avalanche warns of having no logger; ours is the run folder.
            warnings.filterwarnings("ignore", message="No loggers specified")
            evaluator = EvaluationPlugin(loggers=[])
        super().__init__(
            model=model,
            # A placeholder: make_optimizer builds the real one for each experience.
            optimizer=torch.optim.AdamW(model.parameters(), lr=training.head_lr),
            criterion=self._loss,
            train_mb_size=training.batch_size,
            train_epochs=training.epochs,
            eval_mb_size=4 * training.batch_size,
            device=device,
            # Ours come last: others may change the data loader, whose length the meter shows.
            plugins=[*plugins, self._curve, self._stopping, self._meter],
            evaluator=evaluator,
            eval_every=-1,
        )

    def _take(self, task: Task) -> None:
        """Learn ``task`` from now on."""
        self.task = self._curve.task = task
        self._initial_head = self.training.initial_head(self._backbone, task, self.seed)

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.task.loss(outputs, targets)

    def resume(self, adapter: Adapter) -> None:
        """Take over what training ``adapter`` left behind: the head, and what to go on from."""
        self.model.head = head_of(adapter.head).to(self.device)
        self._tuned = Tuned(adapter.factors, adapter.deltas)
        self._trained_before = True

    def train_adapter(
        self,
        experience: Any,
        name: str,
        label: str | None = None,
        task: Task | None = None,
        validation: Batches | None = None,
    ) -> Adapter:
        """Train on one Avalanche experience and return its adapter, with the head beside it.

        Args:
            experience: an experience of a stream of (input, target) samples.
            name: the adapter's name, and what the progress shows.
            label: what the random draws depend on beside the seed; default: the experience's
                index.
            task: what is learned, where that is not the strategy's task; only a head that starts
                anew can learn another one.
            validation: makes batches of inputs and targets to stop early by; needed where the
                training has a patience.

        Raises:
            UserError: if the loss is not finite; says where and what to try.
        """
        index = experience.current_experience
        key = str(index) if label is None else label
        if task is not None and task != self.task:
            self._take(task)
        seed_everything(self.seed, f"train-{self.lineage.name}", key)
        self._meter.description = f"seed {self.seed}: training {name}"
        self._stopping.batches = validation
        start = time.monotonic()
        try:
            self.train(experience, eval_streams=[], num_workers=0)
        finally:
            self._meter.close()
            if self._opened is not None:
                self._opened.close()
                self._opened = None
            # Else dropout and normalisation of the backbone would serve as in training.
            self.model.eval()
        assert self._tuned is not None
        return Adapter(
            name=name,
            factors=self._tuned.factors,
            deltas=self._tuned.deltas,
            base=self.backbone.base_model,
            head={k: v.detach().cpu().clone() for k, v in self.model.head.state_dict().items()},
            training={
                "experience": index,
                "name": name,
                "lineage": self.lineage.name,
                "seed": self.seed,
                "seconds": round(time.monotonic() - start, 3),
                "metric": self._curve.metric,
                "loss": self._curve.epochs,
                **self._stopped,
            },
        )

    @property
    def _stopped(self) -> dict[str, int]:
        best = self._stopping.best_epoch
        return {} if best is None else {"best_epoch": best}

    @property
    def curve(self) -> list[dict[str, float]]:
        """What was measured in each epoch so far."""
        return self._curve.epochs

    @torch.no_grad()
    def validation_loss(self, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Return the mean loss over the samples of some batches, dropout switched off."""
        self.model.eval()
        total, count = 0.0, 0
        for inputs, targets in batches:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                outputs = self.model(inputs.to(self.device))
            total += float(self._loss(outputs, targets.to(self.device))) * len(targets)
            count += len(targets)
        self.model.train()
        return total / count if count else math.nan

    @property
    def backbone(self) -> Backbone:
        """The backbone inside the model."""
        backbone: Backbone = self.model.backbone
        return backbone

    # Avalanche's hooks. The adapter must be there before Avalanche checks model and optimizer:
    # a plugin's before_training_exp would come too late, and the adapter would never train.

    def _before_training_exp(self, **kwargs: Any) -> None:
        start = self._tuned if self.lineage.continues else None
        self._opened = self.tuning.opened(self.backbone, self.lora, start)
        if self.training.policy.restarts and not self.lineage.continues:
            self.model.head = head_of(self._initial_head.state_dict())
        super()._before_training_exp(**kwargs)
        # Only now: a plugin such as replay may have made another data loader.
        self._step, self._steps = 0, len(self.dataloader) * self.train_epochs
        self.model.train()

    def _after_training_exp(self, **kwargs: Any) -> None:
        super()._after_training_exp(**kwargs)
        self._stopping.restore(self.model)
        assert self._opened is not None
        self._tuned = self._opened.tuned()
        self._trained_before = True

    def make_optimizer(self, **_: Any) -> None:
        """Build a fresh AdamW over the trainable parameters, with a learning rate for the head."""
        first = not self._trained_before or self.lineage.continues
        self.model.head.requires_grad_(self.training.policy.trains(first))
        own = [p for p in self.backbone.parameters() if p.requires_grad]
        head = [p for p in self.model.head.parameters() if p.requires_grad]
        groups = [{"params": own, "lr": self.tuning.lr(self.training)}]
        if head:
            groups.append({"params": head, "lr": self.training.head_lr})
        self.optimizer = torch.optim.AdamW(groups, weight_decay=self.training.weight_decay)
        self.optimized_param_id: dict[str, Any] = {}
        for group in self.optimizer.param_groups:
            group["peak"] = group["lr"]

    def forward(self) -> Tensor:
        """Return the outputs for the current batch, under autocast where asked for."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            out: Tensor = self.model(self.mb_x)
        return out

    def backward(self) -> None:
        """Run the backward pass; a loss that is not finite stops the run."""
        if not torch.isfinite(self.loss):
            raise UserError(
                f"The training loss became {self.loss.item()} at step {self._step + 1} of "
                f"{self._steps} of {self._meter.description!r}; try a lower strategy.lr or "
                "strategy.head_lr, or precision=fp32 (finished adapters are kept)"
            )
        super().backward()

    def optimizer_step(self) -> None:
        """Update the weights with the learning rate that the schedule gives for this step."""
        share = schedule(self._step, self._steps, self.training.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share
        self._step += 1
        super().optimizer_step()
