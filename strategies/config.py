"""How adapters are trained, checked when it is made; apart from Avalanche, which loads slowly."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cl_lora.models.head_policies import HeadPolicy, get_head_policy
from cl_lora.support.errors import UserError


@dataclass(frozen=True)
class TrainingConfig:
    """How each adapter is trained: AdamW, linear warm-up and cosine decay to zero.

    Attributes:
        epochs: passes over an experience.
        batch_size: images a step.
        lr: peak learning rate of the adapter.
        head_lr: peak learning rate of the head.
        weight_decay: AdamW's decoupled decay.
        warmup: share of the steps in which the learning rate rises from zero.
        head: name of a head policy.
    """

    epochs: int = 3
    batch_size: int = 32
    lr: float = 1e-3
    head_lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.1
    head: str = "shared"

    def __post_init__(self) -> None:
        for key in ("epochs", "batch_size"):
            if getattr(self, key) < 1:
                raise UserError(
                    f"Expected strategy.{key} to be at least 1 but got {getattr(self, key)}"
                )
        for key in ("lr", "head_lr"):
            value = getattr(self, key)
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"Expected strategy.{key} to be above 0 but got {value}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UserError(
                f"Expected strategy.weight_decay to be 0 or more but got {self.weight_decay}"
            )
        if not 0 <= self.warmup < 1:
            raise UserError(f"Expected strategy.warmup to be in [0, 1) but got {self.warmup}")
        get_head_policy(self.head)

    @property
    def policy(self) -> HeadPolicy:
        """The head policy."""
        return get_head_policy(self.head)


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
"""A new adapter an experience."""

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
