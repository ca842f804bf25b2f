"""A backbone made ready for adapters: on its device, its layers apart where they are adapted so."""

from __future__ import annotations

import torch

from cl_lora.adapters.injection import LoRAConfig, target_modules
from cl_lora.models.backbones import Backbone, ModelConfig, load_backbone


def prepare_backbone(
    config: ModelConfig, lora: LoRAConfig, device: torch.device, bf16: bool
) -> tuple[Backbone, tuple[str, ...]]:
    """Load a backbone and find the layers that are adapted.

    Args:
        config: which backbone.
        lora: the adapters' shape; q, k and v are split where they are adapted apart.
        device: where it goes.
        bf16: whether its passes are autocast to bfloat16.

    Returns:
        The frozen backbone, and the full names of the adapted layers in its order.

    Raises:
        UserError: if it cannot be loaded, or has no such layers.
    """
    backbone = load_backbone(config)
    backbone.separate(lora.targets)
    modules = target_modules(backbone.network, lora.targets, backbone.targets, lora.first_block)
    backbone.spell_out_attention = bf16 and device.type == "cpu"
    return backbone.to(device), modules
