"""Fixtures shared by all tests: a tiny backbone and a tiny benchmark."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

# Before torch is imported: two threads that wait for each other collapse on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from fabricate import fabricate_run
from tiny_vit import tiny_backbone

from cl_lora.benchmarks import Benchmark, make_benchmark
from cl_lora.models.backbones import Backbone


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the modules that take long, so that no worker is left alone with one at the end.

    Modules are handed out whole and in this order, since what they train is shared within each.
    """
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture
def backbone() -> Backbone:
    return tiny_backbone()


@pytest.fixture
def make_backbone() -> Callable[[], Backbone]:
    """Return a function that makes the same tiny backbone again."""
    return tiny_backbone


@pytest.fixture(scope="session")
def benchmark_16(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    """Three classes in three styles, 16 px: 8 train and 4 test images a class and style."""
    return make_benchmark(
        {
            "kind": "shapes",
            "name": "shapes",
            "classes": 3,
            "styles": ["photo", "cartoon", "sketch"],
            "samples_per_class": 8,
            "test_samples_per_class": 4,
            "cache_dir": str(tmp_path_factory.mktemp("cache")),
        },
        image_size=16,
    )


@pytest.fixture
def run_path(tmp_path: Path) -> Path:
    """A small finished run folder: 3 arms, 5 references, 4 domains, 2 seeds."""
    return fabricate_run(tmp_path / "runs" / "pacs_trial")
