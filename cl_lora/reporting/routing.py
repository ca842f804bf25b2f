"""Where the test samples of every experience were sent, by arms whose coefficients are routed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cl_lora.evaluation.continual import FloatArray
from cl_lora.run_folder.reader import RunFolder

ROUTED = "routed"
"""What the variant of an arm calls coefficients that depend on the input."""


def routed_arms(run: RunFolder) -> tuple[str, ...]:
    """Return the arms whose coefficients depend on the input."""
    return tuple(arm for arm in run.arms if _rule(run.variant(arm)) == ROUTED)


def _rule(variant: Mapping[str, Any]) -> object:
    rule = variant.get("coefficients")
    return rule.get("name") if isinstance(rule, Mapping) else None


def routing_matrix(
    run: RunFolder, arm: str, stage: int | None = None, seed: int | None = None
) -> FloatArray | None:
    """Return the share (T, T) of each experience's test samples that each adapter served.

    NaN where an experience was not scored, or an adapter was not there. None where the arm has not
    been scored.

    Args:
        run: the run.
        arm: a routed one.
        stage: index of the stage; the arm's last, if not given.
        seed: the seed; the mean over all, if not given.
    """
    names, rows = run.experiences, run.coefficients
    at = run.last_stage(arm) if stage is None else stage
    rows = rows[(rows["arm"] == arm) & (rows["stage"] == at)]
    if seed is not None:
        rows = rows[rows["seed"] == seed]
    if rows.empty:
        return None
    means: Any = rows.groupby(["group", "adapter"])["value"].mean()
    matrix = np.full((len(names), len(names)), np.nan)
    for (group, adapter), value in means.items():
        if group in names:
            matrix[names.index(group), adapter] = value
    return matrix


def routed_right(matrix: FloatArray) -> float:
    """Return the accuracy of routing: the mean share that the own adapters served.

    The mean is over experiences, as that of scores is; soft routes count by their weight. NaN where
    nothing has an adapter.

    Example:
        >>> routed_right(np.array([[0.9, 0.1], [0.3, 0.7]]))
        0.8
    """
    own = np.diagonal(matrix)
    known = own[~np.isnan(own)]
    return float(known.mean()) if len(known) else float("nan")


def accuracy_of_routing(run: RunFolder) -> dict[str, float]:
    """Return how many test samples each routed arm sends right after its last stage, in [0, 1]."""
    found = {arm: routing_matrix(run, arm) for arm in routed_arms(run)}
    return {arm: routed_right(matrix) for arm, matrix in found.items() if matrix is not None}
