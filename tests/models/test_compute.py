"""Forward passes under a merged update."""

from __future__ import annotations

import torch

from cl_lora.adapters import LoRAFactors
from cl_lora.adapters.injection import applied
from cl_lora.merging import Update
from cl_lora.models.backbones import EMBEDDED, ModelConfig, load_backbone
from cl_lora.models.compute import Compute


def test_merged_features_follow_the_backbone_not_the_update() -> None:
    """Adapters are on the CPU and may be float64; the backbone may be neither."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = load_backbone(ModelConfig(EMBEDDED)).to(device)
    name = "blocks.0.mlp.fc1"
    d_out, d_in = backbone.network.get_submodule(name).weight.shape
    scale = torch.tensor(0.01, dtype=torch.float64, requires_grad=True)
    A = torch.ones(1, d_in, dtype=torch.float64)
    update = Update({name: LoRAFactors(A, scale * torch.ones(d_out, 1, dtype=torch.float64))})
    images = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8, device=device)
    compute = Compute(device, bf16=False)
    features = compute.merged_features(backbone, update, images)
    with applied(backbone.network, update), torch.no_grad():
        torch.testing.assert_close(features.detach(), backbone(images), rtol=1e-4, atol=1e-5)
    torch.autograd.backward([features.sum()])
    assert scale.grad is not None
    assert scale.grad.isfinite()
