"""Images that are files, whole or cropped, and the lines of list files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cl_lora.benchmarks.cache import ImageSource, shortened
from cl_lora.benchmarks.images import Pixels, decode_image, open_image
from cl_lora.benchmarks.sources.crop import Square, crop_pixels
from cl_lora.benchmarks.sources.tree import files_content
from cl_lora.benchmarks.splits import Indices
from cl_lora.support.errors import UserError
from cl_lora.support.files import digest


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """The image files of samples; call it as ``TaskSamples.images``.

    Attributes:
        root: the folder of the files.
        paths: relative to it, one for each sample; a file may hold several samples.
        squares: what to cut out of each; None for the central square of the whole image.
    """

    root: Path
    paths: Sequence[str]
    squares: Sequence[Square] | None = None

    def __call__(self, chosen: Indices, _size: int) -> ImageSource:
        """Return how the images of some samples are read; the files' bytes are, for the digest."""
        paths = [self.paths[i] for i in chosen.tolist()]
        content = files_content(self.root, paths)
        if self.squares is None:

            def whole(index: int, size: int) -> Pixels:
                path = self.root / paths[index]
                return decode_image(path, size, path)

            return ImageSource(content, len(paths), whole)
        squares = [self.squares[i] for i in chosen.tolist()]
        corners = np.array([(s.left, s.top, s.side) for s in squares], dtype="<f8")

        def cropped(index: int, size: int) -> Pixels:
            path = self.root / paths[index]
            return crop_pixels(open_image(path, path), squares[index], size, path)

        return ImageSource(digest("crops", content, corners.tobytes()), len(paths), cropped)


class MalformedError(Exception):
    """What is wrong with one line of a list file."""


def lines_of(file: Path) -> list[tuple[int, list[str]]]:
    """Return number and fields of every line of a list file that is not empty.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read {file}: {error}; replace it") from error
    return [(n, line.split()) for n, line in enumerate(lines, start=1) if line.strip()]


def numbers_of(fields: Sequence[str]) -> list[float]:
    """Return fields as numbers.

    Raises:
        MalformedError: one is none, or is not finite.
    """
    numbers = []
    for field in fields:
        try:
            number = float(field)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise MalformedError(f"{field!r} in place of a number")
        numbers.append(number)
    return numbers


def require_sound(problems: Sequence[str], file: Path, form: str) -> None:
    """Raise ``UserError`` if lines of a list file are malformed.

    Args:
        problems: a phrase for each, with the line's number.
        file: the list file.
        form: what a line should hold.
    """
    if problems:
        raise UserError(
            f"Expected each line of {file} to be {form} but got {shortened(problems)}; "
            "correct or remove those lines"
        )


def missing_files(root: Path, paths: Sequence[str]) -> set[str]:
    """Return those of ``paths`` that are no files below ``root``."""
    return {path for path in set(paths) if not (root / path).is_file()}
