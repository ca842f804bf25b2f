"""How much a wrong scale of the coefficients costs."""

from __future__ import annotations

import math
import textwrap

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cl_lora.evaluation.aggregate import ALL_EXPERIENCES
from cl_lora.evaluation.continual import FloatArray
from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.describe import arm_settings, at_the_end
from cl_lora.reporting.figures.axes import axis_title
from cl_lora.reporting.figures.marks import points, tell
from cl_lora.reporting.figures.numbers import numbers_of
from cl_lora.reporting.figures.registry import figure
from cl_lora.reporting.figures.style import color_of, line_of, marker_of
from cl_lora.run_folder.reader import RunFolder


@figure(
    "robustness",
    "Robustness to the coefficient's scale",
    "Arms that differ in the scale of the coefficients alone are joined. Area: mean score over the "
    "range, by the trapezoidal rule.",
    few_shot="never",
    position=40,
)
def robustness_to_scale(run: RunFolder, metric: Metric) -> Figure | None:
    """Draw the average final score over the coefficient's scale: how much does a wrong one cost?

    One panel per scale that a rule has, e.g. W of fixed coefficients or b_max of adaptive ones; a
    line per family of arms that differ in it alone. The legend says the best and the worst value,
    where they are, and the area under the line divided by its width: the mean over the range
    (trapezoidal rule).

    Returns:
        The figure; None if no two arms differ in the scale alone.
    """
    curves = robustness_curves(run, metric)
    if curves.empty:
        return None
    axes_names = list(dict.fromkeys(curves["axis"]))
    lines = curves.groupby("axis")["family"].nunique().max()
    height = max(2.6, 0.5 + 0.4 * lines)
    fig = Figure(figsize=(7.2, height * len(axes_names) + 0.2), layout="constrained")
    axes = np.array(fig.subplots(len(axes_names), 1, squeeze=False, sharey=True)).ravel()
    for ax, name in zip(axes, axes_names, strict=True):
        of_axis = curves[curves["axis"] == name]
        for k, (family, curve) in enumerate(of_axis.groupby("family", sort=False)):
            x, y = curve["x"].to_numpy(), metric.scale * curve["mean"].to_numpy()
            error = metric.scale * curve["deviation"].to_numpy()
            line, *_ = ax.errorbar(
                x,
                y,
                yerr=None if np.isnan(error).all() else error,
                color=color_of(k),
                marker=marker_of(k),
                ls=line_of(k),
                capsize=2,
                lw=1.4,
                label=f"{textwrap.fill(str(family), 44)}\n{_in_words(x, y, metric)}",
            )
            known = (curve["mean"].to_numpy(), curve["deviation"].to_numpy())
            tell(line, *points(str(family), [f"{name} {v:g}" for v in x], metric, *known))
        ax.set_title(f"{' and '.join(dict.fromkeys(of_axis['rule']))} coefficients")
        ax.set_xlabel(name)
        values = sorted(set(of_axis["x"]))
        ax.set_xticks(values, [f"{v:g}" for v in values])
        ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=2.6)
    fig.supylabel(axis_title(metric, f"{at_the_end(run)}, average"), fontsize=9)
    return fig


def _in_words(x: FloatArray, y: FloatArray, metric: Metric) -> str:
    """Say the best and the worst point of a line and the mean under it."""
    area = float(np.trapezoid(y, x) / (x[-1] - x[0]))
    ends = (int(y.argmax()), int(y.argmin()))
    best, worst = ends if metric.higher_is_better else ends[::-1]
    digits = ".1f" if metric.percent else ".3f"
    return (
        f"best {y[best]:{digits}} at {x[best]:g}, worst {y[worst]:{digits}} at {x[worst]:g}, "
        f"area {area:{digits}}"
    )


def robustness_curves(run: RunFolder, metric: Metric) -> pd.DataFrame:
    """Return the points behind :func:`robustness_to_scale`.

    Returns:
        A frame with the columns axis (the title of the scale), rule, family, x, arm, mean and
        deviation, by axis, family and x; families with at least two finite points only.
    """
    numbers = numbers_of(run, metric)
    rows: list[tuple[str, str, str, float, str, float, float]] = []
    for arm in run.arms:
        settings = arm_settings(run, arm)
        if settings.axis is None or arm not in run.scores.arms:
            continue
        name, x = settings.axis
        average = numbers[(arm, "average", ALL_EXPERIENCES)]
        if math.isfinite(average.mean):
            which = (name, settings.rule, settings.family())
            rows.append((*which, x, arm, average.mean, average.deviation))
    columns = ["axis", "rule", "family", "x", "arm", "mean", "deviation"]
    frame = pd.DataFrame(rows, columns=columns)
    sizes = frame.groupby(["axis", "family"])["x"].transform("nunique")
    frame = frame[sizes >= 2].sort_values(["axis", "x"], kind="stable")
    return frame.reset_index(drop=True)
