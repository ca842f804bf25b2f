"""The classes: closed outlines.

The first sixteen are hand-picked and easy to name (star, heart, ...); all further ones are drawn
once and for all from two families, superformula curves and polygons.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from cl_lora.support.seeding import numpy_generator

Floats = npt.NDArray[np.float64]

OUTLINE_POINTS = 128


@functools.lru_cache(maxsize=4096)
def class_outline(number: int) -> Floats:
    """Return the outline of a class, (OUTLINE_POINTS, 2), y downwards, in the unit circle.

    The points lie at equal distances along the outline; its centroid is the origin and its
    farthest point has radius 1. The array is shared and read-only.
    """
    if number < len(NAMED):
        corners = NAMED[number][1]()
    else:
        # The seed is fixed: what a class looks like must not depend on the seed of a run.
        rng = numpy_generator(0, "shape class", number)
        corners = _jagged(rng) if number % 2 else _superformula(rng)
    points = _equidistant(corners)
    points = points - _centroid(points)
    points /= np.hypot(points[:, 0], points[:, 1]).max()
    points.setflags(write=False)
    return points


def class_name(number: int) -> str:
    """Return the name of a class."""
    return NAMED[number][0] if number < len(NAMED) else f"outline-{number:03d}"


def polygon_area(outline: Floats) -> float:
    """Return the area of a closed polygon of (N, 2) corners, by the shoelace formula."""
    x, y = outline[:, 0], outline[:, 1]
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def wobbled(outline: Floats, amount: float, rng: np.random.Generator) -> Floats:
    """Return the outline bent smoothly by about ``amount``, in its own unit."""
    t = np.linspace(0.0, 2.0 * np.pi, len(outline), endpoint=False)
    harmonics = np.arange(2, 8)
    phases = rng.uniform(0.0, 2.0 * np.pi, size=(2, len(harmonics), 1))
    sizes = rng.normal(0.0, amount, size=(2, len(harmonics), 1))
    bend: Floats = (sizes * np.sin(harmonics[:, None] * t + phases)).sum(axis=1).T
    return outline + bend


def _jagged(rng: np.random.Generator) -> Floats:
    """Draw a polygon of four to eleven corners, each at a radius and an angle of its own."""
    count = int(rng.integers(4, 12))
    angle = (np.arange(count) + rng.uniform(-0.3, 0.3, size=count)) * 2.0 * np.pi / count
    radius = rng.uniform(0.25, 1.0, size=count)
    radius[:: int(rng.integers(2, 4))] = 1.0  # some corners stand out: few outlines look alike
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _superformula(rng: np.random.Generator) -> Floats:
    """Draw a curve: Gielis' superformula times three harmonics that break the symmetry."""
    angle = np.linspace(0.0, 2.0 * np.pi, 720, endpoint=False)
    symmetry = int(rng.integers(2, 9))
    n1, n2, n3 = rng.uniform(0.5, 2.5), rng.uniform(0.6, 3.0), rng.uniform(0.6, 3.0)
    phase = symmetry * angle / 4.0
    radius = (np.abs(np.cos(phase)) ** n2 + np.abs(np.sin(phase)) ** n3) ** (-1.0 / n1)
    if symmetry % 2:  # the formula is not periodic in one turn for an odd number: use its cosine
        sharpness = rng.uniform(0.5, 2.0)
        lobes = (0.5 + 0.5 * np.cos(symmetry * angle)) ** sharpness
        radius = rng.uniform(0.35, 0.7) + lobes
    radius = radius / radius.max()
    radius = 0.25 + 0.75 * (radius - radius.min()) / max(float(np.ptp(radius)), 0.4)
    for harmonic in (1, 2, 3):
        radius = radius * (
            1.0 + rng.uniform(0.0, 0.35) * np.cos(harmonic * angle + rng.uniform(0, 2 * np.pi))
        )
    stretch = np.exp(rng.uniform(-0.35, 0.35))
    return np.stack([radius * np.cos(angle) * stretch, radius * np.sin(angle)], axis=1)


def _polygon(*corners: tuple[float, float]) -> Callable[[], Floats]:
    return lambda: np.array(corners, dtype=np.float64)


