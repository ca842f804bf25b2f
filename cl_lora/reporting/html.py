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

from cl_lora.evaluation.aggregate import differences
from cl_lora.evaluation.continual import MEASURES
from cl_lora.evaluation.scores import UNTRAINED
from cl_lora.reporting.describe import in_words
from cl_lora.reporting.figures import FIGURES, draw_figures, render
from cl_lora.reporting.tables import (
    METRIC_TITLES,
    MISSING,
    PERCENT_METRICS,
    Column,
    ResultTable,
    result_table,
)
from cl_lora.run_folder.reader import RunFolder
from cl_lora.support import files

REPORT_FILE = "report.html"

COMPARED_WITH = ("sequential", "last", "base")
"""The reference row that differences are taken to: the first of these that was scored."""

_LARGEST_SVG = 400_000
"""Bytes over which a figure is embedded as PNG: a browser draws many outlines slowly."""


@dataclass(frozen=True)
class _Cell:
    value: str
    text: str
    spread: str = ""
    best: bool = False


def write_html(run: RunFolder) -> Path:
    """Write ``report.html`` into the run's folder and return its path.

    One file: style, script and figures are inline. The first metric of the scores leads; the
    others have a table each.

    Raises:
        UserError: if there are no scores, or the folder cannot be written.
    """
    path = run.path / REPORT_FILE
    files.write_text(path, render_html(run))
    return path


