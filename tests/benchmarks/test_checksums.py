"""A cache file that was changed is known, said and made again."""

from __future__ import annotations

import io
import logging
import os
import random
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cl_lora.benchmarks.cache import ImageSource, cached_images
from cl_lora.benchmarks.checksums import SealedWriter, damage
from cl_lora.support.errors import UserError

COUNT, SIZE = 60, 6
EACH = SIZE * SIZE * 3


def source(content: str = "x", log: list[int] | None = None) -> ImageSource:
    def read(index: int, size: int) -> np.ndarray:
        if log is not None:
            log.append(index)
        return np.random.default_rng(index).integers(0, 256, (size, size, 3), dtype=np.uint8)

    return ImageSource(content, COUNT, read, threads=False)


def built(folder: Path, content: str = "x") -> tuple[Path, bytes]:
    cached_images(source(content), SIZE, folder)
    (file,) = folder.glob("*.npy")
    return file, file.read_bytes()


def zeroed(data: bytes) -> bytes:
    return data[:128] + bytes(EACH) + data[128 + EACH :]


def swapped(data: bytes) -> bytes:
    one, two = data[128 : 128 + EACH], data[128 + EACH : 128 + 2 * EACH]
    return data[:128] + two + one + data[128 + 2 * EACH :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "1 of its 60 images": zeroed,
    "2 of its 60 images": swapped,
    "60 of its 60 images": lambda d: (
        d[:128] + bytes(255 - b for b in d[128 : 128 + COUNT * EACH]) + d[128 + COUNT * EACH :]
    ),
    "its header": lambda d: d.replace(b"False", b"True ", 1),
    "no header": lambda d: bytes(len(d)),
    r"bytes in place of 6,\d{3}$|has 0 bytes|no header": lambda d: b"",
    r"6,\d{3} bytes in place of": lambda d: d[:-1],
    r"bytes in place of": lambda d: d + b"\0",
    "its checksums": lambda d: d[:-100] + bytes([d[-100] ^ 1]) + d[-99:],
    "or those of other images": lambda d: d[:-30] + bytes([d[-30] ^ 1]) + d[-29:],
}


@pytest.mark.parametrize("told", DAMAGES)
def test_a_damaged_cache_is_said_once_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, told: str
) -> None:
    file, whole = built(tmp_path)
    file.write_bytes(DAMAGES[told](whole))
    with caplog.at_level(logging.WARNING):
        images = cached_images(source(), SIZE, tmp_path)
    (message,) = caplog.messages
    assert message.startswith(f"{file} is damaged (")
    assert re.search(told, message.partition("(")[2].rpartition(")")[0])
    assert file.read_bytes() == whole
    assert np.array_equal(images[7], source().read(7, SIZE))
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    file, whole = built(tmp_path)
    draw = random.Random(0)
    key = file.stem
    assert problem(whole, key) is None
    for at in [*range(0, len(whole), 97), *range(len(whole) - 70, len(whole))]:
        flipped = bytes([whole[at] ^ (1 << draw.randrange(8))])
        assert problem(whole[:at] + flipped + whole[at + 1 :], key), at


def problem(data: bytes, key: str, header: int = 128) -> str | None:
    handle = os.memfd_create("cache")
    try:
        os.write(handle, data)
        return damage(handle, key, header, COUNT, EACH)
    finally:
        os.close(handle)


def test_a_whole_cache_under_another_name_is_not_taken(tmp_path: Path) -> None:
    other, _ = built(tmp_path / "other", "y")
    file, whole = built(tmp_path / "one")
    file.write_bytes(other.read_bytes())
    log: list[int] = []
    cached_images(source("x", log), SIZE, tmp_path / "one")
    assert log == list(range(COUNT))
    assert file.read_bytes() == whole


def test_a_whole_cache_is_not_made_again_and_numpy_reads_it(tmp_path: Path) -> None:
    file, _ = built(tmp_path)
    log: list[int] = []
    images = cached_images(source("x", log), SIZE, tmp_path)
    assert not log
    assert np.array_equal(np.load(file), images)


def test_the_checksums_are_those_of_zlib() -> None:
    file = io.BytesIO()
    writer = SealedWriter(file, "k" * 32)
    writer.write(b"header")
    for image in (b"abc", b"def"):
        writer.write(image)
    writer.finish()
    table = np.frombuffer(file.getvalue()[12:24], dtype="<u4")
    assert table.tolist() == [zlib.crc32(part) for part in (b"header", b"abc", b"def")]


def test_a_damaged_cache_that_cannot_be_replaced_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, whole = built(tmp_path)
    file.write_bytes(zeroed(whole))

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "x")

    monkeypatch.setattr("cl_lora.benchmarks.cache.os.replace", refuse)
    with pytest.raises(UserError, match=r"Cannot write to .*Permission denied; "):
        cached_images(source(), SIZE, tmp_path)


def test_a_disk_that_changes_what_is_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = SealedWriter.finish

    def broken(writer: SealedWriter) -> None:
        writer._sums[5] ^= 1
        finish(writer)

    monkeypatch.setattr(SealedWriter, "finish", broken)
    with pytest.raises(UserError, match=r"damaged as soon as it is written \(1 of its 60"):
        cached_images(source(), SIZE, tmp_path)


@pytest.mark.parametrize("what", ["pipe", "folder", "loop"])
def test_what_is_no_file_in_place_of_the_cache_is_one_sentence(tmp_path: Path, what: str) -> None:
    file, _ = built(tmp_path)
    file.unlink()
    make = {
        "pipe": lambda: os.mkfifo(file),
        "folder": file.mkdir,
        "loop": lambda: file.symlink_to(file.name),
    }
    make[what]()
    with pytest.raises(UserError, match=r"Cannot read .*; remove it or choose"):
        cached_images(source(), SIZE, tmp_path)