def _polar(radius: Callable[[Floats], Floats]) -> Callable[[], Floats]:
    """Return the maker of an outline given as radius over angle; angle 0 points upwards."""

    def make() -> Floats:
        angle = np.linspace(0.0, 2.0 * np.pi, 720, endpoint=False)
        r = radius(angle)
        return np.stack([r * np.sin(angle), -r * np.cos(angle)], axis=1)

    return make


def _star() -> Floats:
    angle = np.arange(10) * np.pi / 5
    radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
    return np.stack([radius * np.sin(angle), -radius * np.cos(angle)], axis=1)


def _heart() -> Floats:
    t = np.linspace(0.0, 2.0 * np.pi, 720, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], axis=1)


def _crescent() -> Floats:
    outer = np.linspace(0.25 * np.pi, 1.75 * np.pi, 300)
    inner = np.linspace(1.68 * np.pi, 0.32 * np.pi, 300)
    first = np.stack([np.cos(outer), np.sin(outer)], axis=1)
    second = np.stack([0.35 + 0.75 * np.cos(inner), 0.85 * np.sin(inner)], axis=1)
    return np.concatenate([first, second])


def _drop() -> Floats:
    t = np.linspace(0.0, 2.0 * np.pi, 720, endpoint=False)
    return np.stack([0.75 * np.sin(t) * np.sin(t / 2) ** 2, -np.cos(t)], axis=1)


# fmt: off
NAMED: tuple[tuple[str, Callable[[], Floats]], ...] = (
    ("star", _star),
    ("heart", _heart),
    ("cross", _polygon(
        (-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3),
        (0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3),
    )),
    ("crescent", _crescent),
    ("triangle", _polygon((0, -1), (0.95, 0.75), (-0.95, 0.75))),
    ("arrow", _polygon(
        (1, 0), (0.25, -0.75), (0.25, -0.28), (-1, -0.28), (-1, 0.28), (0.25, 0.28), (0.25, 0.75),
    )),
    ("flower", _polar(lambda t: 0.68 + 0.32 * np.cos(6 * t))),
    ("square", _polygon((-1, -1), (1, -1), (1, 1), (-1, 1))),
    ("drop", _drop),
    ("bolt", _polygon(
        (0.15, -1), (-0.55, 0.1), (-0.08, 0.1), (-0.3, 1), (0.55, -0.25), (0.08, -0.25), (0.45, -1),
    )),
    ("house", _polygon(
        (0, -1), (1, -0.15), (0.72, -0.15), (0.72, 0.9), (-0.72, 0.9), (-0.72, -0.15), (-1, -0.15),
    )),
    ("gear", _polar(lambda t: 0.85 + 0.15 * np.tanh(6 * np.cos(10 * t)))),
    ("ellipse", _polar(lambda t: 0.45 / np.hypot(0.45 * np.cos(t), np.sin(t)))),
    ("letter-l", _polygon(
        (-0.6, -1), (-0.05, -1), (-0.05, 0.45), (0.7, 0.45), (0.7, 1), (-0.6, 1),
    )),
    ("hourglass", _polygon((-0.8, -1), (0.8, -1), (0.15, 0), (0.8, 1), (-0.8, 1), (-0.15, 0))),
    ("trefoil", _polar(lambda t: 0.62 + 0.38 * np.cos(3 * t))),
)
# fmt: on


def _equidistant(corners: Floats) -> Floats:
    """Return OUTLINE_POINTS points at equal distances along a closed polygon, from its start."""
    closed = np.concatenate([corners, corners[:1]])
    steps = np.hypot(*np.diff(closed, axis=0).T)
    way = np.concatenate([[0.0], np.cumsum(steps)])
    stops = np.linspace(0.0, way[-1], OUTLINE_POINTS, endpoint=False)
    return np.stack([np.interp(stops, way, closed[:, k]) for k in (0, 1)], axis=1)


def _centroid(outline: Floats) -> Floats:
    following = np.roll(outline, -1, axis=0)
    cross = outline[:, 0] * following[:, 1] - following[:, 0] * outline[:, 1]
    centre: Floats = ((outline + following) * cross[:, None]).sum(axis=0) / (3.0 * cross.sum())
    return centre
