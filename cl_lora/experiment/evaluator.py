"""Scoring what is served: every part on the test inputs of the experiences it serves."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from cl_lora.adapters.injection import applied
from cl_lora.benchmarks.batches import batches
from cl_lora.evaluation.scores import Score
from cl_lora.experiment.serving import Part, Served, Workbench
from cl_lora.experiment.stages import Stage
from cl_lora.models.compute import Batch

Hits = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Result:
    """The outcome of one part on one experience.

    Attributes:
        scores: metric name -> value.
        hits: which test samples are right, bool (N,); None for a task without right and wrong.
    """

    scores: dict[str, float]
    hits: Hits | None


class Evaluator:
    """Scores what is served at the stages of one seed.

    Features of the bare backbone, and the results of parts that say what they are (one adapter
    alone), are computed once a seed.
    """

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self._bare: dict[int, list[Batch]] = {}
        self._known: dict[tuple[Hashable, int], Result] = {}

    def score(
        self, served: Served, stage: Stage, advance: Callable[[], None] = lambda: None
    ) -> dict[int, Result]:
        """Return the result on every experience of a stage; ``advance`` is called after each."""
        results: dict[int, Result] = {}
        for part, indices in _groups(served, stage):
            missing = [j for j in indices if (part.key, j) not in self._known or part.key is None]
            measured = dict(zip(missing, self._measure(part, missing, advance), strict=True))
            for j in indices:
                if j in measured:
                    results[j] = measured[j]
                    if part.key is not None:
                        self._known[part.key, j] = measured[j]
                else:
                    results[j] = self._known[part.key, j]
                    advance()
        return {j: results[j] for j in stage.evaluated}

    def _measure(
        self, part: Part, indices: Sequence[int], advance: Callable[[], None]
    ) -> list[Result]:
        if not indices:
            return []
        head = part.head.to(self.bench.compute.device)
        results = []
        with applied(self.bench.backbone.network, part.update), torch.no_grad():
            for j in indices:
                task = self.bench.benchmark.experiences[j].task
                accumulator, hits = task.kind.accumulator(task), []
                features = self._bare_features(j) if part.update is None else self._features(j)
                for batch, targets in features:
                    outputs = head(batch)
                    accumulator.update(outputs, targets)
                    hits.append(task.kind.hits(outputs, targets))
                right = [h.cpu().numpy() for h in hits if h is not None]
                results.append(
                    Result(dict(accumulator.scores()), np.concatenate(right) if right else None)
                )
                advance()
        return results

    def _features(self, j: int) -> Iterator[Batch]:
        bench, experience = self.bench, self.bench.benchmark.experiences[j]
        return bench.compute.features(
            bench.backbone,
            batches(experience, experience.test, bench.batch_size, bench.backbone.encode),
        )

    def _bare_features(self, j: int) -> list[Batch]:
        if j not in self._bare:
            self._bare[j] = list(self._features(j))
        return self._bare[j]


def _groups(served: Served, stage: Stage) -> list[tuple[Part, list[int]]]:
    """Return every part with the experiences that it serves, so that each is applied once."""
    groups: dict[int, tuple[Part, list[int]]] = {}
    for j in stage.evaluated:
        part = served.parts[j]
        groups.setdefault(id(part), (part, []))[1].append(j)
    return list(groups.values())


def as_scores(bench: Workbench, name: str, stage: Stage, results: dict[int, Result]) -> list[Score]:
    """Return the rows of ``scores.csv`` for an arm or a reference row at a stage."""
    rows = []
    for j, result in results.items():
        for metric in bench.benchmark.experiences[j].task.kind.metrics:
            value = result.scores[metric.name]
            rows.append(
                Score(bench.seed, name, stage.index, j, metric.name, value, metric.higher_is_better)
            )
    return rows
