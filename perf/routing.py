"""Routed serving against one merged model, and gathering statistics against training an adapter.

Serving is what an application does with a batch of images as they come: nothing is stored between
batches. Images of the domains come mixed and in equal numbers; they differ in brightness, so that
the router tells them apart. The merged model has its update in the weights for good. The adapters
are random: what they hold does not change how long they take.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cl_lora.adapters.injection import target_modules
from cl_lora.benchmarks import Benchmark
from cl_lora.benchmarks.batches import batches
from cl_lora.configuration.compose import compose_config
from cl_lora.experiment.banks import FRESH
from cl_lora.experiment.routed import Experts
from cl_lora.experiment.serving import OwnUpdate, Workbench
from cl_lora.experiment.settings import has_fast_bf16
from cl_lora.merging import merge
from cl_lora.models.backbones import ModelConfig
from cl_lora.models.class_statistics import FEATURES, ROUTER
from cl_lora.models.compute import Compute
from cl_lora.models.gaussians import Moments
from cl_lora.models.head_policies import get_head_policy
from cl_lora.models.heads import freeze, new_linear_head
from cl_lora.models.routing import Router, default_block, styles
from cl_lora.models.statistics import Observed, get_statistic
from cl_lora.models.timm_vits import TimmBackbone
from cl_lora.models.weights import add_deltas
from perf import training
from perf.common import interleaved, random_adapters, report, shapes_of

DOMAINS, BATCH, RANK, CLASSES = 4, 128, 8, 7
MODELS = {
    "embedded": (ModelConfig("embedded"), ("qkv", "fc1", "fc2")),
    "ViT-Ti": (ModelConfig("vit_tiny_patch16_224", pretrained=False, img_size=112), ("qkv",)),
}
TRAINED = {"ViT-Ti": "ViT-Ti/16 at 112", "embedded": "embedded at 48"}
RUNS = {"ViT-Ti": "vit_tiny", "embedded": "embedded"}
ALONE = "one merged model"
CPU = torch.device("cpu")


def images_of(domain: int, count: int, size: int) -> Tensor:
    """Return random images of a domain: each has a brightness of its own."""
    generator = torch.Generator().manual_seed(domain)
    dark = torch.randint(0, 64, (count, 3, size, size), generator=generator)
    return (dark + domain * 192 // (DOMAINS - 1)).to(torch.uint8)


def router_of(backbone: TimmBackbone, compute: Compute, block: int) -> Router:
    """Return a router of styles at a block, from 8 images of each domain."""
    results = []
    for domain in range(DOMAINS):
        pairs = [(images_of(domain, 8, backbone.img_size), torch.zeros(8, dtype=torch.int64))]
        ((found, labels),) = styles(compute, backbone, pairs, block)
        moments = Moments(1, found.shape[1])
        moments.add(found, labels)
        results.append(moments.result())
    return Router(results)


def experts_of(
    backbone: TimmBackbone, targets: Sequence[str], compute: Compute, first_block: int, soft: bool
) -> Experts:
    """Return experts with random adapters from a block on."""
    shapes = {
        name: (layer.weight.shape[0], layer.weight.shape[1])
        for name in target_modules(backbone.network, targets, first_block=first_block)
        if isinstance(layer := backbone.network.get_submodule(name), nn.Linear)
    }
    bench = Workbench(
        benchmark=Benchmark("none", (), "none"),
        backbone=backbone,
        banks={FRESH.name: tuple(random_adapters(DOMAINS, RANK, shapes))},
        compute=compute,
        seed=0,
        policy=get_head_policy("shared"),
        buffers={},
        spc=1,
        batch_size=BATCH,
        head_lr=0.1,
    )
    heads = [new_linear_head(backbone.features, CLASSES, seed) for seed in range(DOMAINS)]
    block = default_block(backbone)
    router = router_of(backbone, compute, block)
    return Experts(bench, FRESH, tuple(range(DOMAINS)), heads, router, block, soft, 4.0)


def serving(name: str, bf16: bool) -> dict[str, Callable[[], Tensor]]:
    """Return what serves one batch in every way, by its name."""
    config, targets = MODELS[name]
    compute = Compute(CPU, bf16)
    backbone = training.backbone_for(config, bf16)
    block = default_block(backbone)
    made: dict[str, Callable[[], Tensor]] = {}
    parts = [images_of(d, BATCH // DOMAINS, backbone.img_size) for d in range(DOMAINS)]
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(0))
    images = torch.cat(parts)[order]
    for weights in ("hard", "soft"):
        for shared in (True, False):
            experts = experts_of(
                backbone, targets, compute, block if shared else 0, weights == "soft"
            )
            made[f"{weights}, {'one pass' if shared else 'a pass of its own'}"] = partial(
                experts.serve, images
            )
    one = training.backbone_for(config, bf16)
    merged = merge(experts.adapters, "task_arithmetic", [1 / DOMAINS] * DOMAINS)
    add_deltas(one.network, {m: merged.delta(m) for m in merged.modules()})
    head = experts.heads[0]

    @torch.no_grad()
    def alone() -> Tensor:
        ((features, _),) = compute.features(one, [(images, order)])
        found: Tensor = head(features)
        return found

    return {ALONE: alone, **made}


def gathering(name: str, bf16: bool) -> dict[str, Callable[[], object]]:
    """Return one epoch or two of training an adapter, and what routed arms need beside it."""
    precision = "bf16" if bf16 else "fp32"
    config, count, _ = training.MODELS[TRAINED[name]]
    made, _ = training.cases(TRAINED[name])
    backbone = training.backbone_for(config, bf16)
    (one,) = training.data(count, backbone.img_size).experiences
    shapes = shapes_of(backbone.network, training.LORA.targets)
    (adapter,) = random_adapters(1, RANK, shapes)
    head = freeze(new_linear_head(backbone.features, CLASSES, 0))
    observed = Observed(
        *(backbone, Compute(CPU, bf16), OwnUpdate(adapter), head, one.task, tuple(shapes), 0)
    )

    def gather() -> None:
        for statistic in (FEATURES, ROUTER):
            pairs = batches(one, one.train, BATCH, backbone.encode)
            get_statistic(statistic).gather(observed, pairs).result()

    return {"training": made[f"LoRAStrategy {precision}"], "gathering": gather}


def share_of_training(name: str, found: Mapping[str, Mapping[str, Any]]) -> float:
    """Return the time of gathering as a share of that of training for the epochs of a run."""
    epochs = training.MODELS[TRAINED[name]][2].epochs
    whole = int(compose_config([f"model={RUNS[name]}"])["strategy"]["epochs"])
    return float(found["gathering"]["cpu_s"] / (found["training"]["cpu_s"] * whole / epochs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    ratios: dict[str, dict[str, float]] = {}
    shares: dict[str, float] = {}
    precisions = ("fp32", "bf16") if has_fast_bf16(CPU) else ("fp32",)
    for name in MODELS:
        for precision in precisions:
            of = f"{name} {precision}"
            found = interleaved(serving(name, precision == "bf16"), given.repeats)
            alone = found[ALONE]["cpu_s"]
            for case, measured in found.items():
                ratio = measured["cpu_s"] / alone
                rows.append({"model": of, "case": case, **measured, "to_merged": ratio})
                ratios.setdefault(case, {})[of] = ratio
            gathered = interleaved(gathering(name, precision == "bf16"), given.repeats)
            rows += [{"model": of, "case": case, **value} for case, value in gathered.items()]
            shares[of] = share_of_training(name, gathered)
            print(of, {c: round(r[of], 3) for c, r in ratios.items()}, shares[of], flush=True)
    report(
        "routing",
        f"{DOMAINS} adapters of rank {RANK}, a batch of {BATCH} images of {DOMAINS} domains in "
        "random order; ViT-Ti/16 at 112 px (qkv) and embedded at 48 px (qkv, fc1, fc2)",
        rows,
        to_merged={case: of for case, of in ratios.items() if case != ALONE},
        gathering_to_training=shares,
        aim="hard: 1.1 in one pass, 1.4 with a pass of its own; gathering: a quarter",
    )


if __name__ == "__main__":
    main()
