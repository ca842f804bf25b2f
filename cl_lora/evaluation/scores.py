"""The tidy table of scores: everything shown anywhere is computed from it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cl_lora.evaluation.continual import ScoreMatrix
from cl_lora.evaluation.metrics import METRICS, Metric
from cl_lora.evaluation.shape import Shape
from cl_lora.support import files
from cl_lora.support.errors import UserError, unknown_name

COLUMNS = ("seed", "arm", "stage", "evaluated", "metric", "value", "higher_is_better")
UNTRAINED = -1

Key = tuple[int, str, int, int, str]


@dataclass(frozen=True)
class Score:
    """One row of ``scores.csv``.

    Attributes:
        seed: the run's seed.
        arm: merge method x coefficients, or a baseline.
        stage: index (from 0) of the stage; -1 before any training.
        evaluated: index (from 0) of the experience the score was measured on.
        metric: ``accuracy``, ``f1``, ...
        value: the score; accuracy and f1 in [0, 1].
        higher_is_better: the metric's direction.
    """

    seed: int
    arm: str
    stage: int
    evaluated: int
    metric: str
    value: float
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        if self.stage < UNTRAINED:
            raise ValueError(f"Expected stage to be -1 or more but got {self.stage}")
        if self.evaluated < 0:
            raise ValueError(f"Expected evaluated to be 0 or more but got {self.evaluated}")
        for name in ("arm", "metric"):
            text = getattr(self, name)
            if not text or not text.isprintable():
                raise ValueError(f"Expected {name} to be a printable name but got {text!r}")

    @property
    def key(self) -> Key:
        """What identifies the row: (seed, arm, stage, evaluated, metric)."""
        return (self.seed, self.arm, self.stage, self.evaluated, self.metric)


class ScoreTable:
    """All scores of a run, one :class:`Score` per (seed, arm, stage, evaluated, metric).

    The unit of work, and of resuming, is (seed, arm, stage): append its rows in one call, then
    write. :meth:`write` is atomic, so a unit in the file is whole.

    Example:
        >>> table = ScoreTable()
        >>> table.append([Score(0, "ties", 0, 0, "accuracy", 0.9)])
        >>> table.done(0, "ties", 0), table.done(0, "ties", 1)
        (True, False)
    """

    def __init__(self, scores: Iterable[Score] = ()) -> None:
        self._rows: dict[Key, Score] = {}
        self._units: set[tuple[int, str, int]] = set()
        self._groups: dict[tuple[int, str, str], list[Score]] = {}
        self._directions: dict[str, bool] = {}
        # (seed, metric) -> experience -> the first score before any training.
        self._untrained: dict[tuple[int, str], dict[int, float]] = {}
        self.append(scores)

    def append(self, scores: Iterable[Score]) -> None:
        """Add rows; either all are added or none.

        Raises:
            UserError: if a key is there already, or a metric comes with both directions.
        """
        rows: dict[Key, Score] = {}
        directions = dict(self._directions)
        for score in scores:
            if score.key in self._rows or score.key in rows:
                raise UserError(
                    f"Two scores for {_describe(score.key)}; each may be measured once: "
                    "keep one of them"
                )
            if directions.setdefault(score.metric, score.higher_is_better) != (
                score.higher_is_better
            ):
                raise UserError(
                    f"Metric {score.metric!r} is marked both as higher is better and as lower is "
                    f"better (the latter reading at {_describe(score.key)}); choose one"
                )
            rows[score.key] = score
        self._directions = directions
        self._rows.update(rows)
        for score in rows.values():
            self._units.add((score.seed, score.arm, score.stage))
            self._groups.setdefault((score.seed, score.arm, score.metric), []).append(score)
            if score.stage == UNTRAINED:
                untrained = self._untrained.setdefault((score.seed, score.metric), {})
                untrained.setdefault(score.evaluated, score.value)

    def done(self, seed: int, arm: str, stage: int) -> bool:
        """Return whether the unit (seed, arm, stage) has been scored."""
        return (seed, arm, stage) in self._units

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Score]:
        return iter(self._rows.values())

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, ascending."""
        return tuple(sorted({seed for seed, _, _ in self._units}))

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms, in the order of their first row, lower seeds first."""
        # By seed first, as in the file: so writing, reading and writing again changes nothing.
        by_seed = sorted(self._groups, key=lambda group: group[0])
        return tuple(dict.fromkeys(arm for _, arm, _ in by_seed))

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics, in the order of their first row."""
        return tuple(self._directions)

    @property
    def experiences(self) -> int:
        """T, one more than the largest index of an experience that occurs; 0 for an empty table."""
        return max((s.evaluated + 1 for s in self), default=0)

    @property
    def stages(self) -> int:
        """S, one more than the largest index of a stage that occurs; 0 if nothing was trained."""
        return max((s.stage + 1 for s in self), default=0)

    def higher_is_better(self, metric: str) -> bool:
        """Return the direction of ``metric``.

        Raises:
            UserError: if nothing was measured by that name.
        """
        if metric not in self._directions:
            raise unknown_name("metric", metric, self._directions)
        return self._directions[metric]

    def matrix(
        self, seed: int, arm: str, metric: str = "accuracy", shape: Shape | None = None
    ) -> ScoreMatrix:
        """Return R and b of one arm and seed.

        ``R[t, j]`` is the row (stage = t, evaluated = j); what was not measured is NaN. ``b``
        comes from the rows with stage = -1 of the arm or, as nothing distinguishes arms before
        training, from the first such row of any arm.

        Args:
            seed: which seed.
            arm: which arm.
            metric: which metric.
            shape: what the stages are; if not given, as many stages and experiences as occur in
                the table, in time.

        Raises:
            UserError: if the arm, the seed or the metric does not occur, or a score lies outside
                the shape.
        """
        direction = self.higher_is_better(metric)
        if arm not in self.arms:
            raise unknown_name("arm", arm, self.arms)
        if seed not in self.seeds:
            raise unknown_name("seed", seed, map(str, self.seeds))
        shape = shape or self.shape()
        values = np.full((shape.stages, shape.experiences), np.nan)
        baseline = np.full(shape.experiences, np.nan)
        for evaluated, value in self._untrained.get((seed, metric), {}).items():
            if evaluated < shape.experiences:
                baseline[evaluated] = value
        for score in self._groups.get((seed, arm, metric), ()):
            if score.evaluated >= shape.experiences or score.stage >= shape.stages:
                raise UserError(
                    f"A stream of {_counted(shape.stages, 'stage')} and "
                    f"{_counted(shape.experiences, 'experience')} has no score for "
                    f"{_describe(score.key)}; the scores belong to another stream"
                )
            if score.stage == UNTRAINED:
                baseline[score.evaluated] = score.value
            else:
                values[score.stage, score.evaluated] = score.value
        return ScoreMatrix(values, baseline, metric, direction, shape)

    def shape(self) -> Shape:
        """Return the shape of what occurs: as many stages and experiences, in time."""
        return Shape(max(1, self.stages), max(1, self.experiences))

    def to_csv(self, arms: Sequence[str] = ()) -> str:
        """Return the table as text, rows in canonical order.

        Seeds ascending; arms as in ``arms``, those not named there in order of first appearance;
        then stage, evaluated, metric. Floats are written so that they read back exactly.
        """
        rank = {arm: i for i, arm in enumerate(dict.fromkeys((*arms, *self.arms)))}
        ordered = sorted(self, key=lambda s: (s.seed, rank[s.arm], s.stage, s.evaluated, s.metric))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for s in ordered:
            direction = "true" if s.higher_is_better else "false"
            value = repr(float(s.value))
            writer.writerow([s.seed, s.arm, s.stage, s.evaluated, s.metric, value, direction])
        return text.getvalue()

    def write(self, path: str | Path, arms: Sequence[str] = ()) -> None:
        """Write :meth:`to_csv` to ``path``, whole or not at all."""
        files.write_text(Path(path), self.to_csv(arms))

    @classmethod
    def read(cls, path: str | Path, metrics: Mapping[str, Metric] = METRICS) -> ScoreTable:
        """Read what :meth:`write` wrote.

        Args:
            path: the file.
            metrics: name -> metric; a score outside of the range of its metric is damage.

        Raises:
            UserError: if the file is missing, cut or damaged; names the line and the remedy.
        """
        path = Path(path)
        try:
            # Not read_text(): that would turn a \r inside a damaged file into a line end.
            text = files.read_bytes(path).decode()
        except FileNotFoundError:
            raise UserError(
                f"Expected scores in {path} but the file is missing; run the command again"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise _damaged(path, 1, f"it cannot be read as text ({error})") from error
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        table = cls()
        scores: list[Score] = []
        seen: dict[Key, int] = {}
        line = 0
        try:
            for line, fields in enumerate(reader, start=1):
                if line == 1:
                    _check_header(path, fields)
                    continue
                score = _parse(path, line, fields, metrics)
                if score.key in seen:
                    raise UserError(
                        f"{path}, lines {seen[score.key]} and {line}: two scores for "
                        f"{_describe(score.key)}; delete both lines and run the command again: "
                        "it measures what is missing"
                    )
                seen[score.key] = line
                scores.append(score)
        except csv.Error as error:
            raise _damaged(path, line + 1, f"it is not valid CSV ({error})") from error
        if line == 0:
            raise _damaged(path, 1, "the file is empty")
        if not text.endswith("\n"):
            raise _damaged(path, line, "the last line is cut")
        try:
            table.append(scores)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        return table


def _check_header(path: Path, fields: Sequence[str]) -> None:
    missing = [c for c in COLUMNS if c not in fields]
    if missing:
        raise _damaged(path, 1, f"missing column{'s' * (len(missing) > 1)} {', '.join(missing)}")
    if tuple(fields) != COLUMNS:
        raise _damaged(path, 1, f"expected the columns {','.join(COLUMNS)}")


def _parse(path: Path, line: int, fields: Sequence[str], metrics: Mapping[str, Metric]) -> Score:
    if len(fields) != len(COLUMNS):
        raise _damaged(path, line, f"expected {len(COLUMNS)} values but got {len(fields)}")
    row = dict(zip(COLUMNS, fields, strict=True))
    numbers: dict[str, int] = {}
    for column in ("seed", "stage", "evaluated"):
        try:
            numbers[column] = int(row[column])
        except ValueError:
            raise _damaged(
                path, line, f"expected an integer as {column} but got {row[column]!r}"
            ) from None
    try:
        value = float(row["value"])
    except ValueError:
        raise _damaged(path, line, f"expected a number as value but got {row['value']!r}") from None
    metric = metrics.get(row["metric"])
    if math.isinf(value) or (metric is not None and not metric.allows(value)):
        limits = "a finite value" if metric is None else metric.limits
        raise _damaged(path, line, f"expected {limits} as {row['metric']} but got {row['value']!r}")
    if row["higher_is_better"] not in ("true", "false"):
        got = row["higher_is_better"]
        raise _damaged(path, line, f"expected true or false as higher_is_better but got {got!r}")
    higher = row["higher_is_better"] == "true"
    if metric is not None and metric.higher_is_better != higher:
        wanted = "true" if metric.higher_is_better else "false"
        raise _damaged(path, line, f"expected {wanted} as higher_is_better of {metric.name}")
    try:
        return Score(
            numbers["seed"],
            row["arm"],
            numbers["stage"],
            numbers["evaluated"],
            row["metric"],
            value,
            higher,
        )
    except ValueError as error:
        raise _damaged(path, line, str(error)) from error


def _damaged(path: Path, line: int, problem: str) -> UserError:
    return UserError(
        f"{path}, line {line}: {problem}; delete the damaged lines, or the file, and run the "
        "command again: it measures only what is missing"
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _describe(key: Key) -> str:
    seed, arm, stage, evaluated, metric = key
    return f"seed {seed}, arm {arm!r}, stage {stage}, evaluated {evaluated}, {metric}"
