"""The buffer: a few train samples of every experience, balanced over what its task says."""

from __future__ import annotations

import numpy as np

from cl_lora.benchmarks.core import Benchmark, Experience
from cl_lora.benchmarks.splits import Indices
from cl_lora.support.errors import UserError
from cl_lora.support.seeding import numpy_generator


def draw_buffer(benchmark: Benchmark, samples_per_class: int, seed: int) -> tuple[Indices, ...]:
    """Draw the buffer of every experience from its train part.

    What a draw balances is the task's: its classes, or bins of its values (the strata). The
    samples of a stratum are the first ``samples_per_class`` of a permutation that depends only on
    the seed and the names of experience and stratum: buffers of growing size are nested.

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
    is_count = isinstance(samples_per_class, int) and not isinstance(samples_per_class, bool)
    if not is_count or samples_per_class < 1:
        raise UserError(
            "Expected the buffer's samples_per_class to be an integer of at least 1 "
            f"but got {samples_per_class!r}"
        )
    return tuple(_draw(e, samples_per_class, seed) for e in benchmark.experiences)


def _draw(experience: Experience, samples_per_class: int, seed: int) -> Indices:
    task, indices = experience.task, experience.train
    strata, names = task.kind.strata(task, experience.targets[indices])
    drawn = []
    for number, name in enumerate(names):
        candidates = indices[strata == number]
        if samples_per_class > len(candidates):
            raise UserError(
                f"Expected the buffer's samples_per_class to be at most {len(candidates)}, the "
                f"train samples of {task.kind.name} {name!r} in {experience.name!r}, "
                f"but got {samples_per_class}; take a smaller buffer"
            )
        generator = numpy_generator(seed, "buffer", experience.name, name)
        drawn.append(generator.permutation(candidates)[:samples_per_class])
    return np.concatenate(drawn)
