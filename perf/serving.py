"""One backbone with a merged adapter serves the heads of n tasks: against n models of one task."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from cl_lora.adapters import Adapter, entry_delta
from cl_lora.adapters.injection import module_weight, split_qkv
from cl_lora.export.fusing import fused
from cl_lora.merging import Update, merge
from cl_lora.models.backbones import Backbone, ModelConfig
from cl_lora.models.heads import new_head
from cl_lora.models.timm_vits import load_vit
from perf.common import interleaved, random_adapters, report, shapes_of

MODEL = ModelConfig("vit_tiny_patch16_224", pretrained=False, img_size=112)
TASKS, RANK, BATCH, OUTPUTS = (2, 3, 6), 16, 16, 7


def merged(backbone: Backbone, update: Update) -> Backbone:
    """Return a copy of the backbone with an update in its weights, as an export is loaded."""
    own = copy.deepcopy(backbone)
    with torch.no_grad():
        for module, entry in fused(update.entries).items():
            module_weight(own.network, module).add_(entry_delta(entry))
    return own


def cases(
    backbone: Backbone, adapters: list[Adapter], heads: list[nn.Module], images: Tensor
) -> dict[str, Callable[[], list[Tensor]]]:
    """Return what serves every task on the same images: one model, or one for each task."""
    one = merged(backbone, merge(adapters, "cat", [1.0] * len(adapters)))
    alone = [merged(backbone, merge([adapter], "cat", [1.0])) for adapter in adapters]

    @torch.no_grad()
    def together() -> list[Tensor]:
        features = one(images)
        return [head(features) for head in heads]

    @torch.no_grad()
    def apart() -> list[Tensor]:
        return [head(model(images)) for model, head in zip(alone, heads, strict=True)]

    return {"one backbone, n heads": together, "n models": apart}


def main() -> None:
    torch.manual_seed(0)
    backbone = load_vit(MODEL)
    split = copy.deepcopy(backbone.network)
    split_qkv(split)
    shapes = shapes_of(split, ("k", "v"))
    images = torch.randint(0, 256, (BATCH, 3, backbone.img_size, backbone.img_size)).byte()
    rows, times = [], {}
    for n in TASKS:
        heads = [new_head("mlp", backbone.features, OUTPUTS, seed).eval() for seed in range(n)]
        adapters = random_adapters(n, RANK, shapes)
        found = interleaved(cases(backbone, adapters, heads, images), repeats=7)
        rows += [{"tasks": n, "case": name, **values} for name, values in found.items()]
        one, many = (found[name]["cpu_s"] for name in ("one backbone, n heads", "n models"))
        times[str(n)] = many / one
    report(
        "serving",
        f"ViT-Ti/16 at 112 px, fp32, batch {BATCH}, adapters of rank {RANK} on k and v in the "
        "weights, an MLP head for each task",
        rows,
        times_faster=times,
    )


if __name__ == "__main__":
    main()
