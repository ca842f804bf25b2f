"""What the TensorBoard run of one arm holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_lora.reporting.budgets import has_budgets
from cl_lora.reporting.faces import downstream
from cl_lora.reporting.figures.embedding import embedding_figure
from cl_lora.reporting.figures.interference import harm_figure
from cl_lora.reporting.figures.matrices import matrix_figure
from cl_lora.reporting.figures.weights import arms_by_layer, weights_figure
from cl_lora.reporting.hparams import add_hparams, domains_of, hparams_of
from cl_lora.reporting.multitask import Analysis, analysis_of
from cl_lora.reporting.tensorboard.scalars import (
    Scalars,
    band,
    coefficients_by_step,
    mean_over_seeds,
    scored_metrics,
)
from cl_lora.reporting.tensorboard.writing import add_drawn, add_scalars, writer_in
from cl_lora.reporting.views import View, views_of
from cl_lora.run_folder.reader import RunFolder

if TYPE_CHECKING:
    from cl_lora.reporting.tensorboard.events import EventWriter


@dataclass(frozen=True)
class Shown:
    """What the TensorBoard runs of all arms have in common.

    Attributes:
        run: whose arms they are.
        views: its faces.
        analysis: of a run that merges pairs, who harms whom; else None.
        domains: every setting with the values that it takes.
    """

    run: RunFolder
    views: tuple[View, ...]
    analysis: Analysis | None
    domains: Mapping[str, list[Any]]

    @classmethod
    def of(cls, run: RunFolder) -> Shown:
        """Return what is shown of a run."""
        return cls(run, views_of(run), analysis_of(run), domains_of(run))

    @property
    def results(self) -> dict[str, Mapping[str, float]]:
        """``result/<metric>`` -> arm -> value."""
        return {tag: of_arm for view in self.views for tag, of_arm in view.results.items()}

    def views_with(self, arm: str) -> list[View]:
        """Return the views in which an arm has scores."""
        return [view for view in self.views if view.scored(arm)]


def write_arm(shown: Shown, arm: str, of_seed: Mapping[int, Scalars], folder: Path) -> None:
    """Write the mean over seeds of an arm, its pictures and its settings into ``folder``."""
    run = shown.run
    with writer_in(folder) as writer:
        add_scalars(writer, mean_over_seeds(of_seed))
        add_scalars(writer, band(of_seed))
        for view in shown.views_with(arm):
            last = view.steps[-1]
            found = view.results.items()
            add_scalars(
                writer, {(tag, last): of_arm[arm] for tag, of_arm in found if arm in of_arm}
            )
            # A group of subsets has no stages, and what is merged once a single one.
            lone = view.face.kind == "group" or has_budgets(run)
            for metric in [] if lone else scored_metrics(view.run):
                tag = f"{view.prefix}scores/{metric.name}"
                add_drawn(writer, tag, partial(matrix_figure, view.run, arm, metric), last)
            for step, values in coefficients_by_step(view, arm):
                # Not through torch, whose histograms fail on few distinct values.
                writer.add_histogram(f"{view.prefix}coefficients", values, step, bins="auto")
            if view.face.kind == "shots" and arm in arms_by_layer(run):
                # Learned weights by layer, beside linear CKA.
                for j in downstream(run):
                    tag = f"weights/{run.experiences[j]}"
                    add_drawn(writer, tag, partial(weights_figure, run, arm, [j]), last)
        if shown.analysis is not None and arm in shown.analysis.arms:
            _add_interference(writer, shown.analysis, arm)
        for j in sorted(set(run.embedding["evaluated"])):
            tag = f"embedding/{run.experiences[j]}"
            add_drawn(writer, tag, partial(embedding_figure, run, arm, j), 1)
        add_hparams(writer, arm, hparams_of(run, arm), list(shown.results), shown.domains)


def _add_interference(writer: EventWriter, analysis: Analysis, arm: str) -> None:
    """Add the harm of an arm's pairs as an image, and its numbers."""
    found = analysis.arms[arm]
    add_drawn(writer, "interference/harm", partial(harm_figure, analysis, arm), 1)
    parts = {"suffered": found.suffered, "done": found.done}
    for j, name in enumerate(analysis.names):
        for part, values in parts.items():
            add_scalars(writer, {(f"interference/{part}/{name}", 1): float(values[j])})
        for i, partner in enumerate(analysis.names):
            tag = f"interference/{name}/with {partner}"
            add_scalars(writer, {(tag, 1): float(found.harm[j, i])})
