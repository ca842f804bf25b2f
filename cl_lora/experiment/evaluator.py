"""Scoring what is served: every part on the test inputs of the experiences it serves."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from cl_lora.benchmarks.batches import target_tensor
from cl_lora.evaluation.metrics import RELATIVE, relative
from cl_lora.evaluation.scores import Score
from cl_lora.experiment.contents import content_of
from cl_lora.experiment.serving import Part, Served, Workbench
from cl_lora.experiment.stages import Stage
from cl_lora.experiment.task_metrics import primary, reported, subsets_of
from cl_lora.models.compute import Batch
from cl_lora.models.weights import begins_at, changed
from cl_lora.support.errors import UserError
from cl_lora.tasks import Task

Hits = npt.NDArray[np.bool_]


class NotFiniteError(UserError):
    """What is served gives outputs that are NaN or infinite."""


@dataclass(frozen=True, eq=False)
class Result:
    """The outcome of one part on one experience.

    Attributes:
        scores: metric name -> value; the primary metric on subsets of the samples too.
        hits: which test samples are right, bool (N,); None for a task without right and wrong.
    """

    scores: dict[str, float]
    hits: Hits | None


class Evaluator:
    """Scores what is served at the stages of one seed.

    Features under what stays as it is (the bare backbone, a merge with given coefficients) are
    computed once a seed, and so are the results of parts that are the same: one adapter alone, or
    merges whose numbers are equal, as most are where there is one adapter to merge.
    """

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self._known: dict[tuple[Hashable, Task, int], Result] = {}

    def score(
        self, served: Served, stage: Stage, advance: Callable[[], None] = lambda: None
    ) -> dict[int, Result]:
        """Return the result on every experience of a stage; ``advance`` is called after each.

        Raises:
            NotFiniteError: if what is served gives outputs that no metric can be taken of.
        """
        results: dict[int, Result] = {}
        for group in _groups(served, stage):
            missing, tasks = {}, {}
            keys = self._keys(group)
            for j, part in group.items():
                tasks[j] = self.bench.own_task(j) if part.told else self._asked(j, stage)
                places = [(key, tasks[j], j) for key in keys[j]]
                known = next((self._known[p] for p in places if p in self._known), None)
                if known is None:
                    missing[j] = part
                else:
                    results[j] = known
                    advance()
            for j, result in self._measured(missing, tasks, advance):
                results[j] = result
                self._known.update({(key, tasks[j], j): result for key in keys[j]})
        return {j: results[j] for j in stage.evaluated}

    @staticmethod
    def _keys(group: Mapping[int, Part]) -> dict[int, list[Hashable]]:
        """Return what the results of each part are known by: its key, and its content."""
        contents: dict[int, Hashable | None] = {}
        keys: dict[int, list[Hashable]] = {}
        for j, part in group.items():
            if id(part) not in contents:
                contents[id(part)] = content_of(part)
            keys[j] = [key for key in (part.key, contents[id(part)]) if key is not None]
        return keys

    def _asked(self, j: int, stage: Stage) -> Task:
        """Return what is asked of experience ``j`` where it is not known which one a sample is."""
        return self.bench.benchmark.asked(j, stage.members)

    def _measured(
        self, parts: Mapping[int, Part], tasks: Mapping[int, Task], advance: Callable[[], None]
    ) -> Iterator[tuple[int, Result]]:
        """Yield the result on each experience; the parts share one change of the backbone."""
        if not parts:
            return
        first = next(iter(parts.values()))
        # Stored features are computed by the store, under the change that it is given.
        serving = None if first.features is not None or first.answers else first.update
        with changed(self.bench.backbone.network, serving), torch.no_grad():
            for j, part in parts.items():
                yield j, self._one(j, part, tasks[j])
                advance()

    def _one(self, j: int, part: Part, task: Task) -> Result:
        experience = self.bench.benchmark.experiences[j]
        if part.answers is not None:
            pairs = part.answers(j)
        else:
            head = part.head.to(self.bench.compute.device)
            pairs = [(head(batch), targets) for batch, targets in self._features(j, part)]
        if not all(bool(outputs.isfinite().all()) for outputs, _ in pairs):
            raise NotFiniteError(
                f"Expected finite outputs on the test samples of {experience.name!r} but some are "
                "NaN or infinite; choose smaller coefficients, or train with a smaller learning "
                "rate"
            )
        scores = _scores(task, pairs)
        for metric, mask in subsets_of(experience).items():
            rows = torch.from_numpy(mask).to(pairs[0][1].device)
            outputs, targets = (torch.cat(column)[rows] for column in zip(*pairs, strict=True))
            scores[metric.name] = _scores(task, [(outputs, targets)])[primary(task).name]
        hits = (task.hits(outputs, targets) for outputs, targets in pairs)
        right = [h.cpu().numpy() for h in hits if h is not None]
        return Result(scores, np.concatenate(right) if right else None)

    def single(self, j: int) -> float:
        """Return the primary score of experience ``j`` by its own adapter and head."""
        part, task = self.bench.single(j), self.bench.own_task(j)
        if (part.key, task, j) not in self._known:
            for _, result in self._measured({j: part}, {j: task}, lambda: None):
                self._known[part.key, task, j] = result
        return self._known[part.key, task, j].scores[primary(task).name]

    def _task(self, j: int) -> Task:
        return self.bench.benchmark.experiences[j].task

    def as_scores(self, name: str, stage: Stage, results: Mapping[int, Result]) -> list[Score]:
        """Return the rows of ``scores.csv`` for an arm or a baseline at a stage."""
        bench, rows = self.bench, []
        for j, result in results.items():
            values = dict(result.scores)
            if bench.relative:
                metric = primary(self._task(j))
                values[RELATIVE.name] = relative(values[metric.name], self.single(j), metric)
            for metric in reported(bench.benchmark.experiences[j], bench.relative):
                value = values[metric.name]
                rows.append(
                    Score(
                        bench.seed,
                        name,
                        stage.index,
                        j,
                        metric.name,
                        value,
                        metric.higher_is_better,
                    )
                )
        return rows

    def _features(self, j: int, part: Part) -> Iterator[Batch]:
        bench, experience = self.bench, self.bench.benchmark.experiences[j]
        if part.features is None:
            yield from bench.store.features(begins_at(part.update), j, experience.test)
            return
        features = bench.store.get(part.features, part.update, j, experience.test)
        targets = target_tensor(experience, experience.test).to(features.device)
        for start in range(0, len(targets), bench.batch_size):
            rows = slice(start, start + bench.batch_size)
            yield features[rows], targets[rows]


def _groups(served: Served, stage: Stage) -> list[dict[int, Part]]:
    """Return the parts by experience, grouped by their update so that each is applied once."""
    groups: dict[int, dict[int, Part]] = {}
    for j in stage.evaluated:
        part = served.parts[j]
        groups.setdefault(id(part.update), {})[j] = part
    return list(groups.values())


def _scores(task: Task, pairs: Sequence[Batch]) -> dict[str, float]:
    """Return every metric of outputs and targets."""
    accumulator = task.accumulator()
    for outputs, targets in pairs:
        accumulator.update(outputs, targets)
    return dict(accumulator.scores())
