"""Image sets: labelled images with a train and a test part, listed but not decoded.

A stream of few-shot composition is cut from image sets: one into groups of classes, or several,
each a task. An entry of the registry says how a set of its name is found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cl_lora.benchmarks.cache import ImageSource, cache_folder, cache_key, cached_images
from cl_lora.benchmarks.images import Pixels
from cl_lora.benchmarks.sources.settings import PartsConfig, require_text
from cl_lora.benchmarks.splits import Indices, Split, Splits, SplitSettings, split_domains
from cl_lora.support.errors import UserError
from cl_lora.support.registry import check_free, look_up


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images and their split.

    Attributes:
        name: for reports; splits are drawn with it.
        classes: class names.
        labels: int64 (N,), indices into ``classes``.
        parts: train, validation and test part.
        source: from the side of the images in pixels to the images; may read every file's bytes.
    """

    name: str
    classes: tuple[str, ...]
    labels: Indices
    parts: Splits
    source: Callable[[int], ImageSource]

    def decode(self, image_size: int, cache_dir: str | None) -> tuple[Pixels, str]:
        """Return the images, uint8 (N, image_size, image_size, 3), and a digest of them.

        Args:
            image_size: side of the square images in pixels.
            cache_dir: where decoded images are kept; None for the user's cache folder.
        """
        source = self.source(image_size)
        images = cached_images(source, image_size, cache_folder(cache_dir))
        return images, cache_key(source, image_size)


@dataclass(frozen=True)
class SetRequest:
    """What an image set is asked for by.

    Attributes:
        name: of the set, for its draws and for reports.
        splitting: how to split, and how many samples to keep.
        root: the folder of the data; None if none was given.
        download: whether data that is not there may be downloaded.
        options: the set's own settings.
    """

    name: str
    splitting: SplitSettings
    root: str | None = None
    download: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


Load = Callable[[SetRequest], ImageSet]
"""Finds and lists an image set; decodes nothing."""


@dataclass(frozen=True)
class ImageSetKind:
    """A kind of image set.

    Attributes:
        name: the name it is chosen by.
        summary: one line.
        load: finds and lists the set.
    """

    name: str
    summary: str
    load: Load


IMAGE_SETS: dict[str, ImageSetKind] = {}
"""Every registered kind of image set by name."""


def register_image_set(name: str, *, summary: str) -> Callable[[Load], Load]:
    """Register the decorated ``load(request) -> ImageSet``.

    Raises:
        UserError: the name is taken.
    """

    def decorate(load: Load) -> Load:
        taken = IMAGE_SETS.get(name)
        check_free("image set", name, taken.load if taken else None, load)
        IMAGE_SETS[name] = ImageSetKind(name, summary, load)
        return load

    return decorate


def load_image_set(kind: str, request: SetRequest) -> ImageSet:
    """Return the image set of a kind.

    Raises:
        UserError: there is no such kind, or its data is not there or not complete.
    """
    return look_up("benchmark.images", IMAGE_SETS, kind).load(request)


def require_no_options(request: SetRequest, kind: str) -> None:
    """Raise ``UserError`` if a set without settings of its own was given some."""
    if request.options:
        raise UserError(
            f"Expected no benchmark.options for images={kind} but got "
            f"{', '.join(request.options)}; remove benchmark.options"
        )


def require_root(request: SetRequest, meaning: str) -> str:
    """Return the request's root; raise ``UserError`` if it has none."""
    if request.root is None:
        raise UserError(
            f"Expected benchmark.root, {meaning}, but it is not given; add benchmark.root=DIR"
        )
    return request.root


def split_set(
    request: SetRequest, labels: Indices, classes: tuple[str, ...], given: Split | None
) -> Splits:
    """Split one image set as a domain is split.

    Args:
        request: says how.
        labels: int64 (N,), indices into ``classes``.
        classes: class names.
        given: train and test indices that come with the data; None to draw them.
    """
    (parts,) = split_domains(
        labels,
        np.zeros(len(labels), dtype=np.int64),
        (request.name,),
        classes,
        settings=request.splitting,
        given=None if given is None else {request.name: given},
    )
    return parts


@dataclass(frozen=True, kw_only=True)
class ImageSetConfig(PartsConfig):
    """The settings of a stream that is cut from one image set; see ``PartsConfig`` for the rest.

    Attributes:
        images: kind of the image set.
        root: the folder of the data; None where none is needed.
        download: whether data that is not there may be downloaded.
        options: the image set's own settings.
    """

    images: str = "tree"
    root: str | None = field(
        default=None, metadata={"meaning": "the folder of the images", "example": "DIR"}
    )
    download: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_text("root", self.root)
        look_up("benchmark.images", IMAGE_SETS, self.images)

    def load(self, download: bool | None = None) -> ImageSet:
        """Find and list the image set; ``download`` given here holds instead of the setting."""
        request = SetRequest(
            self.images,  # not the name: a split does not depend on what a report is called
            self.splitting,
            self.root,
            self.download if download is None else download,
            self.options,
        )
        return load_image_set(self.images, request)

    def found(self) -> str | None:
        """Say how much there is, or None if there is no such folder; downloads nothing."""
        if self.root is not None and not Path(self.root).expanduser().is_dir():
            return None
        images = self.load(download=False)
        where = Path(self.root).expanduser() if self.root is not None else "embedded"
        return f"{where}: {len(images.labels)} images, {len(images.classes)} classes"
