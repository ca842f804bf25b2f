"""Whole runs in this process: the embedded backbone at 16 px, so that one takes a second or two."""

from __future__ import annotations

import csv
from pathlib import Path

from tiny_run import TRAINING, overrides

from cl_lora.configuration.compose import compose_config
from cl_lora.experiment.pipeline import execute

SMALL = ("model.img_size=16", "precision=fp32", "device=cpu")
STEPS = "steps: 2"
MORE_ARMS = (
    "+arms.in_factors={method: linear, space: factors, spc: 2, "
    f"coefficients: {{name: adaptive, b_max: 2, {STEPS}}}}}",
    "+arms.tuned={method: ties, spc: 2, tune_head: true, "
    f"coefficients: {{name: softmax, {STEPS}}}}}",
    "+arms.grid={method: svd, spc: 2, coefficients: {name: grid, values: [0.3, 1.0, 1/n]}}",
    "+arms.means={method: ties, head: prototypes, spc: 2, "
    "coefficients: {name: grid, values: [0.3, 1.0]}}",
)
"""Beside those of every tiny run: all that can be learned or chosen."""


def run(folder: Path, *more: str) -> Path:
    """Run, or finish, a stream of shapes."""
    return execute(compose_config(overrides(folder, *SMALL, *more)))


def run_tree(root: Path | str, *more: str) -> Path:
    """Run a tree of images, one arm and no baseline."""
    given = ["benchmark=domains", f"benchmark.root={root}", "references=[]", "report=false"]
    arm = ("arms=none", "+arms.half={method: task_arithmetic, coefficients: 0.5}")
    return execute(compose_config([*given, *SMALL, *TRAINING, *arm, *more]))


def rows(folder: Path, name: str = "scores.csv") -> list[dict[str, str]]:
    """Return the rows of a table."""
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def content(folder: Path) -> dict[str, bytes]:
    """Return everything that is measured or trained: all files but where and when."""
    names = ("scores.csv", "coefficients.csv", "stream.json", "adapters/**/*", "hits/**/*.npz")
    paths = [p for pattern in (*names, "buffers/*") for p in folder.glob(pattern) if p.is_file()]
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(paths)}


def stamps(folder: Path) -> dict[str, int]:
    """Return when each file of each adapter was written."""
    return {str(p): p.stat().st_mtime_ns for p in folder.glob("adapters/**/*") if p.is_file()}
