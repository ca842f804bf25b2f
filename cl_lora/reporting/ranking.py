"""Arms in order: how far each lies from the best, and which cannot be told from it.

The unit is the seed. The best arm has the best mean; an arm cannot be told from it where Student's
interval of their difference, paired over seeds, includes 0. As the best is picked by the same
seeds its lead is flattered: the group is rather too small than too large.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from cl_lora.evaluation.aggregate import Difference, Estimate, averages, estimate
from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.budgets import choosable
from cl_lora.reporting.differences import CONFIDENCE, Differences, Source, differences_to
from cl_lora.reporting.faces import Face, faces
from cl_lora.reporting.shots import scores_by_shots
from cl_lora.run_folder.reader import RunFolder

NOWHERE = Difference(math.nan, math.nan, math.nan, 0)


@dataclass(frozen=True, eq=False)
class Ranking:
    """The rows of a run in order, by one number each.

    Attributes:
        metric: what the number is of.
        where: where it is taken, in words, such as ``at K=1``; empty for the end of a run.
        estimates: row -> mean and standard deviation over seeds.
        arms: the arms that are a choice, best first; undefined ones last.
        baselines: baselines and controls, best first.
        best: the best of the arms that have every seed; None without one.
        differences: row -> its difference to the best, the best left out; None without a best.
        seeds: how many there are.
    """

    metric: Metric
    where: str
    estimates: Mapping[str, Estimate]
    arms: tuple[str, ...]
    baselines: tuple[str, ...]
    best: str | None
    differences: Differences | None
    seeds: int

    @property
    def over_images(self) -> bool:
        """Whether intervals are over test samples, as there is one seed."""
        return self.differences is not None and self.differences.over_images

    @property
    def formed(self) -> bool:
        """Whether a group can be formed: there are intervals over seeds, or over test samples."""
        return any(not math.isnan(self.difference(arm).low) for arm in self.arms)

    @property
    def close(self) -> tuple[str, ...]:
        """The other arms that cannot be told from the best, best first; only whole ones."""
        found = []
        for arm in self.arms:
            d = self.difference(arm)
            whole = self.estimates[arm].seeds == self.seeds
            if arm != self.best and whole and d.low <= 0 <= d.high:
                found.append(arm)
        return tuple(found)

    @property
    def group(self) -> tuple[str, ...]:
        """The best arm and all that cannot be told from it; the best alone without intervals."""
        return (self.best, *self.close) if self.best is not None else ()

    def difference(self, row: str) -> Difference:
        """Return how far a row lies from the best: its mean minus that of the best."""
        found = self.differences.found.get(row) if self.differences else None
        return found or NOWHERE

    def among(self, arms: Sequence[str]) -> tuple[str, ...]:
        """Return some of the arms, in order."""
        return tuple(a for a in self.arms if a in arms)

    @property
    def note(self) -> str:
        """What a marked row of a table means, after the mark; empty where nothing is marked."""
        if self.best is None or len(self.arms) < 2:
            return ""
        if not self.formed:
            only = "with one seed" if self.seeds == 1 else "without two seeds of another"
            return f"the best mean; {only} no arm can be told from it."
        over = "over test samples" if self.over_images else f"over {self.seeds} seeds"
        told = (
            f"best, or cannot be told from it: the 95 % interval of the difference to {self.best} "
            f"{over} includes 0."
        )
        noise = " Training noise is unknown with one seed."
        return told + noise if self.over_images else told


def rank(
    source: Source,
    arms: Sequence[str],
    baselines: Sequence[str],
    metric: Metric,
    where: str = "",
    seeds: int | None = None,
) -> Ranking:
    """Return rows in order by their averages.

    Args:
        source: the averages, row -> seed -> value, and the runs that they are from.
        arms: those that are a choice; rows without averages are left out.
        baselines: rows that are none.
        metric: what was averaged.
        where: where averages are taken, in words.
        seeds: how many there are; what the fullest row has, if not given.
    """
    sign = -1.0 if metric.higher_is_better else 1.0
    found = {
        row: estimate(list(source.averages[row].values()), metric.higher_is_better)
        for row in dict.fromkeys((*arms, *baselines))
        if row in source.averages
    }
    most = max((e.seeds for e in found.values()), default=0)

    def ordered(rows: Sequence[str]) -> tuple[str, ...]:
        there = [row for row in dict.fromkeys(rows) if row in found]
        means = {row: found[row].mean for row in there}
        return tuple(sorted(there, key=lambda r: (math.isnan(means[r]), sign * means[r])))

    ranked = ordered(arms)
    total = seeds or most
    best = next((a for a in ranked if found[a].seeds == total), None)
    differences = None
    if best is not None:
        others = [row for row in found if row != best]
        differences = differences_to(source, others, source, best, metric, CONFIDENCE)
    return Ranking(metric, where, found, ranked, ordered(baselines), best, differences, total)


_KEPT: WeakKeyDictionary[RunFolder, dict[str, Ranking]] = WeakKeyDictionary()


def ranking_of(run: RunFolder, metric: Metric) -> Ranking:
    """Return the rows of a run in the order of its main table.

    Of a few-shot run the number is the average over K, of one that merges subsets that of the
    first group, pairs; of any other the average at the end.
    """
    kept = _KEPT.setdefault(run, {})
    if metric.name not in kept:
        kept[metric.name] = ranking_of_face(faces(run)[0], metric)
    return kept[metric.name]


def ranking_of_face(face: Face, metric: Metric) -> Ranking:
    """Return the rows of one face of a run in order, by the average of its table."""
    if metric.name not in face.run.scores.metrics:
        return rank(Source((), {}), (), (), metric)
    source, where = source_of(face, metric)
    return _ranked(face.run, source, metric, where)


def by_shots(face: Face, metric: Metric) -> Iterator[Ranking]:
    """Yield the order of the rows of a few-shot run at each K, the smallest first."""
    if metric.name not in face.run.scores.metrics:
        return
    shots = scores_by_shots(face.run, metric)
    for k, stage in enumerate(shots.stages):
        yield _ranked(face.run, Source((), _known(shots.at(k))), metric, f"at {stage.name}")


def source_of(face: Face, metric: Metric) -> tuple[Source, str]:
    """Return the averages that a face's table is sorted by, and where they are taken, in words.

    Of a few-shot run: over every K of at least 1. Its draws of one query set are no draws of new
    test samples, and neither are partners: with one seed both have no interval.
    """
    if face.kind == "shots":
        shots = scores_by_shots(face.run, metric)
        several = len(shots.with_samples) > 1
        place = shots.smallest or 0
        values = shots.average() if several else shots.at(place)
        return Source((), _known(values)), "over K" if several else f"at {shots.stages[place].name}"
    shape = face.run.stream.shape(metric.name)
    found = _known(averages(face.run.scores, metric.name, shape))
    if face.kind == "group":
        return Source((), found), f"in {face.run.stream.trained_stages[0].name}"
    where = "in time" if face.kind == "time" else ""
    return Source((face.run,), found, face.stages[-1][-1]), where


def _ranked(run: RunFolder, source: Source, metric: Metric, where: str) -> Ranking:
    arms = choosable(run)
    others = [a for a in run.arms if a not in arms]
    seeds = len(run.scores.seeds)
    return rank(source, arms, (*run.references, *others), metric, where, seeds)


def _known(values: Mapping[str, Mapping[int, float]]) -> dict[str, dict[int, float]]:
    """Return the averages that are defined, of rows that have any."""
    kept = {row: {s: v for s, v in of.items() if not math.isnan(v)} for row, of in values.items()}
    return {row: of for row, of in kept.items() if of}
