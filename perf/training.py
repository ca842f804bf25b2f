"""Training images/s of LoRAStrategy against a hand-written loop, and of bf16 against fp32.

Both train the same peft model of the same backbone on the same cached images with the same batch
size, epochs, optimiser and precision. The hand-written loop shuffles, indexes, and steps, and does
nothing else: no schedule, no metrics, no check of the loss.
"""

from __future__ import annotations

import argparse
import io
import pstats
from contextlib import redirect_stderr
from cProfile import Profile
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from cl_lora.adapters.injection import LoRAConfig, inject, remove
from cl_lora.benchmarks import Benchmark, Experience
from cl_lora.benchmarks.avalanche import avalanche_benchmark
from cl_lora.models.backbones import Backbone, ModelConfig
from cl_lora.models.heads import new_linear_head
from cl_lora.models.timm_vits import TimmBackbone, load_vit
from cl_lora.strategies.config import TrainingConfig
from cl_lora.strategies.lora import LoRAModel, LoRAStrategy
from cl_lora.tasks import CLASS, Task
from perf.common import RESULTS, interleaved, report

CLASSES = 7
LORA = LoRAConfig(rank=8, targets=("qkv",))
MODELS = {
    "ViT-Ti/16 at 112": (
        ModelConfig("vit_tiny_patch16_224", pretrained=False, img_size=112),
        192,
        TrainingConfig(epochs=1, batch_size=32),
    ),
    "embedded at 48": (
        ModelConfig("embedded"),
        384,
        TrainingConfig(epochs=2, batch_size=64),
    ),
}


def backbone_for(config: ModelConfig, bf16: bool) -> TimmBackbone:
    """Return the backbone as the pipeline prepares it on a CPU."""
    backbone = load_vit(config)
    backbone.spell_out_attention = bf16
    return backbone


def data(count: int, size: int) -> Benchmark:
    """Return one experience of ``count`` random train images, and one test image per class."""
    rng = np.random.default_rng(0)
    everything = np.arange(count + CLASSES)
    images = rng.integers(0, 256, (len(everything), size, size, 3), dtype=np.uint8)
    task = Task("random", CLASS, tuple(f"c{i}" for i in range(CLASSES)))
    train, val, test = everything[:count], everything[:0], everything[count:]
    one = Experience("one", task, images, everything % CLASSES, train, val, test)
    return Benchmark("random", (one,), "none")


def by_hand(backbone: Backbone, images: torch.Tensor, labels: torch.Tensor, **how: Any) -> None:
    training, bf16 = how["training"], how["bf16"]
    torch.manual_seed(0)
    backbone.network = inject(backbone.network, LORA, None)
    head = new_linear_head(backbone.features, CLASSES, 0)
    model = LoRAModel(backbone, head).train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4)
    for _ in range(training.epochs):
        for rows in torch.split(torch.randperm(len(labels)), training.batch_size):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                out = model(images[rows])
            torch.autograd.backward(F.cross_entropy(out, labels[rows]))
            optimizer.step()
    backbone.network = remove(backbone.network)


def cases(name: str) -> tuple[dict[str, Any], int]:
    config, count, training = MODELS[name]
    made: dict[str, Any] = {}
    for precision in ("fp32", "bf16"):
        bf16 = precision == "bf16"
        backbone = backbone_for(config, bf16)
        benchmark = data(count, backbone.img_size)
        experience = next(iter(avalanche_benchmark(benchmark, backbone.encode).train_stream))
        (one,) = benchmark.experiences
        images = backbone.encode(one.inputs[one.train])
        labels = torch.from_numpy(one.targets[one.train])

        def ours(
            backbone: Backbone = backbone,
            experience: Any = experience,
            task: Task = one.task,
            bf16: bool = bf16,
        ) -> None:
            strategy = LoRAStrategy(
                backbone=backbone,
                task=task,
                lora=LORA,
                training=training,
                seed=0,
                bf16=bf16,
            )
            with redirect_stderr(io.StringIO()):
                strategy.train_adapter(experience, "one")

        def hand(
            backbone: Backbone = backbone,
            images: torch.Tensor = images,
            labels: torch.Tensor = labels,
            bf16: bool = bf16,
        ) -> None:
            by_hand(backbone, images, labels, training=training, bf16=bf16)

        made[f"hand-written {precision}"], made[f"LoRAStrategy {precision}"] = hand, ours
    return made, count * training.epochs


def profile(name: str, case: str) -> list[dict[str, Any]]:
    """Return the functions in which the time goes, without what they call."""
    run = cases(name)[0][case]
    run()
    profiler = Profile()
    profiler.runcall(run)
    stats: Any = pstats.Stats(profiler)
    rows = sorted(stats.stats.items(), key=lambda item: -item[1][2])[:25]
    return [
        {
            "function": f"{file.rsplit('/', 1)[-1]}:{function}",
            "own_share": round(own / stats.total_tt, 4),
            "calls": calls,
        }
        for (file, _, function), (calls, _, own, _, _) in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", action="store_true", help="where the time goes, then stop")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    if given.profile:
        for name in MODELS:
            print(name)
            for row in profile(name, "LoRAStrategy bf16"):
                print(f"  {100 * row['own_share']:5.1f} %  {row['calls']:7d}  {row['function']}")
        return
    for name in MODELS:
        made, images = cases(name)
        found = interleaved(made, given.repeats)
        rows = [{"case": n, **v, "images_per_cpu_s": images / v["cpu_s"]} for n, v in found.items()]
        rate = {row["case"]: row["images_per_cpu_s"] for row in rows}
        key = f"training_{name.split()[0].replace('/', '_').replace('-', '_').lower()}"
        report(
            key,
            f"{name}, LoRA rank 8 on qkv, {images} images, batch "
            f"{MODELS[name][2].batch_size}, one thread",
            rows,
            strategy_to_hand_fp32=rate["LoRAStrategy fp32"] / rate["hand-written fp32"],
            strategy_to_hand_bf16=rate["LoRAStrategy bf16"] / rate["hand-written bf16"],
            bf16_to_fp32=rate["LoRAStrategy bf16"] / rate["LoRAStrategy fp32"],
            aim="strategy/hand >= .95; bf16/fp32 >= 1.3",
        )
    assert RESULTS.is_dir()


if __name__ == "__main__":
    main()
