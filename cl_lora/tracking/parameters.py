"""What trackers are sent of a run: its parameters, its scores by name, and what sums them up."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cl_lora.evaluation.aggregate import ALL_EXPERIENCES, per_seed
from cl_lora.evaluation.scores import Score
from cl_lora.reporting.budgets import PARAMETERS
from cl_lora.reporting.figures.numbers import metric_of
from cl_lora.reporting.hparams import hparams_of
from cl_lora.reporting.shots import scores_by_shots
from cl_lora.reporting.views import View, views_of
from cl_lora.run_folder.reader import RunFolder
from cl_lora.run_folder.records import StageRecord

Row = tuple[int, str]
"""(seed, arm or baseline): what one run of a tracker is about."""

# Of config.yaml, what each row says for itself, or what says nothing of the numbers.
_APART = frozenset(
    {
        *("format", "name", "identity", "identity_defaults", "arms", "variants", "descriptions"),
        *("references", "yardstick", "seeds", "stopped", "last_stages", "roles"),
        *("run_dir", "runs_root", "report", "plugins", "tracker"),
    }
)
_OF_ENVIRONMENT = ("cl-lora", "git_commit", "python", "platform", "packages", "device_name")
AVERAGE = "average"
_NOT_IN_NAMES = re.compile(r"[^\w.\- ]")


def shared_parameters(run: RunFolder) -> dict[str, Any]:
    """Return what holds for every row: the configuration, the identity and the versions.

    What the identity tells of the strategy stands in the configuration already.
    """
    config = {key: value for key, value in run.config.items() if key not in _APART}
    identity = {key: value for key, value in run.identity.items() if key != "strategy"}
    versions = {key: run.environment[key] for key in _OF_ENVIRONMENT if key in run.environment}
    return {**config, "identity": identity, "versions": versions}


def parameters_of_row(run: RunFolder, row: Row) -> dict[str, Any]:
    """Return what one row of one seed is, as the HPARAMS tab of TensorBoard says it."""
    seed, arm = row
    return {**shared_parameters(run), "seed": seed, "arm": {"name": arm, **hparams_of(run, arm)}}


def parameters_of_folder(run: RunFolder) -> dict[str, Any]:
    """Return what the run as a whole is."""
    whole = {"seeds": list(run.seeds), "arms": list(run.arms), "references": list(run.references)}
    return {**shared_parameters(run), **whole}


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, keys joined by dots; every key a name that trackers take.

    Example:
        >>> flattened({"strategy": {"rank": 8, "targets": ["q", "v"]}})
        {'strategy.rank': 8, 'strategy.targets': 'q, v'}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{_NOT_IN_NAMES.sub('_', str(key))}"
        if isinstance(value, Mapping):
            found |= flattened(value, f"{name}.")
        elif isinstance(value, list | tuple):
            found[name] = ", ".join(map(str, value))
        else:
            found[name] = value
    return found


def names_of_experiences(names: Sequence[str]) -> tuple[str, ...]:
    """Return the experiences as names of metrics: letters, digits, ``_ - .`` and spaces, distinct.

    Example:
        >>> names_of_experiences(["photo", "a/b", "a:b"])
        ('photo', '01-a_b', '02-a_b')
    """
    plain = [_NOT_IN_NAMES.sub("_", name).strip(". ") for name in names]
    return tuple(
        name if name and name == given and name != AVERAGE else f"{i:02d}-{name}"
        for i, (name, given) in enumerate(zip(plain, names, strict=True))
    )


def step_of(stage: int) -> int:
    """Return the step of a stage: 0 is before any training, as in TensorBoard."""
    return stage + 1


def metrics_of_unit(run: RunFolder, scores: Iterable[Score]) -> dict[str, float]:
    """Return the scores of one unit by name, their average, and what its stage stands for.

    - ``<metric>/<experience>``: R[t, j].
    - ``<metric>/average``: over the experiences seen so far, or over all that the stage evaluates
      where stages do not follow one another; there is none before any training.
    - ``stage/x`` and ``stage/draw``: K and the support draw, of a few-shot stage.

    Args:
        run: says what the stages are.
        scores: of one seed, row and stage.
    """
    names = names_of_experiences(run.experiences)
    found: dict[str, float] = {}
    seen: dict[str, list[float]] = {}
    stage: StageRecord | None = None
    for score in scores:
        found[f"{score.metric}/{names[score.evaluated]}"] = score.value
        stage = stage or next(s for s in run.stream.stages if s.index == score.stage)
        if score.stage >= 0 and (score.evaluated in stage.members or not run.stream.ordered):
            seen.setdefault(score.metric, []).append(score.value)
    found |= {f"{metric}/{AVERAGE}": sum(v) / len(v) for metric, v in seen.items()}
    if stage is not None and stage.few_shot:
        found |= {"stage/x": float(stage.x or 0), "stage/draw": float(stage.draw)}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def results_of(run: RunFolder) -> dict[Row, dict[str, float]]:
    """Return what sums each row of each seed up, under the names that TensorBoard has them by.

    ``result/<metric>`` of the metric that leads, a continual measure, or of a few-shot run the
    score at each K and the average over them; ``result/parameters`` where they are counted.
    """
    found: dict[Row, dict[str, float]] = {}
    for view in views_of(run):
        for name, of_arms in _measures(view).items():
            for arm, of_seeds in of_arms.items():
                for seed, value in of_seeds.items():
                    if math.isfinite(value):
                        found.setdefault((seed, arm), {})[f"result/{view.prefix}{name}"] = value
    counted = run.accounts[run.accounts["quantity"] == PARAMETERS]
    for account in counted.itertuples():
        row = (int(str(account.seed)), str(account.arm))
        found.setdefault(row, {})[f"result/{PARAMETERS}"] = float(str(account.value))
    return found


def _measures(view: View) -> dict[str, Mapping[str, Mapping[int, float]]]:
    """Return measure -> arm -> seed -> value of one face of a run."""
    face, metric = view.run, metric_of(view.run)
    if metric.name not in face.scores.metrics:
        return {}
    if view.face.kind == "shots":
        shots = scores_by_shots(face, metric)
        at = {stage.name: shots.at(k) for k, stage in enumerate(shots.stages)}
        return {**at, AVERAGE: shots.average()}
    found: dict[str, dict[str, Mapping[int, float]]] = {}
    for key, of_seeds in per_seed(face.scores, metric.name, face.stream.shape(metric.name)).items():
        arm, measure, experience = key
        if experience == ALL_EXPERIENCES:
            found.setdefault(measure, {})[arm] = of_seeds
    return dict(found)
