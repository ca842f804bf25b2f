"""Published image sets through torchvision's own classes, which are imported when one is asked for.

The data lies below ``root`` as torchvision lays it out, and is downloaded only when asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cl_lora.benchmarks.cache import ImageSource
from cl_lora.benchmarks.images import Pixels, decode_image, read_file, square_pixels
from cl_lora.benchmarks.sources.image_sets import (
    ImageSet,
    SetRequest,
    register_image_set,
    require_no_options,
    require_root,
    split_set,
)
from cl_lora.benchmarks.splits import Indices, Split
from cl_lora.support.errors import UserError
from cl_lora.support.files import digest

Options = Mapping[str, Any]

_BY_FLAG: tuple[tuple[Options, ...], tuple[Options, ...]] = (
    ({"train": True},),
    ({"train": False},),
)
_BY_NAME: tuple[tuple[Options, ...], tuple[Options, ...]] = (
    ({"split": "train"},),
    ({"split": "test"},),
)
_WITH_VAL: tuple[tuple[Options, ...], tuple[Options, ...]] = (
    ({"split": "train"}, {"split": "val"}),
    ({"split": "test"},),
)
_UNSPLIT: tuple[tuple[Options, ...], tuple[Options, ...]] = (({},), ())


@dataclass(frozen=True)
class Published:
    """How torchvision holds a set.

    Attributes:
        folder: where below the root it lies.
        train: options of each part that is trained on.
        test: options of each part that is tested on; empty where the set has no split of its own.
        labels: the attribute of the labels; with ``files`` the same one, pairs (file, label).
        files: the attribute of the files; None where the images are an array ``data``.
    """

    folder: str
    train: tuple[Options, ...]
    test: tuple[Options, ...]
    labels: str
    files: str | None


_LISTED = ("_labels", "_image_files")
_PAIRS = ("_samples", "_samples")

PUBLISHED: dict[str, Published] = {
    "CIFAR100": Published("cifar-100-python", *_BY_FLAG, "targets", None),
    "DTD": Published("dtd", *_WITH_VAL, *_LISTED),
    "EuroSAT": Published("eurosat", *_UNSPLIT, "samples", "samples"),
    "Flowers102": Published("flowers-102", *_WITH_VAL, *_LISTED),
    "Food101": Published("food-101", *_BY_NAME, *_LISTED),
    "GTSRB": Published("gtsrb", *_BY_NAME, *_PAIRS),
    "MNIST": Published("MNIST", *_BY_FLAG, "targets", None),
    "StanfordCars": Published("stanford_cars", *_BY_NAME, *_PAIRS),
    "SUN397": Published("SUN397", *_UNSPLIT, *_LISTED),
    "SVHN": Published(".", *_BY_NAME, "labels", None),
}
"""The sets by the name of torchvision's class."""


@dataclass(frozen=True, eq=False)
class _Part:
    """The images of one part: files below the root, or an array uint8 (N, H, W) or (N, H, W, 3)."""

    images: Sequence[Path] | Pixels
    labels: list[int]

    def some(self, chosen: Sequence[int]) -> _Part:
        """Return those at some places."""
        labels = [self.labels[i] for i in chosen]
        if isinstance(self.images, np.ndarray):
            return _Part(self.images[np.array(chosen, dtype=np.int64)], labels)
        return _Part([self.images[i] for i in chosen], labels)


@dataclass(frozen=True, eq=False)
class Listed:
    """All images of a published set, listed and mostly not read.

    Attributes:
        classes: class names; numbers where the set has none (GTSRB, SVHN).
        labels: int64 (N,), indices into ``classes``.
        given: train and test samples of the set's own split; None where it has none. Parts of
            training and of validation are one train part.
        root: the folder that was looked into.
        parts: the images of all parts, one after another.
    """

    classes: tuple[str, ...]
    labels: Indices
    given: Split | None
    root: Path
    parts: Sequence[_Part]

    def images(self, chosen: Indices | None = None) -> ImageSource:
        """Return how the images of some samples (M,) are read, or of all; for the digest they are.

        Args:
            chosen: int64 (M,), sorted; None for all.
        """
        return _source(self.root, self.parts if chosen is None else self._parts(chosen.tolist()))

    def _parts(self, chosen: Sequence[int]) -> list[_Part]:
        kept = []
        begin = 0
        for part in self.parts:
            count = len(part.labels)
            kept.append(part.some([i - begin for i in chosen if begin <= i < begin + count]))
            begin += count
        return kept


