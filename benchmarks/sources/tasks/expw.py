"""ExpW, Expression in the Wild: seven emotions of faces with boxes (Zhang et al. 2015)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from cl_lora.benchmarks.sources.crop import Square, square_around
from cl_lora.benchmarks.sources.tasks.core import (
    DrawnSource,
    TaskRequest,
    TaskSamples,
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
from cl_lora.tasks import CLASS, Task

EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
"""In the order of the numbers in the list."""

_FIELDS = 8
_FORM = (
    "IMAGE FACE TOP LEFT RIGHT BOTTOM CONFIDENCE EMOTION, the emotion from 0 to "
    f"{len(EMOTIONS) - 1}"
)


@task_source("expw", summary="ExpW: seven emotions, faces cropped by their box")
@dataclass(frozen=True, kw_only=True)
class ExpWSource(DrawnSource):
    """Emotions of faces, cropped; see ``DrawnSource`` for the rest.

    Attributes:
        root: the folder of list and images.
        labels: the list file, relative to ``root``.
        images: the folder of the images, relative to ``root``.
        margin: of the crop about the box, at each edge, as a share of the box's longer side.
        least_confidence: faces that the publishers' detector was less sure of are left out.
    """

    drawing: ClassVar[frozenset[str]] = DrawnSource.drawing | {"margin", "least_confidence"}
    paths: ClassVar[tuple[str, ...]] = ("root", "labels", "images")
    numbers: ClassVar[tuple[str, ...]] = ("margin", "least_confidence")

    root: str = required("the folder of label.lst and of the images", "DIR")
    labels: str = "label.lst"
    images: str = "origin"
    margin: float = at_most(100, 0.2)
    least_confidence: float = at_most(1_000_000, 0.0)

    def listed(self, request: TaskRequest) -> TaskSamples:
        """Read the list.

        Raises:
            UserError: list or folder is not there, or lines are malformed or name no image.
        """
        root = require_place(Path(self.root), f"{request.where}.root")
        file = require_place(root / self.labels, f"{request.where}.labels", "a file")
        images = require_place(root / self.images, f"{request.where}.images")
        faces = _read(file, images, self.margin)
        kept = [face for face in faces if face.confidence >= self.least_confidence]
        if not kept:
            raise UserError(
                f"Expected {file} to name faces of a confidence of at least "
                f"{self.least_confidence:g} but got none of {len(faces)}; give a lower "
                f"{request.where}.least_confidence"
            )
        labels = np.array([face.emotion for face in kept], dtype=np.int64)
        return TaskSamples(
            Task("", CLASS, EMOTIONS),
            labels,
            ImageFiles(images, [face.path for face in kept], [face.square for face in kept]),
            labels,
            EMOTIONS,
        )


@dataclass(frozen=True)
class _Face:
    path: str
    square: Square
    confidence: float
    emotion: int


def _read(file: Path, images: Path, margin: float) -> list[_Face]:
    faces: list[tuple[int, _Face]] = []
    problems = []
    for number, fields in lines_of(file):
        try:
            faces.append((number, _face(fields, margin)))
        except MalformedError as error:
            problems.append(f"line {number}: {error}")
    missing = missing_files(images, [face.path for _, face in faces])
    problems += [
        f"line {number}: no image {face.path!r} in {images}"
        for number, face in faces
        if face.path in missing
    ]
    require_sound(problems, file, _FORM)
    return [face for _, face in faces]


def _face(fields: list[str], margin: float) -> _Face:
    if len(fields) != _FIELDS:
        raise MalformedError(f"{len(fields)} fields in place of {_FIELDS}")
    path, _, *numbers, emotion = fields
    top, left, right, bottom, confidence = numbers_of(numbers)
    if not (right > left and bottom > top):
        raise MalformedError(f"a box {top:g} {left:g} {right:g} {bottom:g} without an area")
    if not (emotion.isdecimal() and int(emotion) < len(EMOTIONS)):
        raise MalformedError(f"emotion {emotion!r}")
    square = square_around((left, top, right, bottom), margin)
    return _Face(path, square, confidence, int(emotion))
