"""The run as TensorBoard event files: one TensorBoard run per arm."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from cl_lora.evaluation.aggregate import estimate
from cl_lora.evaluation.continual import forgetting
from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.budgets import has_budgets
from cl_lora.reporting.faces import downstream
from cl_lora.reporting.figures.embedding import embedding_figure
from cl_lora.reporting.figures.interference import harm_figure, similarity_figure
from cl_lora.reporting.figures.matrices import matrix_figure
from cl_lora.reporting.figures.numbers import (
    metric_of,
    score_matrix,
    scored_arms,
    seeds_of,
    stage_averages,
)
from cl_lora.reporting.figures.registry import FIGURES
from cl_lora.reporting.figures.style import STYLE, render
from cl_lora.reporting.figures.weights import arms_by_layer, weights_figure
from cl_lora.reporting.hparams import add_hparams, domains_of, hparams_of
from cl_lora.reporting.multitask import Analysis, analysis_of
from cl_lora.reporting.routing import routed_arms, routed_right, routing_matrix
from cl_lora.reporting.views import View, views_of
from cl_lora.run_folder import layout
from cl_lora.run_folder.reader import RunFolder
from cl_lora.support import files, progress

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TRAINING = "training"

_WHOLE = ("pareto", "by_q_and_m", "spectra", "costs", "routing")
"""The figures of all arms together that are shown."""

Scalars = dict[tuple[str, int], float]
"""(tag, step) -> value."""


def write_tensorboard(run: RunFolder) -> tuple[Path, ...]:
    """Write ``tensorboard/<arm>/`` for every arm and ``tensorboard/training/``; return the folders.

    The TensorBoard run ``<arm>`` holds the mean over seeds, ``<arm>/seed-<s>`` one seed where
    there are several: the regular expression ``seed`` shows or hides them all. Steps are the
    stages, counted from 1, or what the protocol counts; step 0 is before any training. Of a
    few-shot run they are K, draws averaged; the whole pool is its mean number of samples a class.

    - ``accuracy/<experience>``: R[t, j]; ``accuracy/average``: mean over the experiences seen so
      far, or over all that the stage evaluates where stages do not follow one another; the same
      for every other metric.
    - ``forgetting/accuracy``: forgetting (Chaudhry et al. 2018) after each stage, where stages
      follow one another.
    - ``coefficients/<adapter>``: mean over layers or modules; where each has its own, a histogram
      shows them. ``coefficients/<experience>/<adapter>`` where a few-shot run adapts to several.
    - ``scores/accuracy``: the score matrix as an image.
    - ``accounts/<quantity>``: what adapting cost, of a few-shot run; ``accounts/parameters``: the
      numbers that serve all tasks, of a run that merges all at once; what serving costs and what
      must be kept, after the last experience.
    - ``routing/right``: of routed arms, the share of test samples of the experiences seen so far
      that the adapter of their own experience served, after each stage.
    - ``weights/<experience>``: learned weights by layer beside linear CKA, as an image.
    - HPARAMS: the settings of the arm beside ``result/<measure>``, to sort the arms by result.
    - ``interference/...``: of a run that merges pairs, an image of the harm, what each task
      suffers, does to others, and from each partner; the similarities of adapters stand in
      ``training``, and so do the figures ``pareto``, ``by_q_and_m``, ``spectra``, ``costs`` and
      ``routing``, where the run has them. All else is under the group of subsets: ``pairs/...``,
      ``triples/...``.
    - ``embedding/<experience>``: t-SNE of the features of a task under the arm, as an image.
    - ``in_time/...``: of a stream of few-shot tasks the same in time, beside that by K.
    - ``training/seed-<s>/<bank>/<adapter>``: ``training/loss`` and ``training/<metric>``, steps
      are epochs.

    Over 40 runs TensorBoard starts its tabs Scalars and Images with none of them selected: the
    button below the list, or the tab Time Series, shows them all.

    Each folder is written whole under another name and put in the place of the old one, so
    writing again leaves the same scalars once.

    Raises:
        UserError: if the folder cannot be written.
    """
    root = run.path / layout.TENSORBOARD
    written = []
    domains = domains_of(run)
    views, analysis = views_of(run), analysis_of(run)
    results = {tag: of_arm for view in views for tag, of_arm in view.results.items()}
    for arm in progress.track(scored_arms(run), "writing TensorBoard files"):
        with files.whole_folder(root / arm, replace=True) as folder:
            _write_arm(run, views, arm, folder, domains, list(results), analysis)
        written.append(root / arm)
    if run.curves or analysis is not None or has_budgets(run) or len(run.spectra):
        # An arm may be called 'training' as well.
        name = TRAINING
        while name in run.scores.arms:
            name += "_"
        with files.whole_folder(root / name, replace=True) as folder:
            _write_training(run, folder, analysis)
        written.append(root / name)
    return tuple(written)


def _write_arm(
    run: RunFolder,
    views: Sequence[View],
    arm: str,
    folder: Path,
    hparam_domains: Mapping[str, list[Any]],
    results: Sequence[str],
    analysis: Analysis | None,
) -> None:
    views = [view for view in views if view.scored(arm)]
    of_seed = {
        seed: {k: v for view in views for k, v in _scalars(view, arm, seed).items()}
        for seed in seeds_of(run)
    }
    keys = dict.fromkeys(key for scalars in of_seed.values() for key in scalars)
    mean = {
        key: estimate([scalars.get(key, math.nan) for scalars in of_seed.values()]).mean
        for key in keys
    }
    with _writer(folder) as writer:
        _add(writer, mean)
        for view in views:
            last = view.steps[-1]
            found = view.results.items()
            _add(writer, {(tag, last): of_arm[arm] for tag, of_arm in found if arm in of_arm})
            # A group of subsets has no stages, and what is merged once a single one.
            lone = view.face.kind == "group" or has_budgets(run)
            for metric in [] if lone else _metrics(view.run):
                _add_matrix(writer, view, arm, metric, last)
            for step, values in _by_group(view, arm):
                # Not through torch, whose histograms fail on few distinct values.
                writer.add_histogram(f"{view.prefix}coefficients", values, step, bins="auto")
            if view.face.kind == "shots":
                _add_weights(writer, run, arm, last)
        if analysis is not None and arm in analysis.arms:
            _add_interference(writer, analysis, arm)
        _add_embedding(writer, run, arm)
        add_hparams(writer, arm, hparams_of(run, arm), results, hparam_domains)
    if len(of_seed) > 1:
        for seed, scalars in of_seed.items():
            with _writer(folder / f"seed-{seed}") as writer:
                _add(writer, scalars)


def _write_training(run: RunFolder, folder: Path, analysis: Analysis | None) -> None:
    images: dict[str, Figure | None] = {}
    with mpl.rc_context(dict(STYLE)):
        if analysis is not None:
            for measure in analysis.similarity:
                images[f"similarity/{measure}"] = similarity_figure(analysis, measure)
        for name in _WHOLE:
            images[name] = FIGURES[name].of(run, metric_of(run))
    if any(images.values()):
        with _writer(folder) as writer:
            for tag, figure in images.items():
                if figure is not None:
                    _add_image(writer, tag, figure, 1)
    for curve in run.curves:
        adapter = f"{curve.experience:02d}-{curve.name}"
        with _writer(folder / f"seed-{curve.seed}" / curve.bank / adapter) as writer:
            for epoch, loss, value in zip(curve.epochs, curve.losses, curve.values, strict=True):
                _add(writer, {("training/loss", epoch): loss})
                # NaN, which is left out, where no metric was recorded.
                _add(writer, {(f"training/{curve.metric}", epoch): value})


def _metrics(run: RunFolder) -> list[Metric]:
    """Return the run's metrics that were scored, the primary one first."""
    return [m for name, m in run.stream.metrics.items() if name in run.scores.metrics]


