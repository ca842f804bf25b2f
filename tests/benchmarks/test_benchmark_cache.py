"""Decoding images, and decoding them only once."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cl_lora.benchmarks.cache import ImageSource, cache_folder, cached_images, shortened
from cl_lora.benchmarks.images import UnreadableImage, decode_image
from cl_lora.support.errors import UserError


def source(content: str = "x", count: int = 100, threads: bool = True) -> ImageSource:
    def read(index: int, size: int) -> np.ndarray:
        return np.full((size, size, 3), index, dtype=np.uint8)

    return ImageSource(content, count, read, threads=threads)


def never(content: str = "x", count: int = 100) -> ImageSource:
    def read(index: int, size: int) -> np.ndarray:
        raise AssertionError("decoded again")

    return ImageSource(content, count, read)


@pytest.mark.parametrize("threads", [True, False])
def test_images_come_in_order_as_a_read_only_map(tmp_path, threads):
    images = cached_images(source(threads=threads), 4, tmp_path)
    assert isinstance(images, np.memmap)
    assert images.shape == (100, 4, 4, 3)
    assert images.dtype == np.uint8
    assert images[:, 0, 0, 0].tolist() == list(range(100))
    assert not images.flags.writeable


def test_second_call_opens_the_same_file_without_decoding(tmp_path):
    cached_images(source(), 4, tmp_path)
    (file,) = tmp_path.iterdir()
    before = file.stat()
    np.testing.assert_array_equal(cached_images(never(), 4, tmp_path)[7], 7)
    after = file.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_what_a_killed_build_left_goes_and_what_is_being_written_stays(tmp_path):
    cached_images(source(), 4, tmp_path)
    (file,) = tmp_path.iterdir()
    file.unlink()
    orphan, written = (tmp_path / f".{file.name}.{end}" for end in ("orphan", "written"))
    orphan.write_bytes(b"half")
    with written.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        cached_images(source(), 4, tmp_path)
        assert sorted(tmp_path.iterdir()) == sorted([file, written])


def test_another_size_or_content_is_another_file(tmp_path):
    cached_images(source(), 4, tmp_path)
    assert cached_images(source(), 5, tmp_path).shape == (100, 5, 5, 3)
    cached_images(source(content="y"), 4, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("keep", [0, 60, 1000])
def test_file_cut_short_is_built_again(tmp_path, keep):
    cached_images(source(), 4, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:keep])
    np.testing.assert_array_equal(cached_images(source(), 4, tmp_path)[99], 99)


def test_concurrent_builders_all_get_whole_data_and_leave_one_file(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: cached_images(source(), 8, tmp_path), range(4)))
    for images in results:
        assert images[:, 7, 7, 2].tolist() == list(range(100))
    assert [file.suffix for file in tmp_path.iterdir()] == [".npy"]


def failing(bad: set[int], count: int) -> ImageSource:
    def read(index: int, size: int) -> np.ndarray:
        if index in bad:
            raise UnreadableImage(f"image-{index}", "bad")
        return np.zeros((size, size, 3), dtype=np.uint8)

    return ImageSource("bad", count, read)


def test_all_unreadable_images_are_named_and_nothing_is_left(tmp_path):
    told = r"2 of 70 images: image-3 \(bad\); image-69 \(bad\); replace or remove"
    with pytest.raises(UserError, match=told):
        cached_images(failing({3, 69}, 70), 4, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_from_the_eleventh_on_unreadable_images_are_counted(tmp_path):
    with pytest.raises(UserError, match=r"14 of 70 images: image-0 .*image-9 .*; and 4 more"):
        cached_images(failing(set(range(14)), 70), 4, tmp_path)


def test_shortened_names_exactly_ten():
    assert shortened(["a"] * 10).count("a") == 10
    assert shortened(["a"] * 11).endswith("and 1 more")


def test_full_disk_is_a_user_error_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="No space left on device; free some space"):
        cached_images(source(), 4, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_disk_that_fills_up_while_writing_is_a_user_error(tmp_path, monkeypatch):
    class FullFile(io.BytesIO):
        def write(self, _data: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def on_full_disk(handle: int, _mode: str) -> FullFile:
        os.close(handle)
        return FullFile()

    monkeypatch.setattr("cl_lora.benchmarks.cache.os.fdopen", on_full_disk)
    with pytest.raises(UserError, match="No space left on device"):
        cached_images(source(), 4, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_cache_folder_that_is_a_file_is_a_user_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"Cannot (read|write)"):
        cached_images(source(), 4, tmp_path / "file")


def test_an_error_of_the_renderer_is_not_taken_for_an_unreadable_image(tmp_path):
    with pytest.raises(AssertionError, match="decoded again"):
        cached_images(never(), 4, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_cache_folder_follows_setting_then_environment_then_home(monkeypatch, tmp_path):
    monkeypatch.delenv("CL_LORA_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "cl-lora"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/cl-lora")
    monkeypatch.setenv("CL_LORA_CACHE", "~/chosen")
    assert cache_folder() == tmp_path / "chosen"
    assert cache_folder("/given") == Path("/given")


def encoded(image: Image.Image, kind: str = "PNG") -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    buffer.seek(0)
    return buffer


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_image_of_the_right_size_keeps_its_pixels():
    pixels = noise(9, 9)
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(pixels)), 9, ""), pixels)


def test_image_whose_shorter_side_fits_is_only_cropped():
    pixels = noise(13, 9)
    decoded = decode_image(encoded(Image.fromarray(pixels)), 9, "")
    np.testing.assert_array_equal(decoded, pixels[:, 2:11])


@pytest.mark.parametrize("shape", [(40, 20), (20, 40), (20, 20)])
def test_scaling_then_cropping_the_plain_way_gives_the_same(shape):
    image = Image.fromarray(noise(*shape))
    decoded = decode_image(encoded(image), 10, "")
    scale = 10 / 20
    scaled = image.resize(
        (round(shape[0] * scale), round(shape[1] * scale)), Image.Resampling.BICUBIC
    )
    left, top = (scaled.width - 10) // 2, (scaled.height - 10) // 2
    reference = np.asarray(scaled.crop((left, top, left + 10, top + 10)))
    np.testing.assert_allclose(decoded.astype(int), reference.astype(int), atol=1)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    kind = "JPEG" if mode == "CMYK" else "PNG"
    decoded = decode_image(encoded(Image.new(mode, (8, 6)), kind), 5, "")
    assert decoded.shape == (5, 5, 3)
    assert decoded.dtype == np.uint8


def test_broken_files_are_unreadable_images_with_a_reason(tmp_path):
    whole = encoded(Image.fromarray(noise(64, 64))).getvalue()
    jpeg = encoded(Image.fromarray(noise(64, 64)), "JPEG").getvalue()
    for name, data in {
        "text.png": b"no image",
        "empty.png": b"",
        "half.png": whole[: len(whole) // 2],
        "half.jpg": jpeg[: len(jpeg) // 2],
        "flipped.png": whole[:60] + b"\x00" * 40 + whole[100:],
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UnreadableImage, match=rf"{name} \(.+\)"):
            decode_image(tmp_path / name, 8, name)
    with pytest.raises(UnreadableImage, match=r"gone.png \(No such file or directory\)"):
        decode_image(tmp_path / "gone.png", 8, "gone.png")


def counted(log: Path, pause: float = 0.0) -> ImageSource:
    """Images of which every one that is made leaves a line."""

    def read(index: int, size: int) -> np.ndarray:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(pause)
        return np.full((size, size, 3), index, dtype=np.uint8)

    return ImageSource("x", 40, read, threads=False)


def in_a_process(log: Path, folder: Path, pause: float = 0.0) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        code = int(cached_images(counted(log, pause), 4, folder)[39, 0, 0, 0] != 39)
    finally:
        os._exit(code)


def wait_for_lines(log: Path, count: int) -> None:
    end = time.monotonic() + 60
    while not log.exists() or len(log.read_text().splitlines()) < count:
        assert time.monotonic() < end
        time.sleep(0.005)


def test_processes_that_need_the_same_images_make_them_once(tmp_path: Path) -> None:
    log, folder = tmp_path / "log", tmp_path / "cache"
    children = [in_a_process(log, folder, 0.005) for _ in range(4)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert len(log.read_text().splitlines()) == 40
    assert [file.suffix for file in folder.iterdir()] == [".npy"]


def test_a_process_that_is_killed_lets_the_next_make_them(tmp_path: Path) -> None:
    log, folder = tmp_path / "log", tmp_path / "cache"
    first = in_a_process(log, folder, 0.05)
    wait_for_lines(log, 2)
    second = in_a_process(log, folder)
    time.sleep(0.1)
    assert set(log.read_text().split()) == {str(first)}  # the second waits
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    assert os.waitpid(second, 0)[1] == 0
    assert log.read_text().split().count(str(second)) == 40
    assert [file.suffix for file in folder.iterdir()] == [".npy"]


def test_images_are_made_where_the_file_system_has_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("cl_lora.benchmarks.cache.fcntl.flock", no_locks)
    np.testing.assert_array_equal(cached_images(source(), 4, tmp_path)[7], 7)
