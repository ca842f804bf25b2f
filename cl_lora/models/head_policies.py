"""Head policies: how a head starts, whether it trains, and what it is when a merge is served."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from cl_lora.models.gaussians import Gaussians, HalvesHead, MixtureHead
from cl_lora.models.heads import HeadState, average_heads, head_of, merge_heads
from cl_lora.support.registry import look_up, registers


@dataclass(frozen=True)
class HeadSources:
    """What a policy may use to serve a stage.

    Attributes:
        heads: of the served adapters, in order; the last was trained last.
        alpha: the coefficients, (n,) or (modules, n); None where nothing was merged.
        prototypes: makes class means of the support samples' features under what is served.
        own: the head of the adapter that was trained on the experience that is served; None where
            there is none.
        refit: trains a new head on the train part of the experience that is served.
        gaussians: makes Gaussians of the features of every class and experience, from what was
            kept beside the served adapters.
        moved: makes the same with means that were moved by the drift of buffer samples.
    """

    heads: Sequence[HeadState]
    alpha: Tensor | None
    prototypes: Callable[[], nn.Module]
    own: HeadState | None = None
    refit: Callable[[], nn.Module] | None = None
    gaussians: Callable[[], Gaussians] | None = None
    moved: Callable[[], Gaussians] | None = None


class HeadPolicy(ABC):
    """How the head lives through a stream.

    Attributes:
        name: the name it is chosen by.
        summary: one sentence.
        restarts: whether every experience of a bank of fresh adapters starts with a new head.
        for_one_arm: whether a single arm may ask for it in place of the run's: only where it does
            not decide how adapters are trained.
        needs_support: whether it sees support samples.
        needs_classes: whether it works for tasks with class labels only.
        tunable: whether a head that was trained with the coefficients can take its place.
        sums_heads: whether heads are joined by a weighted sum.
        control: whether an arm that asks for it is a control, not a merge to be chosen.
        apart: whether every experience is served by a head of its own, so that tasks may differ;
            which experience an input belongs to must be known then.
        from_backbone: whether the backbone makes the head of a task, of its labels' texts.
        statistics: names of the statistics that it needs beside every adapter.
        of_one_adapter: whether it serves an adapter alone, and no merge of several.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    restarts: ClassVar[bool] = False
    for_one_arm: ClassVar[bool] = False
    needs_support: ClassVar[bool] = False
    needs_classes: ClassVar[bool] = False
    tunable: ClassVar[bool] = True
    sums_heads: ClassVar[bool] = False
    control: ClassVar[bool] = False
    apart: ClassVar[bool] = False
    from_backbone: ClassVar[bool] = False
    statistics: ClassVar[tuple[str, ...]] = ()
    of_one_adapter: ClassVar[bool] = False

    def trains(self, first: bool) -> bool:
        """Return whether training an experience trains the head; ``first``: none came before."""
        return True

    def start(self, heads: Sequence[HeadState]) -> HeadState:
        """Return the head under which coefficients are learned, and from which tuning starts."""
        return heads[-1]

    def merged(self, heads: Sequence[HeadState], alpha: Tensor) -> HeadState | None:
        """Return a head that is merged with the coefficients, differentiable; None if it is not."""
        return None

    @abstractmethod
    def serve(self, sources: HeadSources) -> nn.Module:
        """Return the head that is served."""


HEAD_POLICIES: dict[str, HeadPolicy] = {}
"""Every registered head policy by name."""

register_head_policy = registers("head policy", HEAD_POLICIES)
"""Registers a class by its name; it must be free."""


def get_head_policy(name: str) -> HeadPolicy:
    """Return the policy called ``name``.

    Raises:
        UserError: if there is none, naming the nearest known.
    """
    return look_up("head policy", HEAD_POLICIES, name)


class _Newest(HeadPolicy):
    """Serves the head that was trained last."""

    def serve(self, sources: HeadSources) -> nn.Module:
        return head_of(sources.heads[-1])


@register_head_policy
class Shared(_Newest):
    """One head for the whole stream."""

    name = "shared"
    summary = "one linear head, trained on from experience to experience, never merged"


@register_head_policy
class Frozen(_Newest):
    """The first experience's head for the whole stream."""

    name = "frozen"
    summary = "the head trained with the first adapter, fixed from then on"

    def trains(self, first: bool) -> bool:
        """Return whether nothing was trained before."""
        return first


