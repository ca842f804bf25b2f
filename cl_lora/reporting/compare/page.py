"""A comparison as one HTML page that needs no network, with the parts of a run's report."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cl_lora.reporting.answers import Answer, answers_of
from cl_lora.reporting.compare.drawing import comparison_figure, comparison_table
from cl_lora.reporting.compare.joining import Condition
from cl_lora.reporting.compare.statistics import Comparison
from cl_lora.reporting.figures import FIGURES
from cl_lora.reporting.html import page
from cl_lora.reporting.page.facts import summary
from cl_lora.reporting.page.grid import grid
from cl_lora.reporting.page.pictures import Picture, picture
from cl_lora.run_folder.layout import REPORT_FILE

_RANKING = "ranking"


@dataclass(frozen=True, eq=False)
class Told:
    """What a page says of one condition.

    Attributes:
        label: how it is called in tables.
        summary: what its runs were made of, in one line.
        answers: to the questions of a reader, of all its seeds together.
        picture: how far its rows are from the best arm; None where no arm has every seed.
        reports: (address, words) of the reports of its runs.
    """

    label: str
    summary: str
    answers: tuple[Answer, ...]
    picture: Picture | None
    reports: tuple[tuple[str, str], ...]


def comparison_html(comparison: Comparison, file: Path, command: str = "") -> str:
    """Return the page of a comparison; the same comparison gives the same text.

    The answers of each condition lead, over all its seeds, with every row's distance from the best
    arm; the table and the figure of all conditions follow.

    Args:
        comparison: what is shown.
        file: where the page will lie, from where the reports of the runs are linked.
        command: the command line that made it; shown if given.
    """
    drawn = picture(
        comparison_figure(comparison),
        "comparison",
        "Every arm under every condition",
        "Mean over seeds with one standard deviation to each side. Hollow: an arm that lacks seeds "
        "which others have. Beside it the differences with their intervals, if --to asks for them.",
    )
    return page(
        "compare.html.j2",
        title=_title(comparison.conditions),
        conditions=list(_told(comparison, file)),
        table=grid(comparison_table(comparison)),
        drawn=drawn,
        command=command,
    )


def _title(conditions: Sequence[Condition]) -> str:
    count = sum(len(c.runs) for c in conditions)
    names = ", ".join(c.label for c in conditions)
    return f"{names}: {count} run{'s' * (count != 1)} compared"


def _told(comparison: Comparison, file: Path) -> Iterator[Told]:
    for number, condition in enumerate(comparison.conditions, 1):
        run, metric = condition.pooled, comparison.metric
        info = FIGURES[_RANKING]
        figure = info.of(run, metric)
        name = f"{_RANKING}-{number}"
        yield Told(
            condition.label,
            summary(run),
            answers_of(run, metric),
            picture(figure, name, info.title, info.caption) if figure else None,
            tuple(_reports(condition, file)),
        )


def _reports(condition: Condition, file: Path) -> Iterator[tuple[str, str]]:
    for run in condition.runs:
        report = run.path / REPORT_FILE
        if report.is_file():
            address = Path(os.path.relpath(report.resolve(), file.resolve().parent))
            yield address.as_posix(), f"report of {run.path.resolve().name}"
