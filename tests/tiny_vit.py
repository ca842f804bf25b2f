"""The backbone of most tests."""

from __future__ import annotations

import torch

from cl_lora.models.backbones import Backbone
from cl_lora.models.timm_vits import TimmBackbone


def tiny_backbone(seed: int = 0) -> Backbone:
    """Return a randomly initialised ViT of two blocks for 16 px images."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(seed)
    vit = VisionTransformer(
        img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0
    )
    vit.requires_grad_(False).eval()
    return TimmBackbone(vit, 16, [0.5] * 3, [0.5] * 3).eval()
