"""What the tests ask a benchmark of one set of classes for."""

from __future__ import annotations

import numpy as np

from cl_lora.benchmarks import Benchmark


def images_of(data: Benchmark) -> np.ndarray:
    """The images, which all experiences share."""
    (images,) = {id(e.inputs): e.inputs for e in data.experiences}.values()
    return images


def labels_of(data: Benchmark) -> np.ndarray:
    """The labels, which all experiences share."""
    (labels,) = {id(e.targets): e.targets for e in data.experiences}.values()
    return labels


def classes_of(data: Benchmark) -> tuple[str, ...]:
    """The classes of the one task."""
    (task,) = data.tasks
    assert task.kind.name == "class"
    return task.labels


def train_of(data: Benchmark) -> list[np.ndarray]:
    """The train parts."""
    return [e.train for e in data.experiences]


def val_of(data: Benchmark) -> list[np.ndarray]:
    """The validation parts."""
    return [e.val for e in data.experiences]


def held_out_of(data: Benchmark) -> list[np.ndarray]:
    """The test parts."""
    return [e.test for e in data.experiences]
