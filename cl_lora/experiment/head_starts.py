"""How the head of an arm begins that is adapted to a support set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cl_lora.models.heads import HeadState, PrototypeHead, average_heads, head_of
from cl_lora.support.registry import look_up, registers


@dataclass(frozen=True)
class StartSources:
    """What a head may begin from.

    Attributes:
        inputs: width of the features.
        outputs: size of the head's output.
        heads: of the upstream adapters that the arm merges, or of all where it merges none.
        features: makes the features (N, d) of the support samples where the arm starts.
        labels: int64 (N,), theirs.
        of_labels: makes the head that the backbone has for the labels' texts.
    """

    inputs: int
    outputs: int
    heads: Sequence[HeadState]
    features: Callable[[], Tensor]
    labels: Tensor
    of_labels: Callable[[], nn.Module]


class HeadStart(ABC):
    """How a head begins.

    Attributes:
        name: the name it is chosen by.
        summary: one sentence.
        shares_labels: whether the upstream tasks must have the labels of the downstream one.
        trainable: whether it gives a linear head that training can go on from.
        serves: whether it can serve without training.
        needs_classes: whether it works for tasks with class labels only.
        from_backbone: whether the backbone makes it, of the labels' texts: no sample is needed, and
            it stays what it is while other things are trained.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    shares_labels: ClassVar[bool] = False
    trainable: ClassVar[bool] = True
    serves: ClassVar[bool] = True
    needs_classes: ClassVar[bool] = False
    from_backbone: ClassVar[bool] = False

    @abstractmethod
    def make(self, sources: StartSources) -> nn.Module:
        """Return the head."""


HEAD_STARTS: dict[str, HeadStart] = {}
"""Every registered way in which a head begins, by name."""

register_head_start = registers("head start", HEAD_STARTS)
"""Registers a class by its name; it must be free."""


def get_head_start(name: str) -> HeadStart:
    """Return the way to begin called ``name``.

    Raises:
        UserError: if there is none, naming the nearest known.
    """
    return look_up("head_start", HEAD_STARTS, name)


@register_head_start
class Zero(HeadStart):
    """All weights 0: a random head moves gaps between arms at K = 1 by a factor of two."""

    name = "zero"
    summary = "all weights zero"
    serves = False

    def make(self, sources: StartSources) -> nn.Module:
        """Return a linear head of zeros."""
        head = nn.Linear(sources.inputs, sources.outputs)
        with torch.no_grad():
            head.weight.zero_()
            head.bias.zero_()
        return head


@register_head_start
class Average(HeadStart):
    """What upstream training knows of the labels."""

    name = "average"
    summary = "the mean of the upstream heads, where classes are shared"
    shares_labels = True

    def make(self, sources: StartSources) -> nn.Module:
        """Return the mean of the heads."""
        return head_of(average_heads(sources.heads))


@register_head_start
class Means(HeadStart):
    """Nearest class mean, as a floor without training."""

    name = "means"
    summary = "class means of the support samples' features (cosine)"
    trainable = False
    needs_classes = True

    def make(self, sources: StartSources) -> nn.Module:
        """Return the class means."""
        return PrototypeHead(sources.features(), sources.labels, sources.outputs)


@register_head_start
class Text(HeadStart):
    """What the model knows of the labels from their texts, as a zero-shot classifier does."""

    name = "text"
    summary = "made by the model of the labels' texts, and never trained"
    trainable = False
    from_backbone = True

    def make(self, sources: StartSources) -> nn.Module:
        """Return the backbone's head."""
        return sources.of_labels()
