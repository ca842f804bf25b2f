"""Which pictures there are."""

from __future__ import annotations

from dataclasses import dataclass

from cl_lora.benchmarks.sources.shapes.outlines import class_name
from cl_lora.benchmarks.sources.shapes.painters import STYLES
from cl_lora.support.errors import UserError, unknown_name


@dataclass(frozen=True)
class ShapesSpec:
    """Which pictures there are.

    Attributes:
        classes: number of classes; labels run from 0 to ``classes - 1``.
        styles: the styles (domains), each one of ``STYLES``, in the order wanted.
        samples_per_class: samples per class in each style.
        image_size: side of the square images in pixels.
        seed: all randomness is derived from it.
        first_class: the class of label 0; two specs with disjoint ranges share no outline.
    """

    classes: int
    styles: tuple[str, ...]
    samples_per_class: int
    image_size: int
    seed: int
    first_class: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("classes", 1),
            ("samples_per_class", 1),
            ("image_size", 16),
            ("first_class", 0),
        ):
            value = getattr(self, name)
            if not _is_integer(value) or value < least:
                raise UserError(
                    f"Expected {name} of the shapes to be an integer of at least {least} "
                    f"but got {value!r}"
                )
        if not _is_integer(self.seed):
            raise UserError(f"Expected seed of the shapes to be an integer but got {self.seed!r}")
        if isinstance(self.styles, str) or not self.styles:
            raise UserError(
                f"Expected styles to be a tuple of one or more names but got {self.styles!r}; "
                f"choose from {', '.join(STYLES)}"
            )
        for style in self.styles:
            if style not in STYLES:
                raise unknown_name("shapes style", style, STYLES)
        if len(set(self.styles)) != len(self.styles):
            raise UserError(f"Expected every style once but got {', '.join(self.styles)}")


def class_names(spec: ShapesSpec) -> tuple[str, ...]:
    """Return the name of every label."""
    classes = range(spec.first_class, spec.first_class + spec.classes)
    return tuple(class_name(number) for number in classes)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
