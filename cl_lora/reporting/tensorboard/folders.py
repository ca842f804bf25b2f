"""Which TensorBoard runs there are, and where they lie."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from cl_lora.reporting.figures.numbers import metric_of, scored_arms
from cl_lora.reporting.ranking import ranking_of
from cl_lora.reporting.tensorboard.arms import Shown, write_arm
from cl_lora.reporting.tensorboard.overview import write_overview
from cl_lora.reporting.tensorboard.scalars import Scalars, scalars_by_seed
from cl_lora.reporting.tensorboard.writing import add_scalars, writer_in
from cl_lora.run_folder import layout
from cl_lora.run_folder.reader import RunFolder
from cl_lora.support import files, progress

OVERVIEW = "overview"
TRAINING = "training"
ARMS = "arms"
SEEDS = "seeds"

MOST_RUNS = 40
"""With more runs than this TensorBoard opens its tabs with none of them selected."""


def write_tensorboard(run: RunFolder) -> tuple[Path, ...]:
    """Write the folders ``tensorboard/`` and ``tensorboard_details/``; return them.

    ``tensorboard/`` is what a reader opens first: a TensorBoard run ``overview`` and one for each
    arm, the mean over seeds. It holds at most 40 runs, the number up to which TensorBoard opens
    filled; where there are more arms the last by the result are in the details instead.
    ``tensorboard_details/`` holds what is looked at afterwards: ``seeds/<arm>/seed-<s>`` where
    there are several seeds, ``training/seed-<s>/<bank>/<adapter>`` with the curves of training, and
    ``arms/<arm>``, the arms that ``tensorboard/`` has no room for. ``tensorboard --logdir RUN``
    shows both.

    Steps are the stages, counted from 1, or what the protocol counts; step 0 is before any
    training. Of a few-shot run they are K, draws averaged; the whole pool is its mean number of
    samples per class.

    - ``accuracy/<experience>``: R[t, j]; ``accuracy/average``: mean over the experiences seen so
      far, or over all that the stage evaluates where stages do not follow one another; the same
      for every other metric.
    - ``forgetting/accuracy``: forgetting (Chaudhry et al. 2018) after each stage, where stages
      follow one another.
    - ``interval/<tag>/low`` and ``high``: the 95 % interval over seeds of averages and forgetting.
      The tab Custom Scalars draws them as a band.
    - ``coefficients/<adapter>``: mean over layers or modules; where each has its own, a histogram
      shows them. ``coefficients/<experience>/<adapter>`` where a few-shot run adapts to several.
    - ``scores/accuracy``: the score matrix as an image.
    - ``accounts/<quantity>``: what adapting cost, of a few-shot run; ``accounts/parameters``: the
      numbers that serve all tasks, of a run that merges all at once; what serving costs and what
      must be kept, after the last experience.
    - ``routing/right``: of routed arms, the share of test samples of the experiences seen so far
      that the adapter of their own experience served, after each stage.
    - ``weights/<experience>``: learned weights by layer beside linear CKA, as an image.
    - HPARAMS: the settings of the arm beside ``result/<metric>``, to sort the arms by result.
    - ``interference/...``: of a run that merges pairs, an image of the harm, what each task
      suffers, does to others, and from each partner. All else is under the group of subsets:
      ``pairs/...``, ``triples/...``.
    - ``embedding/<experience>``: t-SNE of the features of a task under the arm, as an image.
    - ``in_time/...``: of a stream of few-shot tasks the same in time, beside that by K.
    - ``overview`` holds the answers and the configuration as text, the layout of Custom Scalars,
      and the pictures of all arms together.

    Each of the two folders is written whole under another name and put in the place of the old
    one: writing again leaves the same scalars once, and nothing of arms that are gone.

    Raises:
        UserError: if a folder cannot be written.
    """
    shown = Shown.of(run)
    arms = scored_arms(run)
    first = shown_first(run)
    scalars = {arm: scalars_by_seed(shown.views_with(arm), arm) for arm in arms}
    root, details = run.path / layout.TENSORBOARD, run.path / layout.TENSORBOARD_DETAILS
    with files.whole_folder(root, replace=True) as folder:
        name = free_name(OVERVIEW, first)
        write_overview(shown, [a for a in arms if a not in first], folder / name)
        for arm in progress.track(first, "writing TensorBoard files"):
            write_arm(shown, arm, scalars[arm], folder / arm)
    with files.whole_folder(details, replace=True) as folder:
        for arm in arms:
            if arm not in first:
                write_arm(shown, arm, scalars[arm], folder / ARMS / arm)
        _write_seeds(scalars, folder / SEEDS)
        _write_training(run, folder / TRAINING)
    return root, details


def shown_first(run: RunFolder) -> list[str]:
    """Return the arms that are shown first, in the order of the run, baselines included.

    Where there is no room for all the arms with the best results are, and all baselines.
    """
    every = scored_arms(run)
    room = MOST_RUNS - 1  # the overview is one
    if len(every) <= room:
        return list(every)
    ranking = ranking_of(run, metric_of(run))
    baselines = [a for a in every if a in run.references]
    kept = list(dict.fromkeys((*baselines, *ranking.arms, *every)))[:room]
    return [a for a in every if a in kept]


def free_name(name: str, taken: list[str]) -> str:
    """Return ``name``, with underscores until no arm has it."""
    while name in taken:
        name += "_"
    return name


def _write_seeds(scalars: Mapping[str, Mapping[int, Scalars]], folder: Path) -> None:
    for arm, of_seed in scalars.items():
        if len(of_seed) > 1:
            for seed, found in of_seed.items():
                with writer_in(folder / arm / f"seed-{seed}") as writer:
                    add_scalars(writer, found)


def _write_training(run: RunFolder, folder: Path) -> None:
    for curve in run.curves:
        adapter = f"{curve.experience:02d}-{curve.name}"
        with writer_in(folder / f"seed-{curve.seed}" / curve.bank / adapter) as writer:
            for epoch, loss, value in zip(curve.epochs, curve.losses, curve.values, strict=True):
                # NaN, which is left out, where no metric was recorded.
                found = {("training/loss", epoch): loss, (f"training/{curve.metric}", epoch): value}
                add_scalars(writer, {k: v for k, v in found.items() if math.isfinite(v)})
