"""Image files of every kind that the attack on images decodes, each with what is right.

The right pixels come from the array that a file was made of and from Pillow's and NumPy's own
conversions, never from the code under attack.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, PngImagePlugin

SIZE = 32
Pixels = npt.NDArray[np.uint8]
Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Made:
    """A file of an image.

    Attributes:
        name: what it is.
        data: its bytes.
        right: the pixels, uint8 (SIZE, SIZE, 3); None where only a refusal is right.
        may_refuse: whether a refusal is as right as the pixels.
        suffix: of its name.
        tolerance: by how much a value may differ.
    """

    name: str
    data: bytes
    right: Pixels | None
    may_refuse: bool = False
    suffix: str = ".png"
    tolerance: int = 0


def made_files(seed: int) -> Iterator[Made]:
    """Yield the files; the same for the same seed."""
    generator = np.random.default_rng(seed)
    colour = generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    smooth = np.asarray(
        Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((SIZE, SIZE))
    )
    yield from _pngs(colour, generator)
    yield from _few_bits(colour, generator)
    yield from _wide_pngs(colour, generator)
    yield from _pngs_with_more(colour)
    yield from _jpegs(smooth)
    yield from _turned(smooth)
    yield from _tiffs(colour, generator)
    yield from _other_formats(colour, smooth, generator)
    yield from _shapes(colour)
    yield from _cut(colour, smooth)
    yield from _bombs()
    yield from _no_images(seed)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return an image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def grey(values: Array) -> Pixels:
    """Return grey values (H, W) as RGB."""
    return np.repeat(np.asarray(values, dtype=np.uint8)[..., None], 3, axis=2)


def on_white(colour: Array, alpha: Array) -> Pixels:
    """Return colours (H, W, 3) over white by Pillow's own composition; alpha is (H, W)."""
    shown = Image.fromarray(np.dstack([colour, alpha]).astype(np.uint8))
    white = Image.new("RGBA", shown.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, shown))[..., :3]


# PNG ---------------------------------------------------------------------------------------------

