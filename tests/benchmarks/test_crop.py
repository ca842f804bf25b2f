"""Square crops: hand-worked numbers, the way back, and pixels that agree with points."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cl_lora.benchmarks.images import UnreadableImage
from cl_lora.benchmarks.sources.crop import Square, crop_pixels, square_around

numbers = st.floats(-1e4, 1e4)
lengths = st.floats(0.5, 1e4)


def test_a_wide_box_by_hand():
    # 40 wide, 20 high, centre (30, 30); 40 * (1 + 2 / 4) = 60 about the centre.
    square = square_around((10, 20, 50, 40), margin=0.25)
    assert square == Square(0.0, 0.0, 60.0)
    np.testing.assert_allclose(square.shares(np.array([[30, 30], [0, 60], [15, -6]])), [
        [0.5, 0.5], [0.0, 1.0], [0.25, -0.1],
    ])  # fmt: skip


def test_a_high_box_without_margin_by_hand():
    square = square_around((4, 0, 8, 10), margin=0)
    assert square == Square(1.0, 0.0, 10.0)
    np.testing.assert_allclose(square.pixels(np.array([0.3, 1.0])), [4, 10])


@given(numbers, numbers, lengths, lengths, st.floats(0, 2), st.lists(st.tuples(numbers, numbers)))
def test_points_come_back(left, top, width, height, margin, points):
    square = square_around((left, top, left + width, top + height), margin)
    pixels = np.array(points).reshape(-1, 2)
    np.testing.assert_allclose(square.pixels(square.shares(pixels)), pixels, atol=1e-6)


@given(numbers, numbers, lengths, lengths, st.floats(0, 2))
def test_the_square_holds_its_box_in_the_middle(left, top, width, height, margin):
    square = square_around((left, top, left + width, top + height), margin)
    corners = square.shares(np.array([[left, top], [left + width, top + height]]))
    assert (corners > -1e-6).all()
    assert (corners < 1 + 1e-6).all()
    np.testing.assert_allclose(corners.sum(axis=0), 1, atol=1e-6)
    widest = (corners[1] - corners[0]).max()
    np.testing.assert_allclose(widest, 1 / (1 + 2 * margin), atol=1e-6)


def picture(width: int, height: int, x: int, y: int) -> Image.Image:
    """Black, with a white square of 4 x 4 pixels about the point (x, y)."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[y - 2 : y + 2, x - 2 : x + 2] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    "box",
    [(20, 10, 40, 26), (10, 10, 46, 20), (-12, -20, 40, 30), (30, 20, 90, 60), (-30, -30, 90, 90)],
)
def test_a_spot_is_seen_where_its_point_is(box):
    square = square_around(box, margin=0.1)
    crop = crop_pixels(picture(60, 40, 32, 22), square, 64, "x")[..., 0].astype(float)
    assert crop.shape == (64, 64)
    rows, columns = np.mgrid[:64, :64] + 0.5  # centres of pixels
    seen = np.array([(columns * crop).sum(), (rows * crop).sum()]) / crop.sum()
    np.testing.assert_allclose(seen / 64, square.shares(np.array([32, 22])), atol=0.015)


def test_pixels_are_kept_where_nothing_is_scaled():
    pixels = np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    inside = crop_pixels(image, Square(3, 2, 6), 6, "x")
    np.testing.assert_array_equal(inside, pixels[2:8, 3:9])
    beyond = crop_pixels(image, Square(-2, 7, 5), 5, "x")
    rows, columns = [7, 8, 9, 9, 9], [0, 0, 0, 1, 2]
    np.testing.assert_array_equal(beyond, pixels[np.ix_(rows, columns)])


@pytest.mark.parametrize(
    ("square", "words"),
    [
        (Square(12, 0, 5), "box is outside its 12 x 10"),
        (Square(0, -5, 5), "box is outside its 12 x 10"),
        (Square(-50, -50, 97), "box is far larger than its 12 x 10"),
    ],
)
def test_a_box_that_belongs_to_another_image(square, words):
    with pytest.raises(UnreadableImage, match=f"face.png .*{words}"):
        crop_pixels(Image.new("RGB", (12, 10)), square, 8, "face.png")
