"""One step of learning coefficients: merges that are only differentiable beside the linear path.

Every plan is materialised, as in learning. A merge that is linear in its coefficients then is one
weighted sum of what is held in memory. In factors the sums are over A and B, and the gradient goes
through their product and through the square roots of the coefficients; with signs elected after
weighting every step elects anew.

Two tables: from alpha to the weights W0 + delta and back at the width of ViT-B, without the model;
and a whole step on a batch with ViT-Ti, as learning does it: merge, forward, backward, Adam.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from cl_lora import Adapter, Update
from cl_lora.merging import Plan, learn, make_rule, prepare
from cl_lora.models.compute import Compute
from perf.coefficient_step import SHAPES, step
from perf.common import interleaved, random_adapters, report, shapes_of, vit_base_adapters
from perf.training import MODELS, backbone_for

VIT = "ViT-Ti/16 at 112"
BATCH, STEPS = 32, 4
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "task arithmetic, delta": ("task_arithmetic", "delta", {}),
    "task arithmetic, factors": ("task_arithmetic", "factors", {}),
    "TIES, delta": ("ties", "delta", {}),
    "TIES, factors": ("ties", "factors", {}),
    "TIES with sign=weighted, delta": ("ties", "delta", {"sign": "weighted"}),
    "TIES with sign=weighted, factors": ("ties", "factors", {"sign": "weighted"}),
}
BASELINE = {name: f"{name.split(',')[0].split(' with')[0]}, delta" for name in CASES}
"""The case on the linear path that each one is compared with."""


def plans(adapters: list[Adapter]) -> dict[str, Plan]:
    """Return the plan of every case, not yet materialised."""
    return {
        name: prepare(adapters, method, space=space, **options)
        for name, (method, space, options) in CASES.items()
    }


def merging() -> dict[str, Callable[[], object]]:
    """Return for each case one step without the model, at the width of ViT-B."""
    adapters = vit_base_adapters(4)
    weights = {m: torch.randn(768, 768) for m in adapters[0].modules()}
    gradient = torch.randn(768, 768)
    return {
        name: partial(step, plan.materialise(), weights, gradient)
        for name, plan in plans(adapters).items()
    }


def learning(bf16: bool) -> dict[str, Callable[[], object]]:
    """Return for each case a few whole steps on the same batch, materialising included."""
    backbone = backbone_for(MODELS[VIT][0], bf16)
    compute = Compute(torch.device("cpu"), bf16)
    side = backbone.img_size
    images = torch.randint(0, 256, (BATCH, 3, side, side), dtype=torch.uint8)
    rule = make_rule({"name": "adaptive", "steps": STEPS})

    def loss(update: Update, _: int) -> torch.Tensor:
        return compute.merged_features(backbone, update, images).square().mean()

    adapters = random_adapters(4, 8, shapes_of(backbone.network, ["qkv"]))
    return {name: partial(learn, rule, plan, loss) for name, plan in plans(adapters).items()}


def rows(found: dict[str, dict[str, Any]], steps: int, of: str) -> list[dict[str, Any]]:
    """Return a row for each case: seconds per step, and how often those of the linear path."""
    return [
        {
            "case": name,
            "of": of,
            "cpu_s_per_step": values["cpu_s"] / steps,
            "to_linear": values["cpu_s"] / found[BASELINE[name]]["cpu_s"],
            **values,
        }
        for name, values in found.items()
    ]


def main() -> None:
    torch.manual_seed(0)
    alone = rows(interleaved(merging(), repeats=5), 1, "merging alone (ViT-B)")
    whole = rows(interleaved(learning(bf16=True), repeats=5), STEPS, "a whole step (ViT-Ti)")
    report(
        "learning",
        f"merging alone: {SHAPES}; a whole step: {VIT}, 4 adapters of rank 8 on qkv, "
        f"batch {BATCH}, bf16, {STEPS} steps and materialising",
        [*alone, *whole],
        ties_factors_to_delta={
            row["of"]: row["to_linear"]
            for row in [*alone, *whole]
            if row["case"] == "TIES, factors"
        },
    )


if __name__ == "__main__":
    main()
