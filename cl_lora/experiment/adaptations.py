"""What an arm trains on a support set beside its head: nothing, coefficients, a LoRA, all weights.

A kind opens the backbone where the arm starts, says what is trained and how features come about
meanwhile, and gives the backbone back bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from cl_lora.adapters import Adapter, LoRAFactors, concatenate
from cl_lora.adapters.injection import LoRAConfig, applied, extract, inject, remove, train_dropout
from cl_lora.merging import CoefficientRule, Plan, Update
from cl_lora.models.backbones import Backbone
from cl_lora.models.bottleneck import Bottleneck
from cl_lora.models.compute import Compute
from cl_lora.models.weights import Change, Weights, restored
from cl_lora.strategies.config import AdaptationConfig
from cl_lora.support.registry import look_up, registers

BARE = "bare"
"""The key of features of the bare backbone."""


@dataclass(frozen=True, eq=False)
class Start:
    """Where an arm starts.

    Attributes:
        update: what is added to the backbone; None for the bare one.
        change: the same, as features come about while the arm is trained.
        key: names the change among the features that are computed once.
        alpha: the coefficients of the merge; None for the bare backbone.
        adapters: what was merged.
        plan: of the merge.
        rule: of its coefficients.
    """

    update: Update | None = None
    change: Change = None
    key: Hashable = BARE
    alpha: Tensor | None = None
    adapters: Sequence[Adapter] = ()
    plan: Plan | None = None
    rule: CoefficientRule | None = None


@dataclass(frozen=True, eq=False)
class Opening:
    """What a kind opens.

    Attributes:
        backbone: the bare backbone, frozen.
        compute: device and precision.
        lora: the shape of a LoRA.
        start: where the arm starts.
        config: how it is trained.
        factor: of the learning rate.
        truncate: whether a LoRA takes over the merge, cut to its rank.
    """

    backbone: Backbone
    compute: Compute
    lora: LoRAConfig
    start: Start
    config: AdaptationConfig
    factor: float = 1.0
    truncate: bool = False


@dataclass(frozen=True, eq=False)
class Trained:
    """What is trained while a kind is open.

    Attributes:
        groups: parameter groups with ``lr`` and ``weight_decay``; the head is not among them.
        features: inputs (batch, ...) -> features (batch, d), with gradients; None where features
            stay what they are at the start.
        result: what is done to the backbone after training, and the coefficients if there are any.
    """

    groups: Sequence[dict[str, Any]]
    features: Callable[[Tensor], Tensor] | None
    result: Callable[[], tuple[Change, Tensor | None]]

    @property
    def count(self) -> int:
        """The number of trained parameters without the head."""
        return sum(p.numel() for group in self.groups for p in group["params"])


class AdaptationKind(ABC):
    """What is trained on a support set.

    Attributes:
        name: the name it is chosen by.
        summary: one sentence.
        trains: whether anything is trained, the head at least.
        trains_network: whether weights of the backbone or of a LoRA are.
        learns_coefficients: whether the coefficients of the merge are.
        keeps_apart: whether the adapters of a plain sum stay apart while it is trained.
        may_truncate: whether it can take over a merge, cut to its rank.
        head_start: how the head begins where the arm does not say.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    trains: ClassVar[bool] = True
    trains_network: ClassVar[bool] = False
    learns_coefficients: ClassVar[bool] = False
    keeps_apart: ClassVar[bool] = False
    may_truncate: ClassVar[bool] = False
    head_start: ClassVar[str] = "zero"

    @abstractmethod
    def opened(self, opening: Opening) -> AbstractContextManager[Trained]:
        """Open the backbone for training; it is the same again bit for bit on leaving."""


ADAPTATIONS: dict[str, AdaptationKind] = {}
"""Every registered kind by name."""

register_adaptation = registers("adaptation", ADAPTATIONS)
"""Registers a class by its name; it must be free."""


def get_adaptation(name: str) -> AdaptationKind:
    """Return the kind called ``name``.

    Raises:
        UserError: if there is none, naming the nearest known.
    """
    return look_up("adapt", ADAPTATIONS, name)


class _Still(AdaptationKind):
    """Leaves features as they are."""

    @contextmanager
    def opened(self, opening: Opening) -> Iterator[Trained]:
        """Yield nothing that is trained."""
        start = opening.start
        yield Trained((), None, lambda: (start.update, start.alpha))


@register_adaptation
class Nothing(_Still):
    """A floor: what can be had without training."""

    name = "none"
    summary = "nothing is trained, the head is what it begins as"
    trains = False
    head_start = "means"


@register_adaptation
class Head(_Still):
    """Classifier tuning, on the bare backbone or on a composition with given weights."""

    name = "head"
    summary = "the head alone, on features that are computed once"


