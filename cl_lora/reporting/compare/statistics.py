"""The numbers of a comparison: every arm under every condition, and differences to one arm."""

from __future__ import annotations

import math
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from cl_lora.evaluation.aggregate import Difference, Estimate
from cl_lora.evaluation.continual import MEASURES
from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.budgets import PARAMETERS, headline
from cl_lora.reporting.compare.joining import Condition, changes, conditions_of, why_apart
from cl_lora.reporting.differences import CONFIDENCE, Differences, Source, differences_to
from cl_lora.reporting.faces import (
    downstream,
    faces,
    is_few_shot,
    merged_groups,
    samples_per_class,
    upstream,
)
from cl_lora.run_folder.reader import RunFolder
from cl_lora.support.errors import UserError, unknown_name


@dataclass(frozen=True, eq=False)
class Comparison:
    """Arms over conditions.

    Attributes:
        conditions: one for each group of runs that may be averaged.
        metric: what is compared.
        reference: the arm that differences are taken to; None if none are.
        arms: all arms, references last.
        references: how many of the last arms are baselines.
        results: (condition label, arm) -> measure -> mean and deviation over seeds.
        differences: condition label -> the differences of its arms; conditions without the
            reference have none.
        when: when final scores were measured, in words.
        notes: what a reader must know to read the numbers.
    """

    conditions: tuple[Condition, ...]
    metric: Metric
    reference: str | None
    arms: tuple[str, ...]
    references: int
    results: Mapping[tuple[str, str], Mapping[str, Estimate]]
    differences: Mapping[str, Differences]
    when: str
    notes: tuple[str, ...]

    def difference(self, condition: Condition, arm: str) -> Difference | None:
        """Return the difference of an arm under a condition, if there is one."""
        of_condition = self.differences.get(condition.label)
        return of_condition.found.get(arm) if of_condition else None

    def seeds(self, condition: Condition) -> list[int]:
        """Return the number of seeds behind the average of every arm; 0 where there is none."""
        found = [self.results.get((condition.label, arm)) for arm in self.arms]
        return [f["average"].seeds if f else 0 for f in found]

    def frame(self) -> pd.DataFrame:
        """Return a tidy frame: a row per condition and arm, numbers unrounded, not in percent.

        Columns: condition, arm, metric, average, average std, forgetting, forgetting std, seeds,
        reference, difference, low, high, n, over (what n counts: seeds or test samples), p, p holm;
        of few-shot runs also each K and its std; parameters, where some run says what its rows
        need.
        """
        rows = []
        nothing = Difference(math.nan, math.nan, math.nan, 0)
        undefined = Estimate(math.nan, math.nan, 0, False)
        sizes = any(c.parameters for c in self.conditions)
        for c in self.conditions:
            of_condition = self.differences.get(c.label)
            for arm in self.arms:
                found = self.results.get((c.label, arm))
                if found is None:
                    continue
                difference = self.difference(c, arm)
                d = difference or nothing
                average, lost = found["average"], found.get("forgetting", undefined)
                by_shots = {m: e for m, e in found.items() if m not in MEASURES}
                rows.append(
                    {
                        "condition": c.label,
                        "arm": arm,
                        "metric": self.metric.name,
                        "average": average.mean,
                        "average std": average.deviation,
                        "forgetting": lost.mean,
                        "forgetting std": lost.deviation,
                        "seeds": average.seeds,
                        "reference": self.reference or "",
                        "difference": d.mean,
                        "low": d.low,
                        "high": d.high,
                        "n": d.n,
                        "over": of_condition.unit if of_condition and difference else "",
                        "p": d.p,
                        "p holm": d.holm,
                        **({PARAMETERS: c.parameters.get(arm, math.nan)} if sizes else {}),
                        **{m: e.mean for m, e in by_shots.items()},
                        **{f"{m} std": e.deviation for m, e in by_shots.items()},
                    }
                )
        return pd.DataFrame(rows)

    def csv(self) -> str:
        """Return :meth:`frame` as CSV; undefined values are empty."""
        return self.frame().to_csv(index=False, lineterminator="\n")


