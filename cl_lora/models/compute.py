"""Forward passes, and the differentiable one that learns coefficients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from cl_lora.adapters.injection import SupportsDelta, module_weight, parameter_name
from cl_lora.models.backbones import Backbone
from cl_lora.models.bottleneck import Composition, composed

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Compute:
    """Where and how precisely forward passes are done.

    Attributes:
        device: the device of backbone and heads.
        bf16: whether to autocast to bfloat16.
    """

    device: torch.device
    bf16: bool

    def autocast(self) -> torch.autocast:
        """Return the autocast context of this run."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    @torch.no_grad()
    def features(self, backbone: Backbone, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield float32 features (batch, d) and the targets of every batch of (inputs, targets)."""
        for inputs, targets in batches:
            with self.autocast():
                out = backbone(inputs.to(self.device, non_blocking=True))
            yield out.float(), targets.to(self.device)

    @torch.no_grad()
    def tokens(self, backbone: Backbone, inputs: Tensor, block: int) -> Tensor:
        """Return what a block receives of a batch of inputs: see :meth:`Backbone.tokens`."""
        with self.autocast():
            return backbone.tokens(inputs.to(self.device, non_blocking=True), block)

    @torch.no_grad()
    def resumed(self, backbone: Backbone, tokens: Tensor, block: int) -> Tensor:
        """Return float32 features (batch, d) from what a block receives."""
        with self.autocast():
            out = backbone.resume(tokens, block)
        return out.float()

    def trained_features(self, backbone: Backbone, inputs: Tensor) -> Tensor:
        """Return float32 features (batch, d), differentiable in the backbone's own parameters."""
        with self.autocast():
            out: Tensor = backbone(inputs)
        return out.float()

    def merged_features(self, backbone: Backbone, update: SupportsDelta, inputs: Tensor) -> Tensor:
        """Return features (batch, d) of the backbone's inputs, differentiable in ``update``.

        The update is added to the weights out of place, so the backbone stays as it is.
        """
        weights: dict[str, Tensor] = {}
        for name in update.modules():
            weight = module_weight(backbone.network, name)
            changed = weight + update.delta(name).to(weight)
            weights[f"network.{parameter_name(backbone.network, name)}"] = changed
        with self.autocast():
            out: Tensor = functional_call(backbone, weights, (inputs,))
        return out.float()

    def composed_features(
        self, backbone: Backbone, composition: Composition, inputs: Tensor
    ) -> Tensor:
        """Return features (batch, d) of the backbone's inputs, differentiable in the weights.

        Equal to :meth:`merged_features` of the sum with the same weights, without dense updates.
        """
        with composed(backbone.network, composition), self.autocast():
            out: Tensor = backbone(inputs)
        return out.float()
