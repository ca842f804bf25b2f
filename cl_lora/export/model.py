"""The base model of an export: how timm builds it, and its weights where they go along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cl_lora.configuration.build import build
from cl_lora.models.backbones import ModelConfig, load_backbone, source_of
from cl_lora.models.timm_vits import EMBEDDED, embedded_architecture
from cl_lora.run_folder.reader import RunFolder
from cl_lora.support.errors import UserError

HUB, FILE, WITH = "hub", "file", "base.safetensors"
"""Where the base weights come from: timm's hub, a file of the user's, or a file of the export."""


@dataclass(frozen=True)
class Base:
    """The base model.

    Attributes:
        name: of the timm model; ``embedded`` for the one that is shipped with cl-lora.
        img_size: input size in pixels.
        mean: per-channel mean of the normalisation.
        std: per-channel standard deviation of the normalisation.
        fingerprint: digest of all weights.
        weights: ``hub``, ``file`` or ``base.safetensors``.
        file: name of the user's file, where weights come from one.
        architecture: arguments of timm's ``VisionTransformer``, where the model has no name.
    """

    name: str
    img_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    weights: str
    file: str | None = None
    architecture: Mapping[str, Any] | None = None

    def record(self) -> dict[str, Any]:
        """Return plain JSON; what the model does not have is left out."""
        return {key: value for key, value in vars(self).items() if value is not None}


def base_of(run: RunFolder, with_base: bool) -> Base:
    """Return the base model of a run.

    Args:
        run: the run.
        with_base: whether its weights go along; those of a model without a name always do, and
            random ones.

    Raises:
        UserError: if models of its source cannot be exported.
    """
    source = source_of(build(ModelConfig, run.config["model"], "model"))
    if not source.exports:
        raise UserError(
            f"{run.path} is a run of a model of source {source.name!r}, which cannot be exported; "
            "merge its adapters with cl-lora merge, or export a run of a timm model"
        )
    model, backbone = run.config["model"], run.identity["backbone"]
    name, checkpoint = str(model["name"]), model.get("checkpoint")
    unnamed = name == EMBEDDED
    random = checkpoint is None and not model.get("pretrained", True)
    size = int(backbone["img_size"])
    weights = WITH if with_base or unnamed or random else HUB if checkpoint is None else FILE
    return Base(
        name=_tagged(name) if weights == HUB else name,
        img_size=size,
        mean=tuple(backbone["mean"]),
        std=tuple(backbone["std"]),
        fingerprint=str(backbone["fingerprint"]),
        weights=weights,
        file=None if checkpoint is None else Path(str(checkpoint)).name,
        architecture=embedded_architecture(size) if unnamed else None,
    )


def _tagged(name: str) -> str:
    """Return a name of timm with its weights' tag, so that it means the same in later versions."""
    import timm

    found = None if "." in name else timm.get_pretrained_cfg(name)
    return f"{name}.{found.tag}" if found is not None and found.tag else name


def base_weights(run: RunFolder, base: Base) -> dict[str, Tensor] | None:
    """Return the base weights, where they go along.

    Raises:
        UserError: if they cannot be loaded, or are not those of the run.
    """
    if base.weights != WITH:
        return None
    backbone = load_backbone(build(ModelConfig, run.config["model"], "model"))
    found = backbone.fingerprint()
    if found != base.fingerprint:
        raise UserError(
            f"Expected the base weights of {run.path} (fingerprint {base.fingerprint}) but "
            f"{base.file or base.name} gives others ({found}); bring the file of the run back, or "
            "leave --with-base out"
        )
    return backbone.network.state_dict()