def _scalars(view: View, arm: str, seed: int) -> Scalars:
    run, steps = view.run, view.steps
    if seed not in run.scores.seeds:
        return {}
    scalars: Scalars = {}
    for metric in _metrics(run):
        matrix = score_matrix(run, seed, arm, metric)
        for j, name in enumerate(run.experiences):
            scalars[(f"{metric.name}/{name}", 0)] = float(matrix.baseline[j])
            for s, step in enumerate(steps):
                scalars[(f"{metric.name}/{name}", step)] = float(matrix.values[s, j])
        averages = stage_averages(run, matrix.values, metric)
        for s, step in enumerate(steps):
            scalars[(f"{metric.name}/average", step)] = float(averages[s])
            # Forgetting is a measure of time: one more experience with every stage.
            if run.stream.ordered and len(steps) == len(run.experiences):
                part = matrix.values[: s + 1, : s + 1]
                lost = forgetting(part, metric.higher_is_better)
                scalars[(f"forgetting/{metric.name}", step)] = lost
    for tag, every in view.coefficients.items():
        rows = every[(every["arm"] == arm) & (every["seed"] == seed)]
        for (stage, adapter), values in rows.groupby(["stage", "adapter"])["value"]:
            i = int(str(adapter))
            scalars[(f"{tag}/{i:02d}-{run.experiences[i]}", steps[int(str(stage))])] = float(
                values.mean()
            )
    for spent in (run.accounts, run.times):
        rows = spent[(spent["arm"] == arm) & (spent["seed"] == seed)]
        for (stage, quantity), values in rows.groupby(["stage", "quantity"])["value"]:
            scalars[(f"accounts/{quantity}", steps[int(str(stage))])] = float(values.mean())
    for s, step in enumerate(steps) if arm in routed_arms(run) else ():
        routes = routing_matrix(run, arm, s, seed)
        if routes is not None:
            scalars[("routing/right", step)] = routed_right(routes)
    return {
        (f"{view.prefix}{tag}", step): value
        for (tag, step), value in scalars.items()
        if math.isfinite(value)
    }


