"""The axis of K: logarithmic, with places of their own for no samples and for the whole pool."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes

from cl_lora.reporting.faces import is_pool, samples_per_class
from cl_lora.run_folder.records import StageRecord

K_TITLE = "K, support samples per class"
_GAP = 1.0  # between a place of its own and its neighbour, in doublings of K


def places(stages: Sequence[StageRecord]) -> list[float]:
    """Return where every K stands: at its logarithm to base 2.

    K = 0 has no logarithm and stands one doubling before the smallest K; the whole pool stands at
    its mean number of samples per class, at least one doubling after the largest K.

    Args:
        stages: one for each K, ascending, the whole pool last.
    """
    counted = [math.log2(s.x) for s in stages if s.x and not is_pool(s)]
    found = []
    for stage in stages:
        if not stage.x:
            found.append(min(counted, default=0.0) - _GAP)
        elif is_pool(stage):
            found.append(max(math.log2(stage.x), max(counted, default=-_GAP) + _GAP))
        else:
            found.append(math.log2(stage.x))
    return found


def ticks(ax: Axes, stages: Sequence[StageRecord]) -> None:
    """Write every K below its place."""
    x = places(stages)
    ax.set_xticks(x, [samples_per_class(stage) for stage in stages])
    ax.set_xlim(min(x) - 0.35, max(x) + 0.35)
