"""What the arms gain over classifier tuning where samples are fewest."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from cl_lora.evaluation.aggregate import estimate
from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.describe import arm_settings
from cl_lora.reporting.faces import by_shots, downstream
from cl_lora.reporting.figures.bars import BAR, Bar, draw_bars, marker
from cl_lora.reporting.figures.marks import number
from cl_lora.reporting.figures.registry import figure
from cl_lora.reporting.figures.style import GREY
from cl_lora.reporting.shots import classifier_arm, scores_by_shots
from cl_lora.run_folder.reader import RunFolder


@figure(
    "gain",
    "Gain over classifier tuning at the smallest K",
    "Difference to the arm that trains a head on the bare backbone alone. Bars: mean over the data "
    "sets, markers: each of them, whiskers: one standard deviation over seeds. Arms by their gain.",
    few_shot="only",
    position=6,
)
def gain_over_classifier(run: RunFolder, metric: Metric) -> Figure | None:
    """Draw how far every adapted arm lies from classifier tuning, at the smallest K of at least 1.

    Differences are taken within a seed, on the same support draws.

    Returns:
        The figure; None if no arm is classifier tuning, or there is no other.
    """
    classifier = classifier_arm(run)
    gains = gains_over(run, classifier, metric) if classifier else {}
    if not gains or classifier is None:
        return None
    each = [j for j in downstream(run) if j in run.stream.scored_by(metric.name)]
    sign = 1 if metric.higher_is_better else -1
    bars = []
    for arm, of_data in gains.items():
        seeds = set.intersection(*(set(found) for found in of_data.values()))
        averaged = [float(np.mean([of_data[j][s] for j in of_data])) for s in sorted(seeds)]
        over_seeds = estimate(averaged)
        means = {j: metric.scale * estimate(list(v.values())).mean for j, v in of_data.items()}
        scale = metric.scale
        bars.append(
            Bar(
                arm,
                scale * over_seeds.mean,
                scale * over_seeds.deviation,
                means if len(each) > 1 else {},
                f"{arm}: {number(metric, over_seeds.mean, over_seeds.deviation)}",
            )
        )
    bars.sort(key=lambda bar: (np.isnan(bar.value), -sign * bar.value))
    fig = Figure(figsize=(7.2, 1.5 + 0.24 * len(bars)), layout="constrained")
    ax = fig.add_subplot()
    draw_bars(ax, [bars], [BAR])
    ax.axvline(0, color=GREY, lw=0.8, zorder=3)
    shots = scores_by_shots(by_shots(run), metric)
    name = shots.stages[shots.smallest or 0].name
    points = f", {metric.points}" if metric.points else ""
    less = "" if metric.higher_is_better else " (less is better)"
    ax.set_xlabel(f"{metric.in_text} minus that of {classifier} at {name}{points}{less}")
    if len(each) > 1:
        handles = [Patch(color=BAR, label="mean over data sets")]
        markers = [Line2D([], [], label=run.experiences[j], **marker(j)) for j in each]
        fig.legend(handles=[*handles, *markers], loc="outside upper left", ncols=5)
    return fig


def gains_over(
    run: RunFolder, classifier: str, metric: Metric
) -> dict[str, dict[int, dict[int, float]]]:
    """Return the gain over ``classifier`` at the smallest K: arm -> experience -> seed -> value.

    Arms that train nothing on the support set are left out.
    """
    found: dict[str, dict[int, dict[int, float]]] = {}
    for j in downstream(run):
        face = by_shots(run, (j,))
        if metric.name not in face.scores.metrics:
            continue
        shots = scores_by_shots(face, metric)
        if shots.smallest is None:
            continue
        at = shots.at(shots.smallest)
        base = at.get(classifier, {})
        for arm in face.arms:
            if arm == classifier or arm_settings(run, arm).adapt in ("", "none"):
                continue
            gains = {s: v - base[s] for s, v in at.get(arm, {}).items() if s in base}
            if gains and not np.isnan(list(gains.values())).any():
                found.setdefault(arm, {})[j] = gains
    return found
