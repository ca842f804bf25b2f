"""The report of a run as one HTML file that needs no network."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from cl_lora.evaluation.aggregate import averages
from cl_lora.evaluation.continual import MEASURES
from cl_lora.evaluation.metrics import Metric
from cl_lora.evaluation.scores import UNTRAINED
from cl_lora.reporting.describe import in_unit
from cl_lora.reporting.differences import Source, differences_to
from cl_lora.reporting.figures import FIGURES, draw_figures, render
from cl_lora.reporting.tables import MISSING, Column, ResultTable, run_table
from cl_lora.run_folder.layout import REPORT_FILE
from cl_lora.run_folder.reader import RunFolder
from cl_lora.run_folder.records import TaskRecord
from cl_lora.support import files

_LARGEST_SVG = 400_000
"""Bytes over which a figure is embedded as PNG: a browser draws many outlines slowly."""


@dataclass(frozen=True)
class _Cell:
    value: str
    text: str
    around: str = ""
    best: bool = False


def write_html(run: RunFolder) -> Path:
    """Write ``report.html`` into the run's folder and return its path.

    One file: style, script and figures are inline. The primary metric leads; the others have a
    table each.

    Raises:
        UserError: if there are no scores, or the folder cannot be written.
    """
    path = run.path / REPORT_FILE
    files.write_text(path, render_html(run))
    return path


def render_html(run: RunFolder) -> str:
    """Return the report of ``run`` as HTML; the same run gives the same text."""
    run.check_finished()
    metrics = [m for name, m in run.stream.metrics.items() if name in run.scores.metrics]
    metric = metrics[0]
    tables = [run_table(run, m) for m in metrics]
    reference = run.yardstick
    environment = Environment(
        loader=PackageLoader("cl_lora.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=False,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2").render(
        run=run,
        lead=_lead(tables[0], metric, len(run.scores.seeds)),
        facts=_facts(run),
        tables=[_table(t) for t in tables],
        figures=list(_figures(run, metric)),
        differences=_differences(run, reference, metric) if reference else None,
        arms=[
            {"name": a, "words": run.description(a), "settings": _one_line(run.settings(a))}
            for a in (*run.arms, *run.references)
        ],
        training=_training(run),
        score_count=len(run.scores),
        scores=list(_scores(run)),
        coefficients=list(_coefficients(run)),
        configuration=_configuration(run),
        environment=yaml.safe_dump(
            json.loads(json.dumps(dict(run.environment))), sort_keys=True, allow_unicode=True
        ).strip(),
        measures=list(MEASURES.values()),
    )


def _lead(table: ResultTable, metric: Metric, seeds: int) -> str:
    j = next(i for i, c in enumerate(table.columns) if c.key == "average")
    unit = f"\N{NO-BREAK SPACE}{metric.unit}" if metric.unit else ""
    ranked = len(table.rows) - table.references
    # A single arm has none to lead.
    best = [i for i in range(ranked) if ranked == 1 or table.is_best(i, j)]

    def said(i: int) -> str:
        return " ".join(part for part in table.cell(i, j) if part) + unit

    parts = []
    if best:
        which = " and ".join(table.rows[i] for i in best)
        among = f"best of {ranked} arms " if ranked > 1 else ""
        parts.append(f"{metric.title}, average: {among}{which}, {said(best[0])}.")
    rows = [f"{table.rows[i]} {said(i)}" for i in range(ranked, len(table.rows))]
    if rows:
        parts.append(f"For reference: {', '.join(rows)}.")
    if seeds > 1:
        parts.append(f"Mean ± deviation over {seeds} seeds.")
    return " ".join(parts)


def _facts(run: RunFolder) -> list[tuple[str, str]]:
    stream = run.stream
    domains = ", ".join(f"{e.name} ({e.train} train, {e.test} test)" for e in stream.experiences)
    model = run.config.get("model") or {}
    strategy = run.config.get("strategy") or {}
    return [
        ("Benchmark", stream.name),
        ("Tasks" if len(stream.tasks) > 1 else "Task", "; ".join(map(_task, stream.tasks))),
        ("Domains in order", domains),
        ("Model", str(model.get("name", MISSING))),
        ("Adapters", ", ".join(f"{k} {_plain(v)}" for k, v in strategy.items() if v is not None)),
        ("Seeds", ", ".join(map(str, run.seeds))),
        ("Data fingerprint", stream.fingerprint),
    ]


def _task(task: TaskRecord) -> str:
    labels = f", {len(task.labels)} labels" if task.labels else ""
    return f"{task.name} ({task.kind}{labels})"


def _table(table: ResultTable) -> dict[str, Any]:
    first = len(table.rows) - table.references
    rows = []
    for i, name in enumerate(table.rows):
        kind = "reference" if i >= first else ""
        kind += " first-reference" if i == first and i else ""
        cells = []
        for j in range(len(table.columns)):
            text, around = table.cell(i, j)
            value = _value(float(table.mean[i, j]))
            cells.append(_Cell(value, text, around.replace("± ", "±"), table.is_best(i, j)))
        rows.append({"name": name, "kind": kind, "cells": cells})
    return {
        "title": table.title,
        "columns": table.columns,
        "rows": rows,
        "notes": table.notes,
    }


def _figures(run: RunFolder, metric: Metric) -> Iterator[dict[str, Any]]:
    for name, figure in draw_figures(run, metric.name).items():
        yield {
            "title": FIGURES[name].title,
            "caption": FIGURES[name].caption,
            "source": _source(figure),
            "width": round(96 * figure.get_figwidth()),
        }


def _source(figure: Figure) -> str:
    data, kind = render(figure, "svg"), "svg+xml"
    if len(data) > _LARGEST_SVG:
        data, kind = render(figure, "png"), "png"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _differences(run: RunFolder, reference: str, metric: Metric) -> dict[str, Any]:
    source = Source((run,), averages(run.scores, metric.name, run.stream.shape(metric.name)))
    arms = [a for a in (*run.arms, *run.references) if a in source.averages and a != reference]
    differences = differences_to(source, arms, source, reference, metric)
    column = Column("", "", "", percent=metric.percent, signed=True)
    p, n = Column("", "", "", form="p"), Column("", "", "", form="count")
    rows = []
    for arm, d in differences.found.items():
        numbers = [(column, d.mean), (column, d.low), (column, d.high), (n, float(d.n))]
        numbers += [] if differences.over_images else [(p, d.p), (p, d.holm)]
        rows.append(
            {
                "name": arm,
                "kind": "reference" if arm in run.references else "",
                "cells": [_Cell(_value(value), shown.number(value)) for shown, value in numbers],
            }
        )
    points = f", {metric.points}" if metric.points else ""
    headings = [f"Difference{points}", "Low", "High", f"n ({differences.unit})"]
    headings += [] if differences.over_images else ["p", "p, Holm"]
    return {
        "reference": reference,
        "headings": headings,
        "note": f"Compared with {reference}. " + differences.explained(reference),
        "rows": rows,
    }


def _training(run: RunFolder) -> dict[str, Any]:
    """Return a row per adapter and a column per metric that any of them was trained under."""
    curves = [curve for curve in run.curves if curve.losses]
    measured = {curve.metric for curve in curves}
    every = run.stream.metrics.values()
    # Where no curve says what was measured, the column of the primary metric shows dashes.
    metrics = [m for m in every if m.name in measured] or list(every)[:1]
    columns = [(m, Column(m.name, "", "", percent=m.percent)) for m in metrics]
    rows = []
    for curve in curves:
        cells = [
            _Cell(str(curve.seed), str(curve.seed)),
            _Cell(str(len(curve.epochs)), str(len(curve.epochs))),
            *(_Cell(_value(v), f"{v:.3f}") for v in (curve.losses[0], curve.losses[-1])),
        ]
        for metric, column in columns:
            value = curve.values[-1] if curve.metric == metric.name else math.nan
            cells.append(_Cell(_value(value), column.number(value)))
        name = f"{curve.experience:02d} {curve.name}"
        rows.append({"name": name, "bank": curve.bank, "cells": cells})
    headings = ["Seed", "Epochs", "First loss", "Last loss"]
    return {"headings": [*headings, *(f"Last {in_unit(m)}" for m in metrics)], "rows": rows}


def _scores(run: RunFolder) -> Iterator[dict[str, Any]]:
    rows: dict[tuple[str, int, str, int], dict[int, float]] = {}
    for s in run.scores:
        rows.setdefault((s.arm, s.seed, s.metric, s.stage), {})[s.evaluated] = s.value
    names = {s.index: s.name for s in run.stream.stages}
    for (arm, seed, metric, stage), values in rows.items():
        yield {
            "arm": arm,
            "seed": seed,
            "metric": metric,
            "stage": stage,
            "after": MISSING if stage == UNTRAINED else names[stage],
            "cells": _number_cells(values, len(run.experiences)),
        }


def _coefficients(run: RunFolder) -> Iterator[dict[str, Any]]:
    rows: dict[tuple[str, int, int, str], dict[int, float]] = {}
    for row in run.coefficients.itertuples(index=False):
        r: Any = row
        rows.setdefault((r.arm, r.seed, r.stage, r.group), {})[r.adapter] = r.value
    names = {s.index: s.name for s in run.stream.stages}
    for (arm, seed, stage, group), values in rows.items():
        yield {
            "arm": arm,
            "seed": seed,
            "stage": stage,
            "after": names[stage],
            "group": group,
            "cells": _number_cells(values, len(run.experiences)),
        }


def _number_cells(values: Mapping[int, float], count: int) -> list[_Cell]:
    found = [values.get(j, math.nan) for j in range(count)]
    return [_Cell(_value(v), MISSING if math.isnan(v) else f"{v:.4f}") for v in found]


def _configuration(run: RunFolder) -> str:
    # Copied through JSON, as YAML would write shared parts as anchors and aliases.
    told = ("arms", "variants", "descriptions", "identity")  # in sections of their own
    kept = {k: v for k, v in run.config.items() if k not in told and v is not None}
    plain = json.loads(json.dumps(kept))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).strip()


def _one_line(settings: Mapping[str, Any]) -> str:
    if not settings:
        return ""
    plain = json.loads(json.dumps(dict(settings)))
    return yaml.safe_dump(
        plain, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True
    ).strip()


def _plain(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "+".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _value(value: float) -> str:
    """Return a number for sorting; JavaScript reads what repr writes, and "nan" as NaN."""
    return repr(float(value))
