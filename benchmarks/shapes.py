"""Labelled pictures of outlines, drawn on the fly in several styles: data that needs no download.

A class is a closed outline. The first sixteen are hand-picked and easy to name (star, heart, ...);
all further ones are drawn once and for all from two families, superformula curves and polygons. A
sample is one class in one pose, drawn in one style; the styles are the domains. Everything about a
sample follows from ``(seed, style, class, index)``: adding samples, styles or classes never changes
another one.

Example:
    >>> spec = ShapesSpec(classes=3, styles=("photo", "sketch"), samples_per_class=4,
    ...                   image_size=48, seed=0)
    >>> class_names(spec)
    ('star', 'heart', 'cross')
    >>> render_sample(spec, "sketch", label=1, index=0).image.shape
    (48, 48, 3)
"""

from __future__ import annotations

import colorsys
import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from cl_lora.support.errors import UserError, unknown_name
from cl_lora.support.seeding import numpy_generator

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]
Colour = Floats
Painter = Callable[[Floats, int, np.random.Generator], Floats]

OUTLINE_POINTS = 128
KEYPOINTS = 8
MAX_ORIENTATION = 0.6  # radians; small enough that a square never becomes a diamond
_OVERSAMPLING = 4  # edges are drawn this much larger and averaged down: antialiasing


@dataclass(frozen=True)
class ShapesSpec:
    """Which pictures there are.

    Attributes:
        classes: number of classes; labels run from 0 to ``classes - 1``.
        styles: the styles (domains), each one of ``STYLES``, in the order wanted.
        samples_per_class: samples per class in each style.
        image_size: side of the square images in pixels.
        seed: all randomness is derived from it.
        first_class: the class of label 0; two specs with disjoint ranges share no outline.
    """

    classes: int
    styles: tuple[str, ...]
    samples_per_class: int
    image_size: int
    seed: int
    first_class: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("classes", 1),
            ("samples_per_class", 1),
            ("image_size", 16),
            ("first_class", 0),
        ):
            value = getattr(self, name)
            if not _is_integer(value) or value < least:
                raise UserError(
                    f"Expected {name} of the shapes to be an integer of at least {least} "
                    f"but got {value!r}"
                )
        if not _is_integer(self.seed):
            raise UserError(f"Expected seed of the shapes to be an integer but got {self.seed!r}")
        if isinstance(self.styles, str) or not self.styles:
            raise UserError(
                f"Expected styles to be a tuple of one or more names but got {self.styles!r}; "
                f"choose from {', '.join(STYLES)}"
            )
        for style in self.styles:
            if style not in STYLES:
                raise unknown_name("shapes style", style, STYLES)
        if len(set(self.styles)) != len(self.styles):
            raise UserError(f"Expected every style once but got {', '.join(self.styles)}")


@dataclass(frozen=True)
class ShapeAnnotation:
    """All there is to know about a sample without its pixels.

    Attributes:
        label: from 0 to ``spec.classes - 1``.
        style: one of ``spec.styles``.
        area: of the outline polygon, exact, as a share of the image's area.
        orientation: rotation of the outline in radians; positive is clockwise on the screen.
        keypoints: float32 (KEYPOINTS, 2), points (x, y) on the outline in pixels; pixel i covers
            the interval from i to i + 1.
    """

    label: int
    style: str
    area: float
    orientation: float
    keypoints: npt.NDArray[np.float32]


@dataclass(frozen=True)
class ShapeSample:
    """A picture and its annotation; ``image`` is uint8 (H, W, 3), the rest as ShapeAnnotation."""

    image: Pixels
    label: int
    style: str
    area: float
    orientation: float
    keypoints: npt.NDArray[np.float32]


def class_names(spec: ShapesSpec) -> tuple[str, ...]:
    """Return the name of every label."""
    classes = range(spec.first_class, spec.first_class + spec.classes)
    return tuple(_NAMED[c][0] if c < len(_NAMED) else f"outline-{c:03d}" for c in classes)


def describe_sample(spec: ShapesSpec, style: str, label: int, index: int) -> ShapeAnnotation:
    """Return the annotation of a sample without drawing it.

    Args:
        spec: which pictures there are.
        style: one of ``spec.styles``.
        label: from 0 to ``spec.classes - 1``.
        index: number of the sample within its class and style, from 0.
    """
    outline, orientation = _pose(spec, style, label, index)
    return _annotate(spec, style, label, outline, orientation)


