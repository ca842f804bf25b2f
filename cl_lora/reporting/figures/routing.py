"""To which adapters the test samples of every experience were sent."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cl_lora.evaluation.continual import FloatArray
from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.figures.marks import see
from cl_lora.reporting.figures.matrices import draw_matrix
from cl_lora.reporting.figures.registry import figure
from cl_lora.reporting.routing import routed_arms, routed_right, routing_matrix
from cl_lora.reporting.tables import shorten
from cl_lora.run_folder.reader import RunFolder

_SHARE = Metric("share", "Share", "%", True, 0.0, 1.0)


@figure(
    "routing",
    "Routing",
    "Rows: the experience that a test sample is of. Columns: the adapter that served it after the "
    "last stage (soft routes: its mean weight), in %, mean over seeds. The title gives the mean of "
    "the diagonal: how often the right adapter was found.",
    few_shot="never",
    position=55,
)
def routing(run: RunFolder, metric: Metric) -> Figure | None:
    """Draw the true experience against the chosen adapter, for every way of routing.

    Arms that route alike, as those of two banks do, share a panel.

    Returns:
        The figure; None if no arm routes.
    """
    del metric  # all figures are called alike
    panels: dict[bytes, tuple[list[str], FloatArray]] = {}
    for arm in routed_arms(run):
        matrix = routing_matrix(run, arm)
        if matrix is not None:
            panels.setdefault(matrix.round(9).tobytes(), ([], matrix))[0].append(arm)
    if not panels:
        return None
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    side = 2.4 if len(run.experiences) <= 6 else 3.4
    size = (columns * side + 0.9, rows * (side + 0.75) + 0.5)
    fig = Figure(figsize=size, layout="constrained")
    axes = np.array(fig.subplots(rows, columns, squeeze=False)).ravel()
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    for ax, (arms, matrix) in zip(axes, panels.values(), strict=False):
        _panel(ax, run, arms, matrix)
    shares = (f"{arms[0]} sends {100 * routed_right(m):.1f} % right" for arms, m in panels.values())
    see(fig, f"{'; '.join(shares)}.")
    fig.supylabel("test samples of", fontsize=9)
    fig.supxlabel("served by the adapter of", fontsize=9)
    return fig


def _panel(ax: Axes, run: RunFolder, arms: list[str], matrix: FloatArray) -> None:
    draw_matrix(ax, matrix, run.experiences, run.experiences, _SHARE, (0.0, 100.0))
    title = shorten(arms, 30)[0] + (f" and {len(arms) - 1} more" if len(arms) > 1 else "")
    ax.set_title(f"{title}\n{100 * routed_right(matrix):.1f} % right", fontsize=9, weight="normal")
