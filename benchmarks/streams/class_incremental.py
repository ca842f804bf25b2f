"""Class-incremental streams: one image set, every experience other classes, one task over all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cl_lora.benchmarks.config import benchmark_kind
from cl_lora.benchmarks.core import Benchmark, Experience, fingerprint
from cl_lora.benchmarks.images import Pixels
from cl_lora.benchmarks.sources.image_sets import ImageSet, ImageSetConfig
from cl_lora.benchmarks.sources.settings import MOST_CLASSES, require_least
from cl_lora.benchmarks.streams.groups import (
    Group,
    class_order,
    equal_groups,
    named_groups,
    parts_with,
    targets_among,
)
from cl_lora.support.errors import UserError
from cl_lora.support.files import digest
from cl_lora.support.ranges import LARGEST_SEED, at_most
from cl_lora.tasks import CLASS, Task

_EXAMPLE = "5, or {pets: [cat, dog], tools: [axe, saw]}"


def class_stream(
    name: str, images: ImageSet, inputs: Pixels, content: str, groups: Sequence[Group]
) -> Benchmark:
    """Return disjoint groups of classes as a stream of experiences that share one task.

    The task's labels are the classes of all groups in the order of the stream, so that the labels
    of an experience are numbers in a row. Images of classes in no group are in no part.

    Args:
        name: of the benchmark and of its task.
        images: the labels and the parts.
        inputs: (N, ...), its decoded images.
        content: digest of ``inputs``.
        groups: one per experience, in stream order.
    """
    order = [number for group in groups for number in group.classes]
    classes = tuple(images.classes[number] for number in order)
    task, targets = Task(name, CLASS, classes), targets_among(images, order)
    experiences, first = [], 0
    for group in groups:
        labels = range(first, first + len(group.classes))
        first = labels.stop
        parts = parts_with(images.parts, targets, labels)
        experiences.append(
            Experience(
                group.name,
                task,
                inputs,
                targets,
                parts.train,
                parts.val,
                parts.test,
                labels=tuple(labels),
            )
        )
    data = fingerprint(
        content, classes=classes, domains=[images.name], labels=targets, splits=[images.parts]
    )
    told = [[group.name, *group.classes] for group in groups]
    return Benchmark(name, tuple(experiences), digest("class-incremental", data, told))


@benchmark_kind("class_incremental")
@dataclass(frozen=True, kw_only=True)
class ClassIncrementalConfig(ImageSetConfig):
    """An image set split into disjoint groups of classes; see ``ImageSetConfig`` for the rest.

    Attributes:
        groups: a number of groups of one size, or name of a group -> names of its classes, in
            stream order; classes that are in no named group are left out.
        order_seed: draws the order in which classes are handed out to groups of one size; None
            for the set's own. Named groups come as they are named.
    """

    name: str = "class_incremental"
    groups: Any = at_most(MOST_CLASSES, 5)  # noqa: RUF009
    """A number or a mapping, which one sentence asks for."""
    order_seed: int | None = at_most(LARGEST_SEED, 0)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least("order_seed", self.order_seed, 0)
        count = self._given if isinstance(self._given, int) else len(self._given)
        if count < 2:
            raise UserError(
                f"Expected benchmark.groups to be at least 2 groups of classes but got {count}; "
                "with all classes in one experience nothing comes after it"
            )

    def check(self) -> None:
        """List the images and form the groups; decode nothing."""
        self._listed()

    def build(self, image_size: int) -> Benchmark:
        """Load the benchmark, decoding its images if no earlier run has."""
        images, groups = self._listed()
        inputs, content = images.decode(image_size, self.cache_dir)
        return class_stream(self.name, images, inputs, content, groups)

    def _listed(self) -> tuple[ImageSet, tuple[Group, ...]]:
        images, given = self.load(), self._given
        if isinstance(given, int):
            order = class_order(len(images.classes), self.order_seed)
            return images, equal_groups(order, given)
        return images, named_groups(images.classes, given, images.name)

    @property
    def _given(self) -> int | dict[str, tuple[str, ...]]:
        """``groups``, checked and typed; class names that look like numbers are texts."""
        given = self.groups
        if type(given) is int:
            return given
        if isinstance(given, Mapping) and all(map(_is_names, given.values())):
            return {str(group): tuple(map(str, names)) for group, names in given.items()}
        raise UserError(
            "Expected benchmark.groups to be a number of groups, or for each group a list of its "
            f"classes, but got {given!r}; give {_EXAMPLE}"
        )


def _is_names(value: object) -> bool:
    """Return whether a value is a list of texts, or of numbers that stand for them."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return False
    return all(type(name) in (str, int) for name in value)
