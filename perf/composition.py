"""One step of learning composition weights: adapters kept apart, against dense updates.

Four tables. *A module*: forward and backward through the q, k and v of 12 blocks at the width of
ViT-B with 5 adapters of rank 16, attention and MLP left out. The weights of the composition have
a row for each module. Every case ends in the same product with the layer's input. The case *by
hand* is what no implementation of the bottleneck can avoid: its products one after another without
autograd, weights kept in the precision of the products. Memory is the peak of such a step in fp32,
held tensors included, beyond that of the frozen layers alone; each case in a process of its own,
whose allocator hands freed blocks back at once, so that the peak is what is alive. *A whole step*:
what learning does on a batch with a Vision Transformer for a plain sum, and the same as the
adapters become more. *Warm-up*: a head trained 50 epochs through the frozen backbone and on
features computed once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cl_lora import Adapter, Update
from cl_lora.adapters.injection import module_weight, split_qkv
from cl_lora.merging import Learned, learn, make_rule, prepare
from cl_lora.merging.plan import gather
from cl_lora.merging.spaces import DeltaSpace
from cl_lora.models.backbones import ModelConfig
from cl_lora.models.bottleneck import Bottleneck, composed
from cl_lora.models.compute import Compute
from cl_lora.models.features import cached_features, fit_head
from perf.common import interleaved, random_adapters, report, shapes_of, vit_base_adapters
from perf.memory import high_water, reset_high_water
from perf.training import CLASSES, MODELS, backbone_for

WIDTH, TOKENS = 768, 50
BATCHES = (7, 32)
"""One image a class of PACS, and a batch of a larger support set; 50 tokens as in ViT-B/32."""

VIT = "ViT-Ti/16 at 112"
IMAGES, EPOCHS = 35, 50


@dataclass(frozen=True)
class Setting:
    """A network whose coefficients are learned: how many adapters, where, and for how long."""

    config: ModelConfig
    adapters: int
    rank: int
    targets: tuple[str, ...]
    batches: tuple[int, ...]
    steps: int


SETTINGS = {
    "ViT-Ti": Setting(MODELS[VIT][0], 4, 8, ("qkv",), (7, 16, 32), 4),
    "ViT-B": Setting(
        ModelConfig("vit_base_patch32_224", pretrained=False), 5, 16, ("q", "k", "v"), BATCHES, 1
    ),
}
MORE = (9, 16, 25)
"""Numbers of adapters of rank 8 with ViT-Ti: at 9 either way multiplies as much a token."""

BY_HAND = "bottleneck by hand"

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


class Gradients:
    """A fixed gradient for each shape and dtype of an output."""

    def __init__(self) -> None:
        self.drawn: dict[tuple[torch.Size, torch.dtype], Tensor] = {}

    def __call__(self, out: Tensor) -> Tensor:
        """Return the gradient of an output."""
        key = (out.shape, out.dtype)
        if key not in self.drawn:
            generator = torch.Generator().manual_seed(1)
            self.drawn[key] = torch.randn(out.shape, generator=generator).to(out) * 1e-3
        return self.drawn[key]

    def back(self, alpha: Tensor, outputs: list[Tensor]) -> Tensor:
        """Return the gradient of alpha."""
        torch.autograd.backward(outputs, [self(out) for out in outputs])
        return torch.zeros_like(alpha) if alpha.grad is None else alpha.grad


def cases(adapters: list[Adapter], layers: Layers) -> dict[str, Callable[[], Step]]:
    """Return for each case what prepares it; a step returns the gradient of alpha (M, n)."""
    gradients = Gradients()

    def frozen() -> Step:
        def step(x: Tensor) -> Tensor:
            x, alpha = _start(x, layers, adapters)
            return gradients.back(alpha, layers(x))

        return step

    def apart() -> Step:
        made = Bottleneck.of(layers, adapters)

        def step(x: Tensor) -> Tensor:
            x, alpha = _start(x, layers, adapters)
            with composed(layers, made.weighted(alpha)):
                return gradients.back(alpha, layers(x))

        return step

    return {
        "frozen layers": frozen,
        "bottleneck": apart,
        BY_HAND: lambda: _by_hand(adapters, layers, gradients),
        **_dense_cases(adapters, layers, gradients),
    }


def _start(x: Tensor, layers: Layers, adapters: list[Adapter]) -> tuple[Tensor, Tensor]:
    shape = (len(layers.names), len(adapters))
    return x.requires_grad_(), torch.full(shape, 1 / len(adapters), requires_grad=True)


def _by_hand(adapters: list[Adapter], layers: Layers, gradients: Gradients) -> Step:
    made = Bottleneck.of(layers, adapters)
    owners = [torch.arange(made.n).repeat_interleave(ranks) for ranks in made.ranks.values()]
    held: dict[torch.dtype, list[tuple[Tensor, ...]]] = {}

    def matrices(dtype: torch.dtype) -> list[tuple[Tensor, ...]]:
        if dtype not in held:
            held[dtype] = [
                tuple(m.detach().to(dtype) for m in (module_weight(layers, name), f.A, f.B))
                for name, f in made.stacked.items()
            ]
        return held[dtype]

    @torch.no_grad()
    def step(x: Tensor) -> Tensor:
        dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
        _, alpha = _start(x, layers, adapters)
        found = torch.zeros_like(alpha)
        with torch.autocast("cpu", enabled=False):
            x = x.to(dtype)
            to_x = torch.zeros_like(x)
            for m, (W, A, B) in enumerate(matrices(dtype)):
                z, columns = x @ A.T, alpha[m, owners[m]].to(dtype)
                to_out = gradients((x @ W.T).addmm_(z * columns, B.T))
                to_z = to_out @ B
                found[m].index_add_(0, owners[m], (to_z * z).sum(0, dtype=torch.float32))
                to_x.addmm_(to_out, W).addmm_(to_z.mul_(columns), A)
        return found

    return step


def _dense_cases(
    adapters: list[Adapter], layers: Layers, gradients: Gradients
) -> dict[str, Callable[[], Step]]:
    space = DeltaSpace(gather(adapters))

    def dense(merged: Callable[[str, Tensor], Tensor], in_bf16: bool = False) -> Step:
        def step(x: Tensor) -> Tensor:
            x, alpha = _start(x, layers, adapters)
            rows = zip(layers.names, alpha, strict=True)
            # Only the graph holds the merged weights, so that each goes once it was used backward.
            outputs = [F.linear(x, weight(*row)) for row in rows]
            return gradients.back(alpha, outputs)

        def weight(name: str, row: Tensor) -> Tensor:
            enabled = in_bf16 and torch.is_autocast_enabled("cpu")
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                return merged(name, row)

        return step

    def added(name: str, row: Tensor, deltas: Tensor) -> Tensor:
        # W0 is added in the pass that sums the deltas. In float32, as in Compute.merged_features:
        # to cast the deltas would take longer than their sum.
        weight = module_weight(layers, name)
        return torch.addmv(weight.flatten(), deltas.flatten(1).T, row).view(weight.shape)

    def kept() -> Step:
        deltas = {name: space.stack(name, "delta") for name in layers.names}
        return dense(lambda name, row: added(name, row, deltas[name]))

    def rebuilt() -> Step:
        return dense(lambda name, row: added(name, row, space.stack(name, "delta")))

    def product() -> Step:
        made = Bottleneck.of(layers, adapters)

        def merged(name: str, row: Tensor) -> Tensor:
            f, ranks = made.stacked[name], made.ranks[name]
            columns = row.repeat_interleave(ranks, output_size=f.rank)
            return torch.addmm(module_weight(layers, name), f.B * columns, f.A)

        return dense(merged, in_bf16=True)

    return {
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
                    {name: partial(step, x.clone()) for name, step in steps.items()}, repeats=7
                )
            least = found["frozen layers"]["cpu_s"]
            beyond = found["bottleneck"]["cpu_s"] - least
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
                        "beyond_frozen_to_bottleneck": (values["cpu_s"] - least) / beyond,
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
        peaks = {name: _peak_alone(name, batch) for name in setting() if name != BY_HAND}
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


def learning(setting: Setting, bf16: bool, batch: int) -> dict[str, Callable[[], Learned]]:
    """Return the learning of a plain sum's coefficients, preparing included."""
    backbone = backbone_for(setting.config, bf16)
    if "q" in setting.targets:
        split_qkv(backbone.network)
    compute = Compute(torch.device("cpu"), bf16)
    shapes = shapes_of(backbone.network, setting.targets)
    adapters = random_adapters(setting.adapters, setting.rank, shapes)
    side = backbone.img_size
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
    plan = prepare(adapters, "task_arithmetic")
    rule = make_rule({"name": "softmax", "steps": setting.steps})

    def merged() -> Learned:
        def loss(update: Update, _: int) -> Tensor:
            return compute.merged_features(backbone, update, images).square().mean()

        return learn(rule, plan, loss)

    def apart() -> Learned:
        made = Bottleneck.of(backbone.network, adapters)

        def loss(update: Update, _: int) -> Tensor:
            assert update.alpha is not None
            composition = made.weighted(update.alpha)
            return compute.composed_features(backbone, composition, images).square().mean()

        return learn(rule, plan, loss)

    return {"merged": merged, "bottleneck": apart}


