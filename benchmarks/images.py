"""Decode image files to square RGB arrays, as the files say, without harm from hostile ones.

What a file says is kept to by these rules:

- It is turned upright by its EXIF orientation, in JPEG, PNG, WebP and TIFF.
- Grey of 16 bits (and of 12 in TIFF) is scaled by value: v becomes round(255 v / white). Colour of
  16 bits keeps its upper byte, which is what Pillow reads.
- What is transparent, by an alpha channel, a palette or a colour, shows white behind it.
- Palettes, CMYK (that of Adobe's JPEGs too), YCbCr and L*a*b* are converted by Pillow. Profiles and
  gamma are not applied.
- Of several frames or pages the first counts.

Refused as unreadable: values without a white (32-bit integers, floats), more than ``MAX_PIXELS``
pixels or ``MAX_BYTES`` bytes, PNGs whose checksums are wrong, what only another program can draw
(EPS), and what is no regular file, such as a pipe or a device, which is never opened.
"""

from __future__ import annotations

import errno
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, UnidentifiedImageError

from cl_lora.support.errors import printable

Pixels = npt.NDArray[np.uint8]

MAX_PIXELS = 10**8
"""Width times height of the largest image that is decoded; 400 MB in memory."""

MAX_BYTES = 10**9
"""Size of the largest file that is read."""

_PNG = b"\x89PNG\r\n\x1a\n"
_DRAWN_BY_PROGRAMS = {"EPS", "WMF"}  # Pillow would start them on whatever the file holds
_WIDE_GREY = {"I;16", "I;16B", "I;16L", "I;16N"}
_SIXTEEN_BITS = {"PNG", "PPM", "JPEG2000"}  # of which Pillow scales wide grey to 16 bits
_WITHOUT_WHITE = {"I", "F", *_WIDE_GREY}

_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImage(Exception):  # noqa: N818 - caught and counted, never shown as such
    """One image cannot be decoded; the message, printable, names it and says why."""

    def __init__(self, name: object, reason: str) -> None:
        super().__init__(printable(f"{name} ({reason})"))


def decode_image(file: str | os.PathLike[str] | IO[bytes], size: int, name: object) -> Pixels:
    """Decode an image to RGB, shorter side scaled to ``size`` (bicubic), centre crop.

    An image that has the size already keeps its pixels.

    Args:
        file: a path, or a file object open for reading.
        size: side of the result in pixels.
        name: what to call the image in an error.

    Returns:
        uint8 (size, size, 3).

    Raises:
        UnreadableImage: the file cannot be opened or decoded.
    """
    return square_pixels(open_image(file, name), size)


def open_image(file: str | os.PathLike[str] | IO[bytes], name: object) -> Image.Image:
    """Decode an image to RGB; arguments and errors as of :func:`decode_image`."""
    try:
        data = read_file(file) if isinstance(file, str | os.PathLike) else file.read()
        if data.startswith(_PNG):
            with Image.open(BytesIO(data)) as opened:
                _require_size(opened, name)
                opened.verify()  # which decoding does not: of the pixels no checksum is looked at
        with Image.open(BytesIO(data)) as opened:
            _require_size(opened, name)
            if opened.format in _DRAWN_BY_PROGRAMS:
                raise UnreadableImage(name, f"{opened.format}, which only other programs can draw")
            opened.load()
            return _upright(_rgb(opened, name), opened)
    except UnreadableImage:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableImage(name, f"more than {MAX_PIXELS:,} pixels") from error
    # Broken files make Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error,
    # EOFError, ...: whatever it is, the image is unreadable.
    except Exception as error:
        # Not the path, which some of Pillow's messages repeat.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else None
        known = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UnreadableImage(name, reason or known or type(error).__name__) from error


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a regular file of at most ``MAX_BYTES``; nothing else is opened.

    Raises:
        OSError: it cannot be read, is larger, or is no regular file: opening a pipe would wait for
            ever, opening a device can do anything.
    """
    found = os.stat(path)
    require_regular(found, path)
    if found.st_size > MAX_BYTES:
        raise OSError(errno.EFBIG, f"more than {MAX_BYTES:,} bytes", path)
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        require_regular(os.fstat(handle), path)  # which may have taken its place meanwhile
        return file.read()


def require_regular(found: os.stat_result, path: str | os.PathLike[str]) -> None:
    """Raise ``OSError`` unless what ``os.stat`` found is a regular file."""
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", path)


@contextmanager
def without_pillows_warnings() -> Iterator[None]:
    """Keep what Pillow warns of from the terminal: what matters is decided here.

    For the whole of a loop that decodes: filters of warnings belong to the process, not a thread.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def square_pixels(image: Image.Image, size: int) -> Pixels:
    """Return an RGB image as ``decode_image`` does: uint8 (size, size, 3)."""
    return np.asarray(_square(image, size))


def _square(image: Image.Image, size: int) -> Image.Image:
    if image.size == (size, size):
        return image
    # Scaling the central square of the source is the same as scaling all, then cropping: the
    # filter still sees the pixels outside the box.
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    if side == size:
        return image.crop(box)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def _require_size(image: Image.Image, name: object) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnreadableImage(name, f"{width} x {height}, more than {MAX_PIXELS:,} pixels")


def _upright(image: Image.Image, opened: Image.Image) -> Image.Image:
    """Return ``image`` turned as the EXIF of ``opened`` says; Pillow has turned a TIFF already."""
    try:
        turn = _UPRIGHT.get(opened.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged EXIF part says nothing; the pixels are whole
        return image
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image, name: object) -> Image.Image:
    if image.mode in _WITHOUT_WHITE:
        return _from_wide_grey(image, name)
    if image.mode == "LAB":
        return _from_lab(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _from_wide_grey(image: Image.Image, name: object) -> Image.Image:
    white = _white_of(image)
    if white is None:
        raise UnreadableImage(
            name,
            f"{image.format} with values of mode {image.mode}, of which none is said to be white",
        )
    values = np.asarray(image).astype(np.int64)
    clear = image.info.get("transparency")
    shown = values if clear is None else np.where(values == clear, white, values)
    if image.format == "TIFF" and _tag(image, _TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
        shown = white - shown
    # Rounded: an odd white makes no ties.
    grey = (2 * 255 * np.clip(shown, 0, white) + white) // (2 * white)
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def _white_of(image: Image.Image) -> int | None:
    """Return the value of white in an image of wide grey; None where its file does not say."""
    if image.format in _SIXTEEN_BITS and image.mode != "F":
        return 0xFFFF
    if image.format == "TIFF" and image.mode in _WIDE_GREY:
        bits = _tag(image, _TIFF_BITS)
        return int((1 << bits) - 1) if bits in (12, 16) else None
    return None


def _tag(image: Image.Image, number: int) -> int | None:
    found = image.tag_v2.get(number)  # type: ignore[attr-defined]
    value = found[0] if isinstance(found, tuple) else found
    return value if isinstance(value, int) else None


def _from_lab(image: Image.Image) -> Image.Image:
    transform = ImageCms.buildTransform(
        ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
    )
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # as it is not done in place
    return converted