def _by_group(view: View, arm: str) -> Iterator[tuple[int, Any]]:
    """Yield (step, coefficients) of an arm whose layers or modules have their own."""
    rows = view.run.coefficients[view.run.coefficients["arm"] == arm]
    if rows["group"].nunique() > 1:
        for stage, values in rows.groupby("stage")["value"]:
            yield view.steps[int(str(stage))], values.to_numpy()


def _add_matrix(writer: SummaryWriter, view: View, arm: str, metric: Metric, step: int) -> None:
    with mpl.rc_context(dict(STYLE)):
        figure = matrix_figure(view.run, arm, metric)
    _add_image(writer, f"{view.prefix}scores/{metric.name}", figure, step)


def _add_weights(writer: SummaryWriter, run: RunFolder, arm: str, step: int) -> None:
    """Add the weights of an arm by layer, beside CKA, for each downstream experience."""
    if arm not in arms_by_layer(run):
        return
    for j in downstream(run):
        with mpl.rc_context(dict(STYLE)):
            figure = weights_figure(run, arm, [j])
        if figure is not None:
            _add_image(writer, f"weights/{run.experiences[j]}", figure, step)


def _add_embedding(writer: SummaryWriter, run: RunFolder, arm: str) -> None:
    """Add where t-SNE places features under an arm, an image for each task that has some."""
    for j in sorted(set(run.embedding["evaluated"])):
        with mpl.rc_context(dict(STYLE)):
            figure = embedding_figure(run, arm, j)
        if figure is not None:
            _add_image(writer, f"embedding/{run.experiences[j]}", figure, 1)


def _add_interference(writer: SummaryWriter, analysis: Analysis, arm: str) -> None:
    """Add the harm of an arm's pairs as an image, and its numbers."""
    found = analysis.arms[arm]
    with mpl.rc_context(dict(STYLE)):
        figure = harm_figure(analysis, arm)
    _add_image(writer, "interference/harm", figure, 1)
    parts = {"suffered": found.suffered, "done": found.done}
    for j, name in enumerate(analysis.names):
        for part, values in parts.items():
            _add(writer, {(f"interference/{part}/{name}", 1): float(values[j])})
        for i, partner in enumerate(analysis.names):
            _add(writer, {(f"interference/{name}/with {partner}", 1): float(found.harm[j, i])})


def _add_image(writer: SummaryWriter, tag: str, figure: Figure, step: int) -> None:
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(render(figure, "png"))).convert("RGB"))
    writer.add_image(tag, pixels, step, dataformats="HWC")


def _add(writer: SummaryWriter, scalars: Mapping[tuple[str, int], float]) -> None:
    for (tag, step), value in scalars.items():
        if math.isfinite(value):
            writer.add_scalar(tag, value, step)


def _writer(folder: Path) -> SummaryWriter:
    # TensorBoard says so at length when TensorFlow is not there; it is not needed.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from cl_lora.reporting.events import EventWriter

    return EventWriter(str(folder))
