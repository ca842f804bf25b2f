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

from cl_lora.evaluation.aggregate import ALL_EXPERIENCES, estimate
from cl_lora.evaluation.continual import forgetting
from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.describe import arm_settings
from cl_lora.reporting.figures.matrices import matrix_figure
from cl_lora.reporting.figures.numbers import (
    metric_of,
    numbers_of,
    score_matrix,
    scored_arms,
    seeds_of,
    stage_averages,
)
from cl_lora.reporting.figures.style import STYLE, render
from cl_lora.run_folder import layout
from cl_lora.run_folder.reader import RunFolder
from cl_lora.support import files, progress

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TRAINING = "training"

Scalars = dict[tuple[str, int], float]
"""(tag, step) -> value."""


def write_tensorboard(run: RunFolder) -> tuple[Path, ...]:
    """Write ``tensorboard/<arm>/`` for every arm and ``tensorboard/training/``; return the folders.

    The TensorBoard run ``<arm>`` holds the mean over seeds, ``<arm>/seed-<s>`` one seed where
    there are several: the regular expression ``seed`` shows or hides them all. Steps are the
    stages, counted from 1, or what the protocol counts (K of a few-shot run); step 0 is before any
    training.

    - ``accuracy/<experience>``: R[t, j]; ``accuracy/average``: mean over the experiences seen so
      far, or over all that the stage evaluates where stages do not follow one another; the same
      for every other metric.
    - ``forgetting/accuracy``: forgetting (Chaudhry et al. 2018) after each stage, where stages
      follow one another.
    - ``coefficients/<adapter>``: mean over layers or modules; where each has its own, a histogram
      shows them.
    - ``scores/accuracy``: the score matrix as an image.
    - HPARAMS: the settings of the arm beside ``result/<measure>``, to sort the arms by result.
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
    domains = _hparam_domains(run)
    results = _results(run)
    for arm in progress.track(scored_arms(run), "writing TensorBoard files"):
        with files.whole_folder(root / arm, replace=True) as folder:
            _write_arm(run, arm, folder, domains, results)
        written.append(root / arm)
    if run.curves:
        # An arm may be called 'training' as well.
        name = TRAINING
        while name in run.scores.arms:
            name += "_"
        with files.whole_folder(root / name, replace=True) as folder:
            _write_training(run, folder)
        written.append(root / name)
    return tuple(written)


def _write_arm(
    run: RunFolder,
    arm: str,
    folder: Path,
    hparam_domains: Mapping[str, list[Any]],
    results: Mapping[str, Mapping[str, float]],
) -> None:
    of_seed = {seed: _scalars(run, arm, seed) for seed in seeds_of(run)}
    keys = dict.fromkeys(key for scalars in of_seed.values() for key in scalars)
    mean = {
        key: estimate([scalars.get(key, math.nan) for scalars in of_seed.values()]).mean
        for key in keys
    }
    last = _steps(run)[-1]
    with _writer(folder) as writer:
        _add(writer, mean)
        _add(writer, {(tag, last): of_arm[arm] for tag, of_arm in results.items() if arm in of_arm})
        for metric in _metrics(run):
            _add_matrix(writer, run, arm, metric, last)
        for step, values in _by_group(run, arm):
            # Not through torch, whose histograms fail on few distinct values.
            writer.add_histogram("coefficients", values, step, bins="auto")
        _add_hparams(writer, arm, _hparams(run, arm), list(results), hparam_domains)
    if len(of_seed) > 1:
        for seed, scalars in of_seed.items():
            with _writer(folder / f"seed-{seed}") as writer:
                _add(writer, scalars)


def _write_training(run: RunFolder, folder: Path) -> None:
    for curve in run.curves:
        adapter = f"{curve.experience:02d}-{curve.name}"
        with _writer(folder / f"seed-{curve.seed}" / curve.bank / adapter) as writer:
            for epoch, loss, value in zip(curve.epochs, curve.losses, curve.values, strict=True):
                _add(writer, {("training/loss", epoch): loss})
                # NaN, which is left out, where no metric was recorded.
                _add(writer, {(f"training/{curve.metric}", epoch): value})


def _steps(run: RunFolder) -> tuple[int, ...]:
    """Return the step of every stage after training: what its protocol counts, else its place.

    What a protocol counts must be distinct whole numbers from 1, as step 0 is before any training.
    """
    stages = run.stream.trained_stages
    counted = [s.x for s in stages if s.x is not None and s.x >= 1 and s.x == int(s.x)]
    if len(set(counted)) == len(stages):
        return tuple(int(x) for x in counted)
    return tuple(range(1, len(stages) + 1))


def _metrics(run: RunFolder) -> list[Metric]:
    """Return the run's metrics that were scored, the primary one first."""
    return [m for name, m in run.stream.metrics.items() if name in run.scores.metrics]