def render_html(run: RunFolder) -> str:
    """Return the report of ``run`` as HTML; the same run gives the same text."""
    run.check_finished()
    metric = run.scores.metrics[0]
    tables = [
        result_table(run.scores, run.experiences, run.references, m, run.arms)
        for m in run.scores.metrics
    ]
    reference = next((r for r in COMPARED_WITH if r in run.scores.arms), None)
    environment = Environment(
        loader=PackageLoader("cl_lora.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=False,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2").render(
        run=run,
        lead=_lead(tables[0], metric),
        facts=_facts(run),
        tables=[_table(t) for t in tables],
        figures=list(_figures(run, metric)),
        reference=reference,
        differences=_differences(run, reference, metric) if reference else [],
        arms=[
            {"name": a, "words": in_words(run, a), "settings": _one_line(run.settings(a))}
            for a in (*run.arms, *run.references)
        ],
        training=list(_training(run)),
        score_count=len(run.scores),
        scores=list(_scores(run)),
        coefficients=list(_coefficients(run)),
        configuration=_configuration(run),
        environment=yaml.safe_dump(
            json.loads(json.dumps(dict(run.environment))), sort_keys=True, allow_unicode=True
        ).strip(),
        measures=list(MEASURES.values()),
    )


def _lead(table: ResultTable, metric: str) -> str:
    j = next(i for i, c in enumerate(table.columns) if c.key == "average")
    column = table.columns[j]
    unit = "\N{NO-BREAK SPACE}%" if column.percent else ""
    name = METRIC_TITLES.get(metric, metric).lower() if metric != "f1" else METRIC_TITLES["f1"]
    ranked = len(table.rows) - table.references
    # A single arm has none to lead.
    best = [i for i in range(ranked) if ranked == 1 or table.is_best(i, j)]

    def said(i: int) -> str:
        value, spread = column.number(float(table.mean[i, j])), float(table.spread[i, j])
        return value + ("" if math.isnan(spread) else f" ± {column.number(spread)}") + unit

    parts = []
    if best:
        which = " and ".join(table.rows[i] for i in best)
        parts.append(f"Best of {ranked} arms by average {name}: {which} with {said(best[0])}.")
    rows = [f"{table.rows[i]} {said(i)}" for i in range(ranked, len(table.rows))]
    if rows:
        parts.append(f"For reference: {', '.join(rows)}.")
    return " ".join(parts)


def _facts(run: RunFolder) -> list[tuple[str, str]]:
    stream = run.stream
    domains = ", ".join(f"{e.name} ({e.train} train, {e.test} test)" for e in stream.experiences)
    model = run.config.get("model") or {}
    strategy = run.config.get("strategy") or {}
    return [
        ("Benchmark", f"{stream.name}, {len(stream.tasks[0].labels)} classes"),
        ("Domains in order", domains),
        ("Model", str(model.get("name", MISSING))),
        ("Adapters", ", ".join(f"{k} {_plain(v)}" for k, v in strategy.items() if v is not None)),
        ("Seeds", ", ".join(map(str, run.seeds))),
        ("Data fingerprint", stream.fingerprint),
    ]


def _table(table: ResultTable) -> dict[str, Any]:
    first = len(table.rows) - table.references
    rows = []
    for i, name in enumerate(table.rows):
        kind = "reference" if i >= first else ""
        kind += " first-reference" if i == first and i else ""
        cells = []
        for j, column in enumerate(table.columns):
            mean, spread = float(table.mean[i, j]), float(table.spread[i, j])
            text = "" if math.isnan(spread) else column.number(spread).lstrip("+")
            cells.append(_Cell(_value(mean), column.number(mean), text, table.is_best(i, j)))
        rows.append({"name": name, "kind": kind, "cells": cells})
    return {
        "title": table.title,
        "columns": table.columns,
        "rows": rows,
        "notes": table.notes,
    }


def _figures(run: RunFolder, metric: str) -> Iterator[dict[str, Any]]:
    for name, figure in draw_figures(run, metric).items():
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


def _differences(run: RunFolder, reference: str, metric: str) -> list[dict[str, Any]]:
    frame = differences(run.scores, reference, metric, experiences=len(run.experiences))
    column = Column("", "", "", percent=metric in PERCENT_METRICS, signed=True)
    rows = []
    for arm, mean, low, high, pairs in zip(
        frame["arm"],
        frame["difference"],
        frame["low"],
        frame["high"],
        frame["pairs"],
        strict=True,
    ):
        if arm == reference:
            continue
        cells = [_Cell(_value(v), column.number(v)) for v in (mean, low, high)]
        cells.append(_Cell(str(pairs), str(pairs)))
        kind = "reference" if arm in run.references else ""
        rows.append({"name": arm, "kind": kind, "cells": cells})
    return rows


def _training(run: RunFolder) -> Iterator[dict[str, Any]]:
    for curve in run.curves:
        if not curve.losses:
            continue
        numbers = (curve.losses[0], curve.losses[-1])
        accuracy = curve.accuracies[-1]
        cells = [
            _Cell(str(curve.seed), str(curve.seed)),
            _Cell(str(len(curve.epochs)), str(len(curve.epochs))),
            *(_Cell(_value(v), f"{v:.3f}") for v in numbers),
            _Cell(_value(accuracy), MISSING if math.isnan(accuracy) else f"{100 * accuracy:.1f}"),
        ]
        yield {
            "name": f"{curve.experience:02d} {curve.name}",
            "bank": curve.bank,
            "cells": cells,
        }


def _scores(run: RunFolder) -> Iterator[dict[str, Any]]:
    rows: dict[tuple[str, int, str, int], dict[int, float]] = {}
    for s in run.scores:
        rows.setdefault((s.arm, s.seed, s.metric, s.stage), {})[s.evaluated] = s.value
    for (arm, seed, metric, stage), values in rows.items():
        yield {
            "arm": arm,
            "seed": seed,
            "metric": metric,
            "stage": stage,
            "after": MISSING if stage == UNTRAINED else run.experiences[stage],
            "cells": _number_cells(values, len(run.experiences)),
        }


def _coefficients(run: RunFolder) -> Iterator[dict[str, Any]]:
    rows: dict[tuple[str, int, int, str], dict[int, float]] = {}
    for row in run.coefficients.itertuples(index=False):
        r: Any = row
        rows.setdefault((r.arm, r.seed, r.stage, r.group), {})[r.adapter] = r.value
    for (arm, seed, stage, group), values in rows.items():
        yield {
            "arm": arm,
            "seed": seed,
            "stage": stage,
            "after": run.experiences[stage],
            "group": group,
            "cells": _number_cells(values, len(run.experiences)),
        }


def _number_cells(values: Mapping[int, float], count: int) -> list[_Cell]:
    found = [values.get(j, math.nan) for j in range(count)]
    return [_Cell(_value(v), MISSING if math.isnan(v) else f"{v:.4f}") for v in found]


def _configuration(run: RunFolder) -> str:
    # Copied through JSON, as YAML would write shared parts as anchors and aliases.
    kept = {k: v for k, v in run.config.items() if k not in ("arms", "identity") and v is not None}
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
