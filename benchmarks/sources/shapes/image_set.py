"""Shapes of one style as an image set."""

from __future__ import annotations

from dataclasses import dataclass

from cl_lora.benchmarks.cache import ImageSource
from cl_lora.benchmarks.sources.image_sets import ImageSet, SetRequest, register_image_set
from cl_lora.benchmarks.sources.settings import MOST_CLASSES
from cl_lora.benchmarks.sources.shapes import describe_sample
from cl_lora.benchmarks.sources.shapes.benchmark import ShapesConfig, lay_out, shapes_source
from cl_lora.configuration.build import build
from cl_lora.support.errors import UserError, shown
from cl_lora.support.ranges import at_most


@dataclass(frozen=True, kw_only=True)
class ShapesSetOptions:
    """What the image set ``shapes`` can be told.

    Attributes:
        classes: number of classes.
        style: what they are drawn in.
        first_class: number of the first outline.
    """

    classes: int = at_most(MOST_CLASSES, 12)
    style: str = "photo"
    first_class: int = at_most(MOST_CLASSES, 0)


@register_image_set("shapes", summary="drawn when first used, needs no data")
def shapes_set(request: SetRequest) -> ImageSet:
    """Lay out the pictures, drawing none; without caps a class has as many as the benchmark's.

    Raises:
        UserError: an option is wrong, or a folder is given, of which nothing would be read.
    """
    if request.root is not None:
        raise UserError(
            f"benchmark.root={shown(request.root)} names a folder of data but images=shapes are "
            "drawn; leave benchmark.root out, or set benchmark.images=tree"
        )
    options = build(ShapesSetOptions, request.options, "benchmark.options")
    settings = request.splitting
    config = ShapesConfig(
        classes=options.classes,
        styles=(options.style,),
        first_class=options.first_class,
        val_fraction=settings.val_fraction,
        split_seed=settings.split_seed,
        samples_per_class=settings.samples_per_class or ShapesConfig.samples_per_class,
        test_samples_per_class=(
            settings.test_samples_per_class or ShapesConfig.test_samples_per_class
        ),
    )
    layout = lay_out(config)

    def source(image_size: int) -> ImageSource:
        spec = config.spec(image_size)
        notes = [describe_sample(spec, *sample) for sample in layout.samples]
        return shapes_source(spec, layout.samples, notes)

    return ImageSet(request.name, layout.classes, layout.labels, layout.splits[0], source)
