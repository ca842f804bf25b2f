"""What the painters draw with: masks of outlines, colours, noise and strokes.

Pictures are float64 from 0 to 1, masks (size, size), canvases (size, size, channels).
"""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from cl_lora.benchmarks.sources.shapes.outlines import Floats

Colour = Floats

_OVERSAMPLING = 4  # edges are drawn this much larger and averaged down: antialiasing


def fill_mask(outline: Floats, size: int) -> Floats:
    """Return how much of each pixel the outline covers, (size, size) from 0 to 1."""
    big = Image.new("L", (size * _OVERSAMPLING,) * 2)
    ImageDraw.Draw(big).polygon(_enlarged(outline), fill=255)
    return _shrink(big)


def line_mask(outline: Floats, size: int, width: float) -> Floats:
    """Return how much of each pixel a closed line of ``width`` pixels covers, (size, size)."""
    big = Image.new("L", (size * _OVERSAMPLING,) * 2)
    corners = _enlarged(np.concatenate([outline, outline[:2]]))
    thickness = max(2, round(width * _OVERSAMPLING))
    ImageDraw.Draw(big).line(corners, fill=255, width=thickness, joint="curve")
    return _shrink(big)


def blurred(mask: Floats, radius: float) -> Floats:
    """Return the mask with soft edges, the radius in pixels."""
    picture = Image.fromarray((mask * 255.0).astype(np.uint8))
    return unit(picture.filter(ImageFilter.GaussianBlur(radius)))


def contrasting(rng: np.random.Generator, saturation: tuple[float, float]) -> tuple[Colour, Colour]:
    """Return a background and a figure colour that differ in hue and in brightness."""
    hue = rng.random()
    dark, bright = rng.uniform(0.25, 0.5), rng.uniform(0.65, 0.95)
    first, second = (dark, bright) if rng.random() < 0.5 else (bright, dark)
    ground = colour_of(hue, rng.uniform(*saturation), first)
    figure = colour_of(hue + rng.uniform(0.2, 0.8), rng.uniform(*saturation), second)
    return ground, figure


def colour_of(hue: float, saturation: float, value: float) -> Colour:
    """Return red, green and blue, (3,) from 0 to 1; the hue goes round at 1."""
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value))


def of_light(colour: Colour, light: float) -> Colour:
    """Return the colour made darker or brighter until its luminance is about ``light``."""
    scaled: Colour = np.clip(colour * (light / (colour @ (0.299, 0.587, 0.114))), 0.0, 1.0)
    return scaled


def clouds(rng: np.random.Generator, cells: int, size: int, channels: int) -> Floats:
    """Return smooth noise of about -1 to 1, (size, size, channels), with ``cells`` bumps a side."""
    coarse = rng.integers(0, 256, size=(cells, cells, channels), dtype=np.uint8)
    picture = Image.fromarray(coarse if channels == 3 else coarse[..., 0])
    smooth = picture.resize((size, size), Image.Resampling.BICUBIC)
    return unit(smooth).reshape(size, size, channels) * 2.0 - 1.0


def ramp(size: int, rng: np.random.Generator) -> Floats:
    """Return a plane that rises by about 1 over the image in a random direction, (size, size)."""
    grid = np.arange(size) / size
    way = rng.uniform(0.0, np.pi)
    ramp: Floats = grid[None, :] * np.cos(way) + grid[:, None] * np.sin(way)
    return ramp


def strokes(
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
    return unit(base)


def unit(picture: Image.Image) -> Floats:
    """Return the picture's bytes as numbers from 0 to 1."""
    return np.asarray(picture, dtype=np.float64) / 255.0


def _enlarged(outline: Floats) -> list[tuple[float, float]]:
    """Return the outline in the pixels of the oversampled canvas; Pillow counts from centres."""
    corners: list[tuple[float, float]] = [
        (x, y) for x, y in (outline * _OVERSAMPLING - 0.5).tolist()
    ]
    return corners


def _shrink(big: Image.Image) -> Floats:
    return unit(big.reduce(_OVERSAMPLING))


def _bytes(colour: Colour) -> tuple[int, int, int]:
    red, green, blue = (np.clip(colour, 0.0, 1.0) * 255.0).astype(int).tolist()
    return red, green, blue
