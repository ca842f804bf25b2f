"""How fast the singular values of the adapters fall off, and what a truncation keeps."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogFormatter, NullLocator

from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.describe import arm_settings
from cl_lora.reporting.figures.marks import tell
from cl_lora.reporting.figures.registry import figure
from cl_lora.reporting.figures.style import GREY, color_of, line_of
from cl_lora.run_folder.layout import FRESH
from cl_lora.run_folder.reader import RunFolder

_RANK = "q"
"""The option of a residual that counts the singular values that are kept."""

_SMALLEST = 1e-4
"""Of the largest singular value: smaller ones are not drawn, as rounding rules there."""


@figure(
    "spectra",
    "Singular values of the adapters",
    "Left: the k-th singular value of an update over its largest, mean over modules (log axis). "
    "Right: the share of the squared Frobenius norm in the first k of every module, which is what "
    "a truncation to rank k keeps. Means over seeds; dashed: ranks q that arms keep.",
    position=78,
    whole=True,
)
def singular_values(run: RunFolder, metric: Metric) -> Figure | None:
    """Draw decay and cumulative energy of every adapter, a row of panels for each bank.

    Returns:
        The figure; None where no spectra were recorded.
    """
    del metric
    rows = run.spectra
    if rows.empty:
        return None
    means = rows.groupby(["bank", "adapter", "index"], as_index=False)[["value", "energy"]].mean()
    banks = sorted(set(means["bank"]), key=lambda bank: (bank != FRESH, bank))
    fig = Figure(figsize=(7.6, 2.7 * len(banks) + 0.5), layout="constrained")
    axes = fig.subplots(len(banks), 2, squeeze=False)
    for (left, right), bank in zip(axes, banks, strict=True):
        of_bank = means[means["bank"] == bank]
        _draw(left, run, of_bank, "value", f"{bank} bank" if len(banks) > 1 else "")
        _draw(right, run, of_bank, "energy", "")
        left.set_yscale("log")
        # Not matplotlib's own, which writes formulas.
        left.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        left.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
        smallest = of_bank.loc[of_bank["value"] > _SMALLEST, "value"].min()
        left.set_ylim(max(_SMALLEST, 0.7 * float(smallest)), 1.3)
        left.set_ylabel("singular value / largest")
        right.set_ylim(0, 1.04)
        right.set_ylabel("share of the squared norm")
        for q in _ranks(run, bank):
            right.axvline(q, color=GREY, lw=0.8, ls="--", zorder=1)
            right.text(
                q, 0.02, f"q {q:g} ", fontsize=9, color=GREY, rotation=90, ha="right", va="bottom"
            )
        for ax in (left, right):
            _index_axis(ax, int(of_bank["index"].max()))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper left", ncols=min(6, len(labels)))
    return fig


def _draw(ax: Axes, run: RunFolder, rows: pd.DataFrame, column: str, title: str) -> None:
    for adapter, found in rows.groupby("adapter"):
        i = int(str(adapter))
        (line,) = ax.plot(
            found["index"],
            found[column].where(found[column] > 0),
            color=color_of(i),
            ls=line_of(i),
            lw=1.2,
            marker="o" if len(found) <= 1 else None,
            label=run.experiences[i],
        )
        half = found.loc[found["energy"] >= 0.5, "index"]
        text = f": half of the squared norm in the first {half.iloc[0]}" if len(half) else ""
        tell(line, f"{run.experiences[i]}{text}")
    ax.set_title(title)


def _index_axis(ax: Axes, last: int) -> None:
    ax.set_xscale("log", base=2)
    ticks = [2.0**k for k in range(int(np.log2(last)) + 1)]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(0.9, last * 1.1)
    ax.set_xlabel("k")


def _ranks(run: RunFolder, bank: str) -> list[float]:
    """Return the ranks that arms of a bank keep, ascending."""
    found = set()
    for arm in run.arms:
        s = arm_settings(run, arm)
        if s.budget is not None and s.budget[0] == _RANK and (s.bank or FRESH) == bank:
            found.add(s.budget[1])
    return sorted(found)
