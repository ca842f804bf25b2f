"""The faces of a run: what it says by K, in time or by group, each as a run of its own.

A few-shot run has a stage for every downstream experience, K and support draw. Tables and figures
want one stage for every K instead: :func:`by_shots` returns the run with the draws averaged within
a seed. A stream of few-shot tasks has stages in time beside them: :func:`in_time` returns the run
with these alone. A run that merges subsets of its bank has a stage for every subset:
:func:`by_group` returns the run with a single stage for all pairs, or for all triples. Any other
run has a single face, itself.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import pandas as pd

from cl_lora.evaluation.scores import Score, ScoreTable
from cl_lora.run_folder.reader import RunFolder
from cl_lora.run_folder.records import StageRecord

Kind: TypeAlias = Literal["whole", "shots", "time", "group"]


@dataclass(frozen=True, eq=False)
class Face:
    """One way to look at a run.

    Attributes:
        kind: ``whole`` for a run that has no other; ``shots``, by K; ``time``; or ``group``, a mean
            over subsets of one size.
        run: the run as it looks from there.
        stages: for each of its stages after training the indices of the stages of the folder.
    """

    kind: Kind
    run: RunFolder
    stages: tuple[tuple[int, ...], ...]


def faces(run: RunFolder) -> tuple[Face, ...]:
    """Return the faces of a run: itself; by K, and then in time if it has scores in time; or one
    for each group of subsets that were merged, pairs first.
    """
    if merged_groups(run):
        return tuple(
            Face("group", by_group(run, name), (tuple(s.index for s in stages),))
            for name, stages in merged_groups(run).items()
        )
    if not few_shot_stages(run):
        return (Face("whole", run, tuple((s.index,) for s in run.stream.trained_stages)),)
    groups = tuple(tuple(s.index for s in group) for group in _groups(few_shot_stages(run)))
    found = [Face("shots", by_shots(run), groups)]
    timely = _timely(run)
    # Without an arm that serves one merge to all tasks nothing is scored in time.
    if timely and len(in_time(run).scores):
        found.append(Face("time", in_time(run), tuple((s.index,) for s in timely)))
    return tuple(found)


def few_shot_stages(run: RunFolder) -> tuple[StageRecord, ...]:
    """Return the stages at which arms adapt to an experience that is not merged, from K samples."""
    return tuple(stage for stage in run.stream.trained_stages if stage.few_shot)


def is_few_shot(run: RunFolder) -> bool:
    """Return whether the run has few-shot stages."""
    return bool(few_shot_stages(run))


def downstream(run: RunFolder) -> tuple[int, ...]:
    """Return the indices of the experiences that arms adapt to, in the order of the stream."""
    return tuple(sorted({j for stage in few_shot_stages(run) for j in stage.evaluated}))


def upstream(run: RunFolder) -> tuple[int, ...]:
    """Return the indices of the experiences whose adapters are composed."""
    return tuple(sorted({j for stage in few_shot_stages(run) for j in stage.members}))


def draws(run: RunFolder) -> int:
    """Return how many support sets were drawn for a seed at most."""
    return max((stage.draw + 1 for stage in few_shot_stages(run)), default=0)


def by_shots(run: RunFolder, evaluated: Collection[int] | None = None) -> RunFolder:
    """Return a few-shot run with one stage for each K, ascending; its stages are not ordered.

    Scores and coefficients are means over the draws within a seed, those of an arm that lacks a
    draw are left out; coefficients and accounts are means over the downstream experiences too.

    Args:
        run: the run.
        evaluated: the downstream experiences to keep; all if not given.
    """
    kept = set(downstream(run) if evaluated is None else evaluated)
    groups = _groups([s for s in few_shot_stages(run) if kept & set(s.evaluated)])
    place = {s.index: k for k, group in enumerate(groups) for s in group}
    stages = tuple(_together(k, group, sorted(kept)) for k, group in enumerate(groups))
    wanted = {
        (k, j): len([s for s in group if j in s.evaluated])
        for k, group in enumerate(groups)
        for j in kept
    }
    values: dict[tuple[int, str, int, int, str], list[float]] = {}
    directions: dict[str, bool] = {}
    for s in run.scores:
        if s.stage in place and s.evaluated in kept:
            key = (s.seed, s.arm, place[s.stage], s.evaluated, s.metric)
            values.setdefault(key, []).append(s.value)
            directions[s.metric] = s.higher_is_better
    scores = ScoreTable(
        Score(*key, sum(found) / len(found), directions[key[-1]])
        for key, found in values.items()
        if len(found) == wanted[key[2], key[3]]
    )
    return _face(run, stages, False, scores, place)


def in_time(run: RunFolder) -> RunFolder:
    """Return a run with its stages in time alone, numbered anew; ordered as the run is.

    Raises:
        ValueError: if it has none.
    """
    timely = _timely(run)
    if not timely:
        raise ValueError(f"Expected stages in time but {run.path} has none")
    place = {s.index: t for t, s in enumerate(timely)}
    before = [s for s in run.stream.stages if s.index < 0]
    stages = (*before, *(replace(s, index=place[s.index]) for s in timely))
    numbers = {**place, **{s.index: s.index for s in before}}
    scores = ScoreTable(
        replace(s, stage=numbers[s.stage]) for s in run.scores if s.stage in numbers
    )
    return _face(run, stages, run.stream.ordered, scores, numbers)


def merged_groups(run: RunFolder) -> dict[str, tuple[StageRecord, ...]]:
    """Return the stages that merge several adapters by their group: pairs, triples, ..."""
    found: dict[str, tuple[StageRecord, ...]] = {}
    for stage in run.stream.trained_stages:
        if stage.group and len(stage.members) > 1:
            found[stage.group] = (*found.get(stage.group, ()), stage)
    return found


def alone_stages(run: RunFolder) -> dict[int, StageRecord]:
    """Return the stages of one adapter alone, by the index of its experience."""
    stages = (s for s in run.stream.trained_stages if s.group and len(s.members) == 1)
    return {s.members[0]: s for s in stages}


def merges_subsets(run: RunFolder) -> bool:
    """Return whether the run merges subsets of its bank, in no order."""
    return bool(merged_groups(run))


def by_group(run: RunFolder, group: str) -> RunFolder:
    """Return a run with a single stage, the subsets of one group.

    The score on a task is the mean over the subsets that it is part of, within a seed; an arm that
    lacks one has none. Rows that are scored on each task alone (single task, baselines, controls)
    stand beside them as they are.

    Args:
        run: the run.
        group: one of :func:`merged_groups`.
    """
    stages = merged_groups(run)[group]
    alone = {s.index for s in alone_stages(run).values()}
    evaluated = tuple(sorted({j for s in stages for j in s.evaluated}))
    wanted = {j: sum(j in s.evaluated for s in stages) for j in evaluated}
    indices = {s.index for s in stages}
    values: dict[tuple[int, str, int, str], list[float]] = {}
    by_itself: dict[tuple[int, str, int, str], float] = {}
    for s in run.scores:
        if s.evaluated not in wanted:
            continue
        key = (s.seed, s.arm, s.evaluated, s.metric)
        if s.stage in indices:
            values.setdefault(key, []).append(s.value)
        elif s.stage in alone:
            by_itself[key] = s.value
    merged = {arm for _, arm, _, _ in values}
    means = {k: sum(v) / len(v) for k, v in values.items() if len(v) == wanted[k[2]]}
    means |= {k: v for k, v in by_itself.items() if k[1] not in merged}
    scores = ScoreTable(
        Score(seed, arm, 0, j, metric, value, run.scores.higher_is_better(metric))
        for (seed, arm, j, metric), value in means.items()
    )
    members = tuple(sorted({m for s in stages for m in s.members}))
    together = StageRecord(0, group, members, evaluated, members, group=group)
    return _face(run, (together,), False, scores, dict.fromkeys(indices, 0))


def samples_per_class(stage: StageRecord) -> str:
    """Return K of a stage as its name says it: ``5``, or ``all``."""
    return stage.name.removeprefix("K=")


def is_pool(stage: StageRecord) -> bool:
    """Return whether the support set of a few-shot stage is the whole pool."""
    return stage.pool


def _timely(run: RunFolder) -> tuple[StageRecord, ...]:
    return tuple(s for s in run.stream.trained_stages if s.x is None)


def _groups(stages: Sequence[StageRecord]) -> list[list[StageRecord]]:
    """Return the stages of every name, by K; the whole pool last."""
    groups: dict[str, list[StageRecord]] = {}
    for stage in stages:
        groups.setdefault(stage.name, []).append(stage)
    return sorted(groups.values(), key=lambda group: (any(map(is_pool, group)), _x(group)))


def _x(group: Sequence[StageRecord]) -> float:
    """Return where a group of stages lies: of the whole pool, the mean over the experiences."""
    found = {s.evaluated: s.x for s in group if s.x is not None}
    return sum(found.values()) / len(found)


def _together(k: int, group: Sequence[StageRecord], evaluated: Sequence[int]) -> StageRecord:
    def every(part: str) -> tuple[int, ...]:
        return tuple(sorted({i for stage in group for i in getattr(stage, part)}))

    return StageRecord(
        k, group[0].name, every("members"), tuple(evaluated), every("support"), _x(group)
    )


def _face(
    run: RunFolder,
    stages: tuple[StageRecord, ...],
    ordered: bool,
    scores: ScoreTable,
    place: dict[int, int],
) -> RunFolder:
    rows = set(scores.arms)
    # Of an arm that is not scored here a table would have nothing but dashes.
    config = {
        **run.config,
        "arms": {a: s for a, s in run.config["arms"].items() if a in rows},
        "references": [r for r in run.references if r in rows],
        "last_stages": {},
    }
    return replace(
        run,
        config=config,
        stream=replace(run.stream, stages=stages, ordered=ordered),
        scores=scores,
        coefficients=_averaged(run.coefficients, place),
        accounts=_averaged(run.accounts, place),
        times=_averaged(run.times, place),
    )


def _averaged(frame: pd.DataFrame, place: dict[int, int]) -> pd.DataFrame:
    """Return the rows at these stages, each at its new place, one for all that share one."""
    kept: Any = frame[frame["stage"].isin(place)]
    kept = kept.assign(stage=kept["stage"].map(place).astype(int))
    keys = [c for c in frame.columns if c != "value"]
    means: pd.DataFrame = kept.groupby(keys, sort=False, as_index=False)["value"].mean()
    return means[list(frame.columns)]
