"""Galaxy10 DECals: galaxies by their form (Leung and Bovy), an HDF5 file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from cl_lora.benchmarks.cache import ImageSource
from cl_lora.benchmarks.images import Pixels, UnreadableImage, square_pixels
from cl_lora.benchmarks.sources.tasks.core import (
    DrawnSource,
    TaskRequest,
    TaskSamples,
    require_place,
    task_source,
)
from cl_lora.benchmarks.splits import Indices
from cl_lora.configuration.build import required
from cl_lora.support.errors import UserError
from cl_lora.support.files import digest
from cl_lora.tasks import CLASS, Task

GALAXIES = (
    "disturbed",
    "merging",
    "round smooth",
    "in-between round smooth",
    "cigar shaped smooth",
    "barred spiral",
    "unbarred tight spiral",
    "unbarred loose spiral",
    "edge-on without bulge",
    "edge-on with bulge",
)
"""In the order of the numbers in ``ans``."""

LEFT_OUT = "cigar shaped smooth"
"""The class of 334 samples, which the paper leaves out."""

_CHUNK = 1 << 24  # bytes hashed at a time


@task_source("galaxy10", summary="Galaxy10 DECals: nine classes of galaxies, an HDF5 file")
@dataclass(frozen=True, kw_only=True)
class Galaxy10Source(DrawnSource):
    """Galaxies of all classes but the rarest; see ``DrawnSource`` for the rest.

    Attributes:
        root: the HDF5 file, with ``images`` uint8 (N, H, W, 3) and ``ans`` (N,).
    """

    paths: ClassVar[tuple[str, ...]] = ("root",)

    root: str = required("the HDF5 file of Galaxy10 DECals", "FILE")

    def listed(self, request: TaskRequest) -> TaskSamples:
        """Read the classes.

        Raises:
            UserError: h5py is not installed, or the file is not there or is another.
        """
        file = require_place(Path(self.root), f"{request.where}.root", "a file")
        with _opened(file) as data:
            answers = _answers(data, file)
        classes = tuple(name for name in GALAXIES if name != LEFT_OUT)
        kept = np.flatnonzero(answers != GALAXIES.index(LEFT_OUT))
        labels = np.array([classes.index(GALAXIES[i]) for i in answers[kept]], dtype=np.int64)

        def images(chosen: Indices, _size: int) -> ImageSource:
            return _images(file, kept[chosen])

        return TaskSamples(Task("", CLASS, classes), labels, images, labels, classes)


def _images(file: Path, rows: Indices) -> ImageSource:
    """Return how rows of the file's images are read."""

    def read(index: int, size: int) -> Pixels:
        row = int(rows[index])
        try:
            with _opened(file) as data:
                pixels = data["images"][row]
        except OSError as error:  # a part of the file is damaged
            raise UnreadableImage(f"row {row} of {file}", str(error)) from error
        return square_pixels(Image.fromarray(pixels), size)

    content = digest(_hash(file), np.ascontiguousarray(rows, dtype="<i8").tobytes())
    return ImageSource(content, len(rows), read, threads=False)


def _answers(data: Any, file: Path) -> Indices:
    """Return the class of every image, int64 (N,)."""
    shapes = {name: data[name].shape for name in ("images", "ans") if name in data}
    images, answers = shapes.get("images", ()), shapes.get("ans", ())
    sound = len(images) == 4 and images[3] == 3 and answers == images[:1]
    if not sound or data["images"].dtype != np.uint8:
        raise UserError(
            f"Expected {file} to hold images uint8 (N, H, W, 3) and ans (N,) but got "
            f"{', '.join(f'{k} {v}' for k, v in shapes.items()) or 'neither'}; give the file of "
            "Galaxy10 DECals"
        )
    values = np.asarray(data["ans"][...])
    bad = ~np.isin(values, np.arange(len(GALAXIES)))
    if bad.any():
        row = int(bad.argmax())
        raise UserError(
            f"Expected ans of {file} to hold numbers from 0 to {len(GALAXIES) - 1} but row {row} "
            f"is {values[row]}; give the file of Galaxy10 DECals"
        )
    return values.astype(np.int64)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        import h5py  # here because it is optional
    except ImportError as error:
        raise UserError(
            "Expected the package 'h5py' for the task source galaxy10 but it is not installed; "
            "run: pip install 'cl-lora[hdf5]'"
        ) from error
    try:
        data = h5py.File(file, "r")
    except OSError as error:
        raise UserError(
            f"Expected {file} to be an HDF5 file but it cannot be read: {error}; replace it"
        ) from error
    with data:
        yield data


def _hash(file: Path) -> str:
    """Return a digest over the file's bytes."""
    hasher = hashlib.blake2b(digest_size=16)
    with file.open("rb") as opened:
        while part := opened.read(_CHUNK):
            hasher.update(part)
    return hasher.hexdigest()
