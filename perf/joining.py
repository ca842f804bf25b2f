"""``cl-lora merge`` of 16 rank-16 adapters with the shapes of ViT-L: peak memory, and its time.

Memory is measured in a process of its own for each case: the kernel's high-water mark of the
resident set less what was resident after the imports and a small merge. Times are from folders to a
folder, beside peft, which loads the same folders into a skeleton of the model (layers whose weights
are one number, so that they take no memory), calls add_weighted_adapter and saves.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from torch import nn

from cl_lora.joining import from_options, join, open_inputs
from cl_lora.support.memory import give_back_at_once
from perf.common import random_adapters, report
from perf.memory import high_water, reset_high_water

ADAPTERS, RANK, LAYERS, WIDTH = 16, 16, 24, 1024
FEW = 2  # layers for what takes peft minutes

CASES: Mapping[str, Mapping[str, Any]] = {
    "cat": {"method": "cat"},
    "task_arithmetic": {"method": "task_arithmetic"},
    "ties, cut to rank 16": {"method": "ties", "rank": RANK},
    "ties over all modules, cut to rank 16": {
        "method": "ties",
        "rank": RANK,
        "options": {"trim": "global"},
    },
    "ties in factors": {"method": "ties", "space": "factors"},
}
"""What is merged: arguments of a recipe."""

THEIRS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "cat": ("cat", {}),
    "ties in factors": ("ties", {"density": 0.2}),
    "ties, cut to rank 16": (
        "ties_svd",
        {"density": 0.2, "svd_rank": RANK, "svd_full_matrices": False},
    ),
}
"""What peft calls the same: case -> combination_type and further arguments."""


RUNS: Sequence[tuple[str, str, int]] = (
    ("cat", "cl-lora", LAYERS),
    ("cat", "peft", LAYERS),
    ("task_arithmetic", "cl-lora", LAYERS),
    ("ties in factors", "cl-lora", LAYERS),
    ("ties in factors", "peft", LAYERS),
    ("ties, cut to rank 16", "cl-lora", LAYERS),
    ("ties, cut to rank 16", "cl-lora", FEW),
    ("ties, cut to rank 16", "peft", FEW),
    ("ties over all modules, cut to rank 16", "cl-lora", FEW),
)
"""Case, by whom, and in how many layers."""


def adapter_mb(layers: int) -> float:
    """Return the size of one adapter."""
    return sum((d_out + d_in) * RANK * 4 for d_out, d_in in shapes(layers).values()) / 1e6


def shapes(layers: int) -> dict[str, tuple[int, int]]:
    """Return the (d_out, d_in) of q, k, v, proj, fc1 and fc2 in every layer."""
    square, wide = (WIDTH, WIDTH), (4 * WIDTH, WIDTH)
    layer = {"attn.q": square, "attn.k": square, "attn.v": square, "attn.proj": square}
    layer |= {"mlp.fc1": wide, "mlp.fc2": wide[::-1]}
    return {f"blocks.{i}.{name}": shape for i in range(layers) for name, shape in layer.items()}


def write_adapters(folder: Path, layers: int) -> list[Path]:
    """Write the adapters and return their folders."""
    paths = []
    for adapter in random_adapters(ADAPTERS, RANK, shapes(layers)):
        paths.append(folder / adapter.name)
        adapter.save(paths[-1])
    return paths


def merged(paths: list[Path], case: str, out: Path) -> None:
    """Merge as the command does, from folders to a folder."""
    recipe = from_options(paths, weights=[1.0] * len(paths), **CASES[case])
    join(recipe, open_inputs(recipe), out)


def skeleton(layers: int) -> nn.Module:
    """Return empty modules with linear layers whose weights are one number, repeated."""
    root = nn.Module()
    for name, (d_out, d_in) in shapes(layers).items():
        parent = root
        *path, last = name.split(".")
        for part in path:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        linear = nn.Linear(1, 1, bias=False)
        linear.in_features, linear.out_features = d_in, d_out
        linear.weight = nn.Parameter(torch.zeros(1, 1).expand(d_out, d_in), requires_grad=False)
        parent.add_module(last, linear)
    return root


def merged_by_peft(paths: list[Path], case: str, out: Path, layers: int) -> dict[str, float]:
    """Do the same by peft; return the seconds of its parts."""
    from peft import PeftModel

    start = time.perf_counter()
    first, *others = paths
    model = PeftModel.from_pretrained(skeleton(layers), first, adapter_name=first.name)
    for path in others:
        model.load_adapter(path, path.name)
    loaded = time.perf_counter()
    combination, options = THEIRS[case]
    names = [path.name for path in paths]
    model.add_weighted_adapter(names, [1.0] * len(names), "all", combination, **options)
    done = time.perf_counter()
    model.save_pretrained(out, selected_adapters=["all"])
    return {
        "load_s": loaded - start,
        "merge_s": done - loaded,
        "save_s": time.perf_counter() - done,
    }


def measure(paths: list[Path], case: str, by: str, layers: int) -> dict[str, float]:
    """Return peak memory and seconds of one case."""
    import peft  # noqa: F401  (it is imported before memory is counted)

    give_back_at_once()  # as the command does
    process = psutil.Process()
    with tempfile.TemporaryDirectory() as folder:
        small = write_small(Path(folder))
        merged(small, case, Path(folder) / "warm")  # buffers of libraries are not this merge's
        reset_high_water()
        before = process.memory_info().rss
        wall, cpu = time.perf_counter(), time.process_time()
        parts: dict[str, float] = {}
        if by == "peft":
            parts = merged_by_peft(paths, case, Path(folder) / "out", layers)
        else:
            merged(paths, case, Path(folder) / "out")
        return {
            "peak_MB": (high_water() - before) / 1e6,
            "wall_s": time.perf_counter() - wall,
            "cpu_s": time.process_time() - cpu,
            **parts,
        }


def write_small(folder: Path) -> list[Path]:
    """Write two small adapters to warm up with."""
    adapters = random_adapters(2, 2, {"blocks.0.fc": (64, 64)})
    for adapter in adapters:
        adapter.save(folder / adapter.name)
    return [folder / adapter.name for adapter in adapters]


def apart(paths: list[Path], case: str, by: str, layers: int) -> dict[str, float]:
    """Return what :func:`measure` finds in a process of its own."""
    command = [sys.executable, "-m", "perf.joining", case, by, str(layers), *map(str, paths)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    return found


def main() -> None:
    if len(sys.argv) > 1:
        of, who, depth, *given = sys.argv[1:]
        print(json.dumps(measure([Path(p) for p in given], of, who, int(depth))))
        return
    folder = Path(tempfile.mkdtemp())
    try:
        whole, few = folder / "whole", folder / "few"
        paths, small = write_adapters(whole, LAYERS), write_adapters(few, FEW)
        weight = 4 * WIDTH * WIDTH * 4 / 1e6
        rows: list[dict[str, Any]] = []
        for case, by, layers in RUNS:
            found = apart(small if layers == FEW else paths, case, by, layers)
            beyond = found["peak_MB"] - 2 * adapter_mb(layers)
            rows.append(
                {
                    "case": case,
                    "by": by,
                    "layers": layers,
                    **found,
                    "beyond_two_adapters_MB": beyond,
                    "in_largest_weights": beyond / weight,
                }
            )
    finally:
        shutil.rmtree(folder)
    report(
        "joining",
        "cl-lora merge of 16 rank-16 adapters of ViT-L's shapes (q k v proj fc1 fc2), from "
        "folders to a folder; peft: load, add_weighted_adapter, save",
        rows,
        two_adapters_MB=2 * adapter_mb(LAYERS),
        largest_weight_MB=weight,
        most_in_largest_weights=max(
            row["in_largest_weights"] for row in rows if row["by"] == "cl-lora"
        ),
    )


if __name__ == "__main__":
    main()
