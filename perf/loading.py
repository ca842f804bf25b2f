"""One epoch of shuffled batches: from the memory-mapped cache, and decoding each JPEG."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cl_lora.benchmarks import make_benchmark
from cl_lora.benchmarks.batches import batches
from cl_lora.benchmarks.images import decode_image
from cl_lora.models.images import ImageBackbone
from perf.common import interleaved, report

SIDE, SIZE, PER_CLASS, BATCH = 256, 224, 40, 32
DOMAINS, CLASSES = ("one", "two"), ("a", "b", "c", "d")


def write_tree(root: Path) -> list[Path]:
    """Write JPEGs of about the size of photographs: smooth shapes with some grain."""
    rng = np.random.default_rng(0)
    paths = []
    for domain in DOMAINS:
        for name in CLASSES:
            folder = root / domain / name
            folder.mkdir(parents=True)
            for index in range(PER_CLASS):
                coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
                pixels = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), float)
                pixels = np.clip(pixels + rng.normal(0, 6, pixels.shape), 0, 255)
                path = folder / f"{index}.jpg"
                Image.fromarray(pixels.astype(np.uint8)).save(path, quality=90)
                paths.append(path)
    return paths


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "tree"
        paths = write_tree(root)
        kilobytes = sum(p.stat().st_size for p in paths) / len(paths) / 1e3
        config = {
            "kind": "domains",
            "root": str(root),
            "cache_dir": str(Path(temporary) / "cache"),
        }
        benchmark = make_benchmark(config, SIZE)
        order = np.random.default_rng(1).permutation(len(paths))

        def cached() -> None:
            read = batches(benchmark.experiences[0], order, BATCH, ImageBackbone.encode)
            total = sum(len(labels) for _, labels in read)
            assert total == len(paths)

        def decoded() -> None:
            for start in range(0, len(order), BATCH):
                chosen = [paths[i] for i in order[start : start + BATCH]]
                images = np.stack([decode_image(p, SIZE, p.name) for p in chosen])
                torch.from_numpy(np.moveaxis(images, -1, 1).copy())

        found = interleaved({"cache": cached, "decode": decoded})
        rows = [
            {"case": n, **v, "images_per_cpu_s": len(paths) / v["cpu_s"]} for n, v in found.items()
        ]
        report(
            "loading",
            f"{len(paths)} JPEGs {SIDE} x {SIDE} ({kilobytes:.0f} kB each) at {SIZE} px, "
            f"batches of {BATCH}, shuffled",
            rows,
            times_faster=found["decode"]["cpu_s"] / found["cache"]["cpu_s"],
            aim=">= 5",
        )


if __name__ == "__main__":
    main()
