"""The report of a run as one HTML file that needs no network."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from cl_lora.evaluation.continual import MEASURES
from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.budgets import headline
from cl_lora.reporting.faces import faces, is_few_shot, merges_subsets
from cl_lora.reporting.figures import FIGURES, draw_figures, render
from cl_lora.reporting.multitask import is_multitask
from cl_lora.reporting.page.budgets import budgets
from cl_lora.reporting.page.cells import Cell, sortable
from cl_lora.reporting.page.costs import costs
from cl_lora.reporting.page.differences import differences
from cl_lora.reporting.page.interference import interference
from cl_lora.reporting.page.lead import facts, lead
from cl_lora.reporting.page.numbers import coefficients, scores
from cl_lora.reporting.page.training import training
from cl_lora.reporting.tables import (
    ResultTable,
    costs_table,
    main_tables,
    partner_tables,
    tables_by_experience,
    tables_by_task,
)
from cl_lora.run_folder.layout import REPORT_FILE
from cl_lora.run_folder.reader import RunFolder
from cl_lora.support import files

_LARGEST_SVG = 400_000
"""Bytes over which a figure is embedded as PNG: a browser draws many outlines slowly."""


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
    metric = headline(run)
    tables, folded = _results(run, metrics)
    figures = list(_figures(run, metric))
    environment = Environment(
        loader=PackageLoader("cl_lora.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=False,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2").render(
        run=run,
        few_shot=is_few_shot(run),
        lead=lead(run, metric),
        facts=facts(run),
        multitask=is_multitask(run),
        subsets=merges_subsets(run),
        tables=[_table(t) for t in tables],
        folded=[(title, [_table(t) for t in parts]) for title, parts in folded],
        figures=[f for f in figures if not f["section"]],
        interference=_interference(run, figures),
        budgets=_budgets(run, metric, figures),
        differences=list(differences(run, metric)),
        costs=_costs(run, metric, figures),
        adapting=[_table(t) for t in costs(run)],
        arms=[
            {"name": a, "words": run.description(a), "settings": _one_line(run.settings(a))}
            for a in (*run.arms, *run.references)
        ],
        training=training(run),
        score_count=len(run.scores),
        scores=list(scores(run)),
        coefficients=list(coefficients(run)),
        configuration=_configuration(run),
        environment=yaml.safe_dump(
            json.loads(json.dumps(dict(run.environment))), sort_keys=True, allow_unicode=True
        ).strip(),
        measures=list(MEASURES.values()),
    )


def _results(
    run: RunFolder, metrics: Sequence[Metric]
) -> tuple[list[ResultTable], list[tuple[str, list[ResultTable]]]]:
    """Return the tables that are open, and those that are folded under a title.

    Of unlike tasks the metric that leads, such as the share of single task, is open, and each task
    by its own metric; every other metric is folded, and so is every task with its partners.
    """
    if not is_multitask(run):
        tables = [table for m in metrics for table in main_tables(run, m)]
        return [*tables, *tables_by_experience(run, metrics[0])], []
    first = headline(run)
    tables = [*main_tables(run, first), *tables_by_task(run)]
    folded = [(f"{name}: merged with each partner", t) for name, t in partner_tables(run)]
    others = [table for m in metrics if m != first for table in main_tables(run, m)]
    if others:
        folded.append(("Every metric, over the tasks that have it", others))
    return tables, folded


def _interference(run: RunFolder, figures: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    found = interference(run)
    if found is None:
        return None
    drawn = [f for f in figures if f["section"] == "interference"]
    return {**found, "tables": [_table(t) for t in found["tables"]], "figures": drawn}


def _budgets(
    run: RunFolder, metric: Metric, figures: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    table = budgets(run, metric)
    if table is None:
        return None
    return {"table": _table(table), "figures": [f for f in figures if f["section"] == "budgets"]}


def _costs(
    run: RunFolder, metric: Metric, figures: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    timely = faces(run)[-1].run  # in time, where there is time
    told = metric.name in timely.scores.metrics
    table = costs_table(timely, metric) if told else None
    if table is None:
        return None
    return {"table": _table(table), "figures": [f for f in figures if f["section"] == "costs"]}


def _table(table: ResultTable) -> dict[str, Any]:
    first = len(table.rows) - table.references
    rows = []
    for i, name in enumerate(table.rows):
        kind = "reference" if i >= first else ""
        kind += " first-reference" if i == first and i else ""
        cells = []
        for j in range(len(table.columns)):
            text, around = table.cell(i, j)
            value = sortable(float(table.mean[i, j]))
            cells.append(Cell(value, text, around.replace("± ", "±"), table.is_best(i, j)))
        rows.append({"name": name, "kind": kind, "cells": cells})
    return {
        "title": table.title,
        "row_title": table.row_title,
        "columns": table.columns,
        "rows": rows,
        "notes": table.notes,
    }


def _figures(run: RunFolder, metric: Metric) -> Iterator[dict[str, Any]]:
    for name, figure in draw_figures(run, metric.name).items():
        yield {
            "section": FIGURES[name].section,
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