def _scalars(run: RunFolder, arm: str, seed: int) -> Scalars:
    scalars: Scalars = {}
    steps = _steps(run)
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
    rows = run.coefficients
    rows = rows[(rows["arm"] == arm) & (rows["seed"] == seed)]
    for adapter, name in enumerate(run.experiences):
        for s, step in enumerate(steps):
            values = rows[(rows["adapter"] == adapter) & (rows["stage"] == s)]["value"]
            scalars[(f"coefficients/{adapter:02d}-{name}", step)] = float(values.mean())
    return {key: value for key, value in scalars.items() if math.isfinite(value)}


def _by_group(run: RunFolder, arm: str) -> Iterator[tuple[int, Any]]:
    """Yield (step, coefficients) of an arm whose layers or modules have their own."""
    steps = _steps(run)
    rows = run.coefficients[run.coefficients["arm"] == arm]
    if rows["group"].nunique() > 1:
        for stage, values in rows.groupby("stage")["value"]:
            yield steps[int(str(stage))], values.to_numpy()


def _results(run: RunFolder) -> dict[str, dict[str, float]]:
    """Return ``result/<measure>`` of the primary metric: tag -> arm -> mean over seeds."""
    results: dict[str, dict[str, float]] = {}
    for (arm, measure, experience), number in numbers_of(run, metric_of(run)).items():
        if experience == ALL_EXPERIENCES:
            results.setdefault(f"result/{measure}", {})[arm] = number.mean
    return results


def _hparams(run: RunFolder, arm: str) -> dict[str, str | float]:
    s = arm_settings(run, arm)
    given: dict[str, Any] = {
        "method": s.method or "reference",
        "space": s.space if s.method else "",
        "coefficients": s.rule,
        **{s.scale_title if k == s.scale else k: v for k, v in s.rule_options.items()},
        **s.options,
        "spc": s.spc,
        "head": s.head,
        "tune_head": "yes" if s.tune_head else "",
    }
    # All numbers as float, as the values of one column must be of one kind.
    return {
        k: float(v) if isinstance(v, int | float) and not isinstance(v, bool) else str(v)
        for k, v in given.items()
        if v not in ("", None)
    }


def _hparam_domains(run: RunFolder) -> dict[str, list[Any]]:
    """Return every setting with the values it takes over all arms.

    TensorBoard takes the columns of the table from one run's description and ignores the others:
    so each run describes them all.
    """
    domains: dict[str, list[Any]] = {}
    for arm in (*run.arms, *run.references):
        for key, value in _hparams(run, arm).items():
            if value not in domains.setdefault(key, []):
                domains[key].append(value)
    # The values of one column must be of one kind: mixed ones become text.
    return {
        k: v if len({isinstance(x, str) for x in v}) == 1 else [str(x) for x in v]
        for k, v in domains.items()
    }


def _add_hparams(
    writer: SummaryWriter,
    arm: str,
    hparams: Mapping[str, str | float],
    results: Sequence[str],
    domains: Mapping[str, list[Any]],
) -> None:
    # Not SummaryWriter.add_hparams: it opens a further run named by the time, and cannot leave
    # out a setting that an arm does not have.
    from tensorboard.plugins.hparams import summary_v2

    columns = [
        summary_v2.HParam(k, summary_v2.Discrete(v, dtype=type(v[0]))) for k, v in domains.items()
    ]
    metrics = [summary_v2.Metric(tag, display_name=tag.split("/")[1]) for tag in results]
    typed = {k: v if v in domains[k] else str(v) for k, v in hparams.items()}
    file_writer: Any = writer.file_writer
    file_writer.add_summary(summary_v2.hparams_config_pb(columns, metrics))
    file_writer.add_summary(summary_v2.hparams_pb(typed, trial_id=arm))


def _add_matrix(writer: SummaryWriter, run: RunFolder, arm: str, metric: Metric, step: int) -> None:
    from PIL import Image

    with mpl.rc_context(dict(STYLE)):
        figure = matrix_figure(run, arm, metric)
    pixels = np.asarray(Image.open(io.BytesIO(render(figure, "png"))).convert("RGB"))
    writer.add_image(f"scores/{metric.name}", pixels, step, dataformats="HWC")


def _add(writer: SummaryWriter, scalars: Mapping[tuple[str, int], float]) -> None:
    for (tag, step), value in scalars.items():
        if math.isfinite(value):
            writer.add_scalar(tag, value, step)


def _writer(folder: Path) -> SummaryWriter:
    # TensorBoard says so at length when TensorFlow is not there; it is not needed.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))
