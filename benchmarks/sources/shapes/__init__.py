"""Labelled pictures of outlines, drawn on the fly in several styles: data that needs no download.

A class is a closed outline (``outlines``), a style is a painter (``painters``). A sample is one
class in one pose, drawn in one style; the styles are the domains. Everything about a sample
follows from ``(seed, style, class, index)``: adding samples, styles or classes never changes
another one.

Example:
    >>> spec = ShapesSpec(classes=3, styles=("photo", "sketch"), samples_per_class=4,
    ...                   image_size=48, seed=0)
    >>> class_names(spec)
    ('star', 'heart', 'cross')
    >>> render_sample(spec, "sketch", label=1, index=0).image.shape
    (48, 48, 3)
"""

from __future__ import annotations

from cl_lora.benchmarks.sources.shapes.drawing import fill_mask
from cl_lora.benchmarks.sources.shapes.outlines import (
    OUTLINE_POINTS,
    class_outline,
    polygon_area,
)
from cl_lora.benchmarks.sources.shapes.painters import STYLES
from cl_lora.benchmarks.sources.shapes.samples import (
    KEYPOINTS,
    MAX_ORIENTATION,
    ShapeAnnotation,
    ShapeSample,
    describe_sample,
    render_sample,
    sample_outline,
)
from cl_lora.benchmarks.sources.shapes.spec import ShapesSpec, class_names

__all__ = [
    "KEYPOINTS",
    "MAX_ORIENTATION",
    "OUTLINE_POINTS",
    "STYLES",
    "ShapeAnnotation",
    "ShapeSample",
    "ShapesSpec",
    "class_names",
    "class_outline",
    "describe_sample",
    "fill_mask",
    "polygon_area",
    "render_sample",
    "sample_outline",
]
