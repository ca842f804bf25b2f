"""What a benchmark is after loading: decoded images, labels, and a split for every domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cl_lora.benchmarks.cache import (
    ImageSource,
    Pixels,
    cache_folder,
    cache_key,
    cached_images,
)
from cl_lora.support.errors import UserError
from cl_lora.support.files import digest
from cl_lora.support.seeding import numpy_generator

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DomainBenchmark:
    """One set of classes seen through several domains, one domain an experience.

    Attributes:
        name: for reports and folder names.
        classes: class names; a label is an index into them.
        domains: domain names in stream order.
        images: uint8 (N, H, W, 3), a read-only memory map; its order is not the stream order.
        labels: int64 (N,).
        train: for each domain the indices into ``images`` to learn from, int64, sorted.
        test: for each domain the indices to be tested on, int64, sorted, disjoint from ``train``.
        fingerprint: digest over pixels, labels, names, domain order and split; two benchmarks
            with the same fingerprint give every experience the same data.
        annotations: further arrays (N, ...) by name; only the shapes benchmark has any.
    """

    name: str
    classes: tuple[str, ...]
    domains: tuple[str, ...]
    images: Pixels
    labels: Indices
    train: tuple[Indices, ...]
    test: tuple[Indices, ...]
    fingerprint: str
    annotations: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=dict)


def decoded(
    source: ImageSource,
    image_size: int,
    cache_dir: str | None,
    *,
    name: str,
    classes: tuple[str, ...],
    domains: tuple[str, ...],
    labels: Indices,
    train: tuple[Indices, ...],
    test: tuple[Indices, ...],
    annotations: Mapping[str, npt.NDArray[np.generic]] | None = None,
) -> DomainBenchmark:
    """Return the benchmark whose images ``source`` gives, decoded into the cache.

    Args:
        source: the images, in the order of ``labels``.
        image_size: side of the square images in pixels.
        cache_dir: where decoded images are kept; None for the user's cache folder.
        name: as in :class:`DomainBenchmark`, like all that follow.
        classes: class names.
        domains: domain names in stream order.
        labels: int64 (N,).
        train: train indices by domain.
        test: test indices by domain.
        annotations: further arrays (N, ...) by name.
    """
    return DomainBenchmark(
        name=name,
        classes=classes,
        domains=domains,
        images=cached_images(source, image_size, cache_folder(cache_dir)),
        labels=labels,
        train=train,
        test=test,
        fingerprint=fingerprint(
            cache_key(source, image_size),
            classes=classes,
            domains=domains,
            labels=labels,
            train=train,
            test=test,
        ),
        annotations=annotations or {},
    )


def fingerprint(
    content: str,
    *,
    classes: Sequence[str],
    domains: Sequence[str],
    labels: Indices,
    train: Sequence[Indices],
    test: Sequence[Indices],
) -> str:
    """Return a hex digest that changes with anything an experience's data depends on.

    Args:
        content: digest of the decoded images (the cache key).
        classes: class names.
        domains: domain names in stream order.
        labels: int64 (N,).
        train: train indices by domain.
        test: test indices by domain.
    """
    arrays = [labels, *train, *test]
    # A fixed byte order: a digest must not depend on the machine.
    parts = [np.ascontiguousarray(array, dtype="<i8").tobytes() for array in arrays]
    return digest(content, list(classes), list(domains), *parts)


def draw_buffer(
    benchmark: DomainBenchmark, samples_per_class: int, seed: int
) -> tuple[Indices, ...]:
    """Draw the buffer of every domain from its train data.

    A class's samples are the first ``samples_per_class`` of a permutation that depends only on
    the seed and the names of domain and class: buffers of growing size are nested.

    Args:
        benchmark: where to draw from.
        samples_per_class: samples for each class and domain, at least 1.
        seed: of the run.

    Returns:
        For each domain int64 (samples_per_class * classes,) indices into ``benchmark.images``.

    Raises:
        UserError: ``samples_per_class`` is not an integer of at least 1, or more than a class of
            a domain has.
    """
    is_count = isinstance(samples_per_class, int) and not isinstance(samples_per_class, bool)
    if not is_count or samples_per_class < 1:
        raise UserError(
            "Expected the buffer's samples_per_class to be an integer of at least 1 "
            f"but got {samples_per_class!r}"
        )
    buffers = []
    for domain, indices in zip(benchmark.domains, benchmark.train, strict=True):
        labels = benchmark.labels[indices]
        drawn = []
        for label, name in enumerate(benchmark.classes):
            candidates = indices[labels == label]
            if samples_per_class > len(candidates):
                raise UserError(
                    f"Expected the buffer's samples_per_class to be at most {len(candidates)}, the "
                    f"train samples of class {name!r} in domain {domain!r}, "
                    f"but got {samples_per_class}; take a smaller buffer"
                )
            generator = numpy_generator(seed, "buffer", domain, name)
            drawn.append(generator.permutation(candidates)[:samples_per_class])
        buffers.append(np.concatenate(drawn))
    return tuple(buffers)
