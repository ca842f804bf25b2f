"""Learned weights, layer by upstream adapter, beside the similarity of features (linear CKA)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cl_lora.evaluation.continual import FloatArray
from cl_lora.evaluation.metrics import Metric
from cl_lora.evaluation.similarity import rank_correlation
from cl_lora.reporting.faces import downstream, few_shot_stages
from cl_lora.reporting.figures.marks import see
from cl_lora.reporting.figures.registry import figure
from cl_lora.reporting.tables import shorten
from cl_lora.run_folder.reader import RunFolder
from cl_lora.run_folder.records import StageRecord
from cl_lora.support.errors import UserError

_DATA_SETS = 3  # how many are drawn
_PARTS = ("q", "k", "v")
_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
_TOWER = re.compile(r"(?:^|\.)(encoder|decoder)\.")
_CROSS = re.compile(r"EncDecAttention|encoder_attn|crossattention")


class Layer(NamedTuple):
    """A row of the figure; layers sort as a model computes them.

    Attributes:
        decodes: whether it is in the decoder of a model that has one.
        number: in its tower.
        crosses: whether these are its layers of cross-attention.
        tower: ``encoder`` or ``decoder``; empty where a model has no towers.
    """

    decodes: bool
    number: int
    crosses: bool
    tower: str

    @property
    def label(self) -> str:
        """What it is called on the axis."""
        words = (self.tower, str(self.number), "cross" if self.crosses else "")
        return " ".join(word for word in words if word)


@dataclass(frozen=True, eq=False)
class Heat:
    """Numbers by layer and upstream adapter, for each part of a layer.

    Attributes:
        layers: in order.
        adapters: indices of the upstream experiences.
        parts: part, e.g. ``q`` -> (layers, adapters) values; NaN where there is none.
    """

    layers: tuple[Layer, ...]
    adapters: tuple[int, ...]
    parts: Mapping[str, FloatArray]


@figure(
    "weights",
    "Learned weights and similarity of features",
    "Left: weight of each upstream adapter (columns) in each layer (rows), mean over seeds and "
    "support draws. Right: linear CKA (Kornblith et al. 2019) of the adapter's features with those "
    "of an adapter that was trained on the whole downstream task. ρ: Spearman's rank correlation "
    "of the two, as Asadi et al. 2024 compare them. Of several data sets those with the most "
    f"upstream adapters, at most {_DATA_SETS}.",
    few_shot="only",
    position=52,
)
def weights_and_similarity(run: RunFolder, metric: Metric) -> Figure | None:
    """Draw learned weights beside CKA on the same axes, of the arm with the most groups.

    Returns:
        The figure; None if no arm has weights of several layers.
    """
    del metric  # all figures are called alike
    arm = next(iter(arms_by_layer(run)), None)
    if arm is None:
        return None
    members = {s.evaluated[0]: len(s.members) for s in few_shot_stages(run)}
    most = sorted(downstream(run), key=lambda j: -members[j])[:_DATA_SETS]
    return weights_figure(run, arm, sorted(most))


def arms_by_layer(run: RunFolder) -> list[str]:
    """Return the arms that learn weights of several layers, those with the most groups first."""
    stages = {s.index for s in few_shot_stages(run)}
    rows = run.coefficients[run.coefficients["stage"].isin(stages)]
    found = {}
    for arm in run.arms:
        groups = rows[rows["arm"] == arm]["group"].unique()
        if len({_place(g)[0] for g in groups} - {None}) > 1:
            found[arm] = len(groups)
    return sorted(found, key=lambda a: -found[a])


def weights_figure(run: RunFolder, arm: str, experiences: Sequence[int]) -> Figure | None:
    """Draw the weights of one arm at a middle K, a row for each downstream experience.

    Returns:
        The figure; None if the arm has no weights there.
    """
    drawn = []
    for j in experiences:
        stage = middle_stage(run, arm, j)
        weights = learned_weights(run, arm, stage, j) if stage else None
        if stage and weights is not None:
            drawn.append((j, stage, weights, similarities(run, j, weights)))
    if not drawn:
        return None
    parts = max(len(weights.parts) for _, _, weights, _ in drawn)
    both = any(similar is not None for *_, similar in drawn)
    widest = max(len(weights.adapters) for _, _, weights, _ in drawn)
    panel = max(0.9, 0.2 * widest)
    heights = [0.9 + max(1.2, 0.17 * len(weights.layers)) for _, _, weights, _ in drawn]
    width = parts * (panel + 0.12) * (1 + both) + 1.2 + 0.9 * both
    fig = Figure(figsize=(max(4.2, width), sum(heights)), layout="constrained")
    see(fig, f"{'; '.join(_seen(run, arm, j, s, weights) for j, s, weights, _ in drawn)}.")
    rows = fig.subfigures(len(drawn), 1, squeeze=False, height_ratios=heights)[:, 0]
    for row, (j, stage, weights, similar) in zip(rows, drawn, strict=True):
        _draw_row(row, run, weights, similar)
        rho = _correlation(
            [(weights.parts[p], similar.parts[p]) for p in weights.parts] if similar else []
        )
        told = "" if math.isnan(rho) else f", {_rho(rho)} with CKA"
        row.suptitle(f"{run.experiences[j]}: weights of {arm} at {stage.name}{told}", fontsize=9)
    return fig


def _seen(run: RunFolder, arm: str, j: int, stage: StageRecord, weights: Heat) -> str:
    """Say which upstream adapter has the largest weight."""
    means = np.nanmean(np.array(list(weights.parts.values())), axis=(0, 1))
    largest = int(np.nanargmax(means))
    return (
        f"{run.experiences[j]} at {stage.name}: of the adapters under {arm} that of "
        f"{run.experiences[weights.adapters[largest]]} has the largest mean weight, "
        f"{means[largest]:.2f}"
    )


def middle_stage(run: RunFolder, arm: str, experience: int) -> StageRecord | None:
    """Return the first draw of the middle K at which an arm has weights; None if at none."""
    rows = run.coefficients
    there = set(rows[rows["arm"] == arm]["stage"])
    stages = {
        s.x: s
        for s in few_shot_stages(run)
        if s.x and s.draw == 0 and s.evaluated == (experience,) and s.index in there
    }
    return stages[sorted(stages)[len(stages) // 2]] if stages else None


def learned_weights(run: RunFolder, arm: str, stage: StageRecord, experience: int) -> Heat | None:
    """Return the weights of an arm at a K, mean over seeds and draws; None if it has none."""
    draws = {
        s.index
        for s in few_shot_stages(run)
        if s.name == stage.name and s.evaluated == (experience,)
    }
    rows = run.coefficients
    return _heat(rows[(rows["arm"] == arm) & rows["stage"].isin(draws)])


def similarities(run: RunFolder, experience: int, like: Heat) -> Heat | None:
    """Return the CKA of upstream adapters on the axes of ``like``; None if it lacks a part."""
    rows = run.similarity[run.similarity["evaluated"] == experience]
    found = _heat(rows, like.layers, like.adapters)
    return found if found and set(like.parts) <= set(found.parts) else None


def _heat(
    rows: pd.DataFrame, layers: Sequence[Layer] = (), adapters: Sequence[int] = ()
) -> Heat | None:
    means: Any = rows.groupby(["group", "adapter"])["value"].mean()
    values: dict[tuple[str, Layer, int], float] = {}
    for (group, adapter), value in means.items():
        layer, part = _place(str(group))
        if layer is not None:
            values[part, layer, int(adapter)] = float(value)
    if not values:
        return None
    names = list(dict.fromkeys(part for part, _, _ in values))
    chosen = [p for p in _PARTS if p in names] or names[: len(_PARTS)]
    layers = tuple(layers) or tuple(sorted({layer for _, layer, _ in values}))
    adapters = tuple(adapters) or tuple(sorted({adapter for _, _, adapter in values}))
    parts = {
        p: np.array([[values.get((p, x, i), math.nan) for i in adapters] for x in layers])
        for p in chosen
    }
    return Heat(tuple(layers), tuple(adapters), parts)


def _place(group: str) -> tuple[Layer | None, str]:
    """Return the layer of a group of modules, and the part of the layer it is.

    Example:
        >>> layer, part = _place("decoder.block.3.layer.1.EncDecAttention.q")
        >>> layer.label, part
        ('decoder 3 cross', 'q')
        >>> _place("all")
        (None, 'all')
    """
    found = _LAYER.search(group)
    if found is None:
        return None, group
    tower = _TOWER.search(group[: found.start() + 1])
    name, cross = tower[1] if tower else "", bool(_CROSS.search(group))
    layer = Layer(name == "decoder", int(found[1]), cross, name)
    return layer, group[found.end() :].rpartition(".")[2]


def _draw_row(row: Any, run: RunFolder, weights: Heat, similar: Heat | None) -> None:
    heats = [weights] if similar is None else [weights, similar]
    titles = ("weight", "CKA")
    count = len(weights.parts)
    axes = row.subplots(1, count * len(heats), squeeze=False, sharey=True)[0]
    for h, heat in enumerate(heats):
        block = axes[h * count : (h + 1) * count]
        every = np.concatenate([heat.parts[p].ravel() for p in weights.parts])
        found = every[np.isfinite(every)]
        limits = (float(found.min()), float(found.max())) if len(found) else (0.0, 1.0)
        image = None
        for ax, part in zip(block, weights.parts, strict=True):
            image = _draw_heat(ax, run, heat, part, limits)
            title = f"{part} {titles[h]}".strip()
            if h:
                rho = _correlation([(weights.parts[part], heat.parts[part])])
                title += "" if math.isnan(rho) else f"\n{_rho(rho)}"
            ax.set_title(title, fontsize=9, weight="normal")
        bar = row.colorbar(image, ax=list(block), pad=0.02, aspect=18)
        bar.ax.tick_params(labelsize=9)
    axes[0].set_ylabel("layer", fontsize=9)


def _draw_heat(ax: Axes, run: RunFolder, heat: Heat, part: str, limits: tuple[float, float]) -> Any:
    colors = mpl.colormaps["cividis"].with_extremes(bad="#eeeeee")
    image = ax.imshow(heat.parts[part], cmap=colors, aspect="auto", vmin=limits[0], vmax=limits[1])
    ax.grid(visible=False)
    names = shorten([run.experiences[i] for i in heat.adapters], 8, words=True)
    ax.set_xticks(range(len(names)), names, rotation=90)
    ax.set_yticks(range(len(heat.layers)), [layer.label for layer in heat.layers])
    ax.tick_params(length=0, labelsize=9)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return image


def _correlation(pairs: Sequence[tuple[FloatArray, FloatArray]]) -> float:
    """Return the rank correlation of the entries of matrices that both have; NaN if undefined."""
    if not pairs:
        return math.nan
    a, b = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
    both = np.isfinite(a) & np.isfinite(b)  # layers that see no input have no similarity
    try:
        return rank_correlation(a[both], b[both])
    except UserError:  # all equal, as of one adapter, or too few
        return math.nan


def _rho(value: float) -> str:
    return f"ρ = {value:.2f}".replace("-", "−")
