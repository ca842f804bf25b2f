"""What it costs that a file is on the disk before its name: `python -m perf.lasting [FOLDER]`.

Files of the sizes that a run writes, in the way that the package writes them and without waiting
for the disk; and an adapter as a folder. FOLDER lies on the disk that is asked about.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

from cl_lora import Adapter
from cl_lora.support import files
from perf.common import interleaved, random_adapters, report

SIZES = {"scores, 20 kB": 20_000, "300 kB": 300_000, "20 MB": 20_000_000}
LAYERS = {f"blocks.{k}.attn.qkv": (576, 192) for k in range(12)}


def at_once(write: Callable[[], None]) -> None:
    """Write without waiting for the disk."""
    with mock.patch("os.fsync"):
        write()


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as temporary:
        place = Path(temporary)
        adapter: Adapter = random_adapters(1, 8, LAYERS)[0]
        writes: dict[str, Callable[[], None]] = {
            name: partial(files.write_bytes, place / "file", os.urandom(size))
            for name, size in SIZES.items()
        }
        writes["an adapter of ViT-Ti, rank 8"] = partial(adapter.save, place / "adapter")
        cases = {}
        for name, write in writes.items():
            cases[f"{name}, on the disk"] = write
            cases[f"{name}, at once"] = partial(at_once, write)
        measured = interleaved(cases, repeats=15)
    rows = [
        {
            "what": name,
            "at once, wall ms": 1e3 * measured[f"{name}, at once"]["wall_s"],
            "on the disk, wall ms": 1e3 * measured[f"{name}, on the disk"]["wall_s"],
        }
        for name in writes
    ]
    report("lasting", "medians of 15 writes, one way after the other", rows)


if __name__ == "__main__":
    main()
