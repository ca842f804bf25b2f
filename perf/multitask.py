"""All pairs of n tasks cost n trainings: training a bank against merging and scoring its pairs.

A small real run: the five tasks of `multitask_shapes` on the embedded backbone, with fewer samples.
Every adapter is trained all epochs, so that the work does not depend on when training stops early.
The arm is `cat` under heads of their own; scoring a pair is merging it and evaluating both tasks.
"""

from __future__ import annotations

import io
import tempfile
from contextlib import redirect_stderr
from itertools import count
from pathlib import Path

import torch

from cl_lora.benchmarks import make_benchmark
from cl_lora.configuration.compose import compose_config
from cl_lora.experiment.arms import make_arm
from cl_lora.experiment.banks import Banks
from cl_lora.experiment.evaluator import Evaluator
from cl_lora.experiment.merged import serve_arm
from cl_lora.experiment.serving import Workbench
from cl_lora.experiment.settings import read_settings
from cl_lora.experiment.stages import ALONE, Outline, Stage
from cl_lora.experiment.training import train_banks
from cl_lora.models.backbones import input_size
from cl_lora.models.compute import Compute
from cl_lora.models.prepare import prepare_backbone
from perf.common import interleaved, report

SETTINGS = (
    "experiment=multitask_shapes",
    "subsets.triples_with=null",
    "strategy.patience=null",
    "benchmark.samples_per_class=7",
)


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary, redirect_stderr(io.StringIO()):
        settings = read_settings(compose_config([f"run_dir={temporary}/run", *SETTINGS]))
        benchmark = make_benchmark(
            {**settings.raw["benchmark"], "cache_dir": temporary}, input_size(settings.model)
        )
        backbone, _ = prepare_backbone(
            settings.model, settings.lora, settings.device, settings.bf16
        )
        numbers = count()

        def train(folder: str) -> Banks:
            return train_banks(settings, benchmark, backbone, Path(temporary, folder), 0, ["fresh"])

        bench = Workbench(
            benchmark=benchmark,
            backbone=backbone,
            banks=train("kept"),
            compute=Compute(settings.device, settings.bf16),
            seed=0,
            policy=settings.training.policy,
            buffers={},
            spc=settings.options.spc,
            batch_size=settings.options.eval_batch_size,
            head_lr=settings.training.head_lr,
            lora=settings.lora,
            training=settings.training,
        )
        stages = settings.protocol.make(Outline(benchmark.names))
        pairs = [stage for stage in stages if stage.group != ALONE]
        arm = make_arm("cat", {"method": "cat", "coefficients": 1}, settings.defaults)

        def score(*wanted: Stage) -> None:
            evaluator = Evaluator(bench)
            for stage in wanted:
                evaluator.score(serve_arm(bench, arm, stage), stage)

        found = interleaved(
            {
                f"train {len(benchmark.names)} adapters": lambda: train(f"new-{next(numbers)}"),
                "read the bank again": lambda: train("kept"),
                f"merge and score all {len(pairs)} pairs": lambda: score(*pairs),
                "merge and score one pair": lambda: score(pairs[0]),
                "merge one pair": lambda: serve_arm(bench, arm, pairs[0]),
            },
            warmup=False,
        )
    training, _, scoring, one, _ = (values["cpu_s"] for values in found.values())
    rows = [
        {"case": name, **values, "share_of_training": values["cpu_s"] / training}
        for name, values in found.items()
    ]
    first = benchmark.experiences[0]
    report(
        "multitask",
        f"{len(benchmark.names)} tasks on shapes: {len(first.train)} train and {len(first.test)} "
        f"test images each, {settings.training.epochs} epochs, embedded backbone, "
        f"{'bf16' if settings.bf16 else 'fp32'}, {torch.get_num_threads()} thread",
        rows,
        all_pairs_to_training=scoring / training,
        one_pair_to_one_training=one / (training / len(benchmark.names)),
    )


if __name__ == "__main__":
    main()