def render_sample(spec: ShapesSpec, style: str, label: int, index: int) -> ShapeSample:
    """Draw a sample; arguments as in ``describe_sample``, whose annotation it carries."""
    outline, orientation = _pose(spec, style, label, index)
    rng = numpy_generator(spec.seed, "shape pixels", style, spec.first_class + label, index)
    canvas = _PAINTERS[style](outline, spec.image_size, rng)
    image = (np.clip(canvas, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    note = _annotate(spec, style, label, outline, orientation)
    return ShapeSample(image, note.label, note.style, note.area, note.orientation, note.keypoints)


def sample_outline(spec: ShapesSpec, style: str, label: int, index: int) -> Floats:
    """Return a sample's outline, float64 (OUTLINE_POINTS, 2), closed, (x, y) in pixels."""
    return _pose(spec, style, label, index)[0]


def polygon_area(outline: Floats) -> float:
    """Return the area of a closed polygon of (N, 2) corners, by the shoelace formula."""
    x, y = outline[:, 0], outline[:, 1]
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def fill_mask(outline: Floats, size: int) -> Floats:
    """Return how much of each pixel the outline covers, (size, size) from 0 to 1."""
    big = Image.new("L", (size * _OVERSAMPLING,) * 2)
    ImageDraw.Draw(big).polygon(_enlarged(outline), fill=255)
    return _shrink(big)


# --- outlines ----------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def class_outline(number: int) -> Floats:
    """Return the outline of a class, (OUTLINE_POINTS, 2), y downwards, in the unit circle.

    The points lie at equal distances along the outline; its centroid is the origin and its
    farthest point has radius 1. The array is shared and read-only.
    """
    if number < len(_NAMED):
        corners = _NAMED[number][1]()
    else:
        # The seed is fixed: what a class looks like must not depend on the seed of a run.
        rng = numpy_generator(0, "shape class", number)
        corners = _jagged(rng) if number % 2 else _superformula(rng)
    points = _equidistant(corners)
    points = points - _centroid(points)
    points /= np.hypot(points[:, 0], points[:, 1]).max()
    points.setflags(write=False)
    return points


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
_NAMED: tuple[tuple[str, Callable[[], Floats]], ...] = (
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


def _pose(spec: ShapesSpec, style: str, label: int, index: int) -> tuple[Floats, float]:
    """Return a sample's outline in pixels and its orientation."""
    if style not in spec.styles:
        raise unknown_name("style of this shapes spec", style, spec.styles)
    if not 0 <= label < spec.classes:
        raise UserError(f"Expected a label from 0 to {spec.classes - 1} but got {label}")
    if index < 0:
        raise UserError(f"Expected a sample's index to be at least 0 but got {index}")
    number = spec.first_class + label
    rng = numpy_generator(spec.seed, "shape geometry", style, number, index)
    orientation = float(rng.uniform(-MAX_ORIENTATION, MAX_ORIENTATION))
    radius = rng.uniform(0.27, 0.42)
    centre = rng.uniform(radius + 0.03, 0.97 - radius, size=2)
    stretch = np.exp(rng.uniform(-0.12, 0.12))
    shape = class_outline(number) * (stretch, 1.0 / stretch)
    return _place(_wobbled(shape, 0.01, rng), orientation, radius, centre, spec.image_size)


def _place(
    shape: Floats, orientation: float, radius: float, centre: Floats, size: int
) -> tuple[Floats, float]:
    """Turn, scale and move an outline of about unit radius; radius and centre in image sides."""
    sine, cosine = np.sin(orientation), np.cos(orientation)
    turned = shape @ np.array([[cosine, sine], [-sine, cosine]])
    return (turned * radius + centre) * size, orientation


def _annotate(
    spec: ShapesSpec, style: str, label: int, outline: Floats, orientation: float
) -> ShapeAnnotation:
    area = polygon_area(outline) / spec.image_size**2
    keypoints = outline[:: OUTLINE_POINTS // KEYPOINTS].astype(np.float32)
    return ShapeAnnotation(label, style, area, orientation, keypoints)


def _wobbled(outline: Floats, amount: float, rng: np.random.Generator) -> Floats:
    """Return the outline bent smoothly by about ``amount``, in its own unit."""
    t = np.linspace(0.0, 2.0 * np.pi, len(outline), endpoint=False)
    harmonics = np.arange(2, 8)
    phases = rng.uniform(0.0, 2.0 * np.pi, size=(2, len(harmonics), 1))
    sizes = rng.normal(0.0, amount, size=(2, len(harmonics), 1))
    bend: Floats = (sizes * np.sin(harmonics[:, None] * t + phases)).sum(axis=1).T
    return outline + bend


# --- drawing -----------------------------------------------------------------------------------
# A painter takes the outline in pixels, the image's side and a generator, and returns the picture
# as float64 (size, size, 3) from 0 to 1. Widths are shares of the side: sizes look alike.


def _photo(outline: Floats, size: int, rng: np.random.Generator) -> Floats:
    """A lit, textured object with a soft shadow before a blurred background, with sensor noise."""
    ground, figure = _contrasting(rng, saturation=(0.15, 0.75))
    scene = ground + _clouds(rng, 4, size, 3) * 0.16 + _clouds(rng, 9, size, 1) * 0.08
    mask = fill_mask(outline, size)
    light = rng.uniform(0.0, 2.0 * np.pi)
    towards = np.array([np.cos(light), np.sin(light)])
    shadow = _blurred(fill_mask(outline - towards * size * 0.05, size), size * 0.05)
    scene = scene * (1.0 - 0.45 * shadow[..., None])
    grid = (np.arange(size) + 0.5) / size - 0.5
    slope = grid[None, :] * towards[0] + grid[:, None] * towards[1]
    # The difference of the mask and its blurred copy lights up rims: the object looks rounded.
    rounded = _blurred(mask, size * 0.06)
    shade = 1.0 + 0.6 * slope + 0.35 * (rounded - 0.8)
    texture = _clouds(rng, size // 4, size, 1) * rng.uniform(0.05, 0.22)
    if rng.random() < 0.4:
        way = rng.uniform(0.0, np.pi)
        stripes = grid[None, :] * np.cos(way) + grid[:, None] * np.sin(way)
        wave = np.sin(stripes * 2.0 * np.pi * rng.uniform(5.0, 10.0))
        texture = texture + 0.10 * wave[..., None]
    body = figure * shade[..., None] + texture
    mask = mask[..., None]
    picture: Floats = scene * (1 - mask) + body * mask
    return picture + rng.normal(0.0, 0.03, size=(size, size, 3))


def _painting(outline: Floats, size: int, rng: np.random.Generator) -> Floats:
    """Broad brush strokes on canvas: ragged edges, and a figure told by its hue, not its light."""
    hue = rng.random()
    light = rng.uniform(0.3, 0.55)
    ground = _of_light(_colour(hue, rng.uniform(0.5, 0.95), 1.0), light)
    other = hue + rng.uniform(0.35, 0.65)
    figure = _of_light(_colour(other, rng.uniform(0.5, 0.95), 1.0), light * rng.uniform(0.8, 1.25))
    mask = fill_mask(_wobbled(outline, size * 0.008, rng), size)
    way = rng.uniform(0.0, np.pi)
    behind = _strokes(ground, size, rng, count=60, way=way, width=size * 0.09)
    front = _strokes(figure, size, rng, count=50, way=way + 1.2, width=size * 0.08)
    ragged = np.clip(
        (mask - 0.5) * 1.6 + 0.5 + _clouds(rng, size // 3, size, 1)[..., 0] * 0.5, 0, 1
    )
    ragged = (ragged * (_blurred(mask, size * 0.02) > 0.12))[..., None]
    canvas = 0.03 * np.sin(np.arange(size) * np.pi * 0.9)
    weave = (canvas[:, None] + canvas[None, :])[..., None]
    warm = np.array([1.03, 0.98, 0.88])
    picture: Floats = (behind * (1 - ragged) + front * ragged) * warm + weave
    return picture


def _cartoon(outline: Floats, size: int, rng: np.random.Generator) -> Floats:
    """A flat fill with a thick dark outline before a comic's background: rays, dots or a floor."""
    hue = rng.random()
    ground = _colour(hue, rng.uniform(0.2, 0.7), rng.uniform(0.75, 1.0))
    second = _colour(hue + rng.uniform(-0.2, 0.2), rng.uniform(0.5, 1.0), rng.uniform(0.35, 0.8))
    figure = _colour(rng.random(), rng.uniform(0.6, 1.0), rng.uniform(0.5, 1.0))
    pattern = _comic_background(size, rng)[..., None]
    canvas = ground * (1 - pattern) + second * pattern
    mask = fill_mask(outline, size)[..., None]
    line = _line_mask(outline, size, size * rng.uniform(0.045, 0.075))[..., None]
    canvas = canvas * (1 - mask) + figure * mask
    picture: Floats = canvas * (1 - line) + line * rng.uniform(0.0, 0.15)
    return picture


def _sketch(outline: Floats, size: int, rng: np.random.Generator) -> Floats:
    """One to three thin, wobbly, broken pencil lines on paper, with hatching and guide lines."""
    paper = np.full((size, size), rng.uniform(0.9, 1.0))
    lines = [
        _line_mask(
            _wobbled(outline, size * 0.006, rng) + rng.normal(0.0, size * 0.006, size=2),
            size,
            size * rng.uniform(0.018, 0.030),
        )
        for _ in range(int(rng.integers(1, 4)))
    ]
    pressure = np.clip(0.85 + 0.8 * _clouds(rng, 6, size, 1)[..., 0], 0.4, 1.0)
    dark = np.maximum.reduce(lines) * pressure * rng.uniform(0.75, 1.0)
    if rng.random() < 0.5:  # hatching, of the object or of all around it
        wave = np.sin(_ramp(size, rng) * 2.0 * np.pi * rng.uniform(7.0, 12.0)) > 0.6
        mask = fill_mask(outline, size)
        where = mask if rng.random() < 0.5 else 1.0 - mask
        dark = np.maximum(dark, wave * where * rng.uniform(0.2, 0.4))
    guides = Image.new("L", (size, size))
    for _ in range(int(rng.integers(0, 4))):
        ends = rng.uniform(-0.2 * size, 1.2 * size, size=4).tolist()
        ImageDraw.Draw(guides).line(ends, fill=int(rng.uniform(40, 110)), width=max(1, size // 48))
    dark = np.maximum(dark, _unit(guides))
    grain = rng.normal(0.0, 0.02, size=(size, size))
    return np.repeat((paper - dark + grain)[..., None], 3, axis=2)


def _comic_background(size: int, rng: np.random.Generator) -> Floats:
    """Return where a comic's background shows its second colour, (size, size) from 0 to 1."""
    grid = np.arange(size) + 0.5
    kind = rng.choice(4, p=(0.1, 0.3, 0.3, 0.3))
    if kind == 0:  # a floor
        floor = (grid > size * rng.uniform(0.4, 0.8)).astype(np.float64)
        return np.repeat(floor[:, None], size, axis=1)
    if kind == 1:  # rays from a point
        x, y = rng.uniform(0.2, 0.8, size=2) * size
        angle = np.arctan2(grid[:, None] - y, grid[None, :] - x)
        wave = np.sin(angle * rng.integers(6, 13) + rng.uniform(0.0, 2.0 * np.pi))
    elif kind == 2:  # halftone dots
        pitch = size / rng.uniform(5.0, 9.0)
        phase = 2.0 * np.pi * grid / pitch
        wave = np.sin(phase)[:, None] * np.sin(phase + rng.uniform(0, 6))[None, :] - 0.25
    else:  # stripes
        wave = np.sin(_ramp(size, rng) * 2.0 * np.pi * rng.uniform(3.0, 8.0))
    sharp: Floats = np.clip(wave * 4.0 + 0.5, 0.0, 1.0)
    return sharp


def _ramp(size: int, rng: np.random.Generator) -> Floats:
    """Return a plane that rises by about 1 over the image in a random direction, (size, size)."""
    grid = np.arange(size) / size
    way = rng.uniform(0.0, np.pi)
    ramp: Floats = grid[None, :] * np.cos(way) + grid[:, None] * np.sin(way)
    return ramp


def _neon(outline: Floats, size: int, rng: np.random.Generator) -> Floats:
    """A glowing tube on a dark wall."""
    glow = _colour(rng.random(), rng.uniform(0.6, 1.0), 1.0)
    wall = 0.08 + 0.03 * _clouds(rng, size // 3, size, 1)
    line = _line_mask(outline, size, size * 0.04)
    halo = _blurred(line, size * 0.05)
    return wall + (0.9 * halo[..., None] + 0.5 * line[..., None]) * glow + 0.4 * line[..., None]


def _silhouette(outline: Floats, size: int, rng: np.random.Generator) -> Floats:
    """A dark, flat figure against a bright sky that changes colour from top to bottom."""
    top, bottom = (_colour(rng.random(), rng.uniform(0.1, 0.5), 0.95) for _ in range(2))
    height = np.linspace(0.0, 1.0, size)[:, None, None]
    sky = np.broadcast_to(top * (1 - height) + bottom * height, (size, size, 3))
    mask = fill_mask(outline, size)[..., None]
    return sky * (1 - mask) + rng.uniform(0.02, 0.15) * mask


_PAINTERS: dict[str, Painter] = {
    "photo": _photo,
    "painting": _painting,
    "cartoon": _cartoon,
    "sketch": _sketch,
    "neon": _neon,
    "silhouette": _silhouette,
}
STYLES: tuple[str, ...] = tuple(_PAINTERS)


def _contrasting(
    rng: np.random.Generator, saturation: tuple[float, float]
) -> tuple[Colour, Colour]:
    """Return a background and a figure colour that differ in hue and in brightness."""
    hue = rng.random()
    dark, bright = rng.uniform(0.25, 0.5), rng.uniform(0.65, 0.95)
    first, second = (dark, bright) if rng.random() < 0.5 else (bright, dark)
    ground = _colour(hue, rng.uniform(*saturation), first)
    figure = _colour(hue + rng.uniform(0.2, 0.8), rng.uniform(*saturation), second)
    return ground, figure


def _colour(hue: float, saturation: float, value: float) -> Colour:
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value))


def _of_light(colour: Colour, light: float) -> Colour:
    """Return the colour made darker or brighter until its luminance is about ``light``."""
    scaled: Colour = np.clip(colour * (light / (colour @ (0.299, 0.587, 0.114))), 0.0, 1.0)
    return scaled


def _clouds(rng: np.random.Generator, cells: int, size: int, channels: int) -> Floats:
    """Return smooth noise of about -1 to 1, (size, size, channels), with ``cells`` bumps a side."""
    coarse = rng.integers(0, 256, size=(cells, cells, channels), dtype=np.uint8)
    picture = Image.fromarray(coarse if channels == 3 else coarse[..., 0])
    smooth = picture.resize((size, size), Image.Resampling.BICUBIC)
    return _unit(smooth).reshape(size, size, channels) * 2.0 - 1.0


def _strokes(
    colour: Colour, size: int, rng: np.random.Generator, *, count: int, way: float, width: float
) -> Floats:
    """Return a canvas covered with ``count`` short strokes in shades of ``colour``."""
    base = Image.new("RGB", (size, size), _bytes(colour))
    draw = ImageDraw.Draw(base)
    starts = rng.uniform(0.0, size, size=(count, 2))
    angles = way + rng.normal(0.0, 0.35, size=count)
    reach = rng.uniform(0.05, 0.14, size=count) * size
    ends = np.stack([np.cos(angles), np.sin(angles)], axis=1) * reach[:, None]
    shades = colour * rng.normal(1.0, 0.4, size=(count, 1)) + rng.normal(0, 0.04, size=(count, 3))
    thickness = max(1, round(width))
    lines = np.concatenate([starts - ends, starts + ends], axis=1).tolist()
    inks = (np.clip(shades, 0.0, 1.0) * 255.0).astype(int).tolist()
    for line, ink in zip(lines, inks, strict=True):
        draw.line(line, fill=tuple(ink), width=thickness)
    return _unit(base)


def _line_mask(outline: Floats, size: int, width: float) -> Floats:
    """Return how much of each pixel a closed line of ``width`` pixels covers, (size, size)."""
    big = Image.new("L", (size * _OVERSAMPLING,) * 2)
    corners = _enlarged(np.concatenate([outline, outline[:2]]))
    thickness = max(2, round(width * _OVERSAMPLING))
    ImageDraw.Draw(big).line(corners, fill=255, width=thickness, joint="curve")
    return _shrink(big)


def _enlarged(outline: Floats) -> list[tuple[float, float]]:
    """Return the outline in the pixels of the oversampled canvas; Pillow counts from centres."""
    corners: list[tuple[float, float]] = [
        (x, y) for x, y in (outline * _OVERSAMPLING - 0.5).tolist()
    ]
    return corners


def _shrink(big: Image.Image) -> Floats:
    return _unit(big.reduce(_OVERSAMPLING))


def _blurred(mask: Floats, radius: float) -> Floats:
    picture = Image.fromarray((mask * 255.0).astype(np.uint8))
    return _unit(picture.filter(ImageFilter.GaussianBlur(radius)))


def _unit(picture: Image.Image) -> Floats:
    return np.asarray(picture, dtype=np.float64) / 255.0


def _bytes(colour: Colour) -> tuple[int, int, int]:
    red, green, blue = (np.clip(colour, 0.0, 1.0) * 255.0).astype(int).tolist()
    return red, green, blue


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
