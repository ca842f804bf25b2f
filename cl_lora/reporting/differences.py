"""How far arms lie from one, over seeds; where there is a single seed, over its test samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cl_lora.evaluation.aggregate import Difference, differences_of
from cl_lora.evaluation.bootstrap import paired_bootstrap
from cl_lora.evaluation.metrics import Metric
from cl_lora.run_folder.hits import Hits
from cl_lora.run_folder.parts import joined_hits
from cl_lora.run_folder.reader import RunFolder

CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False)
class Source:
    """Where the numbers of some arms come from.

    Attributes:
        runs: whose seeds may be averaged.
        averages: arm -> seed -> average at the last stage.
        last: index of that stage in the files that tell which test samples were right, where it is
            not the last of the runs.
    """

    runs: tuple[RunFolder, ...]
    averages: Mapping[str, Mapping[int, float]]
    last: int | None = None


@dataclass(frozen=True, eq=False)
class Differences:
    """The differences of several arms to one.

    Attributes:
        found: arm -> its difference.
        over_images: whether the intervals are over the test samples of the only seed.
        confidence: coverage of the intervals.
    """

    found: Mapping[str, Difference]
    over_images: bool
    confidence: float

    @property
    def unit(self) -> str:
        """What ``n`` of a difference counts."""
        return "test samples" if self.over_images else "seeds"

    def explained(self, reference: str, over: str = "", about: str = "domains") -> str:
        """Return what a reader must know of the intervals and p values.

        Args:
            reference: the arm that differences are taken to.
            over: what the averages are over, or where they are taken, behind a space.
            about: what else the averages are over, as the plural of a noun.
        """
        interval = f"[{100 * self.confidence:g} % interval]"
        if self.over_images:
            n = max((d.n for d in self.found.values()), default=0)
            return (
                f"Differences to {reference}: of the average{over} of the only seed, {interval} "
                f"over test samples (paired bootstrap of {n} samples). Training noise is not in "
                "it: it says nothing about another seed."
            )
        if all(d.n < 2 for d in self.found.values()):
            return (
                f"Differences to {reference}: of the average{over} of one seed, without an "
                "interval."
            )
        tests = sum(not math.isnan(d.p) for d in self.found.values())
        return (
            f"Differences to {reference}: mean over seeds of the difference of the averages{over}, "
            f"{interval} of Student's t over seeds, for these {about}. p: two-sided paired t "
            f"test, Holm-corrected for {tests} comparison{'s' * (tests != 1)}."
        )


def differences_to(
    values: Source,
    arms: Sequence[str],
    reference: Source,
    arm: str,
    metric: Metric,
    confidence: float = CONFIDENCE,
) -> Differences:
    """Return the differences of ``arms`` of one source to ``arm`` of another, or of the same.

    Paired over seeds. Where no arm shares more than one seed with the reference, the intervals are
    over test samples, if the runs kept which of them were right and the metric is their share.
    """
    of_reference = reference.averages[arm]
    found = differences_of({a: values.averages[a] for a in arms}, of_reference, confidence)
    if any(d.n > 1 for d in found.values()):
        return Differences(found, False, confidence)
    over_images = {}
    for a in arms:
        (*_, seed) = (None, *(s for s in values.averages[a] if s in of_reference))
        if seed is None:
            continue
        pair = [
            final_hits(s.runs, seed, x, metric, s.last) for s, x in ((values, a), (reference, arm))
        ]
        if pair[0] is not None and pair[1] is not None:
            over_images[a] = paired_bootstrap(pair[0], pair[1], confidence)
    return Differences({**found, **over_images}, bool(over_images), confidence)


def final_hits(
    runs: Sequence[RunFolder], seed: int, arm: str, metric: Metric, last: int | None = None
) -> list[Hits] | None:
    """Return which test samples an arm served right at the last stage, for every experience.

    Returns:
        Bool (N_j,) for each experience j that the last stage evaluates; None where the runs did
        not keep them, or their share is not the score by this metric.

    Raises:
        UserError: if a file is damaged.
    """
    for run in runs:
        shape = run.stream.shape(metric.name)
        if seed not in run.scores.seeds or arm not in run.scores.arms:
            continue
        hits = joined_hits(run.path, seed, arm)
        stage = shape.stages - 1 if last is None else last
        kept = [hits.get((stage, j)) for j in shape.final]
        right = [x for x in kept if x is not None]
        if not right or len(right) < len(kept) or not all(map(len, right)):
            continue
        scores = run.scores.matrix(seed, arm, metric.name, shape).values[-1, list(shape.final)]
        if np.allclose([x.mean() for x in right], scores, rtol=0, atol=1e-6):
            return right
    return None
