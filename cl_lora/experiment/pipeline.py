"""From a configuration to a finished run folder: validate, train each bank, evaluate every arm."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_lora.adapters.injection import split_qkv, target_modules
from cl_lora.benchmarks import make_benchmark, validate_benchmark_config
from cl_lora.benchmarks.core import DomainBenchmark, Indices, draw_buffer
from cl_lora.experiment.arms import Arm, check_references, check_weights
from cl_lora.experiment.banks import train_banks
from cl_lora.experiment.evaluator import ArmEvaluator
from cl_lora.experiment.settings import Settings, read_settings, set_threads
from cl_lora.models.backbones import Backbone, image_size, load_backbone
from cl_lora.models.compute import Compute
from cl_lora.run_folder.writer import RunWriter
from cl_lora.support import progress
from cl_lora.support.errors import DivergedError

log = logging.getLogger(__name__)


def execute(raw: Mapping[str, Any]) -> Path:
    """Do what is missing of a run, and return its folder.

    Everything that can be wrong with the configuration or the data is found before training.

    Args:
        raw: the resolved configuration, plain containers only.

    Raises:
        UserError: for the first thing that is wrong, in one sentence.
    """
    set_threads(raw.get("threads"))
    settings = check(raw)
    with RunWriter(settings) as run:
        arms = run.made_arms()
        benchmark = make_benchmark(raw["benchmark"], image_size(settings.model))
        check_weights(arms, len(benchmark.domains))
        buffers = {seed: _buffers(settings, arms, benchmark, seed) for seed in run.seeds}
        backbone = prepare_backbone(settings)
        run.record_stream(
            benchmark,
            {
                "fingerprint": backbone.fingerprint(),
                "img_size": backbone.img_size,
                **backbone.normalisation,
            },
        )
        failed: list[DivergedError] = []
        for seed in run.seeds:
            run.record_buffers(seed, benchmark, buffers[seed])
            failed += _seed(settings, run, arms, benchmark, backbone, buffers[seed], seed)
            arms = tuple(arm for arm in arms if arm.name in run.arms)
    if failed:
        names = ", ".join(run.stopped)
        raise DivergedError(
            f"{failed[0]}; everything else is finished and {run.folder} goes on without {names}: "
            "name an arm with other settings to try it again, or leave it out (~arms.NAME)"
        )
    return run.folder


def check(raw: Mapping[str, Any]) -> Settings:
    """Return the settings of a configuration, checked as far as possible without decoding data.

    Raises:
        UserError: for the first thing that is wrong, in one sentence.
    """
    settings = read_settings(raw)
    validate_benchmark_config(raw["benchmark"])
    settings.make_arms(raw["arms"])
    return settings


def prepare_backbone(settings: Settings) -> Backbone:
    """Load the backbone on its device, q, k and v split where the adapters need them apart."""
    backbone = load_backbone(settings.model)
    if settings.lora.splits_qkv:
        split_qkv(backbone.vit)
    target_modules(backbone.vit, settings.lora.targets)
    backbone.spell_out_attention = settings.bf16 and settings.device.type == "cpu"
    return backbone.to(settings.device)


def _buffers(
    settings: Settings, arms: Sequence[Arm], benchmark: DomainBenchmark, seed: int
) -> dict[int, tuple[Indices, ...]]:
    """Draw the buffers that some arm, or the run's prototypes, will need."""
    needed = {arm.spc for arm in arms if arm.rule.learned or arm.head == "prototypes"}
    if settings.training.head == "prototypes":
        needed |= {settings.spc, *(arm.spc for arm in arms)}
    return {spc: draw_buffer(benchmark, spc, seed) for spc in sorted(needed)}


def _seed(
    settings: Settings,
    run: RunWriter,
    arms: Sequence[Arm],
    benchmark: DomainBenchmark,
    backbone: Backbone,
    buffers: dict[int, tuple[Indices, ...]],
    seed: int,
) -> list[DivergedError]:
    """Train and score what is missing of one seed; return the errors of arms that diverged."""
    references = check_references(run.references)
    evaluator = ArmEvaluator(
        benchmark=benchmark,
        backbone=backbone,
        banks=train_banks(settings, benchmark, backbone, run.folder, seed, references),
        compute=Compute(settings.device, settings.bf16),
        seed=seed,
        head_policy=settings.training.head,
        buffers=buffers,
        spc=settings.spc,
        batch_size=settings.eval_batch_size,
        head_lr=settings.training.head_lr,
    )
    everything: list[Arm | str] = [*references, *arms]
    units = [
        (arm, t)
        for t in range(-1, len(benchmark.domains))
        for arm in everything
        if t in evaluator.rows(arm) and not run.scores.done(seed, name_of(arm), t)
    ]
    failed: list[DivergedError] = []
    if not units:
        return failed
    total = len(units) * len(benchmark.domains)
    with progress.meter(f"seed {seed}: evaluating {len(arms)} arms", total) as advance:
        for arm, t in units:
            if isinstance(arm, Arm) and arm.name in run.stopped:
                continue
            try:
                scores, coefficients = evaluator.evaluate(arm, t, advance)
            except DivergedError as error:
                assert isinstance(arm, Arm)
                log.warning("%s", error)
                run.stop(arm, error)
                failed.append(error)
            else:
                run.add(scores, coefficients)
    log.info("seed %d: evaluated %d arms and %d reference rows", seed, len(arms), len(references))
    return failed


def name_of(arm: Arm | str) -> str:
    """Return the name of an arm or of a reference row."""
    return arm if isinstance(arm, str) else arm.name
