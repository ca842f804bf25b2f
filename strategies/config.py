"""How adapters are trained, checked when it is made; apart from Avalanche, which loads slowly."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from cl_lora.models.base import Backbone
from cl_lora.models.head_policies import HeadPolicy, get_head_policy
from cl_lora.models.heads import HEAD_SHAPES, LINEAR, new_head
from cl_lora.support.errors import UserError, shown, unknown_name
from cl_lora.support.ranges import at_most
from cl_lora.support.registry import look_up
from cl_lora.tasks import Task

LARGEST_RATE = 1e37
"""The largest learning rate: single precision holds it. Whether it trains shows in the loss."""


@dataclass(frozen=True)
class TrainingConfig:
    """How each adapter is trained: AdamW, linear warm-up and cosine decay to zero.

    Attributes:
        epochs: passes over an experience.
        batch_size: images per step.
        lr: peak learning rate of the adapter.
        full_lr: peak learning rate of all weights, where whole backbones are fine-tuned.
        head_lr: peak learning rate of the head.
        weight_decay: AdamW's decoupled decay.
        warmup: share of the steps in which the learning rate rises from zero.
        head: name of a head policy.
        head_shape: ``linear`` or ``mlp``.
        head_hidden: hidden units of an MLP.
        patience: training stops after so many epochs without a lower loss on the validation part,
            and the weights of the best epoch are kept; None trains all epochs and keeps the last.
    """

    epochs: int = at_most(100_000, 3)
    batch_size: int = at_most(1_000_000, 32)
    lr: float = at_most(LARGEST_RATE, 1e-3)
    full_lr: float = at_most(LARGEST_RATE, 5e-5)
    head_lr: float = at_most(LARGEST_RATE, 1e-3)
    weight_decay: float = at_most(1000, 0.01)
    warmup: float = at_most(1, 0.1)
    head: str = "shared"
    head_shape: str = LINEAR
    head_hidden: int = at_most(65_536, 512)
    patience: int | None = at_most(100_000, None)

    def __post_init__(self) -> None:
        for key in ("epochs", "batch_size", "head_hidden", "patience"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(
                    f"Expected strategy.{key} to be at least 1 but got {value}; raise it"
                )
        for key in ("lr", "full_lr", "head_lr"):
            value = getattr(self, key)
            if not (math.isfinite(value) and value > 0):
                raise UserError(
                    f"Expected strategy.{key} to be above 0 but got {value}; give such as 1e-3"
                )
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UserError(
                f"Expected strategy.weight_decay to be 0 or more but got {self.weight_decay}; give "
                "such as 0.01"
            )
        if not 0 <= self.warmup < 1:
            raise UserError(
                f"Expected strategy.warmup to be in [0, 1), a share of the steps, but got "
                f"{self.warmup}; give such as 0.1"
            )
        policy = get_head_policy(self.head)
        if policy.statistics:
            raise UserError(
                f"strategy.head={policy.name} is made of statistics of adapters that are trained, "
                f"so none can be trained under it; set strategy.head=shared, and give an arm "
                f"head: {policy.name}"
            )
        shape = look_up("strategy.head_shape", HEAD_SHAPES, self.head_shape)
        if policy.sums_heads and not shape.mixes:
            raise UserError(
                f"strategy.head={policy.name} does not go with head_shape={shape.name}, whose "
                "weighted sum is no head; set strategy.head_shape=linear, or another strategy.head"
            )

    def new_head(self, features: int, outputs: int, seed: int, *keys: str) -> nn.Module:
        """Return a new head of this shape, drawn from (seed, "head", keys)."""
        return new_head(self.head_shape, features, outputs, seed, self.head_hidden, keys)

    def initial_head(self, backbone: Backbone, task: Task, seed: int) -> nn.Module:
        """Return the head from which training a task starts: new, or made by the backbone.

        Raises:
            UserError: if the backbone is to make it and cannot.
        """
        if self.policy.from_backbone:
            return backbone.task_head(task)
        return self.new_head(backbone.features, task.outputs, seed)

    @property
    def policy(self) -> HeadPolicy:
        """The head policy."""
        return get_head_policy(self.head)


SUPPORT, VAL = "support", "val"


@dataclass(frozen=True)
class AdaptationConfig:
    """How an arm is adapted to a support set: a warm-up of the head, then everything together.

    Steps are counted, not epochs, and are the same for every arm: 50 epochs are 50 steps at K = 1
    and thousands with the whole pool.

    Attributes:
        warmup_steps: steps of the head alone, on features of where the arm starts; 0 for none.
        steps: steps after it, at least so many.
        epochs: at least so many passes over the support set.
        batch_size: samples per step; the whole support set where it is smaller.
        head_lr: learning rate of the head, constant in the warm-up, then a cosine to zero.
        lora_lr: learning rate of a LoRA that is trained on the support set, a cosine to zero.
        full_lr: learning rate of all weights, a cosine to zero.
        weight_decay: AdamW's, of heads, LoRA and full fine-tuning; composition weights have none.
        grid: factors of the arm's learning rate to choose from (of the LoRA's, of all weights', of
            the coefficients', or of the head's where nothing else is trained). One factor: no
            choice.
        select_on: what the choice is made on, by loss: ``support``, a part of the support set
            (where each class has at least two samples), or ``val``, the downstream validation part.
    """

    warmup_steps: int = at_most(1_000_000, 50)
    steps: int = at_most(1_000_000, 40)
    epochs: int = at_most(100_000, 1)
    batch_size: int = at_most(1_000_000, 16)
    head_lr: float = at_most(LARGEST_RATE, 1e-3)
    lora_lr: float = at_most(LARGEST_RATE, 1e-3)
    full_lr: float = at_most(LARGEST_RATE, 5e-5)
    weight_decay: float = at_most(1000, 0.01)
    grid: tuple[float, ...] = at_most(LARGEST_RATE, (1.0,))
    select_on: str = SUPPORT

    def __post_init__(self) -> None:
        for key, least in (("warmup_steps", 0), ("steps", 0), ("epochs", 0), ("batch_size", 1)):
            if getattr(self, key) < least:
                raise UserError(
                    f"Expected adaptation.{key} to be at least {least} but got "
                    f"{getattr(self, key)}; raise it"
                )
        if not self.steps and not self.epochs:
            raise UserError(
                "Expected adaptation.steps or adaptation.epochs above 0 but got 0 and 0; raise one"
            )
        for key in ("head_lr", "lora_lr", "full_lr"):
            value = getattr(self, key)
            if not (math.isfinite(value) and value > 0):
                raise UserError(
                    f"Expected adaptation.{key} to be above 0 but got {value}; give such as 1e-3"
                )
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UserError(
                f"Expected adaptation.weight_decay to be 0 or more but got {self.weight_decay}; "
                "give such as 0.01"
            )
        grid = self.grid
        if not grid or not all(math.isfinite(v) and v > 0 for v in grid) or 1.0 not in grid:
            raise UserError(
                "Expected adaptation.grid to be a list of factors above 0 that holds 1, what is "
                f"taken where nothing can be chosen, but got {shown(list(grid))}; give "
                "such as [0.3,1.0,3.0]"
            )
        if list(grid) != sorted(set(grid)):
            raise UserError(
                f"Expected adaptation.grid in ascending order but got {shown(list(grid))}; "
                "sort it, each factor once"
            )
        if self.select_on not in (SUPPORT, VAL):
            raise unknown_name("adaptation.select_on", self.select_on, (SUPPORT, VAL))

    def steps_for(self, samples: int) -> int:
        """Return how many steps follow the warm-up with a support set of so many samples."""
        per_epoch = math.ceil(samples / self.batch_size)
        return max(self.steps, self.epochs * per_epoch)


@dataclass(frozen=True)
class Lineage:
    """How the adapters of a bank follow one another.

    Attributes:
        name: the purpose of the random draws of training.
        continues: whether an experience trains the adapter of the one before on.
    """

    name: str
    continues: bool


ANEW = Lineage("fresh", continues=False)
"""A new adapter per experience."""

CONTINUED = Lineage("sequential", continues=True)
"""One adapter, trained on from experience to experience."""


def schedule(step: int, total: int, warmup: float) -> float:
    """Return the share of the peak learning rate at ``step`` of ``total``.

    Linear from 0 over the first ``warmup * total`` steps, then ``(1 + cos(pi x)) / 2`` to 0.
    """
    rising = math.ceil(warmup * total)
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))
