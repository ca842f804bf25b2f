"""The report of a run as one HTML file that needs no network."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from cl_lora.evaluation.continual import MEASURES
from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.answers import answers_of
from cl_lora.reporting.budgets import headline
from cl_lora.reporting.describe import configuration_text
from cl_lora.reporting.faces import Face, downstream, faces, is_few_shot
from cl_lora.reporting.figures import draw_figures
from cl_lora.reporting.multitask import is_multitask
from cl_lora.reporting.page.costs import costs
from cl_lora.reporting.page.differences import differences
from cl_lora.reporting.page.facts import commands, facts, links, summary
from cl_lora.reporting.page.grid import Grid, grid
from cl_lora.reporting.page.interference import interference
from cl_lora.reporting.page.numbers import coefficients, scores
from cl_lora.reporting.page.pictures import Picture, pictures
from cl_lora.reporting.page.training import training
from cl_lora.reporting.tables import (
    costs_table,
    main_tables,
    partner_tables,
    sizes_table,
    tables_by_experience,
    tables_by_task,
)
from cl_lora.run_folder.layout import REPORT_FILE
from cl_lora.run_folder.reader import RunFolder
from cl_lora.support import files


def write_html(run: RunFolder, drawn: Mapping[str, Figure] | None = None) -> Path:
    """Write ``report.html`` into the run's folder and return its path.

    One file: style, script and figures are inline. The answers lead, with every arm's distance from
    the best; the table of the primary metric follows, the others a tab away.

    Args:
        run: the run.
        drawn: its figures as :func:`~cl_lora.reporting.figures.draw_figures` returns them; drawn
            here, if not given.

    Raises:
        UserError: if there are no scores, or the folder cannot be written.
    """
    path = run.path / REPORT_FILE
    files.write_text(path, render_html(run, drawn))
    return path


def render_html(run: RunFolder, drawn: Mapping[str, Figure] | None = None) -> str:
    """Return the report of ``run`` as HTML; the same run gives the same text."""
    run.check_finished()
    metric = headline(run)
    shown = pictures(draw_figures(run) if drawn is None else drawn)
    found = interference(run)
    return page(
        "report.html.j2",
        run=run,
        summary=summary(run),
        few_shot=is_few_shot(run),
        multitask=is_multitask(run),
        answers=answers_of(run, metric),
        tabs=list(_tabs(run, metric)),
        others=list(_others(run, metric)),
        **_figures(shown),
        interference=found,
        sizes=_grid_or_none(sizes_table(run, metric)),
        differences=list(differences(run, metric)),
        costs=_costs(run, metric),
        adapting=[grid(t) for t in costs(run)],
        arms=[
            {"name": a, "words": run.description(a), "settings": _one_line(run.settings(a))}
            for a in (*run.arms, *run.references)
        ],
        training=training(run),
        scores=scores(run),
        coefficients=coefficients(run),
        facts=facts(run),
        commands=commands(run),
        links=list(links(run)),
        configuration=configuration_text(run),
        environment=yaml.safe_dump(
            json.loads(json.dumps(dict(run.environment))), sort_keys=True, allow_unicode=True
        ).strip(),
        measures=list(MEASURES.values()),
    )


def page(template: str, **parts: Any) -> str:
    """Return a page made from a template of this package; every part must be given.

    Templates extend ``base.html.j2``, which has style, script and the frame of all pages.
    """
    environment = Environment(
        loader=PackageLoader("cl_lora.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**parts)


def _tabs(run: RunFolder, first: Metric) -> Iterator[Grid]:
    """Yield the tables of results, the primary metric's first, each with its short name.

    Of unlike tasks other metrics are folded: :func:`_others` has them.
    """
    metrics = [first] if is_multitask(run) else _metrics(run, first)
    for metric in metrics:
        yield from _of_faces(run, metric)
    for j, table in zip(downstream(run), tables_by_experience(run, first), strict=False):
        yield grid(table, run.experiences[j])
    each = faces(run)
    for k, table in enumerate(tables_by_task(run)):
        what = table.title.partition(" by its own metric")[0]
        face = each[k] if len(each) > 1 and k < len(each) else None
        yield grid(table, f"{what}{_behind(face)}")


def _others(run: RunFolder, first: Metric) -> Iterator[tuple[str, list[Grid]]]:
    """Yield tables of unlike tasks that are folded, under a title."""
    for name, tables in partner_tables(run):
        yield f"{name}: merged with each partner", [grid(t) for t in tables]
    more = _metrics(run, first)[1:] if is_multitask(run) else []
    every = [table for metric in more for table in _of_faces(run, metric)]
    if every:
        yield "Every metric, over the tasks that have it", every


def _metrics(run: RunFolder, first: Metric) -> list[Metric]:
    """Return the metrics that were scored, the primary one first."""
    scored = [m for name, m in run.stream.metrics.items() if name in run.scores.metrics]
    return sorted(scored, key=lambda m: m != first)


def _of_faces(run: RunFolder, metric: Metric) -> Iterator[Grid]:
    each = [face for face in faces(run) if metric.name in face.run.scores.metrics]
    for face, table in zip(each, main_tables(run, metric), strict=True):
        yield grid(table, f"{metric.title}{_behind(face if len(faces(run)) > 1 else None)}")


def _behind(face: Face | None) -> str:
    """Return what tells one face of a run from its others."""
    if face is None:
        return ""
    if face.kind == "group":
        return f", {face.run.stream.trained_stages[0].name}"
    return ", by K" if face.kind == "shots" else ", in time"


def _figures(drawn: list[Picture]) -> dict[str, Any]:
    """Return the figures by where they stand: first, open, in a section, or folded."""
    first = [p for p in drawn if p.section == "first"]
    shown = [p for p in drawn if p.open and p not in first]
    rest = [p for p in drawn if p not in first and p not in shown]
    sections = {p.section for p in rest if p.section}
    return {
        "first": first[0] if first else None,
        "shown": shown,
        "folded": [p for p in rest if not p.section],
        "of_section": {name: [p for p in rest if p.section == name] for name in sections},
    }


def _costs(run: RunFolder, metric: Metric) -> Grid | None:
    timely = faces(run)[-1].run  # in time, where there is time
    told = metric.name in timely.scores.metrics
    return _grid_or_none(costs_table(timely, metric) if told else None)


def _grid_or_none(table: Any) -> Grid | None:
    return None if table is None else grid(table)


def _one_line(settings: Mapping[str, Any]) -> str:
    if not settings:
        return ""
    plain = json.loads(json.dumps(dict(settings)))
    return yaml.safe_dump(
        plain, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True
    ).strip()
