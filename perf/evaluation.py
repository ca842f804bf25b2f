"""Evaluation images/s with a merged update in place, against the bare timm model.

Both see the same uint8 batches. The merged side enters and leaves the update once a pass, as one
row of a comparison does. The share of the machine's matrix-multiply rate is floating-point
operations of the Vision Transformer a second over those of a large product of matrices.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from cl_lora import merge
from cl_lora.adapters.injection import applied
from cl_lora.models.backbones import Backbone, ModelConfig
from cl_lora.models.compute import Compute
from cl_lora.models.timm_vits import load_vit
from perf.common import interleaved, random_adapters, report, shapes_of
from perf.training import backbone_for

IMAGES, BATCH, SIDE = 256, 128, 1536


def main() -> None:
    config = ModelConfig("vit_tiny_patch16_224", pretrained=False, img_size=112)
    backbone = load_vit(config)
    vit = backbone.network
    update = merge(random_adapters(4, 8, shapes_of(vit, ["qkv"])), "ties")
    images = torch.randint(0, 256, (IMAGES, 3, 112, 112), dtype=torch.uint8)
    labels = torch.zeros(IMAGES, dtype=torch.int64)
    scale, shift = 1 / (255 * backbone.std), backbone.mean / backbone.std

    # With a gradient attention is written out: torch counts no operations in fused attention.
    written_out = backbone_for(config, bf16=True)
    with FlopCounterMode(display=False) as counter:
        written_out(torch.zeros(1, 3, 112, 112, dtype=torch.uint8))
    flops = counter.get_total_flops()

    cases: dict[str, Callable[[], None]] = {}
    products: dict[str, Callable[[], None]] = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        bf16 = precision == "bf16"
        used = backbone_for(config, bf16)
        compute = Compute(torch.device("cpu"), bf16)

        def bare(bf16: bool = bf16) -> None:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                for batch in torch.split(images, BATCH):
                    vit(batch * scale - shift)

        def merged(compute: Compute = compute, used: Backbone = used) -> None:
            pairs = zip(torch.split(images, BATCH), torch.split(labels, BATCH), strict=True)
            with applied(used.network, update):
                for _ in compute.features(used, pairs):
                    pass

        a, b = (torch.randn(SIDE, SIDE).to(dtype) for _ in range(2))

        def product(a: torch.Tensor = a, b: torch.Tensor = b) -> None:
            for _ in range(10):
                a @ b

        cases[f"bare timm {precision}"] = bare
        cases[f"merged {precision}"] = merged
        products[f"matmul {precision}"] = product
    found = interleaved({**cases, **products}, repeats=5)
    peak = {p: 10 * 2 * SIDE**3 / found[f"matmul {p}"]["cpu_s"] for p in ("fp32", "bf16")}
    rows = []
    for name in cases:
        rate = IMAGES / found[name]["cpu_s"]
        share = rate * flops / peak[name.split()[-1]]
        rows.append(
            {"case": name, **found[name], "images_per_cpu_s": rate, "share_of_matmul_rate": share}
        )
    rate = {row["case"]: row["images_per_cpu_s"] for row in rows}
    report(
        "evaluation",
        f"ViT-Ti/16 at 112, {IMAGES} images in batches of {BATCH}, TIES of 4 adapters on qkv",
        rows,
        merged_to_bare_fp32=rate["merged fp32"] / rate["bare timm fp32"],
        merged_to_bare_bf16=rate["merged bf16"] / rate["bare timm bf16"],
        gflop_per_image=flops / 1e9,
        matmul_fp32_gflop_per_s=peak["fp32"] / 1e9,
        matmul_bf16_gflop_per_s=peak["bf16"] / 1e9,
        aim="merged/bare >= .95",
    )


if __name__ == "__main__":
    main()
