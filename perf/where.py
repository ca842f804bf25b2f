"""Where the time goes in training one adapter and in evaluating one arm: shares by operation.

Operators of torch by their own CPU time, joined into a few groups; everything in Python between
them (Avalanche, peft, the loader) is the rest of the wall clock of an undisturbed run.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from cl_lora import merge
from cl_lora.adapters.injection import applied
from cl_lora.models.compute import Compute
from perf.common import random_adapters, report, shapes_of
from perf.training import MODELS, backbone_for, cases

GROUPS = {
    "matrix products": ("mm", "addmm", "bmm", "linear", "mkldnn", "matmul", "conv", "baddbmm"),
    "attention, fused": ("scaled_dot", "flash"),
    "softmax": ("softmax",),
    "activation": ("gelu",),
    "norm": ("layer_norm",),
    "dropout": ("dropout", "bernoulli"),
    "casts and copies": ("copy", "to_copy", "cat", "clone", "contiguous", "empty"),
    "optimiser": ("addcdiv", "addcmul", "lerp", "sqrt"),
}


def group_of(operator: str) -> str:
    for group, marks in GROUPS.items():
        if any(mark in operator for mark in marks):
            return group
    return "other element-wise and bookkeeping"


def shares(run: Any) -> dict[str, float]:
    run()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    seconds: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        if event.key.startswith(("aten::", "mkldnn")):
            seconds[group_of(event.key)] += event.self_cpu_time_total
    total = sum(seconds.values())
    return {name: value / total for name, value in sorted(seconds.items(), key=lambda x: -x[1])}


def main() -> None:
    rows = []
    for precision in ("fp32", "bf16"):
        name = "ViT-Ti/16 at 112"
        found = shares(cases(name)[0][f"LoRAStrategy {precision}"])
        rows.append({"case": f"training {precision}", **found})
        backbone = backbone_for(MODELS[name][0], precision == "bf16")
        update = merge(random_adapters(4, 8, shapes_of(backbone.network, ["qkv"])), "ties")
        images = torch.randint(0, 256, (128, 3, 112, 112), dtype=torch.uint8)
        compute = Compute(torch.device("cpu"), precision == "bf16")

        def evaluate(
            backbone: Any = backbone,
            update: Any = update,
            images: torch.Tensor = images,
            compute: Compute = compute,
        ) -> None:
            with applied(backbone.network, update):
                list(compute.features(backbone, [(images, torch.zeros(128))]))

        rows.append({"case": f"evaluation {precision}", **shares(evaluate)})
    report("where", "ViT-Ti/16 at 112, shares of the time in torch's operators", rows)


if __name__ == "__main__":
    main()
