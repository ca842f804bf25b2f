"""What a comparison costs: trainings a run, and one more fixed arm as a share of one adapter.

A small real run: the embedded backbone on the shapes benchmark with the demo's settings; only the
bank that is merged is trained for one epoch, which does not change what merging costs. The arm is
TIES with W = 1; its cost is merging and scoring it on all domains, after the last experience only,
and after every experience as `cl-lora run` does: as it is, without the scores that only forward
transfer needs, and with adapters from a block on, where what is below is kept of every test image.
Each arm is scored anew: what arms share where they serve the same numbers is left out.
"""

from __future__ import annotations

import dataclasses
import io
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path

import torch

from cl_lora.benchmarks import make_benchmark
from cl_lora.benchmarks.avalanche import avalanche_benchmark
from cl_lora.benchmarks.batches import batches
from cl_lora.configuration.compose import compose_config
from cl_lora.experiment.arms import make_arm
from cl_lora.experiment.evaluator import Evaluator
from cl_lora.experiment.merged import serve_arm
from cl_lora.experiment.serving import Workbench
from cl_lora.experiment.settings import read_settings
from cl_lora.experiment.stages import Outline, Stage
from cl_lora.experiment.training import train_banks
from cl_lora.models.backbones import input_size
from cl_lora.models.compute import Compute
from cl_lora.models.images import ImageBackbone
from cl_lora.models.prepare import prepare_backbone
from cl_lora.models.routing import default_block
from cl_lora.models.weights import lowest_block
from cl_lora.strategies.lora import LoRAStrategy
from perf.common import interleaved, report

EPOCHS = int(compose_config([])["strategy"]["epochs"])


def from_block(bench: Workbench, block: int) -> Workbench:
    """Return the same adapters without what is below a block, as they are trained from one on."""
    banks = {
        kind: tuple(
            dataclasses.replace(
                adapter,
                factors={m: f for m, f in adapter.factors.items() if lowest_block([m]) >= block},
            )
            for adapter in adapters
        )
        for kind, adapters in bench.banks.items()
    }
    lora = dataclasses.replace(bench.lora, first_block=block)
    return dataclasses.replace(bench, banks=banks, lora=lora, _updates={}, _support={}, learned={})


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary, redirect_stderr(io.StringIO()):
        raw = compose_config([f"run_dir={temporary}/run", "strategy.epochs=1"])
        settings = read_settings(raw)
        benchmark = make_benchmark(
            {**raw["benchmark"], "cache_dir": temporary}, input_size(settings.model)
        )
        backbone, _ = prepare_backbone(
            settings.model, settings.lora, settings.device, settings.bf16
        )
        folder = Path(temporary) / "run"
        bench = Workbench(
            benchmark=benchmark,
            backbone=backbone,
            banks=train_banks(settings, benchmark, backbone, folder, 0, ["fresh"]),
            compute=Compute(settings.device, settings.bf16),
            seed=0,
            policy=settings.training.policy,
            buffers={},
            spc=settings.options.spc,
            batch_size=settings.options.eval_batch_size,
            head_lr=settings.training.head_lr,
        )
        stages = settings.protocol.make(Outline(benchmark.names))
        seen = settings.protocol.make(Outline(benchmark.names, forward_transfer=False))
        above = from_block(bench, default_block(backbone))
        stream = avalanche_benchmark(benchmark, backbone.encode).train_stream
        experience = next(iter(stream))
        arm = make_arm("one_more", {"method": "ties", "coefficients": 1}, settings.defaults)
        full = dataclasses.replace(settings.training, epochs=EPOCHS)

        def train() -> None:
            LoRAStrategy(
                backbone=backbone,
                task=benchmark.tasks[0],
                lora=settings.lora,
                training=full,
                seed=0,
                device=settings.device,
                bf16=settings.bf16,
            ).train_adapter(experience, "one")

        def score(bench: Workbench, wanted: Sequence[Stage]) -> None:
            evaluator = Evaluator(bench)
            for stage in wanted:
                evaluator.score(serve_arm(bench, arm, stage), stage)

        def read() -> None:
            assert isinstance(backbone, ImageBackbone)
            for e in benchmark.experiences:
                for images, _ in batches(e, e.test, bench.batch_size, backbone.encode):
                    backbone.normalise(images)

        score(above, stages[-1:])  # what is below the first adapted block is there by then
        found = interleaved(
            {
                "train one adapter": train,
                "one more arm, after the last experience": lambda: score(bench, stages[-1:]),
                "one more arm, after every experience": lambda: score(bench, stages),
                "the same, forward_transfer=false": lambda: score(bench, seen),
                "the same, and LoRA from a third of the depth": lambda: score(above, seen),
                "reading and normalising all test images": read,
                "merge alone, 4 adapters": lambda: serve_arm(bench, arm, stages[-1]),
            },
            warmup=False,
        )
    adapter, last, every, ahead, prefix, reading = (
        found[name]["cpu_s"] for name in list(found) if not name.startswith("merge")
    )
    rows = [
        {"case": name, **values, "share_of_one_adapter": values["cpu_s"] / adapter}
        for name, values in found.items()
    ]
    counts = {
        name: len(compose_config([f"arms={name}"])["arms"])
        for name in ("default", "coleman2024_fixed", "coleman2024_adaptive")
    }
    images = sum(len(e.test) for e in benchmark.experiences)
    report(
        "comparison",
        f"shapes: {len(experience.dataset)} train images per domain, "
        f"{images} test images in all, {EPOCHS} epochs per adapter, "
        f"{'bf16' if settings.bf16 else 'fp32'}, {torch.get_num_threads()} thread",
        rows,
        reading_to_scoring=reading / last,
        without_forward_transfer_to_all=ahead / every,
        from_a_block_to_all_blocks=prefix / ahead,
        trainings_whatever_the_arms=len(bench.banks["fresh"]),
        arms_per_training_pass=counts,
    )
    print(f"  arms per training pass: {counts}")


if __name__ == "__main__":
    main()