def compare_runs(
    runs: Sequence[RunFolder],
    metric: str | None = None,
    reference: str | None = None,
    confidence: float = CONFIDENCE,
) -> Comparison:
    """Put finished runs side by side.

    Runs form one condition, and their seeds are averaged, where the data with its splits
    (fingerprint) and all that decides the numbers (identity: model, training, precision, kind of
    device) are the same; everything else stands in columns of its own and is never averaged.

    Args:
        runs: the runs.
        metric: name of the metric; the one that leads the first run's report, if not given.
        reference: the arm to take differences to, in each condition its own; or
            ``<condition>:<arm>`` for that arm of one condition, which other conditions can be
            compared with where they share its data, splits and seeds.
        confidence: coverage of the intervals.

    Raises:
        UserError: if there are no runs, only some are few-shot runs, a run lacks the metric, two
            runs of one condition hold different scores for the same seed and arm, the reference
            does not occur, or a condition cannot be compared with the reference's; says why.
    """
    if not runs:
        raise UserError("Expected at least one run to compare but got none")
    _require_one_kind(runs)
    chosen = _metric(runs, metric)
    conditions = conditions_of(runs)
    listed = dict.fromkeys(a for run in runs for a in run.arms)
    apart = dict.fromkeys(a for run in runs for a in run.references)
    results = {
        (c.label, arm): measures for c in conditions for arm, measures in c.results(chosen).items()
    }
    present = {arm for _, arm in results}
    references = [a for a in apart if a in present]
    found = _differences(conditions, chosen, reference, confidence) if reference else {}
    whens = dict.fromkeys(c.when for c in conditions)
    return Comparison(
        conditions=conditions,
        metric=chosen,
        reference=reference,
        arms=(*(a for a in listed if a in present and a not in apart), *references),
        references=len(references),
        results=results,
        differences=found,
        when=" or ".join(whens),
        notes=(*_notes(conditions), *_explained(conditions, found, reference)),
    )


def _metric(runs: Sequence[RunFolder], name: str | None) -> Metric:
    """Return the metric that all runs have."""
    name = name or headline(runs[0]).name
    for run in runs:
        if name not in run.scores.metrics or name not in run.stream.metrics:
            known = ", ".join(run.scores.metrics)
            raise UserError(
                f"{run.path} has no {name!r}, it has {known}; another metric cannot stand in "
                "its place: compare runs that share one"
            )
    metrics = [run.stream.metrics[name] for run in runs]
    for run, metric in zip(runs, metrics, strict=True):
        if metric != metrics[0]:
            (what, a, b) = next(
                (k, v, metric.record()[k])
                for k, v in metrics[0].record().items()
                if v != metric.record()[k]
            )
            raise UserError(
                f"{name!r} is not the same metric in {runs[0].path} and {run.path}: {what} is "
                f"{a!r} and {b!r}; compare them apart"
            )
    return metrics[0]


def _differences(
    conditions: Sequence[Condition], metric: Metric, reference: str, confidence: float
) -> dict[str, Differences]:
    by_label = {c.label: c for c in conditions}
    label, _, arm = reference.rpartition(":")
    if label and label not in by_label:
        raise unknown_name("condition", label, by_label)
    home = by_label[label] if label else None
    owners = [home] if home else conditions
    if not any(arm in c.arms for c in owners):
        raise unknown_name("arm", arm, sorted({a for c in owners for a in c.arms}))
    found: dict[str, Differences] = {}
    for c in conditions:
        source = home or c
        if arm not in source.arms:
            continue  # a condition without the reference has no differences, and shows dashes
        _require_pairs(source, c, reference)
        mine, other = (
            # Draws of one query set, or merges with several partners, are no draws of new images:
            # one seed has no interval.
            Source(() if x.few_shot or x.group else x.runs, x.averages(metric))
            for x in (c, source)
        )
        arms = [name for name in mine.averages if (source, arm) != (c, name)]
        found[c.label] = differences_to(mine, arms, other, arm, metric, confidence)
    return found


def _require_pairs(source: Condition, c: Condition, reference: str) -> None:
    same = source.domains == c.domains and source.fingerprint == c.fingerprint
    if not same or source.asked != c.asked:
        raise UserError(
            f"{c.label!r} cannot be compared with {reference!r}: "
            f"{why_apart(source.runs[0], c.runs[0])}, so their scores are not pairs; "
            "name an arm without a condition, to compare within each"
        )
    if not set(c.scores.seeds) & set(source.scores.seeds):
        raise UserError(
            f"{c.label!r} cannot be compared with {reference!r}: they share no seed "
            f"({_words(c.scores.seeds)} and {_words(source.scores.seeds)}), so there are no "
            "pairs; run both with the same seeds"
        )


