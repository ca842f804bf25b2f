"""The TensorBoard run that is about all arms together: words, pictures, and what is drawn first."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cl_lora.reporting.answers import answers_of
from cl_lora.reporting.describe import configuration_text
from cl_lora.reporting.figures.interference import similarity_figure
from cl_lora.reporting.figures.numbers import metric_of
from cl_lora.reporting.figures.registry import FIGURES
from cl_lora.reporting.tensorboard.arms import Shown
from cl_lora.reporting.tensorboard.scalars import BAND, scored_metrics
from cl_lora.reporting.tensorboard.writing import add_drawn, writer_in
from cl_lora.reporting.views import View

_FIGURES = ("pareto", "by_q_and_m", "spectra", "costs", "routing")
"""The figures of all arms together that are shown."""

Layout = dict[str, dict[str, list[Any]]]
"""Category -> chart -> its kind and its tags, as ``SummaryWriter.add_custom_scalars`` takes it."""


def write_overview(shown: Shown, left_out: Sequence[str], folder: Path) -> None:
    """Write the words, the layout of the tab Custom Scalars, and the pictures of all arms.

    Args:
        shown: the run.
        left_out: arms that have no TensorBoard run beside this one.
        folder: where the event file is made.
    """
    run = shown.run
    with writer_in(folder) as writer:
        for title, text in texts(shown, left_out).items():
            writer.add_text(title, text)
        writer.add_custom_scalars(layout_of(shown))
        if shown.analysis is not None:
            for name in shown.analysis.similarity:
                add_drawn(
                    writer,
                    f"similarity/{name}",
                    partial(similarity_figure, shown.analysis, name),
                    1,
                )
        for name in _FIGURES:
            add_drawn(writer, name, partial(FIGURES[name].of, run, metric_of(run)), 1)


def texts(shown: Shown, left_out: Sequence[str]) -> dict[str, str]:
    """Return the pages of the tab Text, in Markdown: title -> text."""
    run = shown.run
    arms = [f"- **{a}**: {run.description(a)}" for a in (*run.arms, *run.references)]
    answers = [f"**{a.question}** {a.sentence}" for a in answers_of(run)]
    # TensorBoard shows them in the order of their titles.
    found = {"answers": "\n\n".join(answers), "arms": "\n".join(arms)}
    if left_out:
        found["arms left out"] = (
            f"There are more arms than TensorBoard opens at once. These {len(left_out)} have the "
            f"lowest results and lie in tensorboard_details: {', '.join(left_out)}."
        )
    found["configuration"] = "\n".join(f"    {x}" for x in configuration_text(run).splitlines())
    return found


def layout_of(shown: Shown) -> Layout:
    """Return what the tab Custom Scalars draws: what sums arms up, then each experience."""
    found: Layout = {}
    several = len(shown.run.scores.seeds) > 1
    for view in shown.views:
        summary: dict[str, list[Any]] = {}
        each: dict[str, list[Any]] = {}
        for metric in scored_metrics(view.run):
            tags = {f"{metric.title}, average": f"{view.prefix}{metric.name}/average"}
            if view.run.stream.ordered and len(view.steps) == len(view.run.experiences):
                tags[f"Forgetting of {metric.in_text} (lower is better)"] = (
                    f"{view.prefix}forgetting/{metric.name}"
                )
            for title, tag in tags.items():
                summary[title] = _lines(tag)
                if several:
                    summary[f"{title}: 95 % interval over seeds"] = _margin(tag)
            for name in view.run.experiences:
                each[f"{metric.title}, {name}"] = _lines(f"{view.prefix}{metric.name}/{name}")
        place = _place(view)
        found[f"Summary{place}"] = summary
        found[f"Each experience{place}"] = each
    return found


def _lines(tag: str) -> list[Any]:
    return ["Multiline", [f"^{re.escape(tag)}$"]]


def _margin(tag: str) -> list[Any]:
    return ["Margin", [tag, f"{BAND}/{tag}/low", f"{BAND}/{tag}/high"]]


def _place(view: View) -> str:
    return f": {view.prefix.rstrip('/').replace('_', ' ')}" if view.prefix else ""
