"""The styles: painters that turn an outline into a picture.

A painter takes the outline in pixels, the image's side and a generator, and returns the picture as
float64 (size, size, 3) from 0 to 1. Widths are shares of the side: sizes look alike.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from cl_lora.benchmarks.sources.shapes.drawing import (
    blurred,
    clouds,
    colour_of,
    contrasting,
    fill_mask,
    line_mask,
    of_light,
    ramp,
    strokes,
    unit,
)
from cl_lora.benchmarks.sources.shapes.outlines import Floats, wobbled

Painter = Callable[[Floats, int, np.random.Generator], Floats]


def _photo(outline: Floats, size: int, rng: np.random.Generator) -> Floats:
    """A lit, textured object with a soft shadow before a blurred background, with sensor noise."""
    ground, figure = contrasting(rng, saturation=(0.15, 0.75))
    scene = ground + clouds(rng, 4, size, 3) * 0.16 + clouds(rng, 9, size, 1) * 0.08
    mask = fill_mask(outline, size)
    light = rng.uniform(0.0, 2.0 * np.pi)
    towards = np.array([np.cos(light), np.sin(light)])
    shadow = blurred(fill_mask(outline - towards * size * 0.05, size), size * 0.05)
    scene = scene * (1.0 - 0.45 * shadow[..., None])
    grid = (np.arange(size) + 0.5) / size - 0.5
    slope = grid[None, :] * towards[0] + grid[:, None] * towards[1]
    # The difference of the mask and its blurred copy lights up rims: the object looks rounded.
    rounded = blurred(mask, size * 0.06)
    shade = 1.0 + 0.6 * slope + 0.35 * (rounded - 0.8)
    texture = clouds(rng, size // 4, size, 1) * rng.uniform(0.05, 0.22)
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
    ground = of_light(colour_of(hue, rng.uniform(0.5, 0.95), 1.0), light)
    other = hue + rng.uniform(0.35, 0.65)
    figure = of_light(colour_of(other, rng.uniform(0.5, 0.95), 1.0), light * rng.uniform(0.8, 1.25))
    mask = fill_mask(wobbled(outline, size * 0.008, rng), size)
    way = rng.uniform(0.0, np.pi)
    behind = strokes(ground, size, rng, count=60, way=way, width=size * 0.09)
    front = strokes(figure, size, rng, count=50, way=way + 1.2, width=size * 0.08)
    ragged = np.clip((mask - 0.5) * 1.6 + 0.5 + clouds(rng, size // 3, size, 1)[..., 0] * 0.5, 0, 1)
    ragged = (ragged * (blurred(mask, size * 0.02) > 0.12))[..., None]
    canvas = 0.03 * np.sin(np.arange(size) * np.pi * 0.9)
    weave = (canvas[:, None] + canvas[None, :])[..., None]
    warm = np.array([1.03, 0.98, 0.88])
    picture: Floats = (behind * (1 - ragged) + front * ragged) * warm + weave
    return picture


def _cartoon(outline: Floats, size: int, rng: np.random.Generator) -> Floats:
    """A flat fill with a thick dark outline before a comic's background: rays, dots or a floor."""
    hue = rng.random()
    ground = colour_of(hue, rng.uniform(0.2, 0.7), rng.uniform(0.75, 1.0))
    second = colour_of(hue + rng.uniform(-0.2, 0.2), rng.uniform(0.5, 1.0), rng.uniform(0.35, 0.8))
    figure = colour_of(rng.random(), rng.uniform(0.6, 1.0), rng.uniform(0.5, 1.0))
    pattern = _comic_background(size, rng)[..., None]
    canvas = ground * (1 - pattern) + second * pattern
    mask = fill_mask(outline, size)[..., None]
    line = line_mask(outline, size, size * rng.uniform(0.045, 0.075))[..., None]
    canvas = canvas * (1 - mask) + figure * mask
    picture: Floats = canvas * (1 - line) + line * rng.uniform(0.0, 0.15)
    return picture


def _sketch(outline: Floats, size: int, rng: np.random.Generator) -> Floats:
    """One to three thin, wobbly, broken pencil lines on paper, with hatching and guide lines."""
    paper = np.full((size, size), rng.uniform(0.9, 1.0))
    lines = [
        line_mask(
            wobbled(outline, size * 0.006, rng) + rng.normal(0.0, size * 0.006, size=2),
            size,
            size * rng.uniform(0.018, 0.030),
        )
        for _ in range(int(rng.integers(1, 4)))
    ]
    pressure = np.clip(0.85 + 0.8 * clouds(rng, 6, size, 1)[..., 0], 0.4, 1.0)
    dark = np.maximum.reduce(lines) * pressure * rng.uniform(0.75, 1.0)
    if rng.random() < 0.5:  # hatching, of the object or of all around it
        wave = np.sin(ramp(size, rng) * 2.0 * np.pi * rng.uniform(7.0, 12.0)) > 0.6
        mask = fill_mask(outline, size)
        where = mask if rng.random() < 0.5 else 1.0 - mask
        dark = np.maximum(dark, wave * where * rng.uniform(0.2, 0.4))
    guides = Image.new("L", (size, size))
    for _ in range(int(rng.integers(0, 4))):
        ends = rng.uniform(-0.2 * size, 1.2 * size, size=4).tolist()
        ImageDraw.Draw(guides).line(ends, fill=int(rng.uniform(40, 110)), width=max(1, size // 48))
    dark = np.maximum(dark, unit(guides))
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
        wave = np.sin(ramp(size, rng) * 2.0 * np.pi * rng.uniform(3.0, 8.0))
    sharp: Floats = np.clip(wave * 4.0 + 0.5, 0.0, 1.0)
    return sharp


def _neon(outline: Floats, size: int, rng: np.random.Generator) -> Floats:
    """A glowing tube on a dark wall."""
    glow = colour_of(rng.random(), rng.uniform(0.6, 1.0), 1.0)
    wall = 0.08 + 0.03 * clouds(rng, size // 3, size, 1)
    line = line_mask(outline, size, size * 0.04)
    halo = blurred(line, size * 0.05)
    return wall + (0.9 * halo[..., None] + 0.5 * line[..., None]) * glow + 0.4 * line[..., None]


def _silhouette(outline: Floats, size: int, rng: np.random.Generator) -> Floats:
    """A dark, flat figure against a bright sky that changes colour from top to bottom."""
    top, bottom = (colour_of(rng.random(), rng.uniform(0.1, 0.5), 0.95) for _ in range(2))
    height = np.linspace(0.0, 1.0, size)[:, None, None]
    sky = np.broadcast_to(top * (1 - height) + bottom * height, (size, size, 3))
    mask = fill_mask(outline, size)[..., None]
    return sky * (1 - mask) + rng.uniform(0.02, 0.15) * mask


PAINTERS: dict[str, Painter] = {
    "photo": _photo,
    "painting": _painting,
    "cartoon": _cartoon,
    "sketch": _sketch,
    "neon": _neon,
    "silhouette": _silhouette,
}
STYLES: tuple[str, ...] = tuple(PAINTERS)
