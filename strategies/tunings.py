"""What is trained of a backbone: a LoRA, or all of its weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from cl_lora.adapters import Entry, LoRAFactors, entry_name
from cl_lora.adapters.injection import LoRAConfig, extract, inject, remove, target_modules
from cl_lora.models.base import Backbone
from cl_lora.models.weights import Weights, add_deltas
from cl_lora.strategies.config import TrainingConfig
from cl_lora.support.registry import registers


@dataclass(frozen=True, eq=False)
class Tuned:
    """What training added to a backbone.

    Attributes:
        factors: of a LoRA, by module.
        deltas: of a backbone whose weights were trained, by entry.
    """

    factors: Mapping[str, LoRAFactors] = field(default_factory=dict)
    deltas: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Factors, or deltas."""
        return self.factors or self.deltas


class Tuning(ABC):
    """How the backbone is opened for training, and what of it is kept.

    Attributes:
        name: the name it is known by.
        summary: one sentence.
        low_rank: whether what is kept are low-rank factors.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    low_rank: ClassVar[bool] = False

    @abstractmethod
    def opened(self, backbone: Backbone, lora: LoRAConfig, start: Tuned | None) -> Opened:
        """Make something of a frozen backbone trainable.

        Args:
            backbone: the frozen backbone.
            lora: the shape of a LoRA.
            start: what to go on from; None for the bare backbone.
        """

    @abstractmethod
    def lr(self, training: TrainingConfig) -> float:
        """Return the peak learning rate."""

    @abstractmethod
    def modules(self, backbone: Backbone, lora: LoRAConfig) -> tuple[str, ...]:
        """Return the names of the modules, or parameters, that are trained."""

    def rank(self, lora: LoRAConfig) -> int | None:
        """Return the rank of what is trained; None where it is not low-rank."""
        return None


class Opened(ABC):
    """A backbone while something of it is trained."""

    @abstractmethod
    def tuned(self) -> Tuned:
        """Return what training added so far, on the CPU."""

    @abstractmethod
    def close(self) -> None:
        """Give the backbone back bit for bit, frozen."""


TUNINGS: dict[str, Tuning] = {}
"""Every registered tuning by name."""

register_tuning = registers("tuning", TUNINGS)
"""Registers a class by its name; it must be free."""


class _OpenedLoRA(Opened):
    def __init__(self, backbone: Backbone, lora: LoRAConfig, start: Tuned | None) -> None:
        self.backbone = backbone
        begin = None if start is None else start.factors
        backbone.network = inject(backbone.network, lora, begin, backbone.targets)

    def tuned(self) -> Tuned:
        return Tuned(factors=extract(self.backbone.network))

    def close(self) -> None:
        self.backbone.network = remove(self.backbone.network)


@register_tuning
class LoRATuning(Tuning):
    """A low-rank adapter in the layers that the strategy names (Hu et al. 2022)."""

    name = "lora"
    summary = "a LoRA beside the frozen weights"
    low_rank = True
    low_rank = True

    def opened(self, backbone: Backbone, lora: LoRAConfig, start: Tuned | None) -> Opened:
        """Wrap the network by peft."""
        return _OpenedLoRA(backbone, lora, start)

    def lr(self, training: TrainingConfig) -> float:
        """Return the rate of adapters."""
        return training.lr

    def modules(self, backbone: Backbone, lora: LoRAConfig) -> tuple[str, ...]:
        """Return the layers that the strategy names."""
        return target_modules(backbone.network, lora.targets, backbone.targets, lora.first_block)

    def rank(self, lora: LoRAConfig) -> int | None:
        """Return the rank of the factors."""
        return lora.rank


class _OpenedWhole(Opened):
    def __init__(self, network: nn.Module, start: Tuned | None) -> None:
        self.network, self.kept = network, Weights.of(network)
        if start is not None:
            add_deltas(network, start.deltas)
        network.requires_grad_(True)

    def tuned(self) -> Tuned:
        parameters = self.network.named_parameters()
        return Tuned(
            deltas={
                entry_name(name): (p.detach() - self.kept.values[name]).cpu()
                for name, p in parameters
            }
        )

    def close(self) -> None:
        self.kept.write(self.network)
        self.network.requires_grad_(False)
        for parameter in self.network.parameters():
            parameter.grad = None


@register_tuning
class WholeTuning(Tuning):
    """Full fine-tuning: every weight of the backbone."""

    name = "full"
    summary = "all weights of the backbone"

    def opened(self, backbone: Backbone, lora: LoRAConfig, start: Tuned | None) -> Opened:
        """Let every parameter be trained."""
        return _OpenedWhole(backbone.network, start)

    def lr(self, training: TrainingConfig) -> float:
        """Return the rate of whole backbones."""
        return training.full_lr

    def modules(self, backbone: Backbone, lora: LoRAConfig) -> tuple[str, ...]:
        """Return every parameter's entry."""
        return tuple(entry_name(name) for name, _ in backbone.network.named_parameters())


LORA, WHOLE = TUNINGS[LoRATuning.name], TUNINGS[WholeTuning.name]
