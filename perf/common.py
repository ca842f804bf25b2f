"""How every measurement here is made: interleaved repeats, medians, and the machine beside them.

Ratios are formed within one run, because the machine may be busy with something else. Time is the
CPU time of this process (one thread unless a script says otherwise), which a busy neighbour
distorts far less than the clock on the wall; wall time is recorded too, and user time, which leaves
out what the kernel does for us (fresh pages, files).
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

import cl_lora.support.compat  # noqa: F401  (must run before timm imports torchvision)
from cl_lora import Adapter, LoRAFactors
from cl_lora.adapters.injection import module_weight, target_modules

RESULTS = Path(__file__).parent / "results"


def interleaved(
    cases: Mapping[str, Callable[[], object]], repeats: int = 3, warmup: bool = True
) -> dict[str, dict[str, Any]]:
    """Run the cases A B A B ... and return for each the medians of CPU and wall seconds."""
    if warmup:
        for run in cases.values():
            run()
    seconds: dict[str, list[tuple[float, float, float]]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, run in cases.items():
            gc.collect()
            wall, cpu, user = (
                time.perf_counter(),
                time.process_time(),
                resource.getrusage(resource.RUSAGE_SELF).ru_utime,
            )
            run()
            cpu, user = (
                time.process_time() - cpu,
                resource.getrusage(resource.RUSAGE_SELF).ru_utime - user,
            )
            seconds[name].append((cpu, time.perf_counter() - wall, user))
    return {
        name: {
            "cpu_s": statistics.median(cpu for cpu, _, _ in measured),
            "wall_s": statistics.median(wall for _, wall, _ in measured),
            "user_s": statistics.median(user for _, _, user in measured),
            "cpu_s_each": [round(cpu, 5) for cpu, _, _ in measured],
        }
        for name, measured in seconds.items()
    }


def machine() -> dict[str, Any]:
    """Return what the figures depend on beside the code."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def report(name: str, setting: str, rows: list[dict[str, Any]], **more: Any) -> None:
    """Print the rows as a table and write everything to ``perf/results/NAME.json``."""
    content = {"measurement": name, "setting": setting, "machine": machine(), "rows": rows, **more}
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(content, indent=2, default=_rounded) + "\n"
    (RESULTS / f"{name}.json").write_text(text)
    print(f"{name}: {setting}")
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "cpu_s_each"))
    cells = [columns, *([_cell(row.get(key, "")) for key in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  " + "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())
    for key, value in more.items():
        if not isinstance(value, dict | list):
            print(f"  {key}: {_cell(value)}")


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _rounded(value: object) -> object:
    return float(value) if isinstance(value, torch.Tensor) else str(value)


def vit_base_adapters(count: int, rank: int = 16, blocks: int = 12) -> list[Adapter]:
    """Return random adapters with the shapes of ViT-B: q, k and v of every block, 768 x 768."""
    return random_adapters(
        count, rank, {f"blocks.{b}.attn.qkv.{p}": (768, 768) for b in range(blocks) for p in "qkv"}
    )


def shapes_of(network: nn.Module, targets: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return the (d_out, d_in) of every module of the network that the targets name."""
    weights = {name: module_weight(network, name) for name in target_modules(network, targets)}
    return {name: (w.shape[0], w.shape[1]) for name, w in weights.items()}


def random_adapters(count: int, rank: int, shapes: Mapping[str, tuple[int, int]]) -> list[Adapter]:
    """Return adapters with normal factors, one for each (d_out, d_in) of ``shapes``."""
    generator = torch.Generator().manual_seed(0)

    def factors(d_out: int, d_in: int) -> LoRAFactors:
        A = torch.randn(rank, d_in, generator=generator) / d_in**0.5
        B = torch.randn(d_out, rank, generator=generator) * 0.05
        return LoRAFactors(A, B, 2.0)

    return [
        Adapter(f"a{i}", {name: factors(*shape) for name, shape in shapes.items()})
        for i in range(count)
    ]
