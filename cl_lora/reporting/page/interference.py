"""The section on interference: what merging does to whom, controls, and what adapters are like."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from cl_lora.evaluation.aggregate import estimate
from cl_lora.evaluation.continual import FloatArray
from cl_lora.evaluation.interference import mean_of_known
from cl_lora.reporting.describe import in_unit, over_seeds
from cl_lora.reporting.multitask import MEASURES, Analysis, analysis_of, failed_sentence
from cl_lora.reporting.page.grid import Cell, Grid, grid, heads, sortable
from cl_lora.reporting.tables import Column, ResultTable, shorten
from cl_lora.run_folder.reader import RunFolder

_FACTS = {
    "norm": "Norm of the update",
    "stable_rank": "Stable rank",
    "feature_variance_share": "Variance share of features",
}


def interference(run: RunFolder) -> tuple[list[str], list[Grid]] | None:
    """Return notes and tables of the section; None where no pairs were merged."""
    found = analysis_of(run)
    if found is None:
        return None
    notes = [
        "Change: d (merged − single) / |single − trivial| by each task's own metric, d = 1 where "
        "higher is better, else −1, mean over seeds. 0: as good as the single task; −1: all that "
        "training brought over the trivial predictor is gone.",
    ]
    if failed_sentence(run):
        notes.append(failed_sentence(run) + " They are left out of what follows below.")
    tables = [grid(t) for t in (*_harm(found), *_controls(found), *_facts(run))]
    return notes, [*_correlations(found), *tables]


def _harm(found: Analysis) -> Iterator[ResultTable]:
    """Yield what each task suffers and what each adapter does, by arm."""
    titles = ("Mean change that each task suffers", "Mean change that each adapter does to others")
    for title, axis in zip(titles, (2, 1), strict=True):
        values = {}
        for arm, of_arm in found.arms.items():
            failed = found.tasks.failed
            known = np.where(failed[:, None] | failed[None, :], np.nan, of_arm.per_seed)
            values[arm] = mean_of_known(known, axis)
        yield _table(found, values, f"{title}, merged two by two", True)


def _controls(found: Analysis) -> Iterator[ResultTable]:
    if not found.controls:
        return
    harm = {row: found.tasks.harm(values) for row, values in found.controls.items()}
    title = "Controls: change of each task without any partner"
    yield _table(found, harm, title, False)
    change = {row: found.tasks.change(values) for row, values in found.controls.items()}
    yield _table(found, change, "Controls: the same in the unit of each task's metric", False, True)


def _facts(run: RunFolder) -> Iterator[ResultTable]:
    rows = run.adapter_facts
    if rows.empty:
        return
    named = [q for q in _FACTS if q in set(rows["quantity"])]
    quantities = [*named, *sorted({*rows["quantity"]} - {*named})]
    means: Any = rows.groupby(["adapter", "quantity"])["value"]
    mean, spread = means.mean().to_dict(), means.std(ddof=1).to_dict()
    there = sorted(set(rows["adapter"]))
    columns = tuple(
        Column(
            q,
            _FACTS.get(q, q.replace("share_", "Share of the squared norm in ")),
            q,
            None,
            percent="share" in q,
        )
        for q in quantities
    )
    yield ResultTable(
        rows=tuple(run.experiences[j] for j in there),
        references=0,
        columns=columns,
        mean=np.array([[mean.get((j, q), math.nan) for q in quantities] for j in there]),
        spread=np.array([[spread.get((j, q), math.nan) for q in quantities] for j in there]),
        title=f"Adapters, {over_seeds(run.scores.seeds)}",
        row_title="Adapter",
        notes=(
            "Stable rank: |ΔW|² / |ΔW|₂², mean over modules. Variance share: tr(Cov f) / E|f|² of "
            "the adapter's own train images; below 1 % its features have collapsed. Shares in %.",
        ),
    )


def _correlations(found: Analysis) -> Iterator[Grid]:
    """Yield the table that answers whether similarity goes with harm, where there is one."""
    rows = []
    for arm in found.arms:
        for measure in found.similarity:
            r = found.related(arm, measure)
            how = "all" if r.exact else "drawn"
            texts = [
                _number(r.rho),
                "–" if math.isnan(r.p) else (f"{r.p:.3f}" if r.p >= 0.001 else "<0.001"),
                f"{r.relabellings} ({how})" if r.relabellings else "–",
                str(r.pairs),
                _number(r.mean),
                "–" if math.isnan(r.low) else f"[{_number(r.low)}, {_number(r.high)}]",
            ]
            values = [r.rho, r.p, r.relabellings, r.pairs, r.mean, r.low]
            cells = [Cell(sortable(v), t) for v, t in zip(values, texts, strict=True)]
            rows.append((arm, [Cell("", MEASURES.get(measure, measure)), *cells]))
    titles = ("Arm", "Similarity", "ρ", "p", "Relabellings", "Pairs", "ρ per seed", "Interval")
    if rows:
        yield Grid(
            "Does similarity go with harm?",
            heads(titles, ("Arm", "Similarity")),
            rows,
            notes=(
                "Spearman's rank correlation of each pair's mean change with the similarity of its "
                "adapters, failed tasks left out; below 0: alike adapters hurt each other more. p: "
                "two-sided permutation test over adapters (Mantel 1967), as pairs share them, not "
                "corrected for the number of arms and measures. Per seed: mean of each seed's own "
                "correlation, with Student's 95 % interval over seeds.",
            ),
        )


def _table(
    found: Analysis, values: dict[str, FloatArray], title: str, ranked: bool, own: bool = False
) -> ResultTable:
    """Return a table of (S, n) values of each row: a column per task, then their mean."""
    better = True if ranked else None
    columns = [
        Column(
            name,
            f"{name} ({in_unit(metric)})" if own else name,
            narrow,
            better,
            percent=own and metric.percent,
            detail=True,
            signed=True,
        )
        for name, narrow, metric in zip(
            found.names, shorten(found.names, 8, words=True), found.metrics, strict=True
        )
    ]
    parts = {row: [estimate(list(column)) for column in of.T] for row, of in values.items()}
    if not own:
        columns.append(Column("average", "Average", "Avg", better, percent=False, signed=True))
        for row, of in values.items():
            kept = np.where(found.tasks.failed[None, :], np.nan, of)
            parts[row] = [*parts[row], estimate(list(mean_of_known(kept, 1)))]
    mean, spread = (
        np.array([[getattr(e, part) for e in row] for row in parts.values()], dtype=np.float64)
        for part in ("mean", "deviation")
    )
    return ResultTable(
        rows=tuple(parts),
        references=0,
        columns=tuple(columns),
        mean=mean,
        spread=spread,
        title=f"{title}, {over_seeds(found.seeds)}",
        row_title="Arm" if ranked else "Control",
    )


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}".replace("-", "−")
