"""Square crops of images and what they do to points: one transform for every source.

Coordinates are continuous: pixel i covers the interval from i to i + 1. Points of an image are
pixels (x, y) from its upper left corner; points of a crop are shares of its side, so that they do
not depend on the size that the crop is scaled to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from cl_lora.benchmarks.images import Pixels, UnreadableImage

Floats = npt.NDArray[np.float64]

_LARGEST = 8  # sides of a crop in longer sides of its image: more is a mistake, and fills memory


@dataclass(frozen=True)
class Square:
    """A square of an image, in its pixels; it may reach beyond the image.

    Attributes:
        left: x of the left edge.
        top: y of the upper edge.
        side: above 0.
    """

    left: float
    top: float
    side: float

    def shares(self, points: npt.NDArray[np.floating]) -> Floats:
        """Return points of the image (..., 2) as shares of the crop's side."""
        shares: Floats = (np.asarray(points, dtype=np.float64) - self._corner) / self.side
        return shares

    def pixels(self, shares: npt.NDArray[np.floating]) -> Floats:
        """Return points of the crop (..., 2) in pixels of the image: undoes :meth:`shares`."""
        points: Floats = np.asarray(shares, dtype=np.float64) * self.side + self._corner
        return points

    @property
    def _corner(self) -> Floats:
        return np.array((self.left, self.top))


def square_around(box: tuple[float, float, float, float], margin: float) -> Square:
    """Return the square about a box, of its longer side and a margin.

    With width w and height h the square has the box's centre and the side
    ``max(w, h) * (1 + 2 * margin)``.

    Args:
        box: left, top, right and bottom in pixels; right is beyond left, bottom beyond top.
        margin: added at each edge, as a share of the longer side.

    Example:
        >>> square_around((10, 20, 50, 40), margin=0.25)
        Square(left=0.0, top=0.0, side=60.0)
    """
    left, top, right, bottom = box
    side = max(right - left, bottom - top) * (1 + 2 * margin)
    return Square((left + right - side) / 2, (top + bottom - side) / 2, side)


def crop_pixels(image: Image.Image, square: Square, size: int, name: object) -> Pixels:
    """Return the square of an image, scaled (bicubic).

    What lies beyond the image has the colour of the nearest pixel.

    Args:
        image: RGB.
        square: what to cut out.
        size: side of the result in pixels.
        name: what to call the image in an error.

    Returns:
        uint8 (size, size, 3).

    Raises:
        UnreadableImage: the square shows nothing of the image, or is far larger than it.
    """
    width, height = image.size
    left, top, side = square.left, square.top, square.side
    right, bottom = left + side, top + side
    if min(right, bottom) <= 0 or left >= width or top >= height:
        raise UnreadableImage(name, f"its box is outside its {width} x {height} pixels")
    if side > _LARGEST * max(width, height):
        raise UnreadableImage(name, f"its box is far larger than its {width} x {height} pixels")
    if min(left, top) < 0 or right > width or bottom > height:
        columns = np.arange(math.floor(left), math.ceil(right))
        rows = np.arange(math.floor(top), math.ceil(bottom))
        inside = np.ix_(np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1))
        image = Image.fromarray(np.asarray(image)[inside])
        left, top = left - columns[0], top - rows[0]
        right, bottom = min(left + side, image.width), min(top + side, image.height)
    box = (left, top, right, bottom)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
