"""The numbers of a few-shot run: scores by K, what adapting costs, and which arm is which.

The unit is the seed: draws of the support set are averaged first, then downstream experiences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cl_lora.evaluation.aggregate import Estimate, estimate
from cl_lora.evaluation.continual import FloatArray
from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.describe import ArmSettings, arm_settings
from cl_lora.run_folder.reader import RunFolder
from cl_lora.run_folder.records import StageRecord

OfSeeds = dict[int, FloatArray]
"""seed -> (S,) values, one for every K; NaN where an experience or a draw was not scored."""


@dataclass(frozen=True, eq=False)
class ByShots:
    """The scores of a run by K, mean over draws and downstream experiences, of every seed.

    Attributes:
        stages: one for each K, ascending.
        values: arm -> seed -> (S,) scores.
        higher_is_better: the metric's direction.
    """

    stages: tuple[StageRecord, ...]
    values: Mapping[str, OfSeeds]
    higher_is_better: bool

    def at(self, k: int) -> dict[str, dict[int, float]]:
        """Return the scores at the k-th K: arm -> seed -> value."""
        return {a: {s: float(v[k]) for s, v in of.items()} for a, of in self.values.items()}

    def average(self) -> dict[str, dict[int, float]]:
        """Return the average over all K of at least 1: arm -> seed -> value.

        Without samples (K = 0) only some arms are scored, so that it is left out.
        """
        some = self.with_samples
        return {
            a: {s: float(v[some].mean()) if some else math.nan for s, v in of.items()}
            for a, of in self.values.items()
        }

    @property
    def with_samples(self) -> list[int]:
        """The places of all K of at least 1."""
        return [k for k, stage in enumerate(self.stages) if stage.x]

    @property
    def smallest(self) -> int | None:
        """The place of the smallest K of at least 1; None where there is none."""
        return next(iter(self.with_samples), None)

    def estimates(self, values: Mapping[str, Mapping[int, float]]) -> dict[str, Estimate]:
        """Return mean and deviation over seeds of what :meth:`at` or :meth:`average` gives."""
        return {a: estimate(list(of.values()), self.higher_is_better) for a, of in values.items()}


def scores_by_shots(face: RunFolder, metric: Metric) -> ByShots:
    """Return the scores of a run by K.

    Args:
        face: what :func:`~cl_lora.reporting.faces.by_shots` returns.
        metric: which metric.

    Raises:
        UserError: if the metric was not scored.
    """
    scores, stream = face.scores, face.stream
    up = scores.higher_is_better(metric.name)
    shape = stream.shape(metric.name)
    measured = {(s.seed, s.arm) for s in scores if s.metric == metric.name}
    found: dict[str, OfSeeds] = {}
    for arm in scores.arms:
        for seed in scores.seeds:
            if (seed, arm) not in measured:
                continue
            matrix = scores.matrix(seed, arm, metric.name, shape).values
            means = [
                float(row[list(j)].mean()) if j else math.nan
                for row, j in zip(matrix, shape.evaluated or (), strict=True)
            ]
            found.setdefault(arm, {})[seed] = np.array(means, dtype=np.float64)
    return ByShots(stream.trained_stages, found, up)


def best_at(shots: ByShots, k: int, arms: Sequence[str]) -> str | None:
    """Return the arm with the best mean over seeds at the k-th K; None where none has a score.

    Only arms with as many seeds as the fullest one are ranked.
    """
    found = shots.estimates(shots.at(k))
    scored = {a: found[a] for a in arms if a in found and found[a].seeds}
    most = max((e.seeds for e in scored.values()), default=0)
    ranked = {a: e.mean for a, e in scored.items() if e.seeds == most}
    if not ranked:
        return None
    choose: Callable[..., str] = max if shots.higher_is_better else min
    return choose(ranked, key=lambda a: ranked[a])


def cost_of(face: RunFolder, arm: str, quantity: str) -> float:
    """Return what adapting an arm cost: the mean over seeds of the mean over all K.

    ``face`` has one account for each seed and K, the mean over draws and experiences: every K
    counts alike. NaN where nothing was recorded.
    """
    rows = face.accounts
    rows = rows[(rows["arm"] == arm) & (rows["quantity"] == quantity)]
    return float(rows.groupby("seed")["value"].mean().mean()) if len(rows) else math.nan


def classifier_arm(run: RunFolder) -> str | None:
    """Return the arm that trains nothing but a head on the bare backbone, the first if several."""
    return _first(run, lambda s: s.adapt == "head" and s.start == "base")


def lora_from_scratch(run: RunFolder) -> str | None:
    """Return the arm that trains a LoRA on the bare backbone, the first if there are several."""
    return _first(run, lambda s: s.adapt == "lora" and s.start == "base")


def groups_of(run: RunFolder) -> dict[str, list[str]]:
    """Return the arms by what they start from, in words: those that have any."""
    found: dict[str, list[str]] = {}
    titles = ("From the bare backbone", "Composition", "Trained on from a composition")
    for arm in run.arms:
        settings = arm_settings(run, arm)
        trained = settings.adapt not in ("", "none", "head", "coefficients")
        which = 0 if settings.start == "base" else 1 + trained
        found.setdefault(titles[which], []).append(arm)
    return {title: found[title] for title in titles if title in found}


def _first(run: RunFolder, chosen: Callable[[ArmSettings], bool]) -> str | None:
    return next((a for a in run.arms if chosen(arm_settings(run, a))), None)
