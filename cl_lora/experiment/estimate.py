"""How long what is missing of a run will take, from what was measured of it before.

Pure arithmetic: what is to be done and what was measured come in, seconds go out. Nothing is
guessed: what nothing measured tells of is counted as such.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

Adapter = tuple[str, int]
"""The bank of an adapter, and its index in it."""

RowStage = tuple[str, int]
"""The name of an arm or a baseline, and the index of a stage."""

_MINUTE, _HOUR = 60, 3600


@dataclass(frozen=True)
class Training:
    """One adapter that is trained, or was.

    Attributes:
        bank: which bank it belongs to.
        index: its place there.
        samples: on how many train samples.
        seconds: how long it took; None where it is still to be trained.
    """

    bank: str
    index: int
    samples: int
    seconds: float | None = None


@dataclass(frozen=True)
class Scoring:
    """One arm or baseline that is to be scored at one stage.

    Attributes:
        row: its name.
        stage: the index of the stage.
        inputs: how many test inputs are passed through the model.
        adapts: whether something is trained on a support set before.
    """

    row: str
    stage: int
    inputs: int
    adapts: bool = False


@dataclass(frozen=True)
class Estimate:
    """A sum over several pieces of work.

    Attributes:
        seconds: of the pieces of which something was measured.
        known: how many these are.
        unknown: how many others there are.
    """

    seconds: float = 0.0
    known: int = 0
    unknown: int = 0

    @classmethod
    def of(cls, pieces: Iterable[float | None]) -> Estimate:
        """Return the sum of pieces; None stands for one of which nothing was measured."""
        pieces = list(pieces)
        known = [seconds for seconds in pieces if seconds is not None]
        return cls(sum(known), len(known), len(pieces) - len(known))

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(
            self.seconds + other.seconds, self.known + other.known, self.unknown + other.unknown
        )


def training_time(missing: Sequence[Training], measured: Sequence[Training]) -> Estimate:
    """Estimate how long training takes.

    An adapter takes the mean of its namesakes of other seeds. Where there are none, it takes the
    mean seconds per train sample of its bank, times its own samples.

    Args:
        missing: what is to be trained.
        measured: what was trained with the same settings, with its ``seconds``.

    Example:
        >>> done = [Training("fresh", 0, 100, 10.0), Training("fresh", 1, 300, 20.0)]
        >>> training_time([Training("fresh", 0, 100), Training("fresh", 2, 40)], done)
        Estimate(seconds=13.0, known=2, unknown=0)
    """
    same: dict[Adapter, list[float]] = {}
    of_bank: dict[str, list[tuple[float, int]]] = {}
    for done in measured:
        if done.seconds is not None:
            same.setdefault((done.bank, done.index), []).append(done.seconds)
            of_bank.setdefault(done.bank, []).append((done.seconds, done.samples))

    def seconds(of: Training) -> float | None:
        if (of.bank, of.index) in same:
            return fmean(same[of.bank, of.index])
        others = of_bank.get(of.bank, [])
        samples = sum(count for _, count in others)
        return of.samples * sum(taken for taken, _ in others) / samples if samples else None

    return Estimate.of(map(seconds, missing))


def scoring_time(missing: Sequence[Scoring], milliseconds: Mapping[str, float]) -> Estimate:
    """Estimate how long passing the test inputs through the model takes.

    A row takes its own milliseconds per input, or else the mean over all rows that were timed.

    Args:
        missing: what is to be scored.
        milliseconds: arm or baseline -> milliseconds per input, as it was timed.

    Example:
        >>> scoring_time([Scoring("a", 0, 500), Scoring("b", 0, 500)], {"a": 2.0, "c": 4.0})
        Estimate(seconds=2.5, known=2, unknown=0)
    """
    mean = fmean(milliseconds.values()) if milliseconds else None

    def seconds(of: Scoring) -> float | None:
        each = milliseconds.get(of.row, mean)
        return None if each is None else of.inputs * each / 1000

    return Estimate.of(map(seconds, missing))


def adaptation_time(
    missing: Sequence[Scoring], measured: Mapping[RowStage, Sequence[float]]
) -> Estimate:
    """Estimate how long it takes to adapt arms to support sets.

    An arm takes the mean of what it took at the same stage with other seeds, or else the mean over
    all its stages.

    Args:
        missing: what is to be scored; what adapts nothing is left out.
        measured: arm and stage -> seconds, one number per seed.

    Example:
        >>> todo = [Scoring("lora", 1, 10, True), Scoring("lora", 2, 10, True)]
        >>> adaptation_time(todo, {("lora", 1): [2.0, 4.0]})
        Estimate(seconds=6.0, known=2, unknown=0)
    """
    of_row: dict[str, list[float]] = {}
    for (row, _), seconds in measured.items():
        of_row.setdefault(row, []).extend(seconds)

    def taken(of: Scoring) -> float | None:
        found = measured.get((of.row, of.stage)) or of_row.get(of.row)
        return fmean(found) if found else None

    return Estimate.of(taken(of) for of in missing if of.adapts)


def in_words(seconds: float) -> str:
    """Return a duration as a person says it, rounded to what an estimate is good for.

    Example:
        >>> [in_words(s) for s in (0.4, 12.3, 100, 2000, 9000)]
        ['less than a second', '12 seconds', '1.7 minutes', '33 minutes', '2.5 hours']
    """
    if seconds < 1:
        return "less than a second"
    if seconds < _MINUTE * 1.5:
        return f"{seconds:.0f} second{'s' * (round(seconds) != 1)}"
    unit, name = (_MINUTE, "minutes") if seconds < _HOUR * 1.5 else (_HOUR, "hours")
    value = seconds / unit
    return f"{value:.1f} {name}" if value < 10 else f"{value:.0f} {name}"
