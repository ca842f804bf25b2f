"""Runs side by side: what may be put together, what may only stand next to each other, and why."""

from __future__ import annotations

import json
import math
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cl_lora.evaluation.aggregate import (
    ALL_EXPERIENCES,
    Estimate,
    PairedDifference,
    estimates,
    paired_difference,
)
from cl_lora.evaluation.scores import Score, ScoreTable
from cl_lora.reporting.figures import GREY, MARKERS, OKABE_ITO, STYLE
from cl_lora.reporting.tables import METRIC_TITLES, PERCENT_METRICS, Column, ResultTable
from cl_lora.run_folder.reader import RunFolder
from cl_lora.support.errors import UserError, unknown_name

_PARTS = ("benchmark", "model", "strategy", "precision", "spc", "buffer_batch_size")
"""Parts of config.yaml that must be equal for the seeds of two runs to be averaged."""

_OF_ARMS = ("spc", "buffer_batch_size")
"""Of these, what each arm records for itself."""


@dataclass(frozen=True, eq=False)
class Condition:
    """Runs whose seeds may be averaged: same data and splits, model and training.

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


@dataclass(frozen=True, eq=False)
class Comparison:
    """Arms over conditions.

    Attributes:
        conditions: one for each group of runs that may be averaged.
        metric: what is compared.
        reference: the arm that differences are taken to; None if none are.
        arms: all arms, references last.
        references: how many of the last arms are reference rows.
        results: (condition label, arm) -> measure -> mean and deviation over seeds.
        differences: (condition label, arm) -> paired difference of the final scores.
        notes: what a reader must know to read the numbers.
    """

    conditions: tuple[Condition, ...]
    metric: str
    reference: str | None
    arms: tuple[str, ...]
    references: int
    results: Mapping[tuple[str, str], Mapping[str, Estimate]]
    differences: Mapping[tuple[str, str], PairedDifference]
    notes: tuple[str, ...]

    def frame(self) -> pd.DataFrame:
        """Return a tidy frame: a row per condition and arm, numbers unrounded, not in percent.

        Columns: condition, arm, metric, average, average deviation, forgetting, forgetting
        deviation, seeds, reference, difference, low, high, pairs.
        """
        rows = []
        for (label, arm), found in self.results.items():
            difference = self.differences.get((label, arm))
            average, lost = found["average"], found["forgetting"]
            rows.append(
                {
                    "condition": label,
                    "arm": arm,
                    "metric": self.metric,
                    "average": average.mean,
                    "average deviation": average.deviation,
                    "forgetting": lost.mean,
                    "forgetting deviation": lost.deviation,
                    "seeds": average.seeds,
                    "reference": self.reference or "",
                    "difference": difference.mean if difference else math.nan,
                    "low": difference.low if difference else math.nan,
                    "high": difference.high if difference else math.nan,
                    "pairs": difference.pairs if difference else 0,
                }
            )
        return pd.DataFrame(rows)

    def csv(self) -> str:
        """Return :meth:`frame` as CSV; undefined values are empty."""
        return self.frame().to_csv(index=False, lineterminator="\n")

    def table(self) -> ResultTable:
        """Return the table: a row per arm; per condition average, difference and forgetting.

        The number of seeds stands beside them where it is not the same for all arms. Only arms
        with every seed of the condition can be marked as best.
        """
        percent = self.metric in PERCENT_METRICS
        up = self.conditions[0].scores.higher_is_better(self.metric)
        single = len(self.conditions) == 1
        columns: list[Column] = []
        numbers: list[list[tuple[float, float]]] = []
        complete: list[list[bool]] = []
        varying = False
        for letter, condition in zip(_letters(), self.conditions, strict=False):
            long, short = ("", "") if single else (f"{condition.label} ", f"{letter} ")
            of_arms = [self.results.get((condition.label, arm)) for arm in self.arms]
            before = len(columns)
            columns.append(
                Column(f"{condition.label} average", f"{long}average", f"{short}Avg", up, percent)
            )
            averages, *differences = self._points(condition)
            numbers.append(averages)
            seeds, every = self._seeds(condition), len(condition.scores.seeds)
            if any(0 < n < every for n in seeds):
                varying = True
                key = f"{condition.label} seeds"
                columns.append(
                    Column(key, f"{long}seeds", f"{short}n", None, percent=False, decimals=0)
                )
                numbers.append([(float(n) if n else math.nan, math.nan) for n in seeds])
            if self.reference:
                title = f"{long}vs {self.reference}"
                key = f"{condition.label} difference"
                columns.append(Column(key, title, f"{short}diff", None, percent, 1, signed=True))
                numbers += differences
            columns.append(
                Column(
                    f"{condition.label} forgetting",
                    f"{long}forgetting ↓",
                    f"{short}Forget",
                    False,
                    percent,
                    2,
                    signed=True,
                )
            )
            numbers.append([_pair(f["forgetting"] if f else None) for f in of_arms])
            complete += [[n == every for n in seeds]] * (len(columns) - before)
        cells = np.array(numbers, dtype=np.float64).reshape(len(columns), len(self.arms), 2)
        title = METRIC_TITLES.get(self.metric, self.metric) + (" in %" if percent else "")
        return ResultTable(
            rows=self.arms,
            references=self.references,
            columns=tuple(columns),
            mean=cells[:, :, 0].T,
            spread=cells[:, :, 1].T,
            title=f"{title} after the last domain, mean ± deviation over seeds",
            notes=(*self.notes, *([_FEWER] if varying else [])),
            complete=np.array(complete).T,
        )

    def _seeds(self, condition: Condition) -> list[int]:
        """Return the number of seeds behind the average of every arm; 0 where there is none."""
        found = [self.results.get((condition.label, arm)) for arm in self.arms]
        return [f["average"].seeds if f else 0 for f in found]

    def markdown(self) -> str:
        """Return :meth:`table` as Markdown."""
        return self.table().markdown()

    def latex(self) -> str:
        """Return :meth:`table` as LaTeX."""
        return self.table().latex()

    def figure(self) -> Figure:
        """Draw the table: a row per arm, a marker per condition, one deviation to each side.

        A second panel shows the paired differences, if there are any, with their interval. A
        marker is hollow where an arm lacks seeds that other arms of the condition have.
        """
        with mpl.rc_context(dict(STYLE)):
            return self._draw()

    def _draw(self) -> Figure:
        count = len(self.conditions)
        fig = Figure(
            figsize=(9.6 if self.reference else 7.2, 1.4 + len(self.arms) * (0.16 + 0.08 * count)),
            layout="constrained",
        )
        axes = fig.subplots(1, 2 if self.reference else 1, sharey=True, squeeze=False)[0]
        percent = self.metric in PERCENT_METRICS
        ranked = len(self.arms) - self.references
        y = np.arange(len(self.arms), dtype=np.float64)
        y[ranked:] += 0.5
        for k, condition in enumerate(self.conditions):
            color, marker = OKABE_ITO[k % len(OKABE_ITO)], MARKERS[k % len(MARKERS)]
            # Side by side within a row, so that conditions with equal scores are all seen.
            rows = y + (0.0 if count == 1 else 0.5 * (k / (count - 1) - 0.5))
            full = [n == len(condition.scores.seeds) for n in self._seeds(condition)]
            for ax, points in zip(axes, self._points(condition), strict=True):
                x, spread = (100.0 if percent else 1.0) * np.array(points).T
                ax.errorbar(
                    x, rows, xerr=np.nan_to_num(spread), ls="", color=color, capsize=2, lw=1
                )
                for i, whole in enumerate(full):
                    face = color if whole else "white"
                    ax.plot(x[i], rows[i], marker, color=color, markerfacecolor=face)
        title = METRIC_TITLES.get(self.metric, self.metric)
        axes[0].set_yticks(y, self.arms)
        axes[0].set_ylim(y[-1] + 0.7, -0.7)
        axes[0].set_xlabel(f"{title} after the last domain, average{' (%)' if percent else ''}")
        if self.reference:
            axes[1].axvline(0, color=GREY, lw=0.8, ls="--")
            unit = ", points" if percent else ""
            axes[1].set_xlabel(f"paired difference to {self.reference}, interval{unit}")
        for ax in axes:
            ax.grid(axis="y", visible=False)
            ax.tick_params(axis="y", length=0)
            for row in y[::2]:  # stripes, so that the eye keeps the row
                ax.axhspan(row - 0.5, row + 0.5, color="#f4f6f8", zorder=0)
            if 0 < self.references < len(self.arms):
                ax.axhline(ranked - 0.25, color=GREY, lw=0.8)
        fig.legend(handles=self._legend(), loc="outside upper left", ncols=3)
        return fig

    def _points(self, condition: Condition) -> Iterator[list[tuple[float, float]]]:
        """Yield value and half width per arm: of the averages, then of the differences."""
        of_arms = [self.results.get((condition.label, arm)) for arm in self.arms]
        yield [_pair(f["average"] if f else None) for f in of_arms]
        if self.reference:
            found = [self.differences.get((condition.label, arm)) for arm in self.arms]
            yield [(d.mean, d.high - d.mean) if d else _NONE for d in found]

    def _legend(self) -> list[Line2D]:
        handles = [
            Line2D(
                [],
                [],
                ls="",
                marker=MARKERS[k % len(MARKERS)],
                color=OKABE_ITO[k % len(OKABE_ITO)],
                label=c.label,
            )
            for k, c in enumerate(self.conditions)
        ]
        if any(0 < n < len(c.scores.seeds) for c in self.conditions for n in self._seeds(c)):
            style: dict[str, Any] = {"color": GREY, "markerfacecolor": "white", "marker": "o"}
            handles.append(Line2D([], [], ls="", label="fewer seeds", **style))
        return handles


_NONE = (math.nan, math.nan)

_FEWER = (
    "n: seeds behind a row, where not all have the same; only arms with every seed are ranked, the "
    "best in bold, and differences are paired over the seeds that both sides have."
)


def compare_runs(
    runs: Sequence[RunFolder],
    metric: str = "accuracy",
    reference: str | None = None,
    confidence: float = 0.95,
) -> Comparison:
    """Put finished runs side by side.

    Runs form one condition, and their seeds are averaged, where the data with its splits
    (fingerprint), the benchmark, the model and the training are the same; everything else stands
    in columns of its own and is never averaged. Differences to ``reference`` are paired over seeds
    and domains with Student's t interval; see
    :func:`~cl_lora.evaluation.aggregate.paired_difference`.

    Args:
        runs: the runs.
        metric: which metric.
        reference: the arm to take differences to, in each condition its own; or
            ``<condition>:<arm>`` for that arm of one condition, which other conditions can be
            compared with where they share its data, splits and seeds.
        confidence: coverage of the intervals.

    Raises:
        UserError: if there are no runs, a run lacks the metric, two runs of one condition hold
            different scores for the same seed and arm, the reference does not occur, or a
            condition cannot be compared with the reference's; says why.
    """
    if not runs:
        raise UserError("Expected at least one run to compare but got none")
    for run in runs:
        if metric not in run.scores.metrics:
            known = ", ".join(run.scores.metrics)
            raise UserError(
                f"{run.path} has no {metric!r}, it has {known}; another metric cannot stand in "
                "its place: compare runs that share one"
            )
    if len({run.scores.higher_is_better(metric) for run in runs}) > 1:
        raise UserError(
            f"{metric!r} is higher is better in one run and lower is better in another, so it is "
            "not the same metric; compare them apart"
        )
    conditions = _conditions(runs)
    listed = dict.fromkeys(a for run in runs for a in run.arms)
    apart = dict.fromkeys(a for run in runs for a in run.references)
    present = {a for c in conditions for a in c.scores.arms}
    arms = [a for a in listed if a in present and a not in apart]
    references = [a for a in apart if a in present]
    results: dict[tuple[str, str], dict[str, Estimate]] = {}
    for c in conditions:
        found = estimates(c.scores, metric, len(c.domains))
        for arm in (*arms, *references):
            if arm in c.scores.arms:
                keys = (k for k in found if k[0] == arm and k[2] == ALL_EXPERIENCES)
                results[(c.label, arm)] = {key[1]: found[key] for key in keys}
    return Comparison(
        conditions=conditions,
        metric=metric,
        reference=reference,
        arms=(*arms, *references),
        references=len(references),
        results=results,
        differences=_differences(conditions, metric, reference, confidence) if reference else {},
        notes=_notes(conditions, reference, confidence),
    )


def require_poolable(runs: Sequence[RunFolder]) -> None:
    """Raise an error if the seeds of ``runs`` may not be averaged together, and say why.

    Raises:
        UserError: naming the first difference in data, domains, model or training.
    """
    for run in runs[1:]:
        why = _difference(runs[0], run)
        if why:
            raise UserError(
                f"{runs[0].path} and {run.path} cannot be averaged: {why}; compare them side by "
                "side instead"
            )


def _difference(a: RunFolder, b: RunFolder, names: tuple[str, str] = ("one", "the other")) -> str:
    """Return in words why the scores of two runs are not of one kind, or nothing."""
    reasons = list(_reasons(a, b, names))
    more = f" and {len(reasons) - 3} more differences" if len(reasons) > 3 else ""
    return ", ".join(reasons[:3]) + more


def _reasons(a: RunFolder, b: RunFolder, names: tuple[str, str]) -> Iterator[str]:
    if a.stream.name != b.stream.name:
        yield f"their benchmarks are {a.stream.name!r} and {b.stream.name!r}"
    if a.experiences != b.experiences:
        yield f"their domains are {', '.join(a.experiences)} and {', '.join(b.experiences)}"
    elif a.stream.fingerprint != b.stream.fingerprint:
        yield (
            "their data or its splits differ "
            f"(fingerprints {a.stream.fingerprint[:8]} and {b.stream.fingerprint[:8]})"
        )
    x, y = (str(run.stream.backbone.get("fingerprint", "")) for run in (a, b))
    if x != y:
        yield f"the weights of their backbones differ (fingerprints {x[:8]} and {y[:8]})"
    for part in _PARTS:
        yield from _changes(_identity(a, part), _identity(b, part), names, part)


def _changes(a: Any, b: Any, names: tuple[str, str], prefix: str = "") -> Iterator[str]:
    """Yield every setting that differs, in words."""
    x, y = _flat(a, prefix), _flat(b, prefix)
    for key in dict.fromkeys([*x, *y]):
        if x.get(key) != y.get(key):
            yield f"{key} is {x.get(key)!r} in {names[0]} and {y.get(key)!r} in {names[1]}"


def _identity(run: RunFolder, part: str) -> Any:
    value = run.config.get(part)
    prototypes = run.config.get("strategy", {}).get("head") == "prototypes"
    if part in _OF_ARMS and run.config.get("variants") and not (part == "spc" and prototypes):
        return None
    if isinstance(value, Mapping):
        # Where data and weights lie does not change them: their fingerprints are compared.
        places = ("cache_dir", "root", "path", "checkpoint")
        value = {k: v for k, v in value.items() if k not in places}
    return json.loads(json.dumps(value))


def _flat(value: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {
        k: v
        for key, x in value.items()
        for k, v in _flat(x, f"{prefix}.{key}" if prefix else key).items()
    }


def _conditions(runs: Sequence[RunFolder]) -> tuple[Condition, ...]:
    groups: list[list[RunFolder]] = []
    for run in runs:
        if any(run.path.resolve() == other.path.resolve() for g in groups for other in g):
            continue
        home = next((g for g in groups if not _difference(g[0], run)), None)
        if home is None:
            groups.append([run])
        else:
            home.append(run)
    labels = _labels([g[0] for g in groups])
    return tuple(
        Condition(label, tuple(g), _together(g)) for label, g in zip(labels, groups, strict=True)
    )


def _together(runs: Sequence[RunFolder]) -> ScoreTable:
    rows: dict[Any, tuple[RunFolder, Score]] = {}
    settings: dict[str, tuple[RunFolder, Any]] = {}
    for run in runs:
        for arm in run.arms:
            owner, there = settings.setdefault(arm, (run, run.definition(arm)))
            if there != run.definition(arm):
                places = (str(owner.path), str(run.path))
                raise UserError(
                    f"Arm {arm!r} is not one arm, so its seeds cannot be averaged: "
                    f"{', '.join(_changes(there, run.definition(arm), places))}; rename one of them"
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


def _differences(
    conditions: Sequence[Condition], metric: str, reference: str, confidence: float
) -> dict[tuple[str, str], PairedDifference]:
    by_label = {c.label: c for c in conditions}
    label, _, arm = reference.rpartition(":")
    if label and label not in by_label:
        raise unknown_name("condition", label, by_label)
    home = by_label[label] if label else None
    owners = [home] if home else conditions
    if not any(arm in c.scores.arms for c in owners):
        raise unknown_name("arm", arm, sorted({a for c in owners for a in c.scores.arms}))
    found: dict[tuple[str, str], PairedDifference] = {}
    for c in conditions:
        source = home or c
        if arm not in source.scores.arms:
            continue  # a condition without the reference has no differences, and shows dashes
        if source.domains != c.domains or source.fingerprint != c.fingerprint:
            raise UserError(
                f"{c.label!r} cannot be compared with {reference!r}: "
                f"{_difference(source.runs[0], c.runs[0])}, so their scores are not pairs; "
                "name an arm without a condition, to compare within each"
            )
        seeds = [s for s in c.scores.seeds if s in source.scores.seeds]
        if not seeds:
            raise UserError(
                f"{c.label!r} cannot be compared with {reference!r}: they share no seed "
                f"({_words(c.scores.seeds)} and {_words(source.scores.seeds)}), so there are no "
                "pairs; run both with the same seeds"
            )
        T = len(c.domains)

        def finals(condition: Condition, name: str, seeds: list[int] = seeds, T: int = T) -> Any:
            rows = [condition.scores.matrix(s, name, metric, T).values[-1] for s in seeds]
            return np.concatenate(rows)

        for name in c.scores.arms:
            if (source, arm) != (c, name):
                pair = finals(c, name), finals(source, arm)
                found[(c.label, name)] = paired_difference(*pair, confidence)
    return found


def _notes(
    conditions: Sequence[Condition], reference: str | None, confidence: float
) -> tuple[str, ...]:
    notes = []
    for letter, c in zip(_letters(), conditions, strict=False):
        run = c.runs[0]
        model = (run.config.get("model") or {}).get("name", "?")
        name = c.label if len(conditions) == 1 else f"{letter} = {c.label}"
        notes.append(
            f"{name}: {run.stream.name} ({len(c.domains)} domains, data {c.fingerprint[:8]}), "
            f"{model}, {len(c.scores.seeds)} seed{'s' * (len(c.scores.seeds) != 1)} "
            f"({_words(c.scores.seeds)})"
            + (f", {len(c.runs)} runs together" if len(c.runs) > 1 else "")
            + "."
        )
    for letter, c in list(zip(_letters(), conditions, strict=False))[1:]:
        why = _difference(conditions[0].runs[0], c.runs[0], ("A", letter))
        notes.append(f"{letter} is not averaged with A: {why}.")
    notes += _other_arms(conditions)
    if reference:
        notes.append(
            f"Differences to {reference}: mean of pairs over seeds and domains ± half of the "
            f"{100 * confidence:g} % interval (Student's t)."
        )
    return tuple(notes)


def _other_arms(conditions: Sequence[Condition]) -> Iterator[str]:
    """Say which arms share a row and a name but not their settings."""
    first: dict[str, tuple[str, Mapping[str, Any]]] = {}
    changed: dict[str, dict[str, None]] = {}
    for letter, c in zip(_letters(), conditions, strict=False):
        for run in c.runs:
            for arm in run.arms:
                home, settings = first.setdefault(arm, (letter, run.definition(arm)))
                how = ", ".join(_changes(settings, run.definition(arm), (home, letter)))
                if how:
                    changed.setdefault(how, {})[arm] = None
    for how, arms in changed.items():
        yield f"Not the same arm in every column: {', '.join(arms)} ({how})."


def _pair(found: Estimate | None) -> tuple[float, float]:
    return (found.mean, found.deviation) if found else _NONE


def _letters() -> list[str]:
    letters = list(string.ascii_uppercase)
    return letters + [a + b for a in letters for b in letters]


def _words(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}"


RENDERERS: dict[str, Callable[[Comparison], str]] = {
    "markdown": Comparison.markdown,
    "latex": Comparison.latex,
    "csv": Comparison.csv,
}
"""The renderings for files, by name."""
