"""What a few-shot run asks of its benchmark and settings, checked before anything is trained."""

from __future__ import annotations

import numpy as np

from cl_lora.benchmarks.core import Benchmark, Experience
from cl_lora.experiment.arms import Arm
from cl_lora.experiment.settings import Settings
from cl_lora.experiment.stages import Outline, Stage, shots_of
from cl_lora.strategies.config import VAL
from cl_lora.support.errors import UserError


def outline(settings: Settings, benchmark: Benchmark) -> Outline:
    """Return what the protocol of a run may know of its stream."""
    return Outline(
        names=benchmark.names,
        downstream=benchmark.downstream,
        pool=tuple(_per_stratum(e) for e in benchmark.experiences),
        shots=settings.options.shot_list,
        draws=settings.options.draws,
        subsets=settings.subsets,
        grows=benchmark.grows,
        forward_transfer=settings.options.forward_transfer,
    )


def check_few_shot(settings: Settings, benchmark: Benchmark) -> None:
    """Check that a benchmark has what the arms of a few-shot run need.

    Raises:
        UserError: no upstream experience, labels that are not shared where an arm or K = 0 needs
            them so, a head that cannot answer in words, or no validation part where learning rates
            are chosen on it.
    """
    if len(benchmark.experiences) < 2:
        raise UserError(
            f"Expected at least one upstream experience beside the downstream one but "
            f"{benchmark.name!r} has {len(benchmark.experiences)} in all; choose another benchmark"
        )
    stages = settings.protocol.stages(outline(settings, benchmark))
    for stage in stages:
        if shots_of(stage) is None:
            continue
        held = benchmark.experiences[stage.evaluated[0]]
        if not len(held.test):
            raise UserError(
                f"Expected test samples in {held.name!r} but its query is empty; add some, or "
                "choose another benchmark.downstream"
            )
        if not len(held.train):
            raise UserError(
                f"Expected train samples in {held.name!r} but the pool of its support is empty; "
                "add some, or choose another benchmark.downstream"
            )
        for arm in settings.arms:
            _check_arm(arm, stage, held, benchmark)
        if shots_of(stage) == 0 and not all(_of_texts(arm) for arm in settings.arms):
            what = "shots=0 takes class means of upstream features"
            _require_classes(what, held)
            _require_shared(what, stage, held, benchmark)


def _check_arm(arm: Arm, stage: Stage, held: Experience, benchmark: Benchmark) -> None:
    how = arm.adaptation
    if how is None:
        return
    if held.task.kind.of_tokens and not how.head_start.from_backbone:
        raise UserError(
            f"Arm {arm.name!r}: task {held.task.name!r} is answered in words, which no head that "
            f"is trained can do, but head_start={how.head_start.name}; set head_start=text"
        )
    if how.head_start.needs_classes:
        _require_classes(f"Arm {arm.name!r}: head_start={how.head_start.name}", held)
    if how.head_start.shares_labels:
        what = f"Arm {arm.name!r}: head_start={how.head_start.name} takes upstream heads"
        _require_shared(what, stage, held, benchmark)
    if len(how.config.grid) > 1 and how.config.select_on == VAL and not len(held.val):
        raise UserError(
            f"Arm {arm.name!r}: adaptation.select_on=val chooses on the validation part of "
            f"{held.name!r}, which is empty; set benchmark.val_fraction, or select_on=support"
        )


def _of_texts(arm: Arm) -> bool:
    """Return whether an arm needs no sample for its head."""
    return arm.adaptation is None or arm.adaptation.head_start.from_backbone


def _require_classes(what: str, held: Experience) -> None:
    if not held.task.labels or held.task.kind.of_tokens:
        raise UserError(
            f"{what} needs classes but task {held.task.name!r} is of kind "
            f"{held.task.kind.name!r}; leave it out"
        )


def _require_shared(what: str, stage: Stage, held: Experience, benchmark: Benchmark) -> None:
    for m in stage.members:
        upstream = benchmark.experiences[m]
        one, other = upstream.task, held.task
        if one.labels != other.labels or one.outputs != other.outputs:
            raise UserError(
                f"{what}, but {upstream.name!r} and {held.name!r} do not have the same classes; "
                "leave it out, or choose a benchmark of domains"
            )


def _per_stratum(experience: Experience) -> float:
    """Return the mean number of train samples of a class, or of what else a draw balances."""
    if not len(experience.train):
        return 0.0
    _, names = experience.task.kind.strata(experience.task, experience.targets[experience.train])
    return float(np.round(len(experience.train) / max(1, len(names)), 2))
