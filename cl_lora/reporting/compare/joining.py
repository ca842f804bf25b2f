"""Which runs may be put together, which may only stand next to each other, and why."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from cl_lora.evaluation.aggregate import ALL_EXPERIENCES, AVERAGE, Estimate, averages, estimates
from cl_lora.evaluation.metrics import Metric
from cl_lora.evaluation.scores import Score, ScoreTable
from cl_lora.evaluation.shape import Shape
from cl_lora.reporting.budgets import parameters_of
from cl_lora.reporting.describe import at_the_end
from cl_lora.reporting.faces import (
    by_group,
    by_shots,
    few_shot_stages,
    is_few_shot,
    merged_groups,
)
from cl_lora.reporting.shots import ByShots, scores_by_shots
from cl_lora.run_folder.identity import differences
from cl_lora.run_folder.reader import RunFolder
from cl_lora.support.errors import UserError

_REASONS = 3  # how many are told


@dataclass(frozen=True, eq=False)
class Condition:
    """Runs whose seeds may be averaged: same data and splits, model, training and machine kind.

    Attributes:
        label: how it is called in tables.
        runs: the runs.
        scores: their scores together.
    """

    label: str
    runs: tuple[RunFolder, ...]
    scores: ScoreTable

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the experiences, in order."""
        return self.runs[0].experiences

    @property
    def fingerprint(self) -> str:
        """Digest of the data and its splits."""
        return self.runs[0].stream.fingerprint

    @cached_property
    def arms(self) -> frozenset[str]:
        """Every arm and baseline with scores; of few-shot runs with scores by K."""
        return frozenset(self._face.scores.arms)

    @cached_property
    def few_shot(self) -> bool:
        """Whether the runs are few-shot runs, whose scores are compared by K."""
        return is_few_shot(self.runs[0])

    @cached_property
    def asked(self) -> frozenset[tuple[str, tuple[int, ...]]]:
        """Every K of a few-shot run with the experiences that are adapted to."""
        return frozenset((s.name, s.evaluated) for s in few_shot_stages(self.runs[0]))

    def shape(self, metric: Metric) -> Shape:
        """Return which scores of a metric there are."""
        return self._face.stream.shape(metric.name)

    @cached_property
    def group(self) -> str:
        """The subsets that are compared, of runs that merge some: the smallest, pairs."""
        return next(iter(merged_groups(self.runs[0])), "")

    @property
    def when(self) -> str:
        """When the scores that are compared were measured, in words."""
        return "from K samples per class" if self.few_shot else at_the_end(self._face)

    def by_shots(self, metric: Metric) -> ByShots:
        """Return the scores of few-shot runs by K."""
        return scores_by_shots(self._face, metric)

    @cached_property
    def pooled(self) -> RunFolder:
        """The runs as one: the first with the scores, seeds, arms and baselines of all."""
        run = self._with_all_rows(replace(self.runs[0], scores=self.scores))
        return replace(run, config={**run.config, "seeds": sorted(self.scores.seeds)})

    @cached_property
    def _face(self) -> RunFolder:
        """The run as it is compared: by K, by its smallest group of subsets, or as it is."""
        run = replace(self.runs[0], scores=self.scores)
        if self.few_shot:
            return by_shots(run)
        return by_group(self._with_all_rows(run), self.group) if self.group else run

    def _with_all_rows(self, run: RunFolder) -> RunFolder:
        """Return the run with the arms and baselines of all runs."""
        arms = {a: settings for r in self.runs for a, settings in r.config["arms"].items()}
        references = dict.fromkeys(row for r in self.runs for row in r.references)
        return replace(run, config={**run.config, "arms": arms, "references": list(references)})

    @cached_property
    def parameters(self) -> dict[str, float]:
        """The numbers that each row needs to serve all tasks; empty where runs do not say."""
        return {row: n for run in reversed(self.runs) for row, n in parameters_of(run).items()}

    def averages(self, metric: Metric) -> dict[str, dict[int, float]]:
        """Return what differences are taken of: arm -> seed -> average, over K if few-shot."""
        if self.few_shot:
            return self.by_shots(metric).average()
        return averages(self._face.scores, metric.name, self.shape(metric))

    def results(self, metric: Metric) -> dict[str, dict[str, Estimate]]:
        """Return arm -> measure -> mean and deviation over seeds; if few-shot each K is one."""
        found: dict[str, dict[str, Estimate]] = {}
        if self.few_shot:
            shots = self.by_shots(metric)
            parts = {s.name: shots.at(k) for k, s in enumerate(shots.stages)}
            for name, values in {**parts, AVERAGE: shots.average()}.items():
                for arm, e in shots.estimates(values).items():
                    found.setdefault(arm, {})[name] = e
            return found
        every = estimates(self._face.scores, metric.name, self.shape(metric))
        for (arm, measure, j), e in every.items():
            if j == ALL_EXPERIENCES:
                found.setdefault(arm, {})[measure] = e
        return found


