"""Which of several processes scores what of a run: the same answer in each of them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from cl_lora.benchmarks.core import Benchmark
from cl_lora.benchmarks.draw import ALL
from cl_lora.experiment.adapting import merge_key
from cl_lora.experiment.arms import MERGE, Arm
from cl_lora.experiment.stages import Stage, shots_of
from cl_lora.merging.coefficients import Size
from cl_lora.run_folder.parts import Unit

_BACKWARD = 3
"""A step of training costs as much as so many forward passes."""


@dataclass(frozen=True)
class Piece:
    """Units that stay together, in the order in which one process scores them.

    Attributes:
        units: what is scored.
        cost: about how many samples pass through the backbone for it, at least 1.
    """

    units: tuple[Unit, ...]
    cost: int


def pieces(
    units: Iterable[tuple[Unit, Stage, Arm | None]], benchmark: Benchmark
) -> tuple[Piece, ...]:
    """Put units together that one process must score for the same numbers, or had better.

    An arm stays whole, and so do the baselines, which share the scores of single adapters. The
    arms that are adapted to one experience stay together where they start from one merge, or from
    the bare backbone: they share features, which are computed for the samples that are missing, and
    learned coefficients; in another order the last bits may differ.

    Args:
        units: what is to be scored, and by which arm; None for a baseline. Seed by seed.
        benchmark: the stream.
    """
    found: dict[Hashable, tuple[list[Unit], list[int]]] = {}
    for unit, stage, arm in units:
        members, costs = found.setdefault((unit[0], _kin(stage, arm)), ([], []))
        members.append(unit)
        costs.append(cost(stage, arm, benchmark))
    return tuple(Piece(tuple(m), max(1, sum(c))) for m, c in found.values())


def _kin(stage: Stage, arm: Arm | None) -> Hashable:
    if arm is None:
        return "references"
    if shots_of(stage) is None or arm.adaptation is None:
        return arm.name
    start = merge_key(arm, stage) if arm.adaptation.start == MERGE else arm.adaptation.start
    return stage.evaluated, start


def cost(stage: Stage, arm: Arm | None, benchmark: Benchmark) -> int:
    """Return about how many samples pass through the backbone to score one unit.

    Those that are scored and those that coefficients, or an adaptation, see: a guess that parts of
    equal work are cut by, and nothing else.
    """
    if stage.index < 0:
        return 0  # once for all rows
    scored = sum(len(benchmark.experiences[j].test) for j in stage.evaluated)
    return scored + (_learning(stage, arm, benchmark) if arm is not None else 0)


def _learning(stage: Stage, arm: Arm, benchmark: Benchmark) -> int:
    seen = [benchmark.experiences[j] for j in stage.support]
    if arm.adaptation is not None:
        config, k = arm.adaptation.config, shots_of(stage)
        if not arm.adaptation.kind.trains or not k:
            return 0
        size = sum(len(e.train) if k == ALL else k * len(e.task.labels) for e in seen)
        trained = arm.adaptation.kind.trains_network or arm.adaptation.kind.learns_coefficients
        steps = config.steps_for(size) * min(config.batch_size, size) if trained else 0
        return size + _BACKWARD * steps * len(config.grid)
    if not arm.rule.learned:
        return 0
    samples = sum(
        len(e.val) if arm.sees is None else arm.sees * max(1, len(e.task.labels)) for e in seen
    )
    if arm.rule.how == "gradient":
        problem = Size(len(arm.of(stage)), samples, arm.buffer_batch_size)
        return arm.rule.solver.cost(arm.rule.options, problem)
    return samples * len(arm.rule.options.get("values", (None,)))


def deal(given: Sequence[Piece], count: int) -> tuple[frozenset[Unit], ...]:
    """Cut pieces into ``count`` stretches so that the dearest costs as little as can be.

    Stretches, and not any pieces: few processes then load the adapters of a seed, and score what
    its rows share.

    Returns:
        The units of each stretch; some are empty where there are fewer pieces.
    """
    low, high = max((p.cost for p in given), default=1), max(1, sum(p.cost for p in given))
    while low < high:
        middle = (low + high) // 2
        if len(_stretches(given, middle, 1)) <= count:
            high = middle
        else:
            low = middle + 1
    stretches = _stretches(given, low, count)
    stretches += [[] for _ in range(count - len(stretches))]
    return tuple(frozenset(unit for p in stretch for unit in p.units) for stretch in stretches)


def _stretches(given: Sequence[Piece], most: int, count: int) -> list[list[Piece]]:
    """Return stretches that cost at most ``most`` each; where that takes fewer, ``count``."""
    found: list[list[Piece]] = []
    filled = 0
    for i, piece in enumerate(given):
        spare = count - len(found) >= len(given) - i  # a stretch for each that is left
        if not found or spare or filled + piece.cost > most:
            found.append([])
            filled = 0
        found[-1].append(piece)
        filled += piece.cost
    return found


def counted(units: Iterable[Unit]) -> Mapping[int, frozenset[str]]:
    """Return the rows of units by seed."""
    found: dict[int, set[str]] = {}
    for seed, row, _ in units:
        found.setdefault(seed, set()).add(row)
    return {seed: frozenset(rows) for seed, rows in found.items()}
