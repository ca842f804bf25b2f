"""Plain batches of an experience, for evaluation without Avalanche."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from cl_lora.benchmarks.core import Experience
from cl_lora.benchmarks.splits import Indices
from cl_lora.support.errors import UserError

Encode = Callable[[npt.NDArray[Any]], Tensor]
"""Turns one sample, or a batch of them, into a model's input; belongs to the model."""


def batches(
    experience: Experience, indices: Indices, batch_size: int, encode: Encode
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a model's inputs (B, ...) and targets (B, ...) in the order of ``indices``.

    Args:
        experience: where to read.
        indices: int64 (N,) into the experience's inputs and targets.
        batch_size: B; the last batch may be smaller.
        encode: what turns samples into a model's input.

    Raises:
        UserError: ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise UserError(f"Expected batch_size to be at least 1 but got {batch_size!r}")
    for start in range(0, len(indices), batch_size):
        chosen = indices[start : start + batch_size]
        yield encode(experience.inputs[chosen]), target_tensor(experience, chosen)


def target_tensor(experience: Experience, indices: Indices) -> Tensor:
    """Return the targets of some samples as a tensor of the dtype that the task's kind asks for."""
    targets = torch.from_numpy(experience.targets[indices])
    return targets.to(experience.task.kind.target_dtype)