_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
          (0, 1, 1, 2))  # fmt: skip
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values: Array, *extra: bytes, bits: int = 8, interlaced: bool = False,
        palette: bytes = b"", size: tuple[int, int] | None = None) -> bytes:  # fmt: skip
    """Return a PNG written by hand.

    Args:
        values: (H, W) or (H, W, C) of 1, 2, 3 or 4 channels; of a palette, indices into it.
        extra: chunks before the pixels.
        bits: of a value.
        interlaced: Adam7.
        palette: colours, three bytes each.
        size: width and height to declare instead of the true ones.
    """
    values = values[..., None] if values.ndim == 2 else values
    height, width, channels = values.shape
    kind = 3 if palette else _COLOUR_TYPES[channels]
    header = struct.pack(">IIBBBBB", *(size or (width, height)), bits, kind, 0, 0, int(interlaced))
    passes = [values[y::dy, x::dx] for x, y, dx, dy in _ADAM7] if interlaced else [values]
    rows = b"".join(b"\0" + _packed(row, bits) for part in passes if part.size for row in part)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + (chunk(b"PLTE", palette) if palette else b"")
        + b"".join(extra)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def _packed(row: Array, bits: int) -> bytes:
    flat = row.reshape(-1)
    if bits == 16:
        return flat.astype(">u2").tobytes()
    if bits == 8:
        return flat.astype("u1").tobytes()
    planes = (flat.astype("u1")[:, None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(planes.reshape(-1)).tobytes()


def _pngs(colour: Pixels, generator: np.random.Generator) -> Iterator[Made]:
    first, alpha = colour[..., 0], generator.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
    image = Image.fromarray(colour)
    ones = first > 127
    yield Made("PNG 1", saved(Image.fromarray(ones), "PNG"), grey(ones * 255))
    yield Made("PNG L", saved(Image.fromarray(first), "PNG"), grey(first))
    yield Made("PNG RGB", saved(image, "PNG"), colour)
    with_alpha = np.dstack([colour, alpha])
    yield Made("PNG RGBA", saved(Image.fromarray(with_alpha), "PNG"), on_white(colour, alpha))
    opaque = np.dstack([colour, np.full_like(alpha, 255)])
    yield Made("PNG RGBA, opaque", saved(Image.fromarray(opaque), "PNG"), colour)
    clear = np.dstack([colour, np.zeros_like(alpha)])
    yield Made("PNG RGBA, clear", saved(Image.fromarray(clear), "PNG"), np.full_like(colour, 255))
    yield Made("PNG LA", png(np.dstack([first, alpha])), on_white(grey(first), alpha))


def _few_bits(colour: Pixels, generator: np.random.Generator) -> Iterator[Made]:
    first = colour[..., 0]
    for bits in (1, 2, 4):
        top = (1 << bits) - 1
        yield Made(f"PNG grey of {bits} bits", png(first >> (8 - bits), bits=bits),
                   grey((first >> (8 - bits)) * (255 // top)))  # fmt: skip
    for bits in (1, 2, 4, 8):
        colours = generator.integers(0, 256, (1 << bits, 3), dtype=np.uint8)
        indices = first >> (8 - bits)
        packed = png(indices, bits=bits, palette=colours.tobytes())
        yield Made(f"PNG palette of {bits} bits", packed, colours[indices])
        clear_of = generator.integers(0, 256, 1 << bits, dtype=np.uint8)
        yield Made(f"PNG palette of {bits} bits with transparency",
                   png(indices, chunk(b"tRNS", clear_of.tobytes()), bits=bits,
                       palette=colours.tobytes()),
                   on_white(colours[indices], clear_of[indices]))  # fmt: skip
        yield Made(f"PNG palette of {bits} bits with one clear colour",
                   png(indices, chunk(b"tRNS", b"\0"), bits=bits, palette=colours.tobytes()),
                   on_white(colours[indices], np.where(indices == 0, 0, 255)))  # fmt: skip


def _wide_pngs(colour: Pixels, generator: np.random.Generator) -> Iterator[Made]:
    first = colour[..., 0]
    keyed = chunk(b"tRNS", struct.pack(">HHH", *colour[3, 4].tolist()))
    hit = (colour == colour[3, 4]).all(axis=2)
    yield Made(
        "PNG RGB with a clear colour", png(colour, keyed), np.where(hit[..., None], 255, colour)
    )
    hit = first == first[3, 4]
    yield Made("PNG L with a clear grey",
               png(first, chunk(b"tRNS", struct.pack(">H", first[3, 4]))),
               grey(np.where(hit, 255, first)))  # fmt: skip
    wide = generator.integers(0, 65536, (SIZE, SIZE, 4), dtype=np.uint16)
    wide[0, :4, 0] = (0, 6000, 60000, 65535)
    level = wide[..., 0]
    scaled = np.rint(level / 257.0)
    yield Made("PNG grey of 16 bits", png(level, bits=16), grey(scaled))
    yield Made("PNG grey of 16 bits by Pillow", saved(Image.fromarray(level), "PNG"), grey(scaled))
    yield Made(
        "PNG grey of 16 bits, interlaced", png(level, bits=16, interlaced=True), grey(scaled)
    )
    key = chunk(b"tRNS", struct.pack(">H", int(level[5, 6])))
    yield Made("PNG grey of 16 bits with a clear grey", png(level, key, bits=16),
               grey(np.where(level == level[5, 6], 255, scaled)))  # fmt: skip
    dark = np.minimum(level, 300)
    yield Made("PNG grey of 16 bits, dark", png(dark, bits=16), grey(np.rint(dark / 257.0)))
    upper = (wide >> 8).astype(np.uint8)
    yield Made(
        "PNG LA of 16 bits",
        png(wide[..., :2], bits=16),
        on_white(grey(upper[..., 0]), upper[..., 1]),
    )
    yield Made("PNG RGB of 16 bits", png(wide[..., :3], bits=16), upper[..., :3])
    yield Made("PNG RGBA of 16 bits", png(wide, bits=16), on_white(upper[..., :3], upper[..., 3]))


def _pngs_with_more(colour: Pixels) -> Iterator[Made]:
    image, first = Image.fromarray(colour), colour[..., 0]
    yield Made("PNG RGB, interlaced", png(colour, interlaced=True), colour)
    yield Made("PNG L, interlaced", png(first, interlaced=True), grey(first))
    yield Made("PNG with gamma", png(colour, chunk(b"gAMA", struct.pack(">I", 100000))), colour)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield Made("PNG with a profile", saved(image, "PNG", icc_profile=profile), colour)
    text = PngImagePlugin.PngInfo()
    text.add_text("note", "\x1b[31mred\n" * 40, zip=True)
    yield Made("PNG with escape codes in its text", saved(image, "PNG", pnginfo=text), colour)
    bomb = chunk(b"zTXt", b"note\0\0" + zlib.compress(b"\0" * (2 << 20)))
    yield Made("PNG with 2 MB of packed text", png(colour, bomb), colour, may_refuse=True)
    other = Image.fromarray(255 - colour)
    yield Made("PNG, animated", saved(image, "PNG", save_all=True, append_images=[other]), colour)
    whole = png(colour)
    yield Made("PNG with something behind it", whole + b"and more" * 100, colour)
    yield Made("PNG without its end", whole[:-12], colour, may_refuse=True)
    at = whole.index(b"IDAT") + 30
    flipped = bytes([whole[at] ^ 4])
    yield Made("PNG with a flipped bit", whole[:at] + flipped + whole[at + 1 :], None)
    at = whole.index(b"IEND") - 8 - 4  # the last bytes of the stream: its own checksum
    broken = whole[: at + 2] + bytes([whole[at + 2] ^ 1]) + whole[at + 3 :]
    yield Made("PNG with another checksum", broken, None)


# JPEG and orientation ----------------------------------------------------------------------------


def decoded(data: bytes) -> Pixels:
    """Return what Pillow reads from a file of 8-bit colour or grey, without more."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def _jpegs(smooth: Pixels) -> Iterator[Made]:
    image = Image.fromarray(smooth)
    for name, of, options in (
        ("RGB", image, {}),
        ("L", image.convert("L"), {}),
        ("progressive", image, {"progressive": True}),
        ("4:4:4", image, {"subsampling": 0, "quality": 95}),
        ("with a profile", image, {"icc_profile": b"no profile at all"}),
        ("with a comment", image, {"comment": b"\x1b[31m\n"}),
    ):
        data = saved(of, "JPEG", **options)
        yield Made(f"JPEG {name}", data, decoded(data), suffix=".jpg")
    ink = Image.fromarray(np.dstack([smooth, smooth[..., 0] // 3]), mode="CMYK")
    data = saved(ink, "JPEG", quality=100, subsampling=0)
    # Adobe's are inverted. Paper is white where there is no ink.
    plain = (255 - np.dstack([smooth, smooth[..., 0] // 3]).astype(int)) / 255
    right = np.rint(255 * plain[..., :3] * plain[..., 3:]).astype(np.uint8)
    yield Made("JPEG CMYK of Adobe", data, right, suffix=".jpg", tolerance=12)
    data = saved(image, "JPEG")
    yield Made("JPEG with something behind it", data + b"more" * 99, decoded(data), suffix=".jpg")
    yield Made("JPEG twice", data + saved(image.rotate(180), "JPEG"), decoded(data), suffix=".jpg")
    double = saved(image, "MPO", save_all=True, append_images=[image.rotate(180)])
    yield Made("MPO", double, decoded(double), suffix=".jpg")
    for name, exif in (("empty", b"Exif\0\0"), ("garbled", b"Exif\0\0MM\0*" + b"\xff" * 40)):
        data = saved(image, "JPEG", exif=exif)
        yield Made(f"JPEG with {name} EXIF", data, decoded(data), suffix=".jpg")


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """Return the pixels as EXIF says that they are to be shown."""
    turn = {
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, -1),
        7: lambda p: p.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda p: np.rot90(p, 1),
    }.get(orientation, lambda p: p)
    return np.ascontiguousarray(turn(pixels))


def _turned(smooth: Pixels) -> Iterator[Made]:
    image = Image.fromarray(smooth)
    for orientation in (1, 2, 3, 4, 5, 6, 7, 8, 0, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = saved(image, "JPEG", exif=exif)
        yield Made(
            f"JPEG of orientation {orientation}",
            data,
            turned(decoded(data), orientation),
            suffix=".jpg",
        )
    for kind, options in (
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ):
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            data = saved(image, kind, exif=exif, **options)
            name = " ".join([kind, *map(str, options.values())])
            yield Made(f"{name} of orientation {orientation}", data, turned(smooth, orientation))


# TIFF --------------------------------------------------------------------------------------------


def tiff(data: bytes, bits: tuple[int, ...], photometric: int, **tags: int) -> bytes:
    """Return a TIFF of SIZE x SIZE written by hand, little-endian, in one strip."""
    entries = {256: SIZE, 257: SIZE, 259: 1, 262: photometric, 277: len(bits), 278: SIZE}
    entries.update({int(key[1:]): value for key, value in tags.items()})
    count = len(entries) + 3
    after = 8 + 2 + 12 * count + 4
    per_value = struct.pack(f"<{len(bits)}H", *bits)
    start = after + len(per_value)
    rows = {k: struct.pack("<HHII", k, 4, 1, v) for k, v in entries.items()}
    inline = per_value.ljust(4, b"\0") if len(bits) < 3 else struct.pack("<I", after)
    rows[258] = struct.pack("<HHI", 258, 3, len(bits)) + inline
    rows[273] = struct.pack("<HHII", 273, 4, 1, start)
    rows[279] = struct.pack("<HHII", 279, 4, 1, len(data))
    directory = b"".join(rows[k] for k in sorted(rows))
    return b"II*\0" + struct.pack("<IH", 8, count) + directory + b"\0" * 4 + per_value + data


def _tiffs(colour: Pixels, generator: np.random.Generator) -> Iterator[Made]:
    image = Image.fromarray(colour)
    first = colour[..., 0]
    alpha = generator.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
    for mode in ("1", "L", "P", "CMYK", "YCbCr"):
        of = image.quantize(16) if mode == "P" else image.convert(mode)
        yield Made(f"TIFF {mode}", saved(of, "TIFF"), np.asarray(of.convert("RGB")))
    pale = (96 + colour // 4).astype(np.uint8)
    lab = ImageCms.applyTransform(
        Image.fromarray(pale),
        ImageCms.buildTransform(
            ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
        ),
    )
    # Eight bits of L*a*b* keep colours to a few values.
    yield Made("TIFF LAB", saved(lab, "TIFF"), pale, tolerance=5)
    yield Made("TIFF LA", saved(Image.fromarray(np.dstack([first, alpha]), "LA"), "TIFF"),
               on_white(grey(first), alpha))  # fmt: skip
    yield Made("TIFF RGBA", saved(Image.fromarray(np.dstack([colour, alpha])), "TIFF"),
               on_white(colour, alpha))  # fmt: skip
    yield Made("TIFF RGBX", saved(image.convert("RGBX"), "TIFF"), colour)
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        yield Made(f"TIFF {compression}", saved(image, "TIFF", compression=compression), colour)
    data = saved(image, "TIFF", compression="jpeg")
    yield Made("TIFF jpeg", data, decoded(data))
    pages = saved(image, "TIFF", save_all=True, append_images=[Image.fromarray(255 - colour)])
    yield Made("TIFF of two pages", pages, colour)
    wide = generator.integers(0, 65536, (SIZE, SIZE, 3), dtype=np.uint16)
    level = wide[..., 0]
    scaled = np.rint(level / 257.0)
    yield Made("TIFF I;16", saved(Image.fromarray(level), "TIFF"), grey(scaled))
    for order in ("I;16B", "I;16L"):
        data = saved(Image.fromarray(level).convert("I").convert(order), "TIFF")
        yield Made(f"TIFF {order}", data, grey(scaled))
    yield Made(
        "TIFF I;16, packed",
        saved(Image.fromarray(level), "TIFF", compression="tiff_lzw"),
        grey(scaled),
    )
    yield Made(
        "TIFF I;16, white is zero",
        tiff(level.astype("<u2").tobytes(), (16,), 0),
        grey(np.rint((65535 - level.astype(int)) / 257.0)),
    )
    yield Made("TIFF L, white is zero", tiff(first.tobytes(), (8,), 0), grey(255 - first))
    twelve = level >> 4
    pairs = twelve.reshape(-1, 2).astype(int)
    packed = np.stack(
        [pairs[:, 0] >> 4, ((pairs[:, 0] & 15) << 4) | (pairs[:, 1] >> 8), pairs[:, 1] & 255],
        axis=1,
    )
    yield Made(
        "TIFF of 12 bits",
        tiff(packed.astype(np.uint8).tobytes(), (12,), 1),
        grey(np.rint(twelve * 255.0 / 4095)),
    )
    yield Made(
        "TIFF RGB of 16 bits",
        tiff(wide.astype("<u2").tobytes(), (16, 16, 16), 2),
        (wide >> 8).astype(np.uint8),
    )
    signed = (level.astype(int) - 32768).astype("<i2")
    yield Made("TIFF of signed 16 bits", tiff(signed.tobytes(), (16,), 1, t339=2), None)
    yield Made("TIFF I", saved(Image.fromarray(first.astype(np.int32)), "TIFF"), None)
    yield Made("TIFF of unsigned 32 bits", tiff(first.astype("<u4").tobytes(), (32,), 1), None)
    yield Made("TIFF F", saved(Image.fromarray(first.astype(np.float32)), "TIFF"), None)
    nan = np.full((SIZE, SIZE), np.nan, dtype=np.float32)
    yield Made("TIFF F, not a number", saved(Image.fromarray(nan), "TIFF"), None)


# Other formats under another ending --------------------------------------------------------------


def _other_formats(
    colour: Pixels, smooth: Pixels, generator: np.random.Generator
) -> Iterator[Made]:
    image, first = Image.fromarray(colour), colour[..., 0]
    alpha = generator.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
    with_alpha = Image.fromarray(np.dstack([colour, alpha]))
    over = on_white(colour, alpha)
    black = Image.fromarray(first > 127)
    table = image.quantize(32)
    plain = {
        "1": (black, grey((first > 127) * 255)),
        "L": (Image.fromarray(first), grey(first)),
        "P": (table, np.asarray(table.convert("RGB"))),
        "RGB": (image, colour),
        "RGBA": (with_alpha, over),
    }
    for kind, modes in (
        ("BMP", ("1", "L", "P", "RGB")),
        ("DIB", ("RGB",)),
        ("TGA", ("L", "P", "RGB", "RGBA")),
        ("PCX", ("1", "L", "P", "RGB")),
        ("PPM", ("1", "L", "RGB")),
        ("SGI", ("L", "RGB", "RGBA")),
        ("ICO", ("L", "RGB", "RGBA")),
        ("QOI", ("RGB", "RGBA")),
        ("DDS", ("RGB", "RGBA")),
        ("JPEG2000", ("L", "RGB", "RGBA")),
        ("GIF", ("1", "L", "P")),
        ("MSP", ("1",)),
    ):
        for mode in modes:
            of, right = plain[mode]
            options = {"sizes": [(SIZE, SIZE)]} if kind == "ICO" else {}
            yield Made(
                f"{kind} {mode} named .jpg", saved(of, kind, **options), right, suffix=".jpg"
            )
    for options in ({"lossless": True}, {"quality": 80}):
        data = saved(Image.fromarray(smooth), "WEBP", **options)
        yield Made(f"WebP {options}", data, decoded(data))
    data = saved(with_alpha, "WEBP", lossless=True, exact=True)
    yield Made("WebP RGBA", data, over)
    frames = [Image.fromarray(255 - colour), image]
    data = saved(image, "WEBP", save_all=True, append_images=frames, lossless=True)
    yield Made("WebP, animated", data, colour)
    clear = table.copy()
    data = saved(clear, "GIF", transparency=3)
    indices = np.asarray(table)
    yield Made(
        "GIF with a clear colour", data, np.where((indices == 3)[..., None], 255, plain["P"][1])
    )
    data = saved(table, "GIF", save_all=True, append_images=[table.rotate(90)], loop=0)
    yield Made("GIF, animated", data, plain["P"][1])
    wide = generator.integers(0, 65536, (SIZE, SIZE), dtype=np.uint16)
    yield Made("PGM of 16 bits", saved(Image.fromarray(wide), "PPM"), grey(np.rint(wide / 257.0)))
    twelve = (wide >> 4).astype(">u2")
    header = f"P5 {SIZE} {SIZE} 4095\n".encode()
    yield Made(
        "PGM of 12 bits",
        header + twelve.tobytes(),
        grey(np.rint(twelve * 255.0 / 4095)),
        tolerance=1,
    )
    yield Made(
        "JPEG2000 of 16 bits", saved(Image.fromarray(wide), "JPEG2000"), grey(np.rint(wide / 257.0))
    )
    yield Made("PFM of floats", saved(Image.fromarray(first.astype(np.float32)), "PPM"), None)
    yield Made("SPIDER of floats", saved(Image.fromarray(first.astype(np.float32)), "SPIDER"), None)
    yield Made("EPS", saved(image, "EPS"), None)
    yield Made("PDF", saved(image, "PDF"), None)


# Odd shapes, cut files, bombs and no images ------------------------------------------------------


def _shapes(colour: Pixels) -> Iterator[Made]:
    one = colour[0, 0]
    for width, height in ((1, 1), (1, 5000), (5000, 1), (2, 3)):
        data = saved(Image.new("RGB", (width, height), tuple(one.tolist())), "PNG")
        yield Made(f"PNG of {width} x {height}", data, np.broadcast_to(one, (SIZE, SIZE, 3)))
    broad = np.concatenate([255 - colour[:, :5], colour, 255 - colour[:, :5]], axis=1)
    yield Made("PNG broader than high", saved(Image.fromarray(broad), "PNG"), colour)
    exif = Image.Exif()
    exif[0x0112] = 6
    high = saved(Image.fromarray(broad), "PNG", exif=exif)
    yield Made("PNG broader than high, turned", high, turned(colour, 6))
    double = Image.fromarray(colour.repeat(2, axis=0).repeat(2, axis=1))
    right = np.asarray(double.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    yield Made("PNG of twice the size", saved(double, "PNG"), right)


def _cut(colour: Pixels, smooth: Pixels) -> Iterator[Made]:
    image, flat = Image.fromarray(colour), Image.fromarray(smooth)
    for name, data, suffix, shares in (
        ("PNG", saved(image, "PNG"), ".png", (0.01, 0.1, 0.5, 0.9, 0.99)),
        ("JPEG", saved(flat, "JPEG", quality=95), ".jpg", (0.01, 0.3, 0.6, 0.9, 0.99)),
        ("progressive JPEG", saved(flat, "JPEG", progressive=True), ".jpg", (0.5, 0.9, 0.99)),
        ("GIF", saved(image.quantize(32), "GIF"), ".png", (0.1, 0.5, 0.99)),
        ("WebP", saved(image, "WEBP", lossless=True), ".png", (0.1, 0.9, 0.99)),
        ("TIFF", saved(image, "TIFF", compression="tiff_lzw"), ".png", (0.1, 0.5, 0.99)),
        ("BMP", saved(image, "BMP"), ".png", (0.1, 0.9, 0.999)),
        ("PPM", saved(image, "PPM"), ".png", (0.5, 0.999)),
    ):
        right = decoded(data)
        for share in shares:
            cut = data[: int(len(data) * share)]
            yield Made(f"{name} cut at {share:.1%}", cut, right, may_refuse=True, suffix=suffix)
        yield Made(
            f"{name} without its last byte", data[:-1], right, may_refuse=True, suffix=suffix
        )


def _bombs() -> Iterator[Made]:
    dot = np.zeros((1, 1), dtype=np.uint8)
    for width, height in (
        (10_001, 10_000),
        (20_000, 8_000),
        (65_535, 65_535),
        (2**31 - 1, 2**31 - 1),
    ):
        data = png(dot, size=(width, height))
        yield Made(f"PNG that says {width} x {height}", data, None)
    header = struct.pack(">IIBBBBB", 12_000, 12_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(12_000 * (1 + 12_000 // 8)), 1)
    whole = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    yield Made("PNG of 144 million pixels", b"\x89PNG\r\n\x1a\n" + whole, None)
    jpeg = bytearray(saved(Image.new("L", (8, 8)), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 60_000, 60_000)
    yield Made("JPEG that says 60000 x 60000", bytes(jpeg), None, suffix=".jpg")
    bmp = bytearray(saved(Image.new("L", (8, 8)), "BMP"))
    bmp[18:26] = struct.pack("<ii", 30_000, 30_000)
    yield Made("BMP that says 30000 x 30000", bytes(bmp), None)
    gif = bytearray(saved(Image.new("L", (8, 8)), "GIF"))
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    yield Made("GIF that says 65535 x 65535", bytes(gif), None)
    yield Made("PNG that says 0 x 0", png(dot, size=(0, 0)), None)


def _no_images(seed: int) -> Iterator[Made]:
    noise = random.Random(f"{seed}-noise").randbytes(5000)
    for name, data in (
        ("text", b"a picture of a cat\n" * 20),
        ("HTML", b"<!doctype html><html><body>404 Not Found</body></html>"),
        ("a zip", b"PK\x03\x04" + noise),
        ("nothing", b""),
        ("zeros", b"\0" * 4096),
        ("noise", noise),
        ("JSON", b'{"error": "not found"}'),
        ("SVG", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'),
        ("a program", b"\x7fELF" + noise),
        ("a pickle", b"\x80\x04\x95" + noise),
        ("a PNG's first bytes", b"\x89PNG\r\n\x1a\n"),
        ("a JPEG's first bytes", b"\xff\xd8\xff"),
    ):
        yield Made(f"{name} named .jpg", data, None, suffix=".jpg")
        yield Made(f"{name} named .png", data, None)
