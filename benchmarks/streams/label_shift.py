"""Label shift: one image set, every task other classes; and its entangled variant."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from cl_lora.benchmarks.config import benchmark_kind
from cl_lora.benchmarks.core import Benchmark, fingerprint
from cl_lora.benchmarks.images import Pixels
from cl_lora.benchmarks.sources.image_sets import ImageSet, ImageSetConfig
from cl_lora.benchmarks.sources.settings import MOST_CLASSES, require_least, require_text
from cl_lora.benchmarks.streams.groups import (
    Group,
    class_order,
    disjoint_groups,
    entangled_groups,
    group_experience,
    held_out_group,
    require_shares,
)
from cl_lora.benchmarks.streams.held_out import held_out
from cl_lora.support.files import digest
from cl_lora.support.ranges import LARGEST_SEED, at_most


def stream_of_groups(
    name: str, images: ImageSet, inputs: Pixels, content: str, groups: Sequence[Group]
) -> Benchmark:
    """Return groups of classes as a stream, the last one downstream.

    Args:
        name: of the benchmark.
        images: the labels and the parts.
        inputs: (N, ...), its decoded images.
        content: digest of ``inputs``.
        groups: the upstream ones, then the downstream one.

    Raises:
        UserError: no upstream group, or a group without train or test samples.
    """
    data = fingerprint(
        content,
        classes=images.classes,
        domains=[images.name],
        labels=images.labels,
        splits=[images.parts],
    )
    return held_out(
        name,
        [group_experience(images, inputs, group) for group in groups],
        digest(data, [list(group.classes) for group in groups]),
    )


@dataclass(frozen=True, kw_only=True)
class GroupsConfig(ImageSetConfig, ABC):
    """The settings of every stream of class groups; see ``ImageSetConfig`` for the rest.

    Attributes:
        class_seed: draws the order in which classes are handed out; None for the set's own.
    """

    class_seed: int | None = at_most(LARGEST_SEED, None)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least("class_seed", self.class_seed, 0)

    @abstractmethod
    def groups(self, order: Sequence[int]) -> tuple[Group, ...]:
        """Return the groups, the downstream one the last; ``order`` holds the classes."""

    def check(self) -> None:
        """List the images and form the groups; decode nothing."""
        self._listed()

    def build(self, image_size: int) -> Benchmark:
        """Load the benchmark, decoding its images if no earlier run has."""
        images, groups = self._listed()
        inputs, content = images.decode(image_size, self.cache_dir)
        return stream_of_groups(self.name, images, inputs, content, groups)

    def _listed(self) -> tuple[ImageSet, tuple[Group, ...]]:
        images = self.load()
        return images, self.groups(class_order(len(images.classes), self.class_seed))


@benchmark_kind("label_shift")
@dataclass(frozen=True, kw_only=True)
class LabelShiftConfig(GroupsConfig):
    """An image set split into disjoint groups of classes (Asadi et al. 2024, part label shift).

    Attributes:
        upstream_tasks: number of upstream groups.
        downstream_classes: classes of the downstream group, the last ones; None for groups of
            one size.
        downstream: which of the groups of one size is held out; None for the last.
    """

    name: str = "label_shift"
    upstream_tasks: int = at_most(MOST_CLASSES, 3)
    downstream_classes: int | None = at_most(MOST_CLASSES, None)
    downstream: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least("upstream_tasks", self.upstream_tasks, 1)
        require_least("downstream_classes", self.downstream_classes, 2)
        require_text("downstream", self.downstream)

    def groups(self, order: Sequence[int]) -> tuple[Group, ...]:
        """Return disjoint groups."""
        groups = disjoint_groups(order, self.upstream_tasks, self.downstream_classes)
        return held_out_group(groups, self.downstream)


@benchmark_kind("entangled")
@dataclass(frozen=True, kw_only=True)
class EntangledConfig(GroupsConfig):
    """Upstream tasks that hold downstream classes (Asadi et al. 2024, table 4).

    Upstream tasks train on the same train images of a shared class that the support is drawn
    from; the query's images are in no train part.

    Attributes:
        downstream_classes: classes of every task.
        overlap: for each upstream task the share of its classes that are downstream ones.
    """

    name: str = "entangled"
    downstream_classes: int = at_most(MOST_CLASSES, 25)
    overlap: tuple[float, ...] = at_most(1, (0.0, 0.0, 0.0, 1.0))

    def __post_init__(self) -> None:
        super().__post_init__()
        require_shares(self.overlap)

    def groups(self, order: Sequence[int]) -> tuple[Group, ...]:
        """Return groups that share classes with the last."""
        return entangled_groups(order, self.downstream_classes, self.overlap)
