"""Drawn shapes with five targets on the same pictures: data that needs no download."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from cl_lora.benchmarks.cache import ImageSource
from cl_lora.benchmarks.sources.settings import MOST_CLASSES, require_least, require_names
from cl_lora.benchmarks.sources.shapes import (
    KEYPOINTS,
    STYLES,
    ShapeAnnotation,
    describe_sample,
)
from cl_lora.benchmarks.sources.shapes.benchmark import (
    Layout,
    ShapesConfig,
    lay_out,
    shapes_source,
)
from cl_lora.benchmarks.sources.tasks.core import (
    TaskRequest,
    TaskSamples,
    TaskSource,
    task_source,
)
from cl_lora.benchmarks.splits import Indices
from cl_lora.configuration.build import required
from cl_lora.support.errors import unknown_name
from cl_lora.support.ranges import at_most
from cl_lora.tasks import CLASS, Task, get_kind

_UNIT = 16  # side at which shapes are described; targets are shares of it

Targets = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class _Drawn:
    """Pictures of all classes and styles, and what is known of each."""

    config: ShapesConfig
    layout: Layout
    notes: tuple[ShapeAnnotation, ...]


def _object(drawn: _Drawn) -> tuple[Task, Targets]:
    return Task("", CLASS, drawn.layout.classes), drawn.layout.labels


def _style(drawn: _Drawn) -> tuple[Task, Targets]:
    return Task("", CLASS, drawn.config.styles), drawn.layout.styles


def _area(drawn: _Drawn) -> tuple[Task, Targets]:
    areas = np.array([100 * note.area for note in drawn.notes], dtype=np.float32)
    return Task("", get_kind("scalar")), areas


def _orientation(drawn: _Drawn) -> tuple[Task, Targets]:
    angles = np.array([note.orientation for note in drawn.notes], dtype=np.float32)
    return Task("", get_kind("angle"), period=2 * math.pi), angles


def _outline(drawn: _Drawn) -> tuple[Task, Targets]:
    points = np.stack([note.keypoints for note in drawn.notes]) / np.float32(_UNIT)
    names = tuple(f"point_{number}" for number in range(KEYPOINTS))
    # Opposite points: their distance is about the size of the shape.
    return Task("", get_kind("points"), names, normaliser=(0, KEYPOINTS // 2)), points


TARGETS: dict[str, Callable[[_Drawn], tuple[Task, Targets]]] = {
    "object": _object,
    "style": _style,
    "area": _area,
    "orientation": _orientation,
    "outline": _outline,
}
"""By name: class of the outline, class of the style, percent of the image that the outline covers,
radians that it is turned, and points on it as shares of the image's side."""


@task_source("shapes", summary="drawn when first used: object, style, area, orientation, outline")
@dataclass(frozen=True, kw_only=True)
class ShapesSource(TaskSource):
    """One target of drawn shapes; see ``TaskSource`` for the rest.

    All targets have the same pictures. A cap is how many are drawn for each class and style; None
    for 30 and 20, as the benchmark ``shapes`` does.

    Attributes:
        target: ``object``, ``style``, ``area``, ``orientation`` or ``outline``.
        classes: number of classes.
        styles: what they are drawn in.
        first_class: number of the first outline.
    """

    target: str = required(f"what is predicted, {', '.join(TARGETS)}", "object")
    classes: int = at_most(MOST_CLASSES, 10)
    styles: tuple[str, ...] = ("photo", "cartoon", "sketch", "painting")
    first_class: int = at_most(MOST_CLASSES, 0)

    def validate(self, where: str) -> None:
        """Check target, classes and styles too."""
        super().validate(where)
        if self.target not in TARGETS:
            raise unknown_name(f"benchmark.{where}.target", self.target, TARGETS)
        require_least(f"{where}.classes", self.classes, 2 if self.target == "object" else 1)
        require_least(f"{where}.first_class", self.first_class, 0)
        require_names(f"{where}.styles", self.styles)
        for style in self.styles:
            if style not in STYLES:
                raise unknown_name(f"style in benchmark.{where}.styles", style, STYLES)

    def listed(self, request: TaskRequest) -> TaskSamples:
        """Lay out the pictures, drawing none."""
        settings = request.splitting
        drawn = _drawn(
            ShapesConfig(
                classes=self.classes,
                styles=self.styles,
                first_class=self.first_class,
                split_seed=settings.split_seed,
                samples_per_class=settings.samples_per_class or ShapesConfig.samples_per_class,
                test_samples_per_class=(
                    settings.test_samples_per_class or ShapesConfig.test_samples_per_class
                ),
            )
        )
        layout = drawn.layout
        task, targets = TARGETS[self.target](drawn)

        def images(chosen: Indices, size: int) -> ImageSource:
            return _pictures(drawn, tuple(chosen.tolist()), size)

        return TaskSamples(
            task,
            targets,
            images,
            layout.labels * len(self.styles) + layout.styles,
            tuple(f"{name} in {style}" for name in layout.classes for style in self.styles),
            (
                np.sort(np.concatenate([parts.train for parts in layout.splits])),
                np.sort(np.concatenate([parts.test for parts in layout.splits])),
            ),
        )


# Five targets ask for the same pictures: they are described, and probed for the digest, once.


@lru_cache(maxsize=4)
def _drawn(config: ShapesConfig) -> _Drawn:
    layout, spec = lay_out(config), config.spec(_UNIT)
    return _Drawn(config, layout, tuple(describe_sample(spec, *s) for s in layout.samples))


@lru_cache(maxsize=4)
def _pictures(drawn: _Drawn, chosen: tuple[int, ...], size: int) -> ImageSource:
    samples = [drawn.layout.samples[i] for i in chosen]
    return shapes_source(drawn.config.spec(size), samples, [drawn.notes[i] for i in chosen])
