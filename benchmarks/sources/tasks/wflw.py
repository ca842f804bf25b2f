"""WFLW: 98 landmarks of faces with a box and six attributes (Wu et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from cl_lora.benchmarks.sources.crop import Floats, Square, square_around
from cl_lora.benchmarks.sources.tasks.core import (
    TaskRequest,
    TaskSamples,
    TaskSource,
    require_place,
    task_source,
)
from cl_lora.benchmarks.sources.tasks.files import (
    ImageFiles,
    MalformedError,
    lines_of,
    missing_files,
    numbers_of,
    require_sound,
)
from cl_lora.configuration.build import required
from cl_lora.support.errors import UserError
from cl_lora.support.ranges import at_most
from cl_lora.tasks import Task, get_kind

POINTS = 98
EYE_CORNERS = (60, 72)
"""The outer corners of the eyes, whose distance errors are divided by."""

ATTRIBUTES = ("pose", "expression", "illumination", "make_up", "occlusion", "blur")
_LISTS = ("list_98pt_rect_attr_train.txt", "list_98pt_rect_attr_test.txt")
_NUMBERS = 2 * POINTS + 4 + len(ATTRIBUTES)
_FORM = (
    "196 coordinates, 4 numbers of a box (left top right bottom), 6 attributes of 0 or 1 and an "
    "image"
)


@task_source("wflw", summary="WFLW: 98 landmarks of a face, cropped by its box")
@dataclass(frozen=True, kw_only=True)
class WFLWSource(TaskSource):
    """Landmarks as shares of a square crop; see ``TaskSource`` for the rest.

    Attributes:
        root: the folder of lists and images.
        lists: the folder of the two list files, relative to ``root``.
        images: the folder that the lists' paths are relative to, relative to ``root``.
        margin: of the crop about the box, at each edge, as a share of the box's longer side.
        outside: how far a landmark may lie outside the crop, as a share of its side.
    """

    drawing: ClassVar[frozenset[str]] = TaskSource.drawing | {"margin", "outside"}
    paths: ClassVar[tuple[str, ...]] = ("root", "lists", "images")
    numbers: ClassVar[tuple[str, ...]] = ("margin", "outside")

    root: str = required("the folder of WFLW_annotations and WFLW_images", "DIR")
    lists: str = "WFLW_annotations/list_98pt_rect_attr_train_test"
    images: str = "WFLW_images"
    margin: float = at_most(100, 0.2)
    outside: float = at_most(100, 0.5)

    def listed(self, request: TaskRequest) -> TaskSamples:
        """Read the lists.

        Raises:
            UserError: a folder or list is not there, lines are malformed, name no image, have a
                landmark too far outside the crop or eyes that are one point.
        """
        root = require_place(Path(self.root), f"{request.where}.root")
        lists = require_place(root / self.lists, f"{request.where}.lists")
        images = require_place(root / self.images, f"{request.where}.images")
        parts = [self._read(lists / name, images) for name in _LISTS]
        faces = [face for part in parts for face in part]
        first = len(parts[0])
        masks = zip(*(face.attributes for face in faces), strict=True)
        return TaskSamples(
            Task(
                "",
                get_kind("points"),
                tuple(f"point_{number}" for number in range(POINTS)),
                normaliser=EYE_CORNERS,
            ),
            np.stack([face.points for face in faces]).astype(np.float32),
            ImageFiles(images, [face.path for face in faces], [face.square for face in faces]),
            given=(np.arange(first), np.arange(first, len(faces))),
            subsets={n: np.array(mask) for n, mask in zip(ATTRIBUTES, masks, strict=True)},
        )

    def _read(self, file: Path, images: Path) -> list[Face]:
        require_place(file, "the list of WFLW", "a file")
        faces: list[tuple[int, Face]] = []
        problems = []
        for number, fields in lines_of(file):
            try:
                faces.append((number, read_face(fields, self.margin, self.outside)))
            except MalformedError as error:
                problems.append(f"line {number}: {error}")
        missing = missing_files(images, [face.path for _, face in faces])
        problems += [
            f"line {number}: no image {face.path!r} in {images}"
            for number, face in faces
            if face.path in missing
        ]
        require_sound(problems, file, _FORM)
        if not faces:
            raise UserError(f"Expected {file} to name faces but it is empty; replace it")
        return [face for _, face in faces]


@dataclass(frozen=True, eq=False)
class Face:
    """A line of a list: points float64 (98, 2) as shares of the crop, and what belongs to them."""

    path: str
    square: Square
    points: Floats
    attributes: tuple[bool, ...]


def read_face(fields: list[str], margin: float, outside: float) -> Face:
    """Return the face of a line's fields; raise ``MalformedError`` if they are none."""
    path = " ".join(fields[_NUMBERS:])
    if not path:
        raise MalformedError(f"{len(fields)} fields in place of {_NUMBERS + 1}")
    numbers = np.array(numbers_of(fields[:_NUMBERS]))
    points, box, flags = np.split(numbers, (2 * POINTS, 2 * POINTS + 4))
    if not np.isin(flags, (0, 1)).all():
        raise MalformedError(f"attributes {' '.join(fields[2 * POINTS + 4 : _NUMBERS])}")
    left, top, right, bottom = box.tolist()
    if not (right > left and bottom > top):
        raise MalformedError(f"a box {left:g} {top:g} {right:g} {bottom:g} without an area")
    square = square_around((left, top, right, bottom), margin)
    shares = square.shares(points.reshape(POINTS, 2))
    if (shares[EYE_CORNERS[0]] == shares[EYE_CORNERS[1]]).all():
        raise MalformedError(f"points {EYE_CORNERS[0]} and {EYE_CORNERS[1]} of the eyes are one")
    far = ((shares < -outside) | (shares > 1 + outside)).any(axis=1)
    if far.any():
        raise MalformedError(
            f"point {int(far.argmax())} lies more than {outside:g} of the crop's side outside it"
        )
    return Face(path, square, shares, tuple((flags == 1).tolist()))