def _notes(conditions: Sequence[Condition]) -> Iterator[str]:
    for letter, c in zip(letters(), conditions, strict=False):
        run = c.runs[0]
        model = (run.config.get("model") or {}).get("name", "?")
        name = c.label if len(conditions) == 1 else f"{letter} = {c.label}"
        yield (
            f"{name}: {run.stream.name} ({_counted(c)}, data {c.fingerprint[:8]}), "
            f"{model}, {len(c.scores.seeds)} seed{'s' * (len(c.scores.seeds) != 1)} "
            f"({_words(c.scores.seeds)})"
            + (f", {len(c.runs)} runs together" if len(c.runs) > 1 else "")
            + "."
        )
    for letter, c in list(zip(letters(), conditions, strict=False))[1:]:
        why = why_apart(conditions[0].runs[0], c.runs[0], ("A", letter))
        yield f"{letter} is not averaged with A: {why}."
    several = [run for c in conditions for run in c.runs if len(faces(run)) > 1]
    if any(is_few_shot(run) for run in several):
        yield "By K: the scores in time stand in the report of each run."
    if not all(is_few_shot(run) for run in several):
        yield "Subsets of other sizes stand in the report of each run."
    yield from _other_arms(conditions)


def _other_arms(conditions: Sequence[Condition]) -> Iterator[str]:
    """Say which arms share a row and a name but not their settings."""
    first: dict[str, tuple[str, RunFolder]] = {}
    changed: dict[str, dict[str, None]] = {}
    for letter, c in zip(letters(), conditions, strict=False):
        for run in c.runs:
            for arm in run.arms:
                home, owner = first.setdefault(arm, (letter, run))
                how = ", ".join(changes(owner.variant(arm), run.variant(arm), (home, letter)))
                if how:
                    changed.setdefault(how, {})[arm] = None
    for how, arms in changed.items():
        yield f"Not the same arm in every column: {', '.join(arms)} ({how})."


def _explained(
    conditions: Sequence[Condition], found: Mapping[str, Differences], reference: str | None
) -> Iterator[str]:
    """Say what the differences are: once, where it is the same for all conditions."""
    texts: dict[str, list[str]] = {}
    for letter, c in zip(letters(), conditions, strict=False):
        if c.label in found and reference:
            over, about = (" over K", "data sets") if c.few_shot else ("", "domains")
            about = "tasks" if c.parameters else about
            if c.group:
                over, about = f" in {c.group}", "tasks"
            text = found[c.label].explained(reference, over, about)
            texts.setdefault(text, []).append(letter)
    for text, of_letters in texts.items():
        yield text if len(texts) == 1 else f"{', '.join(of_letters)}: {text}"


def _counted(c: Condition) -> str:
    if not c.few_shot:
        several = len(c.runs[0].stream.tasks) > 1
        merged = f", {len(merged_groups(c.runs[0])[c.group])} {c.group}" if c.group else ""
        return f"{len(c.domains)} {'tasks' if several else 'domains'}{merged}"
    run = c.runs[0]
    names = ", ".join(run.experiences[j] for j in downstream(run))
    asked = ", ".join(samples_per_class(s) for s in faces(run)[0].run.stream.trained_stages)
    return f"{len(upstream(run))} upstream, adapted to {names} from K = {asked}"


def _require_one_kind(runs: Sequence[RunFolder]) -> None:
    few_shot = [run for run in runs if is_few_shot(run)]
    others = [run for run in runs if not is_few_shot(run)]
    if few_shot and others:
        raise UserError(
            f"{few_shot[0].path} is a few-shot run, with scores by K, and {others[0].path} is "
            "none, so they share no column; compare few-shot runs with one another"
        )


def letters() -> list[str]:
    """Return the short names of conditions: A to Z, then AA to ZZ."""
    one = list(string.ascii_uppercase)
    return one + [a + b for a in one for b in one]


def _words(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}"
