"""Benchmarks: from a config to decoded images with a split for every domain. Knows no model.

``cl_lora.benchmarks.avalanche`` turns a benchmark into Avalanche streams; it is not imported here
because importing Avalanche takes seconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cl_lora.benchmarks.config import (
    KINDS,
    TEXT_KINDS,
    missing_settings,
    read_config,
)
from cl_lora.benchmarks.core import Benchmark, Experience
from cl_lora.benchmarks.draw import ALL, Shots, draw_buffer, draw_support

# Importing a kind's module registers it, of a benchmark or of an image set.
from cl_lora.benchmarks.sources import (  # noqa: F401
    class_tree,
    hub,
    hub_set,
    torchvision_sets,
    tree,
)
from cl_lora.benchmarks.sources.shapes import benchmark as shapes  # noqa: F401
from cl_lora.benchmarks.sources.shapes import image_set as shapes_set  # noqa: F401
from cl_lora.benchmarks.streams import (  # noqa: F401
    class_incremental,
    covariate_shift,
    few_shot_language,
    label_shift,
    multitask,
    task_folders,
    task_shift,
)
from cl_lora.support.errors import UserError, printable
from cl_lora.support.failures import remedy

__all__ = [
    "ALL",
    "KINDS",
    "Benchmark",
    "Experience",
    "Shots",
    "draw_buffer",
    "draw_support",
    "found",
    "make_benchmark",
    "validate_benchmark_config",
]


def make_benchmark(config: Mapping[str, Any], image_size: int | None) -> Benchmark:
    """Load the benchmark that a config describes.

    Args:
        config: a resolved ``configs/benchmark`` file as a plain mapping.
        image_size: side of the square images in pixels; None for a model that takes none.

    Raises:
        UserError: anything wrong with the config or the data, or a model that takes other inputs;
            the checks that need no decoding come first.
    """
    benchmark, texts = read_config(config), config["kind"] in TEXT_KINDS
    if texts != (image_size is None):
        one, other = ("texts", "images") if texts else ("images", "texts")
        raise UserError(
            f"Expected a model that takes {one}, which benchmark.kind={config['kind']} has, but "
            f"this one takes {other}; choose another model or benchmark"
        )
    if image_size is None:
        with _explain_read_errors():
            return benchmark.build(0)
    if not isinstance(image_size, int) or isinstance(image_size, bool) or image_size < 1:
        raise UserError(
            f"Expected image_size to be an integer of at least 1 but got {image_size!r}"
        )
    with _explain_read_errors():
        return benchmark.build(image_size)


def validate_benchmark_config(config: Mapping[str, Any]) -> None:
    """Check a config and its data as far as possible without decoding an image.

    Raises:
        UserError: what is wrong, and what to do.
    """
    benchmark = read_config(config)
    with _explain_read_errors():
        benchmark.check()


def found(config: Mapping[str, Any]) -> str | None:
    """Say in a few words where the data of a config is, or None if it is not there.

    Raises:
        UserError: the config is wrong, or data is there but is not complete.
    """
    if missing_settings(config):
        return None
    benchmark = read_config(config)
    with _explain_read_errors():
        return benchmark.found()


@contextmanager
def _explain_read_errors() -> Iterator[None]:
    """Turn an ``OSError`` of a file or folder of the data into one sentence.

    Such as that of a folder that may not be read, or of a link that leads to itself.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:  # of no file, but of a terminal or pipe
            raise
        path = printable(os.fsdecode(error.filename))
        raise UserError(f"Cannot read {path}: {error.strerror}; {remedy(error.errno)}") from error
