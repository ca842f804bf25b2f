"""What is read from image files of every kind, and what is refused."""

from __future__ import annotations

import io
import os
import socket
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from attack.image_files import SIZE, Made, chunk, made_files, png, saved, turned
from PIL import Image

from cl_lora.benchmarks import images
from cl_lora.benchmarks.images import (
    MAX_PIXELS,
    UnreadableImage,
    decode_image,
    open_image,
    read_file,
    without_pillows_warnings,
)

with without_pillows_warnings():
    MADE = list(made_files(1))


@pytest.mark.parametrize("made", MADE, ids=[made.name for made in MADE])
def test_files_have_the_pixels_that_they_were_made_of_or_are_refused(made: Made) -> None:
    problem = None
    with without_pillows_warnings():
        try:
            found = decode_image(io.BytesIO(made.data), SIZE, made.name)
        except UnreadableImage as error:
            problem = str(error)
    if problem is not None:
        assert made.right is None or made.may_refuse
        assert problem.startswith(made.name)
        assert problem.isprintable()
    else:
        assert made.right is not None
        np.testing.assert_allclose(found.astype(int), made.right, rtol=0, atol=made.tolerance)


def test_wide_grey_is_scaled_by_value_and_not_cut_off() -> None:
    levels = np.array([[0, 128, 129, 6000, 60000, 65534, 65535]], dtype=np.uint16)
    found = np.asarray(open_image(io.BytesIO(png(levels, bits=16)), ""))[0, :, 0]
    assert found.tolist() == [0, 0, 1, 23, 233, 255, 255]


def test_lab_agrees_with_its_definition() -> None:
    """CIE L*a*b* (D50) to sRGB in float64: Bradford, the matrix of sRGB, its curve."""
    lab = np.array([[50, 20, -30], [70, -25, 15], [30, 0, 0], [90, 5, 5]], dtype=float)
    f_y = (lab[:, 0] + 16) / 116
    f = np.stack([f_y + lab[:, 1] / 500, f_y, f_y - lab[:, 2] / 200], axis=1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.9642, 1, 0.8249]
    to_linear = [[3.1339, -1.6169, -0.4906], [-0.9788, 1.9161, 0.0335], [0.0719, -0.2290, 1.4052]]
    linear = np.clip(xyz @ np.array(to_linear).T, 0, 1)
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    # In files a and b are signed bytes.
    stored = np.stack([lab[:, 0] * 255 / 100, lab[:, 1] % 256, lab[:, 2] % 256], axis=1)
    image = Image.frombytes("LAB", (4, 1), np.rint(stored).astype(np.uint8).tobytes())
    found = np.asarray(open_image(io.BytesIO(saved(image, "TIFF")), ""))[0].astype(int)
    np.testing.assert_allclose(found, np.rint(255 * curve), atol=3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_that_is_not_square_is_turned_before_it_is_cropped(orientation: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 14, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(pixels), "PNG", exif=exif)
    upright = turned(pixels, orientation)
    assert np.array_equal(np.asarray(open_image(io.BytesIO(data), "")), upright)
    found = decode_image(io.BytesIO(data), 8, "")
    middle = upright[3:11] if orientation > 4 else upright[:, 3:11]
    assert np.array_equal(found, middle)


def test_plain_files_are_read_as_pillow_reads_them() -> None:
    generator = np.random.default_rng(0)
    colour = generator.integers(0, 256, (24, 40, 3), dtype=np.uint8)
    for image in (Image.fromarray(colour), Image.fromarray(colour[..., 0])):
        for kind in ("PNG", "JPEG"):
            data = saved(image, kind)
            with Image.open(io.BytesIO(data)) as opened:
                plain = np.asarray(opened.convert("RGB"))
            assert np.array_equal(np.asarray(open_image(io.BytesIO(data), "")), plain)


def test_an_image_of_too_many_pixels_is_refused_by_what_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fits = saved(Image.new("L", (10, 10)), "PNG")
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    assert open_image(io.BytesIO(fits), "").size == (10, 10)
    with pytest.raises(UnreadableImage, match=r"x.png \(11 x 10, more than 100 pixels\)"):
        open_image(io.BytesIO(saved(Image.new("L", (11, 10)), "PNG")), "x.png")
    with pytest.raises(UnreadableImage, match=r"x.gif \(11 x 10, more than 100 pixels\)"):
        open_image(io.BytesIO(saved(Image.new("L", (11, 10)), "GIF")), "x.gif")


def test_no_warning_of_pillow_gets_through_while_images_are_decoded() -> None:
    large = png(np.zeros((1, 1), np.uint8), size=(9_999, 9_999))  # allowed, and Pillow warns
    assert MAX_PIXELS > 9_999**2
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with without_pillows_warnings(), pytest.raises(UnreadableImage):
            open_image(io.BytesIO(large), "")
    assert not caught


def test_a_wrong_checksum_of_a_png_is_damage() -> None:
    data = png(np.zeros((9, 9), np.uint8))
    extra = chunk(b"teXt", b"note\0x")
    at = data.index(b"IDAT") - 4
    assert open_image(io.BytesIO(data[:at] + extra + data[at:]), "").size == (9, 9)
    end = data.index(b"IEND") - 4
    broken = data[: end - 1] + bytes([data[end - 1] ^ 1]) + data[end:]
    with pytest.raises(UnreadableImage, match="bad"):
        open_image(io.BytesIO(broken), "bad")


def test_what_is_no_regular_file_is_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")

    def refuse(*_: object) -> int:
        raise AssertionError("opened")

    monkeypatch.setattr("cl_lora.benchmarks.images.os.open", refuse)
    for name in ("pipe", "link", "device", "socket"):
        with pytest.raises(UnreadableImage, match=rf"{name} \(not a regular file\)"):
            open_image(tmp_path / name, name)
    with pytest.raises(UnreadableImage, match=r"folder \(Is a directory\)"):
        open_image(tmp_path / "folder", "folder")


def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    before = os.stat(tmp_path / "file")
    monkeypatch.setattr("cl_lora.benchmarks.images.os.stat", lambda _: before)
    with pytest.raises(OSError, match="not a regular file"):
        read_file(tmp_path / "pipe")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(images.MAX_BYTES + 1)
    with pytest.raises(UnreadableImage, match=r"more than 1,000,000,000 bytes"):
        open_image(tmp_path / "large.png", "large.png")


def test_messages_show_names_escaped() -> None:
    name = os.fsdecode(b"\x1b[31m\n\xff.png")
    with pytest.raises(UnreadableImage) as caught:
        open_image(io.BytesIO(b""), name)
    assert str(caught.value) == r"\x1b[31m\n\udcff.png (not an image)"


def test_an_error_without_a_word_names_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("cl_lora.benchmarks.images.Image.open", full)
    with pytest.raises(UnreadableImage, match=r"x \(MemoryError\)"):
        open_image(io.BytesIO(b"x"), "x")


def test_what_other_programs_draw_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", started)
    with pytest.raises(UnreadableImage, match="EPS, which only other programs can draw"):
        open_image(io.BytesIO(saved(Image.new("L", (8, 8)), "EPS")), "x.jpg")


def test_transparent_wide_grey_is_white() -> None:
    levels = np.array([[5, 700, 60000]], dtype=np.uint16)
    clear = chunk(b"tRNS", struct.pack(">H", 700))
    found = np.asarray(open_image(io.BytesIO(png(levels, clear, bits=16)), ""))[0, :, 0]
    assert found.tolist() == [0, 255, 233]
