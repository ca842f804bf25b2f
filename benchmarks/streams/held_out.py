"""One experience held out: which one, and the checks that every such stream must pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from cl_lora.benchmarks.core import Benchmark, Experience
from cl_lora.support.errors import UserError, unknown_name
from cl_lora.support.files import digest


def stream_order(
    names: Sequence[str], upstream: Sequence[str] | None, downstream: str | None
) -> tuple[str, ...]:
    """Return the names of a stream: the upstream ones in their order, then the downstream one.

    Args:
        names: all there are.
        upstream: which of them adapters are trained on; None for all but the downstream one.
        downstream: the one that is held out; None if none is.

    Raises:
        UserError: a name is unknown, the downstream name is also upstream, or nothing is left
            upstream.
    """
    if downstream is not None and downstream not in names:
        raise unknown_name("benchmark.downstream", downstream, names)
    for name in upstream or ():
        if name not in names:
            raise unknown_name("benchmark.upstream", name, names)
    if upstream is not None and downstream in upstream:
        raise UserError(
            f"Expected benchmark.downstream to be held out but {downstream!r} is in "
            "benchmark.upstream too; remove it there"
        )
    chosen = names if upstream is None else upstream
    order = tuple(name for name in chosen if name != downstream)
    if not order:
        only = f"{downstream!r} alone" if downstream is not None else "none"
        raise UserError(
            f"Expected at least one upstream experience but got {only}; add data or choose "
            "another benchmark.downstream"
        )
    return order if downstream is None else (*order, downstream)


def held_out(
    name: str,
    experiences: Sequence[Experience],
    content: str,
    *,
    downstream: bool = True,
    annotations: Mapping[str, npt.NDArray[np.generic]] | None = None,
) -> Benchmark:
    """Return a stream whose last experience is downstream.

    Args:
        name: of the benchmark.
        experiences: the upstream ones, then the downstream one.
        content: digest of their data.
        downstream: whether the last one is held out; False for a run that holds out each in turn.
        annotations: further arrays by name, aligned with the inputs.

    Raises:
        UserError: no upstream experience, two of one name, a train part that is empty, or an
            empty query.
    """
    last = len(experiences) - 1
    if last < (1 if downstream else 0):
        raise UserError(f"Expected at least one upstream experience in {name!r} but got none")
    names = [experience.name for experience in experiences]
    if len(set(names)) != len(names):
        raise UserError(
            f"Expected the experiences of {name!r} to have different names but got "
            f"{', '.join(map(repr, names))}"
        )
    for number, experience in enumerate(experiences):
        if not len(experience.train):
            what = "pool of the support" if downstream and number == last else "train part"
            raise UserError(
                f"Expected samples in the {what} of {experience.name!r} but it is empty; add some"
            )
        if not len(experience.test):
            what = "query" if downstream and number == last else "test part"
            raise UserError(
                f"Expected test samples in {experience.name!r} but its {what} is empty; add some"
            )
    held = (last,) if downstream else ()
    return Benchmark(
        name=name,
        experiences=tuple(experiences),
        fingerprint=digest("few-shot", content, names, list(held)),
        annotations=annotations or {},
        downstream=held,
    )
