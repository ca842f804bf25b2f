"""How the cost grows: merging 2 to 64 adapters, and 1 to 64 arms on 4 adapters; with a figure."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

from cl_lora import merge
from cl_lora.adapters.injection import applied
from cl_lora.merging import prepare
from cl_lora.models.backbones import ModelConfig, load_backbone
from perf.common import interleaved, random_adapters, report, shapes_of

COUNTS = (2, 4, 8, 16, 32, 64)
ARMS = (1, 2, 4, 8, 16, 32, 64)
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "growth"


def main() -> None:
    vit = load_backbone(ModelConfig("embedded")).network
    bank = random_adapters(max(COUNTS), 8, shapes_of(vit, ["qkv", "fc1", "fc2"]))
    weights = np.linspace(0.1, 1, max(ARMS)).tolist()

    def merging(method: str, count: int) -> None:
        merge(bank[:count], method, [1.0] * count)

    def arms(count: int) -> None:
        # As a comparison does: each arm prepares its own plan, enters the weights and leaves.
        for weight in weights[:count]:
            plan = prepare(bank[:4], "ties")
            with applied(vit, plan.combine(torch.full((4,), weight, dtype=torch.float64))):
                pass

    cases = {
        **{
            f"{m} of {n} adapters": partial(merging, m, n)
            for m in ("ties", "task_arithmetic")
            for n in COUNTS
        },
        **{f"{n} arms": partial(arms, n) for n in ARMS},
    }
    found = interleaved(cases, repeats=7)
    rows = [{"case": name, **values} for name, values in found.items()]
    series = {
        name: ([found[key.format(n)] for n in counts], counts)
        for name, key, counts in (
            ("TIES", "ties of {} adapters", COUNTS),
            ("task arithmetic", "task_arithmetic of {} adapters", COUNTS),
            ("arms", "{} arms", ARMS),
        )
    }
    draw(series)
    exponents = {name: slope(x, [v["cpu_s"] for v in y]) for name, (y, x) in series.items()}
    report(
        "growth",
        "embedded backbone, qkv fc1 fc2 of 6 blocks, rank 8, delta; arms: TIES of 4 adapters, "
        "merged, entered into the weights and taken out",
        rows,
        exponents=exponents,
        aim="a straight line or better: exponent of at most 1",
    )
    print(f"  exponents: {exponents}")


def slope(x: tuple[int, ...], y: list[float]) -> float:
    """Return the exponent p of the best y ~ x^p over the upper half, where set-up is paid off."""
    half = len(x) // 2
    return float(np.polyfit(np.log(x[half:]), np.log(y[half:]), 1)[0])


def draw(series: Mapping[str, tuple[list[dict[str, Any]], tuple[int, ...]]]) -> None:
    mpl.rcParams["svg.hashsalt"] = "cl-lora"
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    styles = {
        "TIES": ("#0072B2", "o"),
        "task arithmetic": ("#D55E00", "s"),
        "arms": ("#009E73", "^"),
    }
    for name, (measured, counts) in series.items():
        axes = right if name == "arms" else left
        color, marker = styles[name]
        label = "TIES of 4 adapters" if name == "arms" else name
        ms = [1e3 * values["cpu_s"] for values in measured]
        # The straight line through zero and the last point: what lies on it grows in proportion.
        axes.plot((0, counts[-1]), (0, ms[-1]), color="#999999", lw=1, ls="--")
        axes.plot(counts, ms, color=color, marker=marker, ms=5, lw=1.5, label=label)
    for axes, what, top in ((left, "adapters merged", COUNTS), (right, "arms on one bank", ARMS)):
        axes.set_xlabel(what)
        axes.set_ylabel("CPU time, ms")
        axes.set_xticks([top[0], 8, 16, 32, 64])
        axes.set_xlim(0, 66)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, loc="upper left")
        axes.spines[["top", "right"]].set_visible(False)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(FIGURE.with_suffix(".png"), dpi=150)


if __name__ == "__main__":
    main()
