"""What the checksums of decoded images cost: compared in full at opening, or as images are read.

Two caches of 10,000 images, the number of PACS. Files lie in the page cache. Reading is one epoch
of shuffled batches as training reads them; checking each image when it is first read is written
here only, to compare it with what is done.
"""

from __future__ import annotations

import hashlib
import tempfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cl_lora.benchmarks.cache import ImageSource, cached_images
from cl_lora.benchmarks.images import Pixels
from perf.common import interleaved, report

IMAGES, SIZES, BATCH = 10_000, (112, 224), 32
ALGORITHMS: dict[str, Callable[[bytes], object]] = {
    "crc32": zlib.crc32,
    "adler32": zlib.adler32,
    "sha256": lambda data: hashlib.sha256(data).digest(),
    "blake2b": lambda data: hashlib.blake2b(data).digest(),
}


def source(size: int) -> ImageSource:
    """Return images that cost nothing to make, all of them different."""
    noise = np.random.default_rng(0).integers(0, 256, 2 * size * size * 3, dtype=np.uint8)

    def read(index: int, _: int) -> Pixels:
        return noise[index : index + size * size * 3].reshape(size, size, 3)

    return ImageSource(f"noise {size}", IMAGES, read, threads=False)


def epoch(images: Pixels, order: npt.NDArray[np.int64]) -> int:
    """Read every image once, in batches."""
    return sum(len(images[order[i : i + BATCH]]) for i in range(0, len(order), BATCH))


def checked_epoch(
    images: Pixels, order: npt.NDArray[np.int64], sums: npt.NDArray[np.uint32]
) -> int:
    """Read every image once, in batches, and compare each with its checksum."""
    count = 0
    for i in range(0, len(order), BATCH):
        chosen = order[i : i + BATCH]
        batch = images[chosen]
        found = [zlib.crc32(image) for image in batch]
        if found != sums[chosen].tolist():
            raise AssertionError("an image is damaged")
        count += len(batch)
    return count


def main() -> None:
    order = np.random.default_rng(1).permutation(IMAGES)
    rows: list[dict[str, object]] = []
    cost = {}
    with tempfile.TemporaryDirectory() as temporary:
        for size in SIZES:
            given, folder = source(size), Path(temporary)
            images = cached_images(given, size, folder)
            (file,) = folder.glob("*.npy")
            sums = np.array([zlib.crc32(image) for image in images], dtype=np.uint32)
            found = interleaved(
                {
                    "opened, nothing compared": partial(np.load, file, mmap_mode="r"),
                    "opened, all compared": partial(cached_images, given, size, folder),
                    "an epoch read": partial(epoch, images, order),
                    "an epoch read, each image compared": partial(
                        checked_epoch, images, order, sums
                    ),
                }
            )
            rows += [{"pixels": size, "case": name, **values} for name, values in found.items()]
            cost[size] = found["opened, all compared"]["cpu_s"]
            del images
            file.unlink()
    megabytes = " and ".join(f"{IMAGES * size * size * 3 / 1e6:,.0f}" for size in SIZES)
    data = np.random.default_rng(2).bytes(112 * 112 * 3)
    speeds = interleaved({n: partial(_repeated, a, data) for n, a in ALGORITHMS.items()})
    rates = {n: 1000 * len(data) / 1e9 / v["cpu_s"] for n, v in speeds.items()}
    report(
        "checksums",
        f"{IMAGES:,} images at {' and '.join(map(str, SIZES))} px "
        f"({megabytes} MB), in the page cache, batches of {BATCH}, shuffled",
        rows,
        gigabytes_per_cpu_s=rates,
        cpu_seconds_at_opening={str(size): seconds for size, seconds in cost.items()},
    )


def _repeated(algorithm: Callable[[bytes], object], data: bytes) -> None:
    for _ in range(1000):
        algorithm(data)


if __name__ == "__main__":
    main()
