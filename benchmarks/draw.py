"""Draws from train parts, balanced over what a task says: the buffer, and a support set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from cl_lora.benchmarks.core import Benchmark, Experience
from cl_lora.benchmarks.splits import Indices
from cl_lora.support.errors import UserError
from cl_lora.support.seeding import numpy_generator

ALL: Literal["all"] = "all"
"""In place of a number of samples: the whole pool."""

Shots = int | Literal["all"]
"""Samples a stratum (K), or the whole pool."""


def draw_buffer(benchmark: Benchmark, samples_per_class: int, seed: int) -> tuple[Indices, ...]:
    """Draw the buffer of every experience from its train part.

    What a draw balances is the task's: its classes, or bins of its values (the strata). The
    samples of a stratum are the first ``samples_per_class`` of a permutation that depends only on
    the seed and the names of experience and stratum: buffers of growing size are nested. Where an
    experience brings labels of its own, those are its strata, so that the buffers of the
    experiences seen so far are together balanced over the classes seen so far.

    Args:
        benchmark: where to draw from.
        samples_per_class: samples for each stratum and experience, at least 1.
        seed: of the run.

    Returns:
        For each experience int64 (samples_per_class * strata,) indices into its inputs.

    Raises:
        UserError: ``samples_per_class`` is not an integer of at least 1, or more than a stratum
            of an experience has.
    """
    if not _is_count(samples_per_class):
        raise UserError(
            "Expected the buffer's samples_per_class to be an integer of at least 1 "
            f"but got {samples_per_class!r}"
        )
    return tuple(_draw(e, samples_per_class, seed) for e in benchmark.experiences)


def draw_support(experience: Experience, shots: Shots, seed: int, draw: int = 0) -> Indices:
    """Draw a support set of K samples a stratum from an experience's train part, the pool.

    The samples of a stratum are the first K of a permutation that depends only on the seed, the
    draw and the names of experience and stratum: support sets of growing K are nested, and the
    whole pool holds each of them.

    Args:
        experience: the downstream experience; its test part, the query, is never looked at.
        shots: K, at least 1, or ``"all"`` for the whole pool.
        seed: of the run.
        draw: number of the draw, at least 0; one seed has as many draws as are asked for.

    Returns:
        int64 (K * strata,) indices into the experience's inputs, stratum after stratum; with
        ``"all"`` the train part as it is.

    Raises:
        UserError: ``shots`` is neither, ``draw`` is no number of a draw, or a stratum has fewer
            than K samples (it is named, with how many it has).
    """
    if shots != ALL and not _is_count(shots):
        raise UserError(f"Expected shots to be integers of at least 1 or {ALL!r} but got {shots!r}")
    if not _is_count(draw, least=0):
        raise UserError(
            f"Expected the number of a support draw to be an integer of at least 0 but got {draw!r}"
        )
    if shots == ALL:
        return experience.train.copy()
    drawn = []
    for name, candidates in _strata(experience):
        if shots > len(candidates):
            raise UserError(
                f"Expected shots to be at most {len(candidates)}, the train samples of "
                f"{experience.task.kind.name} {name!r} in {experience.name!r}, but got {shots}; "
                f"leave {shots} out of shots, or give {ALL!r} for the whole pool"
            )
        generator = numpy_generator(seed, "support", experience.name, name, draw)
        drawn.append(generator.permutation(candidates)[:shots])
    return np.concatenate(drawn)


def _draw(experience: Experience, samples_per_class: int, seed: int) -> Indices:
    drawn = []
    for name, candidates in _strata(experience):
        if samples_per_class > len(candidates):
            raise UserError(
                f"Expected the buffer's samples_per_class to be at most {len(candidates)}, the "
                f"train samples of {experience.task.kind.name} {name!r} in {experience.name!r}, "
                f"but got {samples_per_class}; take a smaller buffer"
            )
        generator = numpy_generator(seed, "buffer", experience.name, name)
        drawn.append(generator.permutation(candidates)[:samples_per_class])
    return np.concatenate(drawn)


def _strata(experience: Experience) -> Iterator[tuple[str, Indices]]:
    """Yield the name and the train samples of every stratum that the experience brings."""
    task, indices = experience.task, experience.train
    strata, names = task.kind.strata(task, experience.targets[indices])
    for number, name in enumerate(names):
        if experience.labels is None or number in experience.labels:
            yield name, indices[strata == number]


def _is_count(value: object, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
