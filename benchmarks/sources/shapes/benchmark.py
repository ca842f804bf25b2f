"""The benchmark that needs no data: shapes drawn in several styles, a style being a domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cl_lora.benchmarks.cache import ImageSource
from cl_lora.benchmarks.config import benchmark_kind
from cl_lora.benchmarks.core import Benchmark, domain_benchmark
from cl_lora.benchmarks.images import Pixels
from cl_lora.benchmarks.sources.settings import (
    MOST_CLASSES,
    MOST_SAMPLES,
    require_least,
    require_names,
    require_share,
    require_text,
)
from cl_lora.benchmarks.sources.shapes import (
    ShapeAnnotation,
    ShapesSpec,
    class_names,
    describe_sample,
    render_sample,
)
from cl_lora.benchmarks.splits import Indices, Splits, hold_out_validation
from cl_lora.support.errors import UserError
from cl_lora.support.files import digest
from cl_lora.support.ranges import LARGEST_SEED, at_most

# Test samples are numbered from here on, so that asking for more train samples changes no test
# sample and the other way round.
_FIRST_TEST_SAMPLE = MOST_SAMPLES
_SMALLEST_IMAGE = 16
_MOST_PICTURES = 1_000_000


@benchmark_kind("shapes")
@dataclass(frozen=True, kw_only=True)
class ShapesConfig:
    """Settings of the shapes benchmark.

    Attributes:
        name: of the benchmark, for reports.
        classes: number of classes.
        styles: the domains, in stream order.
        samples_per_class: train samples per class and domain.
        test_samples_per_class: test samples per class and domain.
        val_fraction: share of the train samples of each class and domain that is held out to
            choose by.
        first_class: number of the first outline; disjoint ranges share no class.
        split_seed: another seed draws other pictures of the same classes.
        cache_dir: where drawn images are kept; None for the user's cache folder.
    """

    name: str = "shapes"
    classes: int = at_most(MOST_CLASSES, 10)
    styles: tuple[str, ...] = ("photo", "cartoon", "sketch", "painting")
    samples_per_class: int = at_most(MOST_SAMPLES, 30)
    test_samples_per_class: int = at_most(MOST_SAMPLES, 20)
    val_fraction: float = at_most(1, 0.0)
    first_class: int = at_most(MOST_CLASSES, 0)
    split_seed: int = at_most(LARGEST_SEED, 0)
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        require_text("name", self.name)
        require_least("classes", self.classes, 1)
        require_names("styles", self.styles)
        require_least("samples_per_class", self.samples_per_class, 1)
        require_least("test_samples_per_class", self.test_samples_per_class, 1)
        require_share("val_fraction", self.val_fraction)
        require_least("first_class", self.first_class, 0)
        require_least("split_seed", self.split_seed, 0)
        require_text("cache_dir", self.cache_dir)
        self.spec(_SMALLEST_IMAGE)  # knows which styles there are
        each = self.samples_per_class + self.test_samples_per_class
        pictures = self.classes * len(self.styles) * each
        if pictures > _MOST_PICTURES:
            raise UserError(
                f"Expected at most {_MOST_PICTURES:,} drawn pictures but {self.classes} classes x "
                f"{len(self.styles)} styles x {each} samples_per_class and "
                f"test_samples_per_class are {pictures:,}; lower one of them"
            )

    def spec(self, image_size: int) -> ShapesSpec:
        """Return what to draw; the styles are sorted, so that their order is not drawn anew."""
        return ShapesSpec(
            classes=self.classes,
            styles=tuple(sorted(self.styles)),
            samples_per_class=self.samples_per_class + self.test_samples_per_class,
            image_size=image_size,
            seed=self.split_seed,
            first_class=self.first_class,
        )

    def check(self) -> None:
        """Do nothing: construction has checked all there is."""

    def found(self) -> str | None:
        """Say that nothing is needed."""
        return "embedded, drawn when first used"

    def build(self, image_size: int) -> Benchmark:
        """Draw the benchmark, or open it if it was drawn before."""
        return _build(self, image_size)


_Sample = tuple[str, int, int]  # style, label, index


@dataclass(frozen=True, eq=False)
class Layout:
    """Which pictures a config asks for, none of them drawn.

    Attributes:
        samples: style, label and index of every picture.
        classes: class names.
        labels: int64 (N,).
        styles: int64 (N,), indices into the benchmark's domains.
        splits: for each style its parts.
    """

    samples: list[_Sample]
    classes: tuple[str, ...]
    labels: Indices
    styles: Indices
    splits: tuple[Splits, ...]


def lay_out(config: ShapesConfig) -> Layout:
    """Return which pictures ``config`` asks for, and their split."""
    spec = config.spec(_SMALLEST_IMAGE)
    train_numbers = range(config.samples_per_class)
    test_numbers = range(_FIRST_TEST_SAMPLE, _FIRST_TEST_SAMPLE + config.test_samples_per_class)
    samples: list[_Sample] = [
        (style, label, number)
        for style in spec.styles
        for label in range(spec.classes)
        for number in (*train_numbers, *test_numbers)
    ]
    labels = np.array([label for _, label, _ in samples], dtype=np.int64)
    styles = np.array([config.styles.index(style) for style, _, _ in samples], dtype=np.int64)
    is_test = np.array([number >= _FIRST_TEST_SAMPLE for _, _, number in samples])
    classes = class_names(spec)
    splits = []
    for number, style in enumerate(config.styles):
        train = np.flatnonzero((styles == number) & ~is_test)
        train, val = hold_out_validation(
            train,
            labels[train],
            config.val_fraction,
            config.split_seed,
            domain=style,
            classes=classes,
        )
        splits.append(Splits(train, val, np.flatnonzero((styles == number) & is_test)))
    return Layout(samples, classes, labels, styles, tuple(splits))


def shapes_source(
    spec: ShapesSpec, samples: Sequence[_Sample], notes: Sequence[ShapeAnnotation]
) -> ImageSource:
    """Return how the pictures are drawn.

    Args:
        spec: their size and style.
        samples: style, label and index of every picture.
        notes: their annotations.
    """

    def draw(index: int, _size: int) -> Pixels:
        return render_sample(spec, *samples[index]).image

    return ImageSource(
        content=_content(spec, samples, notes),
        count=len(samples),
        read=draw,
        verb="Drawing shapes",
        threads=False,
    )


def _build(config: ShapesConfig, image_size: int) -> Benchmark:
    spec, layout = config.spec(image_size), lay_out(config)
    notes = [describe_sample(spec, *sample) for sample in layout.samples]
    return domain_benchmark(
        shapes_source(spec, layout.samples, notes),
        image_size,
        config.cache_dir,
        name=config.name,
        classes=layout.classes,
        domains=config.styles,
        labels=layout.labels,
        splits=layout.splits,
        annotations=_annotations(notes, layout.styles),
    )


def _content(spec: ShapesSpec, samples: Sequence[_Sample], notes: Sequence[ShapeAnnotation]) -> str:
    """Return a digest of the pictures without drawing them all.

    It covers every sample's geometry and the pixels of one sample of each class and style, so
    that a renderer that draws differently is noticed, while an edited comment changes nothing.
    """
    probes = b"".join(
        render_sample(spec, style, label, 0).image.tobytes()
        for style in spec.styles
        for label in range(spec.classes)
    )
    geometry = np.array([(n.area, n.orientation, *n.keypoints.ravel()) for n in notes])
    return digest(spec.image_size, list(samples), geometry.round(3).astype("<f8").tobytes(), probes)


def _annotations(
    notes: Sequence[ShapeAnnotation], styles: npt.NDArray[np.int64]
) -> dict[str, npt.NDArray[np.generic]]:
    """Return style int64 (N,), area and orientation float64 (N,), keypoints float32 (N, K, 2).

    The style is an index into the benchmark's domains.
    """
    return {
        "style": styles,
        "area": np.array([note.area for note in notes]),
        "orientation": np.array([note.orientation for note in notes]),
        "keypoints": np.stack([note.keypoints for note in notes]),
    }
