"""One step of learning composition weights: adapters kept apart, against dense updates.

Three tables. *A module*: forward and backward through the q, k and v of 12 blocks at the width of
ViT-B with 5 adapters of rank 16, attention and MLP left out. The weights of the composition have
a row for each module. Memory is the peak of such a step in fp32, held tensors included, beyond that
of the frozen layers alone; each case in a process of its own, whose allocator hands freed blocks
back at once, so that the peak is what is alive. *A whole step*: what learning does on
a batch with ViT-Ti for a plain sum. *Warm-up*: a head trained 50 epochs through the frozen backbone
and on features computed once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cl_lora import Adapter, Update
from cl_lora.adapters.injection import module_weight
from cl_lora.merging import learn, make_rule, prepare
from cl_lora.merging.kernels import weighted_sum
from cl_lora.merging.plan import gather
from cl_lora.merging.spaces import DeltaSpace
from cl_lora.models.bottleneck import Bottleneck, composed
from cl_lora.models.compute import Compute
from cl_lora.models.features import cached_features, fit_head
from perf.common import interleaved, random_adapters, report, shapes_of, vit_base_adapters
from perf.memory import high_water, reset_high_water
from perf.training import CLASSES, MODELS, backbone_for

WIDTH, TOKENS = 768, 50
BATCHES = (7, 32)
"""One image a class of PACS, and a batch of a larger support set; 50 tokens as in ViT-B/32."""

VIT, STEPS = "ViT-Ti/16 at 112", 4
IMAGES, EPOCHS = 35, 50

Step = Callable[[Tensor], Tensor]


class Layers(nn.Module):
    """The adapted layers of a network, each applied to the same input."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names
        for name in names:
            parent: nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if part not in dict(parent.named_children()):
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            parent.add_module(last, nn.Linear(WIDTH, WIDTH, bias=False).requires_grad_(False))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the output of every layer."""
        return [self.get_submodule(name)(x) for name in self.names]


def cases(adapters: list[Adapter], layers: Layers) -> dict[str, Callable[[], Step]]:
    """Return for each case what prepares it; a step returns the gradient of alpha (M, n)."""
    sources = gather(adapters)
    space = DeltaSpace(sources)
    gradient = torch.full((1, WIDTH), 1e-3)

    def back(alpha: Tensor, outputs: list[Tensor]) -> Tensor:
        torch.autograd.backward(outputs, [gradient.to(out).expand_as(out) for out in outputs])
        return torch.zeros_like(alpha) if alpha.grad is None else alpha.grad

    def start(x: Tensor) -> tuple[Tensor, Tensor]:
        shape = (len(layers.names), sources.n)
        return x.requires_grad_(), torch.full(shape, 1 / sources.n, requires_grad=True)

    def frozen() -> Step:
        def step(x: Tensor) -> Tensor:
            x, alpha = start(x)
            return back(alpha, layers(x))

        return step

    def apart() -> Step:
        made = Bottleneck.of(layers, adapters)

        def step(x: Tensor) -> Tensor:
            x, alpha = start(x)
            with composed(layers, made.weighted(alpha)):
                return back(alpha, layers(x))

        return step

    def dense(delta: Callable[[str, Tensor], Tensor]) -> Step:
        def step(x: Tensor) -> Tensor:
            x, alpha = start(x)
            weights = (
                module_weight(layers, name) + delta(name, row)
                for name, row in zip(layers.names, alpha, strict=True)
            )
            return back(alpha, [F.linear(x, weight) for weight in weights])

        return step

    def kept() -> Step:
        deltas = {name: space.stack(name, "delta") for name in layers.names}
        return dense(lambda name, row: weighted_sum(row, deltas[name]))

    def rebuilt() -> Step:
        return dense(lambda name, row: weighted_sum(row, space.stack(name, "delta")))

    def product() -> Step:
        plan = prepare(adapters, "task_arithmetic").materialise()

        def delta(name: str, row: Tensor) -> Tensor:
            entry = plan.combine_module(name, row)
            return entry if isinstance(entry, Tensor) else entry.delta()

        return dense(delta)

    return {
        "frozen layers": frozen,
        "bottleneck": apart,
        "dense deltas kept": kept,
        "dense deltas rebuilt": rebuilt,
        "product of stacked factors": product,
    }


def setting() -> dict[str, Callable[[], Step]]:
    torch.manual_seed(0)
    adapters = vit_base_adapters(5)
    return cases(adapters, Layers(adapters[0].modules()))


def inputs(batch: int) -> Tensor:
    return torch.randn(batch * TOKENS, WIDTH)


def peak(case: str, batch: int) -> float:
    """Return by how many bytes the resident set grows at most while a step is prepared and done."""
    torch.manual_seed(0)
    adapters = vit_base_adapters(5)
    made, x = cases(adapters, Layers(adapters[0].modules())), inputs(batch)
    # Buffers that libraries allocate once belong to no case.
    made["frozen layers"]()(x[:1].clone())
    reset_high_water()
    before = psutil.Process().memory_info().rss
    made[case]()(x)
    return float(high_water() - before)


def modules() -> list[dict[str, Any]]:
    """Return a row for each case, precision and batch: seconds and memory a module."""
    rows = []
    steps = {name: prepared() for name, prepared in setting().items()}
    for precision in ("fp32", "bf16"):
        for batch in BATCHES:
            x = inputs(batch)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                if precision == "fp32":
                    _check_equal(steps, x)
                found = interleaved(
                    {name: partial(step, x.clone()) for name, step in steps.items()}, repeats=5
                )
            for name, values in found.items():
                seconds = values["cpu_s"] / len(vit_modules())
                rows.append(
                    {
                        "of": "a module (ViT-B)",
                        "case": name,
                        "precision": precision,
                        "batch": batch,
                        "ms_per_module": 1000 * seconds,
                        "to_bottleneck": values["cpu_s"] / found["bottleneck"]["cpu_s"],
                        **values,
                    }
                )
    return rows


def _check_equal(steps: Mapping[str, Step], x: Tensor) -> None:
    expected = steps["bottleneck"](x.clone())
    for name in list(steps)[2:]:
        torch.testing.assert_close(steps[name](x.clone()), expected, rtol=1e-3, atol=1e-3)


def memory() -> list[dict[str, Any]]:
    """Return a row for each case and batch: MB a module beyond the frozen layers."""
    rows = []
    for batch in BATCHES:
        peaks = {name: _peak_alone(name, batch) for name in setting()}
        for name, value in peaks.items():
            extra = (value - peaks["frozen layers"]) / len(vit_modules()) / 1e6
            of = "memory of a module (ViT-B)"
            rows.append({"of": of, "case": name, "batch": batch, "extra_MB_per_module": extra})
    return rows


def vit_modules() -> tuple[str, ...]:
    return vit_base_adapters(1, rank=1)[0].modules()


def _peak_alone(case: str, batch: int) -> float:
    command = [sys.executable, "-m", "perf.composition", case, str(batch)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    output = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment
    ).stdout
    return float(json.loads(output.splitlines()[-1]))


def learning(bf16: bool, batch: int) -> dict[str, Callable[[], object]]:
    """Return whole steps of learning the coefficients of a plain sum, preparing included."""
    backbone = backbone_for(MODELS[VIT][0], bf16)
    compute = Compute(torch.device("cpu"), bf16)
    adapters = random_adapters(4, 8, shapes_of(backbone.network, ["qkv"]))
    side = backbone.img_size
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
    plan = prepare(adapters, "task_arithmetic")
    rule = make_rule({"name": "softmax", "steps": STEPS})

    def merged() -> object:
        def loss(update: Update, _: int) -> Tensor:
            return compute.merged_features(backbone, update, images).square().mean()

        return learn(rule, plan, loss)

    def apart() -> object:
        made = Bottleneck.of(backbone.network, adapters)

        def loss(update: Update, _: int) -> Tensor:
            assert update.alpha is not None
            composition = made.weighted(update.alpha)
            return compute.composed_features(backbone, composition, images).square().mean()

        return learn(rule, plan, loss)

    return {"merged": merged, "bottleneck": apart}


def whole_steps() -> list[dict[str, Any]]:
    """Return a row for each precision, batch and way of learning."""
    rows = []
    for bf16 in (False, True):
        for batch in BATCHES:
            found = interleaved(learning(bf16, batch), repeats=5 if batch < 20 else 3)
            rows += [
                {
                    "of": "a whole step (ViT-Ti)",
                    "case": name,
                    "batch": batch,
                    "precision": "bf16" if bf16 else "fp32",
                    "cpu_s_per_step": values["cpu_s"] / STEPS,
                    "to_bottleneck": values["cpu_s"] / found["bottleneck"]["cpu_s"],
                    **values,
                }
                for name, values in found.items()
            ]
    return rows


def warming_up() -> dict[str, Callable[[], nn.Module]]:
    """Return the same warm-up of a head through the frozen backbone and on cached features."""
    backbone = backbone_for(MODELS[VIT][0], bf16=False)
    compute = Compute(torch.device("cpu"), bf16=False)
    side = backbone.img_size
    images = torch.randint(0, 256, (IMAGES, 3, side, side), dtype=torch.uint8)
    targets = torch.arange(IMAGES) % CLASSES
    head = nn.Linear(backbone.features, CLASSES)
    generator = torch.Generator().manual_seed(0)
    rows = [
        batch
        for _ in range(EPOCHS)
        for batch in torch.split(torch.randperm(IMAGES, generator=generator), 32)
    ]

    def plain() -> nn.Module:
        trained = nn.Linear(backbone.features, CLASSES)
        trained.load_state_dict(head.state_dict())
        optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3, weight_decay=0.0)
        for batch in rows:
            ((features, labels),) = compute.features(backbone, [(images[batch], targets[batch])])
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(trained(features), labels))
            optimizer.step()
        return trained

    def cached() -> nn.Module:
        features, labels = cached_features(compute, backbone, [(images, targets)])
        return fit_head(head, features, labels, rows, F.cross_entropy, lr=1e-3).head

    return {"through the backbone": plain, "on cached features": cached}


def warm_up() -> list[dict[str, Any]]:
    """Return a row for either way."""
    found = interleaved(warming_up(), repeats=3, warmup=False)
    return [{"of": "warm-up (ViT-Ti)", "case": name, **values} for name, values in found.items()]


def by_case(rows: list[dict[str, Any]], column: str, **where: Any) -> dict[str, float]:
    """Return a column by case, of the rows that match."""
    matching = [row for row in rows if all(row.get(k) == v for k, v in where.items())]
    return {row["case"]: row[column] for row in matching}


def summary(rows: list[dict[str, Any]]) -> Mapping[str, Any]:
    """Return what the claims of docs/performance.md are made of."""
    modules = "a module (ViT-B)"
    to_bottleneck = {
        case: {
            f"{row['precision']} batch {row['batch']}": row["to_bottleneck"]
            for row in rows
            if row["of"] == modules and row["case"] == case
        }
        for case in ("dense deltas kept", "dense deltas rebuilt")
    }
    shares = []
    for batch in BATCHES:
        extra = by_case(rows, "extra_MB_per_module", of=f"memory of {modules}", batch=batch)
        dense = min(extra["dense deltas kept"], extra["dense deltas rebuilt"])
        shares.append(extra["bottleneck"] / dense)
    whole = {
        f"{row['precision']} batch {row['batch']}": row["to_bottleneck"]
        for row in rows
        if row["of"] == "a whole step (ViT-Ti)" and row["case"] == "merged"
    }
    seconds = by_case(rows, "cpu_s", of="warm-up (ViT-Ti)")
    return {
        "kept_to_bottleneck": to_bottleneck["dense deltas kept"],
        "rebuilt_to_bottleneck": to_bottleneck["dense deltas rebuilt"],
        "share_of_dense_memory": max(shares),
        "merged_to_bottleneck": whole,
        "warm_up_times_faster": seconds["through the backbone"] / seconds["on cached features"],
    }


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(peak(sys.argv[1], int(sys.argv[2]))))
        return
    rows = [*modules(), *memory(), *whole_steps(), *warm_up()]
    report(
        "composition",
        f"a module: 5 adapters of rank 16, 36 layers {WIDTH} x {WIDTH}, {TOKENS} tokens an image; "
        f"a whole step: {VIT}, 4 adapters of rank 8 on qkv; warm-up: {IMAGES} images, "
        f"{EPOCHS} epochs",
        rows,
        **summary(rows),
    )


if __name__ == "__main__":
    main()
