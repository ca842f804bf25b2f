"""Checksums behind the images of a cache file: made as it is written, compared when it is opened.

Behind the array stand a CRC-32 of the header and one of each image, then a footer that says which
images these are and how many bytes were there. So a file that was damaged, cut, put under another
name or exchanged in part is known before a number is computed from it.

zlib's CRC-32 is the fastest of Python's own checksums here, and finds accidents; nobody who may
write the cache is kept from writing a wrong one.
"""

from __future__ import annotations

import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import IO

import numpy as np

_FOOTER = struct.Struct("<8s32sQQI")  # magic, key, bytes of header and images, images, own CRC
_MAGIC = b"CLCACHE1"
_PIECE = 4 << 20  # bytes that are read at a time
_THREADS = 4


class SealedWriter:
    """Writes header and images to a file, and at last what :func:`damage` compares them with.

    Args:
        file: open for writing, empty.
        key: name of the content, at most 32 ASCII characters.
    """

    def __init__(self, file: IO[bytes], key: str) -> None:
        self._file, self._key = file, key.encode()
        self._sums: list[int] = []
        self._length = 0

    def write(self, part: bytes) -> None:
        """Write the header, or one image."""
        self._file.write(part)
        self._sums.append(zlib.crc32(part))
        self._length += len(part)

    def finish(self) -> None:
        """Write the checksums."""
        table = np.array(self._sums, dtype="<u4").tobytes()
        self._file.write(table + _footer(self._key, self._length, len(self._sums) - 1, table))


def _footer(key: bytes, length: int, count: int, table: bytes) -> bytes:
    unsigned = _FOOTER.pack(_MAGIC, key, length, count, 0)[:-4]
    return unsigned + struct.pack("<I", zlib.crc32(table + unsigned))


def damage(handle: int, key: str, header: int, count: int, size: int) -> str | None:
    """Say what is wrong with a cache file, or return None; all of its images are read.

    Args:
        handle: file descriptor, open for reading.
        key: name of the content that the file should have.
        header: bytes before the first image.
        count: images that it should have.
        size: bytes of each.
    """
    length = header + count * size
    expected = length + 4 * (count + 1) + _FOOTER.size
    found = os.fstat(handle).st_size
    if found != expected:
        return f"it has {found:,} bytes in place of {expected:,}"
    end = os.pread(handle, expected - length, length)
    table = end[: -_FOOTER.size]
    if end[-_FOOTER.size :] != _footer(key.encode(), length, count, table):
        return "its checksums are damaged or those of other images"
    sums = np.frombuffer(table, dtype="<u4")
    if zlib.crc32(os.pread(handle, header, 0)) != sums[0]:
        return "its header is damaged"
    wrong = _wrong_images(handle, header, sums[1:].tolist(), size)
    return f"{wrong:,} of its {count:,} images are damaged" if wrong else None


def _wrong_images(handle: int, begin: int, sums: list[int], size: int) -> int:
    """Return how many images have another checksum; pieces of the file are read side by side."""
    step = max(1, _PIECE // max(1, size))

    def wrong_from(first: int) -> int:
        expected = sums[first : first + step]
        data = memoryview(os.pread(handle, len(expected) * size, begin + first * size))
        return sum(
            zlib.crc32(data[i * size : (i + 1) * size]) != value for i, value in enumerate(expected)
        )

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        return sum(pool.map(wrong_from, range(0, len(sums), step)))
