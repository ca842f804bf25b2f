"""What every backbone is, and the registry of sources that backbones come from."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy.typing as npt
import torch
from torch import Tensor, nn

from cl_lora.adapters.base_model import BaseModel
from cl_lora.support.errors import UserError, shown
from cl_lora.support.files import digest
from cl_lora.support.ranges import at_most
from cl_lora.support.registry import check_free, look_up
from cl_lora.tasks import Task

TIMM = "timm"


@dataclass(frozen=True)
class ModelConfig:
    """Which backbone to use.

    Attributes:
        name: what the source knows it by: a timm Vision Transformer, ``embedded``, or a name on
            the hub.
        pretrained: load timm's weights from the hub where no checkpoint is given.
        checkpoint: local weights: a file, or the folder of a model of transformers.
        img_size: input size in pixels; the position embedding is resampled to it.
        mean: per-channel mean of the normalisation; None takes the model's.
        std: per-channel standard deviation of the normalisation; None takes the model's.
        source: where it comes from, one of :data:`MODEL_SOURCES`.
        prompts: templates of the texts that a label is told with, ``{}`` where it stands; None
            takes the source's.
        task_prompts: the templates of some tasks by the task's name; all others have ``prompts``.
        max_length: tokens of an input, of a model that reads texts; None takes the source's.
    """

    name: str
    pretrained: bool = True
    checkpoint: str | None = None
    img_size: int | None = at_most(4096, None)
    mean: Sequence[float] | None = at_most(1_000_000, None)
    std: Sequence[float] | None = at_most(1_000_000, None)
    source: str = TIMM
    prompts: Sequence[str] | None = None
    task_prompts: Mapping[str, Any] | None = None
    max_length: int | None = at_most(1_000_000, None)

    def __post_init__(self) -> None:
        for key in ("mean", "std"):
            value = getattr(self, key)
            if value is None:
                continue
            if len(value) != 3 or not all(math.isfinite(v) for v in value):
                raise UserError(
                    f"Expected model.{key} to be three numbers but got {shown(list(value))}; give "
                    "one for each channel, as [0.5,0.5,0.5]"
                )
            if key == "std" and min(value) <= 0:
                raise UserError(
                    f"Expected model.std to be above 0 but got {shown(list(value))}; give such "
                    "as [0.5,0.5,0.5]"
                )
        if self.img_size is not None and self.img_size < 8:
            raise UserError(
                f"Expected model.img_size to be at least 8 but got {self.img_size}; raise it"
            )
        if self.checkpoint is not None and not Path(self.checkpoint).expanduser().exists():
            raise UserError(
                f"The checkpoint {self.checkpoint} does not exist; "
                "give model.checkpoint an existing file"
            )
        if self.max_length is not None and self.max_length < 2:
            raise UserError(
                f"Expected model.max_length to be at least 2 but got {self.max_length}; raise it"
            )
        if self.prompts is not None:
            _check_prompts("model.prompts", self.prompts)
        for name, prompts in (self.task_prompts or {}).items():
            _check_prompts(f"model.task_prompts.{name}", prompts)


def _check_prompts(where: str, prompts: object) -> None:
    if isinstance(prompts, Sequence) and not isinstance(prompts, str):
        odd = [p for p in prompts if not isinstance(p, str) or p.count("{}") != 1]
        if prompts and not odd:
            return
        prompts = odd[0] if odd else []
    raise UserError(
        f"Expected {where} to be a list of texts with one {{}} each, where the label stands, but "
        f"got {prompts!r}; give such as ['a photo of a {{}}.']"
    )


class Backbone(nn.Module, ABC):
    """A frozen network that maps encoded samples to features.

    Attributes:
        network: what LoRA goes into; its weights are what merges change.
        features: width of the feature.
        targets: name of a LoRA target -> a regular expression of the full names of its layers.
        spell_out_attention: whether attention is written out while gradients flow, where the
            network can choose. torch's fused attention has no fast bf16 backward on CPUs: ViT-Ti
            at 112 px trains 1.6 times faster without it (docs/performance.md), and evaluates
            faster with it.
        one_attention: whether evaluation writes it out too then, for features that are equal.
        pads: whether inputs of unlike length are padded, so that a mean over the tokens of one
            sample is only its own in a batch of one.
        base_model: what the folders of its adapters say of it, so that peft opens them by
            themselves; nothing where its network is no model that peft could load.
    """

    pads: ClassVar[bool] = False
    base_model: BaseModel = BaseModel()
    network: nn.Module
    features: int
    targets: Mapping[str, str]

    def __init__(self, network: nn.Module, features: int, targets: Mapping[str, str]) -> None:
        super().__init__()
        self.network = network
        self.features = features
        self.targets = targets
        self.spell_out_attention = False
        self.one_attention = False

    @abstractmethod
    def encode(self, samples: npt.NDArray[Any]) -> Tensor:
        """Return samples as they come from a benchmark as a new tensor that ``forward`` takes.

        One sample, or several in the first axes; all samples become tensors of one shape.
        """

    def check_samples(self, samples: npt.NDArray[Any], name: str) -> None:
        """Check before training that the samples of an experience can be encoded.

        Args:
            samples: all inputs of the experience.
            name: the experience's, for the error.

        Raises:
            UserError: naming a sample that cannot.
        """

    @abstractmethod
    def forward(self, inputs: Tensor) -> Tensor:
        """Return features (batch, features) of a batch of encoded samples."""

    def choose_attention(self) -> None:
        """Choose fused or written-out attention; call it before each pass through ``network``."""

    @property
    def depth(self) -> int:
        """How many blocks of tokens the network has; 0 where its inside is not known."""
        return 0

    def tokens(self, inputs: Tensor, block: int) -> Tensor:
        """Return what a block receives: tokens (batch, P, d) of encoded samples.

        What comes before the block is computed and nothing else; :meth:`resume` goes on from it.

        Args:
            inputs: as :meth:`forward` takes them.
            block: from 0.

        Raises:
            UserError: if this backbone has no such block.
        """
        raise UserError(
            f"Expected a model with a block {block} of tokens to route by but this one has none; "
            "choose a Vision Transformer of timm, such as model=vit_tiny"
        )

    def patches(self, tokens: Tensor) -> Tensor:
        """Return the tokens of patches alone, without those of class and registers."""
        return tokens

    def advance(self, tokens: Tensor, block: int, to: int) -> Tensor:
        """Return what block ``to`` receives from what :meth:`tokens` returned for ``block``."""
        raise NotImplementedError

    def resume(self, tokens: Tensor, block: int) -> Tensor:
        """Return features (batch, features) from what :meth:`tokens` returned for ``block``."""
        raise NotImplementedError

    def separate(self, targets: Sequence[str]) -> None:
        """Take layers apart that are one in the network but are adapted apart, in place."""

    def task_head(self, task: Task) -> nn.Module:
        """Return a frozen head that is made of a task's labels, without training.

        Raises:
            UserError: if this backbone makes none, or none of such a task.
        """
        raise UserError(
            "This model makes no head of a task's labels, which strategy.head=text asks for; "
            "choose strategy.head=own, whose heads are trained, or a model with texts, such as "
            "model=clip_b32"
        )

    def record(self) -> dict[str, Any]:
        """Return what decides its features; plain JSON."""
        return {"fingerprint": self.fingerprint()}

    def weights(self) -> Mapping[str, Sequence[Tensor]]:
        """Return every weight by name, in one or several parts that make it when joined."""
        return {key: [value] for key, value in self.network.state_dict().items()}

    def fingerprint(self) -> str:
        """Return a digest of all weights: two equal backbones have equal fingerprints."""
        return weights_digest(self.weights())


def weights_digest(weights: Mapping[str, Sequence[Tensor]]) -> str:
    """Return a digest of weights by name, each in parts that are joined in their first axis."""
    parts: list[object] = []
    for key, values in sorted(weights.items()):
        cpu = [value.detach().cpu() for value in values]
        whole = torch.cat(cpu) if len(cpu) > 1 else cpu[0]
        parts += [key, whole.contiguous().numpy().tobytes()]
    return digest(*parts)


@dataclass(frozen=True)
class ModelSource:
    """Where backbones come from.

    Attributes:
        name: the name it is chosen by.
        summary: one sentence.
        load: builds the backbone in float32 with frozen weights, in eval mode.
        input_size: the input size in pixels without loading weights; None where inputs are no
            images.
        targets: the LoRA targets that backbones of it can have; see :class:`Backbone`.
        takes: settings of :class:`ModelConfig` that mean something to it, beside name and source.
        exports: whether ``cl-lora export`` can write what it serves.
    """

    name: str
    summary: str
    load: Callable[[ModelConfig], Backbone]
    input_size: Callable[[ModelConfig], int | None]
    targets: Mapping[str, str]
    takes: frozenset[str]
    exports: bool = False

    _everywhere: ClassVar[frozenset[str]] = frozenset({"name", "source"})

    def check(self, config: ModelConfig) -> None:
        """Check that nothing is set that means nothing to this source.

        Raises:
            UserError: naming the setting.
        """
        for field in dataclasses.fields(config):
            known = field.name in self.takes | self._everywhere
            if not known and getattr(config, field.name) != field.default:
                raise UserError(
                    f"model.{field.name} means nothing to models of source {self.name!r}; "
                    "leave it out"
                )


MODEL_SOURCES: dict[str, ModelSource] = {}
"""Every registered source of backbones by name."""


def register_source(source: ModelSource) -> None:
    """Register a source of backbones by its name.

    Raises:
        UserError: if the name is taken.
    """
    check_free("model source", source.name, _loader(source.name), source.load)
    MODEL_SOURCES[source.name] = source


def _loader(name: str) -> object | None:
    return MODEL_SOURCES[name].load if name in MODEL_SOURCES else None


def source_of(config: ModelConfig) -> ModelSource:
    """Return the source of a model, its settings checked.

    Raises:
        UserError: for an unknown source, or a setting that means nothing to it.
    """
    source = look_up("model.source", MODEL_SOURCES, config.source)
    source.check(config)
    return source
