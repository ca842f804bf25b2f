from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Tree = Callable[..., Path]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of decoded images, empty."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CL_LORA_CACHE", str(folder))
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Write root/domain/class/N.png, every image in a colour of its own."""

    def write(
        domains: Iterable[str] = ("photo", "sketch"),
        classes: Iterable[str] = ("cat", "dog"),
        count: int = 5,
        size: tuple[int, int] = (12, 10),
    ) -> Path:
        root = tmp_path / "data"
        number = 0
        for domain in domains:
            for name in classes:
                folder = root / domain / name
                folder.mkdir(parents=True)
                for index in range(count):
                    number += 1
                    colour = (number % 256, 7 * number % 256, 31 * number % 256)
                    Image.new("RGB", size, colour).save(folder / f"{index}.png")
        return root

    return write


@pytest.fixture
def folder_config(tree: Tree, cache: Path) -> dict[str, Any]:
    """A config on a fresh tree of 2 domains x 2 classes x 5 images."""
    return {"kind": "domains", "root": str(tree())}


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it to make any decoding from then on an error."""

    def refuse(*_: object) -> np.ndarray:
        raise AssertionError("an image was decoded although the cache has it")

    def arm() -> None:
        for module in ("tree", "hub"):
            monkeypatch.setattr(f"cl_lora.benchmarks.sources.{module}.decode_image", refuse)
        monkeypatch.setattr(
            "cl_lora.benchmarks.cache._build", refuse
        )  # whatever the kind of benchmark

    return arm
