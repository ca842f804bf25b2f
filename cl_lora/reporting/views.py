"""The faces of a run as TensorBoard shows them: what their tags and steps are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from cl_lora.evaluation.aggregate import ALL_EXPERIENCES
from cl_lora.reporting.budgets import PARAMETERS, has_budgets, parameters_of
from cl_lora.reporting.faces import Face, by_shots, downstream, faces
from cl_lora.reporting.figures.numbers import metric_of, numbers_of
from cl_lora.reporting.shots import scores_by_shots
from cl_lora.run_folder.reader import RunFolder


@dataclass(frozen=True, eq=False)
class View:
    """One face of a run.

    Attributes:
        whole: the run.
        face: how it is seen.
        prefix: what its tags begin with: nothing, ``in_time/`` beside the face by K, or the name of
            a group of subsets, such as ``pairs/``.
    """

    whole: RunFolder
    face: Face
    prefix: str

    @property
    def run(self) -> RunFolder:
        """The run as it looks from there."""
        return self.face.run

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """The step of every stage after training: what its protocol counts, else its place.

        What a protocol counts must be distinct whole numbers from 1, as step 0 is before any
        training. Of a few-shot run it is K, rounded; the whole pool comes after the largest K.
        """
        stages = self.run.stream.trained_stages
        if self.face.kind == "shots":
            found: list[int] = []
            for stage in stages:
                found.append(max(round(stage.x or 0), found[-1] + 1 if found else 0))
            return tuple(found)
        counted = [s.x for s in stages if s.x is not None and s.x >= 1 and s.x == int(s.x)]
        if len(set(counted)) == len(stages):
            return tuple(int(x) for x in counted)
        return tuple(range(1, len(stages) + 1))

    @cached_property
    def results(self) -> dict[str, dict[str, float]]:
        """``result/<measure>`` of the metric that leads: tag -> arm -> mean over seeds.

        Of a few-shot run the measures are the score at each K and their average; beside them may be
        the parameters that an arm needs to serve all tasks.
        """
        metric, results = metric_of(self.run), dict[str, dict[str, float]]()
        if metric.name not in self.run.scores.metrics:
            return results
        if self.face.kind == "shots":
            shots = scores_by_shots(self.run, metric)
            found = {stage.name: shots.at(k) for k, stage in enumerate(shots.stages)}
            for name, values in {**found, "average": shots.average()}.items():
                means = {a: e.mean for a, e in shots.estimates(values).items()}
                results[f"result/{name}"] = means
            return results
        for (arm, measure, experience), number in numbers_of(self.run, metric).items():
            if experience == ALL_EXPERIENCES:
                results.setdefault(f"result/{self.prefix}{measure}", {})[arm] = number.mean
        if has_budgets(self.run):
            results[f"result/{PARAMETERS}"] = parameters_of(self.run)
        return results

    @cached_property
    def coefficients(self) -> dict[str, pd.DataFrame]:
        """The coefficients by what their tags begin with.

        Where arms are adapted to several experiences each has its own: it has members of its own.
        """
        each = downstream(self.whole) if self.face.kind == "shots" else ()
        if len(each) < 2:
            return {"coefficients": self.run.coefficients}
        return {
            f"coefficients/{self.run.experiences[j]}": by_shots(self.whole, (j,)).coefficients
            for j in each
        }

    def scored(self, arm: str) -> bool:
        """Return whether an arm has scores there."""
        return arm in self.run.scores.arms


def views_of(run: RunFolder) -> tuple[View, ...]:
    """Return a view of each face of a run."""
    found = faces(run)
    return tuple(View(run, face, _prefix(face, i)) for i, face in enumerate(found))


def _prefix(face: Face, i: int) -> str:
    if face.kind == "group":
        return f"{face.run.stream.trained_stages[0].name}/"
    return "in_time/" if i else ""