@register_head_policy
class PerExperience(HeadPolicy):
    """A head for each adapter, joined by the adapters' coefficients."""

    name = "per_experience"
    summary = "a head kept with each adapter, merged with the adapters' coefficients"
    restarts = True
    sums_heads = True

    def start(self, heads: Sequence[HeadState]) -> HeadState:
        """Return the mean of the heads."""
        return average_heads(heads)

    def merged(self, heads: Sequence[HeadState], alpha: Tensor) -> HeadState | None:
        """Return ``sum_i alpha_i head_i``."""
        return merge_heads(heads, alpha)

    def serve(self, sources: HeadSources) -> nn.Module:
        """Return the merged head, or the only one where nothing was merged."""
        if sources.alpha is None:
            return head_of(sources.heads[-1])
        return head_of(merge_heads(sources.heads, sources.alpha.float()))


@register_head_policy
class Prototypes(HeadPolicy):
    """Class means in place of a trained head."""

    name = "prototypes"
    summary = "class means of the merged backbone's features over the buffer (cosine)"
    for_one_arm = True
    needs_support = True
    needs_classes = True
    tunable = False

    def serve(self, sources: HeadSources) -> nn.Module:
        """Return the class means."""
        return sources.prototypes()


class _OfStatistics(HeadPolicy):
    """Made of what was kept beside the adapters; it needs no training and no image."""

    for_one_arm = True
    needs_classes = True
    tunable = False
    statistics = ("features",)


@register_head_policy
class Gaussian(_OfStatistics):
    """The trained head of an adapter, helped by the Gaussians of its features."""

    name = "gaussian"
    summary = "the mean of the adapter's trained head and of class-Gaussians of its features"
    of_one_adapter = True

    def serve(self, sources: HeadSources) -> nn.Module:
        """Return ``log((softmax(head f) + softmax(l f)) / 2)``, l from the adapter's statistics."""
        assert sources.gaussians is not None
        gaussians = MixtureHead(sources.gaussians().densities(_RIDGE_OF_ADAPTERS))
        return HalvesHead(head_of(sources.heads[-1]), gaussians)


@register_head_policy
class Mixture(_OfStatistics):
    """A Gaussian for every class of every experience."""

    name = "mixture"
    summary = "a Gaussian for each class of each experience, with the means kept beside adapters"

    def serve(self, sources: HeadSources) -> nn.Module:
        """Return ``logsumexp_d l_dc``."""
        assert sources.gaussians is not None
        return MixtureHead(sources.gaussians().densities(_RIDGE_OF_MERGES))


@register_head_policy
class MovedMixture(_OfStatistics):
    """The mixture, whose means follow what a merge has done to features."""

    name = "mixture_moved"
    summary = "as mixture, with means moved by the drift of the buffer's features"
    needs_support = True

    def serve(self, sources: HeadSources) -> nn.Module:
        """Return ``logsumexp_d l_dc`` with moved means."""
        assert sources.moved is not None
        return MixtureHead(sources.moved().densities(_RIDGE_OF_MERGES))


_RIDGE_OF_ADAPTERS, _RIDGE_OF_MERGES = 0.05, 0.1
"""What is added to a covariance, as a share of its mean variance."""


@register_head_policy
class Own(HeadPolicy):
    """A head for each experience, never merged."""

    name = "own"
    summary = "a head for each experience, kept with its adapter and serving that experience alone"
    restarts = True
    tunable = False
    apart = True

    def serve(self, sources: HeadSources) -> nn.Module:
        """Return the head that was trained on the experience that is served."""
        return head_of(sources.heads[-1] if sources.own is None else sources.own)


@register_head_policy
class Text(Own):
    """A head for each experience, made of its labels and never trained."""

    name = "text"
    summary = "a head for each experience that the model makes of its labels' texts, never trained"
    from_backbone = True

    def trains(self, first: bool) -> bool:
        """Return False: texts say what the head is."""
        return False


@register_head_policy
class Refit(HeadPolicy):
    """A new head for each experience, trained on what is served."""

    name = "refit"
    summary = "a head for each experience, trained anew on its train part on what is served"
    restarts = True
    for_one_arm = True
    tunable = False
    control = True
    apart = True

    def serve(self, sources: HeadSources) -> nn.Module:
        """Return the new head; where there is none to train, the newest."""
        return head_of(sources.heads[-1]) if sources.refit is None else sources.refit()
