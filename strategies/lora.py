"""Avalanche strategies that train one LoRA adapter an experience on a frozen backbone."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn

from cl_lora.adapters import Adapter, LoRAFactors
from cl_lora.adapters.injection import LoRAConfig, extract, inject, remove
from cl_lora.models.backbones import Backbone
from cl_lora.models.heads import linear_head, new_linear_head
from cl_lora.strategies.config import TrainingConfig, schedule
from cl_lora.support import progress
from cl_lora.support.errors import UserError
from cl_lora.support.seeding import seed_everything


class LoRAClassifier(nn.Module):
    """Normalisation, a Vision Transformer (bare or wrapped by peft) and a head."""

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Return float32 logits (batch, classes) of uint8 images (batch, 3, H, W)."""
        out: Tensor = self.head(self.backbone(images))
        return out.float()


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


class LoRAStrategy(SupervisedTemplate):  # type: ignore[misc]
    """Trains one adapter an experience; between experiences the backbone is bare.

    Args:
        backbone: the frozen Vision Transformer; it is wrapped while an experience is trained and
            given back untouched.
        classes: number of classes of the head.
        lora: shape of the adapters.
        training: optimisation and head policy.
        seed: the run's seed; adapters, batches and dropout are drawn from (seed, kind,
            experience), the head from (seed).
        kind: ``fresh`` trains a new adapter each experience, ``sequential`` trains one adapter on
            from experience to experience.
        device: where to train.
        bf16: autocast the forward pass to bfloat16.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        classes: int,
        lora: LoRAConfig,
        training: TrainingConfig,
        seed: int,
        kind: str = "fresh",
        device: torch.device | str = "cpu",
        bf16: bool = False,
    ) -> None:
        self.lora = lora
        self.training = training
        self.seed = seed
        self.kind = kind
        self.bf16 = bf16
        self._initial_head = new_linear_head(backbone.features, classes, seed)
        self._meter = _Meter()
        self._factors: Mapping[str, LoRAFactors] | None = None
        self._trained_before = False
        self._step = self._steps = 0
        model = LoRAClassifier(backbone, linear_head(self._initial_head.state_dict()))
        with warnings.catch_warnings():
            # Avalanche warns of having no logger; ours is the run folder.
            warnings.filterwarnings("ignore", message="No loggers specified")
            evaluator = EvaluationPlugin(
                accuracy_metrics(epoch=True), loss_metrics(epoch=True), loggers=[]
            )
        super().__init__(
            model=model,
            # A placeholder: make_optimizer builds the real one for each experience.
            optimizer=torch.optim.AdamW(model.head.parameters(), lr=training.head_lr),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=training.batch_size,
            train_epochs=training.epochs,
            eval_mb_size=4 * training.batch_size,
            device=device,
            plugins=[self._meter],
            evaluator=evaluator,
            eval_every=-1,
        )

    def resume(self, adapter: Adapter) -> None:
        """Take over what training ``adapter`` left behind: the head, and the factors to go on."""
        self.model.head = linear_head(adapter.head).to(self.device)
        self._factors = adapter.factors
        self._trained_before = True

    def train_adapter(self, experience: Any, name: str, label: str | None = None) -> Adapter:
        """Train on one Avalanche experience and return its adapter, with the head beside it.

        Args:
            experience: an experience of a stream of (uint8 image, label) samples.
            name: the adapter's name, and what the progress shows.
            label: what the random draws depend on beside the seed; default: the experience's
                index.

        Raises:
            UserError: if the loss is not finite; says where and what to try.
        """
        index = experience.current_experience
        key = str(index) if label is None else label
        seed_everything(self.seed, f"train-{self.kind}", key)
        self._meter.description = f"seed {self.seed}: training {name}"
        start = time.monotonic()
        try:
            self.train(experience, eval_streams=[], num_workers=0)
        finally:
            self._meter.close()
            self.backbone.vit = remove(self.backbone.vit) if self._wrapped else self.backbone.vit
        assert self._factors is not None
        return Adapter(
            name=name,
            factors=self._factors,
            head={k: v.detach().cpu().clone() for k, v in self.model.head.state_dict().items()},
            training={
                "experience": index,
                "name": name,
                "kind": self.kind,
                "seed": self.seed,
                "seconds": round(time.monotonic() - start, 3),
                "loss": self._curve(),
            },
        )

    @property
    def backbone(self) -> Backbone:
        """The backbone inside the model."""
        backbone: Backbone = self.model.backbone
        return backbone

    @property
    def _wrapped(self) -> bool:
        return hasattr(self.backbone.vit, "peft_config")

    # Avalanche's hooks. The adapter must be there before Avalanche checks model and optimizer:
    # a plugin's before_training_exp would come too late, and the adapter would never train.

    def _before_training_exp(self, **kwargs: Any) -> None:
        start = self._factors if self.kind == "sequential" else None
        self.backbone.vit = inject(self.backbone.vit, self.lora, start)
        if self.training.head == "per_experience" and self.kind == "fresh":
            self.model.head = linear_head(self._initial_head.state_dict())
        # Re-create the metrics' history, so that the curve is this experience's alone.
        self.evaluator.reset_last_metrics()
        self.evaluator.all_metric_results.clear()
        super()._before_training_exp(**kwargs)
        self.model.train()

    def _after_training_exp(self, **kwargs: Any) -> None:
        super()._after_training_exp(**kwargs)
        self._factors = extract(self.backbone.vit)
        self._trained_before = True

    def make_optimizer(self, **_: Any) -> None:
        """Build a fresh AdamW over the trainable parameters, with a learning rate for the head."""
        frozen = self.training.head == "frozen" and self._trained_before and self.kind == "fresh"
        self.model.head.requires_grad_(not frozen)
        lora = [p for p in self.backbone.parameters() if p.requires_grad]
        head = [p for p in self.model.head.parameters() if p.requires_grad]
        groups = [{"params": lora, "lr": self.training.lr}]
        if head:
            groups.append({"params": head, "lr": self.training.head_lr})
        self.optimizer = torch.optim.AdamW(groups, weight_decay=self.training.weight_decay)
        self.optimized_param_id: dict[str, Any] = {}
        self._step, self._steps = 0, len(self.dataloader) * self.train_epochs
        for group in self.optimizer.param_groups:
            group["peak"] = group["lr"]

    def forward(self) -> Tensor:
        """Return the logits of the current batch, under autocast where asked for."""
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

    def _curve(self) -> list[dict[str, float]]:
        """Return loss and accuracy of every epoch, as Avalanche's metrics saw them."""
        history = self.evaluator.get_all_metrics()
        series = {
            short: values
            for key, (_, values) in history.items()
            for short, mark in (("loss", "Loss_Epoch"), ("accuracy", "Top1_Acc_Epoch"))
            if mark in key
        }
        pairs = zip(series["loss"], series["accuracy"], strict=True)
        return [
            {"epoch": i, "loss": float(loss), "accuracy": float(accuracy)}
            for i, (loss, accuracy) in enumerate(pairs, start=1)
        ]