def conditions_of(runs: Sequence[RunFolder]) -> tuple[Condition, ...]:
    """Group runs by what decides their numbers; a folder that is named twice counts once.

    Raises:
        UserError: if two runs of one condition hold different arms of one name, or different
            scores of one seed and arm.
    """
    groups: list[list[RunFolder]] = []
    for run in runs:
        if any(run.path.resolve() == other.path.resolve() for g in groups for other in g):
            continue
        home = next((g for g in groups if not why_apart(g[0], run)), None)
        if home is None:
            groups.append([run])
        else:
            home.append(run)
    labels = _labels([g[0] for g in groups])
    return tuple(
        Condition(label, tuple(g), _together(g)) for label, g in zip(labels, groups, strict=True)
    )


def require_poolable(runs: Sequence[RunFolder]) -> None:
    """Raise an error if the seeds of ``runs`` may not be averaged together, and say why.

    Raises:
        UserError: naming the first difference in data, domains, model, training or machine kind.
    """
    for run in runs[1:]:
        why = why_apart(runs[0], run)
        if why:
            raise UserError(
                f"{runs[0].path} and {run.path} cannot be averaged: {why}; compare them side by "
                "side instead"
            )


def why_apart(a: RunFolder, b: RunFolder, names: tuple[str, str] = ("one", "the other")) -> str:
    """Return in words why the scores of two runs are not of one kind, or nothing."""
    reasons = list(_reasons(a, b, names))
    more = f" and {len(reasons) - _REASONS} more differences" if len(reasons) > _REASONS else ""
    return ", ".join(reasons[:_REASONS]) + more


def changes(a: Mapping[str, Any], b: Mapping[str, Any], names: tuple[str, str]) -> Iterator[str]:
    """Yield every setting that differs, in words; settings within settings by dotted names."""
    for key, x, y in differences(a, b):
        yield f"{key} is {x!r} in {names[0]} and {y!r} in {names[1]}"


def _reasons(a: RunFolder, b: RunFolder, names: tuple[str, str]) -> Iterator[str]:
    told: set[Any] = set()
    x, y = a.stream.fingerprint, b.stream.fingerprint
    told |= {x, y}
    # The same data under two names is the same data.
    if x != y and a.stream.name != b.stream.name:
        yield f"their benchmarks are {a.stream.name!r} and {b.stream.name!r}"
    if a.experiences != b.experiences:
        yield f"their domains are {', '.join(a.experiences)} and {', '.join(b.experiences)}"
    elif x != y:
        yield f"their data or its splits differ (fingerprints {x[:8]} and {y[:8]})"
    elif a.stream.stages != b.stream.stages:
        yield "what is merged and scored at their stages differs"
    x, y = (str(run.stream.backbone.get("fingerprint", "")) for run in (a, b))
    told |= {x, y}
    if x != y:
        yield f"the weights of their backbones differ (fingerprints {x[:8]} and {y[:8]})"
    for key, old, new in differences(a.identity_beside(b), b.identity_beside(a)):
        if str(old) not in told or str(new) not in told:  # fingerprints that were named above
            yield f"{key} is {old!r} in {names[0]} and {new!r} in {names[1]}"


def _together(runs: Sequence[RunFolder]) -> ScoreTable:
    rows: dict[Any, tuple[RunFolder, Score]] = {}
    variants: dict[str, tuple[RunFolder, Mapping[str, Any]]] = {}
    for run in runs:
        for arm in run.arms:
            owner, there = variants.setdefault(arm, (run, run.variant(arm)))
            if there != run.variant(arm):
                places = (str(owner.path), str(run.path))
                raise UserError(
                    f"Arm {arm!r} is not one arm, so its seeds cannot be averaged: "
                    f"{', '.join(changes(there, run.variant(arm), places))}; rename one of them"
                )
        for score in run.scores:
            owner, same = rows.setdefault(score.key, (run, score))
            if same.value != score.value and not (
                math.isnan(same.value) and math.isnan(score.value)
            ):
                raise UserError(
                    f"{owner.path} and {run.path} hold different scores for seed {score.seed}, "
                    f"arm {score.arm!r} though their configurations are the same; a seed counts "
                    "once: leave one of them out"
                )
    return ScoreTable(score for _, score in rows.values())


def _labels(runs: Sequence[RunFolder]) -> list[str]:
    """Name conditions by the run's name, or by the folder where several share one."""
    names = [run.name for run in runs]
    labels = [run.path.resolve().name if names.count(run.name) > 1 else run.name for run in runs]
    # Folders of one name in different places.
    return [
        f"{label} ({labels[: i + 1].count(label)})" if labels.count(label) > 1 else label
        for i, label in enumerate(labels)
    ]
