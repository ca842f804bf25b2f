"""The smallest run of the whole command line, for tests that need one."""

from __future__ import annotations

from pathlib import Path

ARMS = (
    "arms=none",
    "+arms.half={method: task_arithmetic, coefficients: 0.5}",
    "+arms.ties_learned={method: ties, spc: 2, "
    "coefficients: {name: adaptive, b_max: 3, steps: 2, granularity: layer}}",
)


TRAINING = ("strategy.epochs=1", "strategy.batch_size=8", "strategy.rank=2")


def overrides(folder: Path, *more: str) -> list[str]:
    """Return the overrides of a run in ``folder``: 3 classes, 3 domains of 16 px, one epoch."""
    return [
        f"run_dir={folder}",
        "model.img_size=16",
        "benchmark.classes=3",
        "benchmark.styles=[photo,cartoon,sketch]",
        "benchmark.samples_per_class=6",
        "benchmark.test_samples_per_class=4",
        *TRAINING,
        "report=false",
        *ARMS,
        *more,
    ]