def list_published(
    name: str, root: Path, *, download: bool = False, where: str = "benchmark"
) -> Listed:
    """Find and list one of ``PUBLISHED``.

    Args:
        name: of torchvision's class.
        root: the folder of torchvision's data.
        download: whether it may be downloaded if it is not there.
        where: what ``root`` and ``download`` are settings of, for messages.

    Raises:
        UserError: the data is not there, is broken or cannot be downloaded.
    """
    about = PUBLISHED[name]
    opened = [_open(name, root, o, download, where) for o in about.train + about.test]
    parts = [_part(dataset, about) for dataset in opened]
    labels = np.array([label for part in parts for label in part.labels], dtype=np.int64)
    count = sum(len(part.labels) for part in parts[: len(about.train)])
    given = (np.arange(count), np.arange(count, len(labels))) if about.test else None
    return Listed(_class_names(opened[0], labels), labels, given, root, parts)


def published_set(name: str, request: SetRequest) -> ImageSet:
    """Find and list one of ``PUBLISHED``; parts of training and of validation are one train part.

    A set without a split of its own (EuroSAT, SUN397) is split by a draw.

    Raises:
        UserError: the data is not there, is broken or cannot be downloaded.
    """
    require_no_options(request, name)
    root = Path(require_root(request, f"the folder of torchvision's {name}")).expanduser()
    found = list_published(name, root, download=request.download)
    return ImageSet(
        request.name,
        found.classes,
        found.labels,
        split_set(request, found.labels, found.classes, found.given),
        lambda _: found.images(),
    )


def _open(name: str, root: Path, options: Options, download: bool, where: str) -> Any:
    from torchvision import datasets  # here because it is slow to import

    try:
        return getattr(datasets, name)(str(root), **options, download=download)
    # What is missing or broken is told by RuntimeError, ValueError or OSError, one set as another;
    # the network adds its own.
    except Exception as error:
        remedy = (
            "put it there yourself"
            if download
            else f"give the right {where}.root=DIR, or download it with {where}.download=true"
        )
        raise UserError(
            f"Expected torchvision's {name} in {root / PUBLISHED[name].folder} but it is not there "
            f"or not whole ({' '.join(str(error).split())}); {remedy}"
        ) from error


def _part(dataset: Any, about: Published) -> _Part:
    found = getattr(dataset, about.labels)
    if about.files is None:
        return _Part(_channels_last(np.asarray(dataset.data)), [int(label) for label in found])
    if about.files == about.labels:
        pairs = [(Path(file), int(label)) for file, label in found]
    else:
        files = getattr(dataset, about.files)
        pairs = [(Path(file), int(label)) for file, label in zip(files, found, strict=True)]
    pairs.sort()  # SUN397 lists its files in the order of the file system
    return _Part([file for file, _ in pairs], [label for _, label in pairs])


def _channels_last(data: Pixels) -> Pixels:
    is_svhn = data.ndim == 4 and data.shape[1] == 3 and data.shape[3] != 3
    return data.transpose(0, 2, 3, 1) if is_svhn else data


def _class_names(dataset: Any, labels: Indices) -> tuple[str, ...]:
    """Return the set's own class names; where it has none (GTSRB, SVHN), the numbers."""
    names = getattr(dataset, "classes", None)
    if names is None:
        return tuple(str(label) for label in range(int(labels.max()) + 1))
    return tuple(str(name) for name in names)


def _source(root: Path, parts: Sequence[_Part]) -> ImageSource:
    places = [(part, index) for part in parts for index in range(len(part.labels))]

    def read(index: int, size: int) -> Pixels:
        part, place = places[index]
        image = part.images[place]
        if isinstance(image, Path):
            return decode_image(image, size, image)
        return square_pixels(Image.fromarray(image).convert("RGB"), size)

    contents = [_content(root, part) for part in parts]
    return ImageSource(digest("torchvision", contents), len(places), read)


def _content(root: Path, part: _Part) -> list[Any]:
    if isinstance(part.images, np.ndarray):
        data = np.ascontiguousarray(part.images)
        return [list(data.shape), hashlib.blake2b(data.tobytes(), digest_size=16).hexdigest()]
    return [_identify(root, file) for file in part.images]


def _identify(root: Path, file: Path) -> tuple[str, str]:
    try:
        data = read_file(file)
    except OSError:  # decoding fails too, and then names all such files at once
        data = b""
    name = file.relative_to(root).as_posix()
    return name, hashlib.blake2b(data, digest_size=16).hexdigest()


for _name in PUBLISHED:
    register_image_set(_name, summary=f"torchvision's {_name}")(partial(published_set, _name))
