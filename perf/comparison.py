"""What a comparison costs: trainings a run, and one more fixed arm as a share of one adapter.

A small real run: the embedded backbone on the shapes benchmark with the demo's settings; only the
bank that is merged is trained for one epoch, which does not change what merging costs. The arm is
TIES with W = 1; its cost is merging and scoring it on all domains, after the last experience only,
and after every experience as `cl-lora run` does.
"""

from __future__ import annotations

import dataclasses
import io
import tempfile
from contextlib import redirect_stderr
from pathlib import Path

import torch
from cl_lora.benchmarks.stream import avalanche_benchmark

from cl_lora.benchmarks import make_benchmark
from cl_lora.configuration.compose import compose_config
from cl_lora.experiment.banks import train_banks
from cl_lora.experiment.evaluator import ArmEvaluator
from cl_lora.experiment.pipeline import prepare_backbone
from cl_lora.experiment.settings import read_settings
from cl_lora.models.backbones import image_size
from cl_lora.models.compute import Compute
from cl_lora.strategies.lora import LoRAStrategy
from perf.common import interleaved, report

EPOCHS = int(compose_config([])["strategy"]["epochs"])


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary, redirect_stderr(io.StringIO()):
        raw = compose_config([f"run_dir={temporary}/run", "strategy.epochs=1"])
        settings = read_settings(raw)
        benchmark = make_benchmark(
            {**raw["benchmark"], "cache_dir": temporary}, image_size(settings.model)
        )
        backbone = prepare_backbone(settings)
        folder = Path(temporary) / "run"
        banks = train_banks(settings, benchmark, backbone, folder, 0, ())
        evaluator = ArmEvaluator(
            benchmark=benchmark,
            backbone=backbone,
            banks=banks,
            compute=Compute(settings.device, settings.bf16),
            seed=0,
            head_policy="shared",
            buffers={},
            spc=5,
            batch_size=settings.eval_batch_size,
            head_lr=settings.training.head_lr,
        )
        experience = next(iter(avalanche_benchmark(benchmark).train_stream))
        (arm,) = settings.make_arms({"one_more": {"method": "ties", "coefficients": 1}})
        last = len(benchmark.domains) - 1

        full = dataclasses.replace(settings.training, epochs=EPOCHS)

        def train() -> None:
            LoRAStrategy(
                backbone=backbone,
                classes=len(benchmark.classes),
                lora=settings.lora,
                training=full,
                seed=0,
                device=settings.device,
                bf16=settings.bf16,
            ).train_adapter(experience, "one")

        def score(*rows: int) -> None:
            for t in rows:
                evaluator.evaluate(arm, t, lambda: None)

        found = interleaved(
            {
                "train one adapter": train,
                "one more arm, after the last experience": lambda: score(last),
                "one more arm, after every experience": lambda: score(*range(last + 1)),
                "merge alone, 4 adapters": lambda: evaluator.merged(arm, last),
            },
            warmup=False,
        )
    adapter = found["train one adapter"]["cpu_s"]
    rows = [
        {"case": name, **values, "share_of_one_adapter": values["cpu_s"] / adapter}
        for name, values in found.items()
    ]
    counts = {
        name: len(compose_config([f"arms={name}"])["arms"])
        for name in ("default", "paper_fixed", "paper_adaptive")
    }
    report(
        "comparison",
        f"shapes: {len(experience.dataset)} train images a domain, "
        f"{sum(map(len, benchmark.test))} test images in all, {EPOCHS} epochs an adapter, "
        f"{'bf16' if settings.bf16 else 'fp32'}, {torch.get_num_threads()} thread",
        rows,
        trainings_whatever_the_arms=len(banks.fresh),
        arms_per_training_pass=counts,
    )
    print(f"  arms per training pass: {counts}")


if __name__ == "__main__":
    main()
