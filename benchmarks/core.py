"""What a benchmark is after loading: experiences, each with a task, inputs, targets and a split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cl_lora.benchmarks.cache import (
    ImageSource,
    cache_folder,
    cache_key,
    cached_images,
)
from cl_lora.benchmarks.splits import Indices, Splits
from cl_lora.support.files import digest
from cl_lora.tasks import CLASS, Task


@dataclass(frozen=True, eq=False)
class Experience:
    """One step of a stream: a task on some data.

    Attributes:
        name: for reports and folder names.
        task: what is asked; several experiences may share one.
        inputs: (N, ...), what a model's ``encode`` takes; for images uint8 (N, H, W, 3), a
            read-only memory map. Several experiences may share one array, or have one each.
        targets: (N, ...), aligned with ``inputs``.
        train: indices into both to learn from, int64, sorted.
        val: indices to choose by, disjoint from ``train``; mostly none.
        test: indices to be tested on, disjoint from both.
        subsets: masks by name, bool (N,), of samples whose primary metric is reported by itself,
            such as the faces of a list that are occluded.
        labels: numbers of the task's labels that it brings, where experiences that share a task
            bring labels of their own; None where it has all.
    """

    name: str
    task: Task
    inputs: npt.NDArray[Any]
    targets: npt.NDArray[Any]
    train: Indices
    val: Indices
    test: Indices
    subsets: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    labels: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Benchmark:
    """Experiences in the order of a stream.

    Attributes:
        name: for reports and folder names.
        experiences: what is learned, one after the other.
        fingerprint: digest over inputs, targets, names, order and splits; two benchmarks with the
            same fingerprint give every experience the same data.
        annotations: further arrays (N, ...) by name, aligned with the inputs of the experiences;
            only the shapes benchmark has any.
        downstream: indices of the experiences that no adapter of the bank is trained on: their
            train part is the pool that a support set is drawn from, their test part the query.
    """

    name: str
    experiences: tuple[Experience, ...]
    fingerprint: str
    annotations: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=dict)
    downstream: tuple[int, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the experiences."""
        return tuple(experience.name for experience in self.experiences)

    @property
    def upstream(self) -> tuple[int, ...]:
        """Indices of the experiences that adapters are trained on: all but the downstream ones."""
        return tuple(i for i in range(len(self.experiences)) if i not in self.downstream)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The different tasks, in the order in which they first occur."""
        return tuple(dict.fromkeys(experience.task for experience in self.experiences))

    @property
    def grows(self) -> bool:
        """Whether labels come with the experiences: those of one to come are not known yet."""
        return any(experience.labels is not None for experience in self.experiences)

    def asked(self, j: int, among: Iterable[int]) -> Task:
        """Return what is asked of a sample of experience ``j``: its task, among labels that count.

        Args:
            j: index of the experience.
            among: indices of the experiences that the sample may be of as far as is known, with
                the same task: those seen so far, or ``j`` alone where that is told.
        """
        task = self.experiences[j].task
        brought = [self.experiences[i].labels for i in among]
        if not brought or None in brought:
            return task
        return task.among(label for labels in brought for label in labels or ())


def domain_benchmark(
    source: ImageSource,
    image_size: int,
    cache_dir: str | None,
    *,
    name: str,
    classes: tuple[str, ...],
    domains: tuple[str, ...],
    labels: Indices,
    splits: Sequence[Splits],
    annotations: Mapping[str, npt.NDArray[np.generic]] | None = None,
) -> Benchmark:
    """Return one set of classes seen through several domains, one domain an experience.

    All experiences share one task, the images and the labels.

    Args:
        source: the images, in the order of ``labels``.
        image_size: side of the square images in pixels.
        cache_dir: where decoded images are kept; None for the user's cache folder.
        name: of the benchmark and of its task.
        classes: class names; a label is an index into them.
        domains: domain names in stream order.
        labels: int64 (N,).
        splits: for each domain its parts.
        annotations: further arrays (N, ...) by name.
    """
    task = Task(name, CLASS, classes)
    images = cached_images(source, image_size, cache_folder(cache_dir))
    return Benchmark(
        name=name,
        experiences=tuple(
            Experience(domain, task, images, labels, parts.train, parts.val, parts.test)
            for domain, parts in zip(domains, splits, strict=True)
        ),
        fingerprint=fingerprint(
            cache_key(source, image_size),
            classes=classes,
            domains=domains,
            labels=labels,
            splits=splits,
        ),
        annotations=annotations or {},
    )


def fingerprint(
    content: str,
    *,
    classes: Sequence[str],
    domains: Sequence[str],
    labels: Indices,
    splits: Sequence[Splits],
) -> str:
    """Return a hex digest that changes with anything an experience's data depends on.

    Args:
        content: digest of the decoded images (the cache key).
        classes: class names.
        domains: domain names in stream order.
        labels: int64 (N,).
        splits: for each domain its parts.
    """
    parts = [labels, *(s.train for s in splits), *(s.test for s in splits)]
    if any(len(s.val) for s in splits):  # else as it was before there were validation parts
        parts += [s.val for s in splits]
    # A fixed byte order: a digest must not depend on the machine.
    data = [np.ascontiguousarray(part, dtype="<i8").tobytes() for part in parts]
    return digest(content, list(classes), list(domains), *data)