def whole_steps() -> list[dict[str, Any]]:
    """Return a row for each network, precision, batch and way of learning."""
    return [
        row
        for name, setting in SETTINGS.items()
        for bf16 in (False, True)
        for batch in setting.batches
        for row in _whole_step(f"a whole step ({name})", setting, bf16, batch)
    ]


def more_adapters() -> list[dict[str, Any]]:
    """Return a row for each precision, number of adapters and way of learning, with ViT-Ti."""
    return [
        row
        for bf16 in (False, True)
        for n in MORE
        for row in _whole_step(
            "a whole step as adapters grow", replace(SETTINGS["ViT-Ti"], adapters=n), bf16, 16
        )
    ]


def _whole_step(of: str, setting: Setting, bf16: bool, batch: int) -> list[dict[str, Any]]:
    found = interleaved(learning(setting, bf16, batch), repeats=5)
    return [
        {
            "of": of,
            "case": name,
            "batch": batch,
            "adapters": setting.adapters,
            "precision": "bf16" if bf16 else "fp32",
            "cpu_s_per_step": values["cpu_s"] / setting.steps,
            "to_bottleneck": values["cpu_s"] / found["bottleneck"]["cpu_s"],
            **values,
        }
        for name, values in found.items()
    ]


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

    def ratios(case: str, of: str = modules, column: str = "to_bottleneck") -> dict[str, float]:
        return {
            f"{row['precision']} batch {row['batch']}": row[column]
            for row in rows
            if row["of"] == of and row["case"] == case
        }

    kept, rebuilt = "dense deltas kept", "dense deltas rebuilt"
    beyond = "beyond_frozen_to_bottleneck"
    shares = []
    for batch in BATCHES:
        extra = by_case(rows, "extra_MB_per_module", of=f"memory of {modules}", batch=batch)
        shares.append(extra["bottleneck"] / min(extra[kept], extra[rebuilt]))
    seconds = by_case(rows, "cpu_s", of="warm-up (ViT-Ti)")
    return {
        "kept_to_bottleneck": ratios(kept),
        "rebuilt_to_bottleneck": ratios(rebuilt),
        "kept_to_bottleneck_beyond_frozen": ratios(kept, column=beyond),
        "rebuilt_to_bottleneck_beyond_frozen": ratios(rebuilt, column=beyond),
        "share_of_dense_memory": max(shares),
        "merged_to_bottleneck": ratios("merged", "a whole step (ViT-Ti)"),
        "merged_to_bottleneck_wide": ratios("merged", "a whole step (ViT-B)"),
        "warm_up_times_faster": seconds["through the backbone"] / seconds["on cached features"],
    }


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(peak(sys.argv[1], int(sys.argv[2]))))
        return
    rows = [*modules(), *memory(), *whole_steps(), *more_adapters(), *warm_up()]
    report(
        "composition",
        f"a module: 5 adapters of rank 16, 36 layers {WIDTH} x {WIDTH}, {TOKENS} tokens an image; "
        f"a whole step: {VIT}, 4 adapters of rank 8 on qkv, and ViT-B/32 at 224, 5 of rank 16 on "
        f"q, k and v; warm-up: {IMAGES} images, {EPOCHS} epochs",
        rows,
        **summary(rows),
    )


if __name__ == "__main__":
    main()