@register_adaptation
class Coefficients(AdaptationKind):
    """Learned composition: the coefficients of the merge, and the head."""

    name = "coefficients"
    summary = "the coefficients of the merge, and the head"
    learns_coefficients = True
    keeps_apart = True

    @contextmanager
    def opened(self, opening: Opening) -> Iterator[Trained]:
        """Yield the parameters of the coefficient rule; they have no weight decay."""
        plan, rule = opening.start.plan, opening.start.rule
        assert plan is not None
        assert rule is not None
        backbone, compute = opening.backbone, opening.compute
        state = rule.state(plan.n, plan.modules)
        if plan.plain_sum:
            # Adapters that stay apart: no dense update, and no gradient of one.
            bottleneck = Bottleneck.of(backbone.network, opening.start.adapters)

            def features(inputs: Tensor) -> Tensor:
                composition = bottleneck.weighted(state.alpha())
                return compute.composed_features(backbone, composition, inputs)
        else:
            kept = plan.materialise()

            def features(inputs: Tensor) -> Tensor:
                return compute.merged_features(backbone, kept.combine(state.alpha()), inputs)

        def result() -> tuple[Change, Tensor | None]:
            alpha = state.alpha().detach().clone()
            return plan.combine(alpha), alpha

        group = {
            "params": list(state.parameters.values()),
            "lr": float(rule.options["lr"]) * opening.factor,
        }
        yield Trained((group,), features, result)


@register_adaptation
class LoRA(AdaptationKind):
    """A LoRA on the bare backbone, on a frozen composition, or from one cut to its rank."""

    name = "lora"
    summary = "a LoRA and the head, from scratch or on the frozen merge"
    trains_network = True
    may_truncate = True

    @contextmanager
    def opened(self, opening: Opening) -> Iterator[Trained]:
        """Yield the factors of a LoRA of the strategy's shape."""
        update, backbone = opening.start.update, opening.backbone
        truncated = opening.truncate and update is not None
        begin = _as_lora(update, opening.lora) if truncated and update is not None else None
        frozen = None if truncated else update
        with applied(backbone.network, frozen):
            backbone.network = inject(backbone.network, opening.lora, begin, backbone.targets)
            try:
                train_dropout(backbone.network)
                lora = [p for p in backbone.parameters() if p.requires_grad]
                group = {
                    "params": lora,
                    "lr": opening.config.lora_lr * opening.factor,
                    "weight_decay": opening.config.weight_decay,
                }

                def result() -> tuple[Change, Tensor | None]:
                    return _on_top(frozen, extract(backbone.network)), opening.start.alpha

                forward = partial(opening.compute.trained_features, backbone)
                yield Trained((group,), forward, result)
            finally:
                backbone.network = remove(backbone.network)
                backbone.requires_grad_(False).eval()


@register_adaptation
class Full(AdaptationKind):
    """Full fine-tuning: every weight of the backbone."""

    name = "full"
    summary = "all weights of the backbone and the head"
    trains_network = True

    @contextmanager
    def opened(self, opening: Opening) -> Iterator[Trained]:
        """Yield all parameters."""
        backbone = opening.backbone
        with restored(backbone.network), applied(backbone.network, opening.start.update):
            weights = list(backbone.network.parameters())
            for weight in weights:
                weight.requires_grad_(True)
            group = {
                "params": weights,
                "lr": opening.config.full_lr * opening.factor,
                "weight_decay": opening.config.weight_decay,
            }
            yield Trained(
                (group,),
                partial(opening.compute.trained_features, backbone),
                lambda: (Weights.of(backbone.network), opening.start.alpha),
            )


def _as_lora(update: Update, lora: LoRAConfig) -> dict[str, LoRAFactors]:
    """Return an update cut to a LoRA's rank, as factors that its scaling gives back."""
    scaling = lora.scaling
    made = {}
    for module, f in update.truncate(lora.rank).to_adapter("start").factors.items():
        missing = lora.rank - f.rank
        A, B = f.A, f.B * (f.scaling / scaling)
        if missing > 0:  # a merge of lower rank than the LoRA: the rest is zero
            A = _padded(A, missing, 0)
            B = _padded(B, missing, 1)
        made[module] = LoRAFactors(A, B, scaling)
    return made


def _padded(tensor: Tensor, count: int, dim: int) -> Tensor:
    shape = list(tensor.shape)
    shape[dim] = count
    return torch.cat([tensor, tensor.new_zeros(shape)], dim)


def _on_top(frozen: Update | None, factors: dict[str, LoRAFactors]) -> Update:
    """Return a frozen merge and a LoRA as one update; modules of one alone stay as they are."""
    if frozen is None:
        return Update(factors)
    entries: dict[str, LoRAFactors | Tensor] = dict(frozen.entries)
    for module, lora in factors.items():
        below = entries.get(module)
        if below is None:
            entries[module] = lora
        elif isinstance(below, LoRAFactors):
            same = LoRAFactors(below.A.to(lora.A), below.B.to(lora.B), below.scaling)
            entries[module] = concatenate([same, lora], torch.ones(2))
        else:
            entries[module] = below.to(lora.A) + lora.delta()
    return Update(entries, frozen.variant, frozen.alpha, frozen.base)
