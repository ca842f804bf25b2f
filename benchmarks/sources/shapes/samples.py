"""One sample: an outline in a pose, its annotation, and its picture in a style."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cl_lora.benchmarks.images import Pixels
from cl_lora.benchmarks.sources.shapes.outlines import (
    OUTLINE_POINTS,
    Floats,
    class_outline,
    polygon_area,
    wobbled,
)
from cl_lora.benchmarks.sources.shapes.painters import PAINTERS
from cl_lora.benchmarks.sources.shapes.spec import ShapesSpec
from cl_lora.support.errors import UserError, unknown_name
from cl_lora.support.seeding import numpy_generator

KEYPOINTS = 8
MAX_ORIENTATION = 0.6  # radians; small enough that a square never becomes a diamond


@dataclass(frozen=True)
class ShapeAnnotation:
    """All there is to know about a sample without its pixels.

    Attributes:
        label: from 0 to ``spec.classes - 1``.
        style: one of ``spec.styles``.
        area: of the outline polygon, exact, as a share of the image's area.
        orientation: rotation of the outline in radians; positive is clockwise on the screen.
        keypoints: float32 (KEYPOINTS, 2), points (x, y) on the outline in pixels; pixel i covers
            the interval from i to i + 1.
    """

    label: int
    style: str
    area: float
    orientation: float
    keypoints: npt.NDArray[np.float32]


@dataclass(frozen=True)
class ShapeSample:
    """A picture and its annotation; ``image`` is uint8 (H, W, 3), the rest as ShapeAnnotation."""

    image: Pixels
    label: int
    style: str
    area: float
    orientation: float
    keypoints: npt.NDArray[np.float32]


def describe_sample(spec: ShapesSpec, style: str, label: int, index: int) -> ShapeAnnotation:
    """Return the annotation of a sample without drawing it.

    Args:
        spec: which pictures there are.
        style: one of ``spec.styles``.
        label: from 0 to ``spec.classes - 1``.
        index: number of the sample within its class and style, from 0.
    """
    outline, orientation = _pose(spec, style, label, index)
    return _annotate(spec, style, label, outline, orientation)


def render_sample(spec: ShapesSpec, style: str, label: int, index: int) -> ShapeSample:
    """Draw a sample; arguments as in ``describe_sample``, whose annotation it carries."""
    outline, orientation = _pose(spec, style, label, index)
    rng = numpy_generator(spec.seed, "shape pixels", style, spec.first_class + label, index)
    canvas = PAINTERS[style](outline, spec.image_size, rng)
    image = (np.clip(canvas, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    note = _annotate(spec, style, label, outline, orientation)
    return ShapeSample(image, note.label, note.style, note.area, note.orientation, note.keypoints)


def sample_outline(spec: ShapesSpec, style: str, label: int, index: int) -> Floats:
    """Return a sample's outline, float64 (OUTLINE_POINTS, 2), closed, (x, y) in pixels."""
    return _pose(spec, style, label, index)[0]


def _pose(spec: ShapesSpec, style: str, label: int, index: int) -> tuple[Floats, float]:
    """Return a sample's outline in pixels and its orientation."""
    if style not in spec.styles:
        raise unknown_name("style of this shapes spec", style, spec.styles)
    if not 0 <= label < spec.classes:
        raise UserError(f"Expected a label from 0 to {spec.classes - 1} but got {label}")
    if index < 0:
        raise UserError(f"Expected a sample's index to be at least 0 but got {index}")
    number = spec.first_class + label
    rng = numpy_generator(spec.seed, "shape geometry", style, number, index)
    orientation = float(rng.uniform(-MAX_ORIENTATION, MAX_ORIENTATION))
    radius = rng.uniform(0.27, 0.42)
    centre = rng.uniform(radius + 0.03, 0.97 - radius, size=2)
    stretch = np.exp(rng.uniform(-0.12, 0.12))
    shape = class_outline(number) * (stretch, 1.0 / stretch)
    return _place(wobbled(shape, 0.01, rng), orientation, radius, centre, spec.image_size)


def _place(
    shape: Floats, orientation: float, radius: float, centre: Floats, size: int
) -> tuple[Floats, float]:
    """Turn, scale and move an outline of about unit radius; radius and centre in image sides."""
    sine, cosine = np.sin(orientation), np.cos(orientation)
    turned = shape @ np.array([[cosine, sine], [-sine, cosine]])
    return (turned * radius + centre) * size, orientation


def _annotate(
    spec: ShapesSpec, style: str, label: int, outline: Floats, orientation: float
) -> ShapeAnnotation:
    area = polygon_area(outline) / spec.image_size**2
    keypoints = outline[:: OUTLINE_POINTS // KEYPOINTS].astype(np.float32)
    return ShapeAnnotation(label, style, area, orientation, keypoints)
