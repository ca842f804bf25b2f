"""Frozen backbones by their configuration, whatever source they come from."""

from __future__ import annotations

# Importing a source's module registers it.
from cl_lora.models import clip, language, timm_vits  # noqa: F401
from cl_lora.models.base import MODEL_SOURCES, Backbone, ModelConfig, ModelSource, source_of
from cl_lora.models.timm_vits import EMBEDDED

__all__ = [
    "EMBEDDED",
    "MODEL_SOURCES",
    "Backbone",
    "ModelConfig",
    "ModelSource",
    "input_size",
    "load_backbone",
    "source_of",
]


def input_size(config: ModelConfig) -> int | None:
    """Return the input size in pixels that ``config`` asks for, without loading weights.

    None where the model takes no images.

    Raises:
        UserError: for an unknown source or name, or a setting that means nothing to the source.
    """
    return source_of(config).input_size(config)


def load_backbone(config: ModelConfig) -> Backbone:
    """Build the backbone of ``config`` in float32 with frozen weights, in eval mode.

    Raises:
        UserError: for an unknown name, a checkpoint that is none or belongs to another
            architecture, or weights that cannot be downloaded.
    """
    return source_of(config).load(config)
