"""Scores and coefficients of a run while it is computed: read once, written after every unit."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_lora.evaluation.scores import Score, ScoreTable
from cl_lora.run_folder.layout import COEFFICIENT_COLUMNS, COEFFICIENTS_FILE, SCORES_FILE
from cl_lora.run_folder.records import Coefficient
from cl_lora.support import files
from cl_lora.support.errors import UserError

__all__ = ["Results", "coefficients_csv", "read_coefficients"]

Cells = frozenset[tuple[int, str]]
"""The (experience, metric) that a whole unit has scores of."""


class Results:
    """The tables of one run folder, kept in memory and on disk alike.

    The unit is (seed, row, stage). It is whole where it has a score for every experience and
    metric of its stage; what is there of any other is left out, and measured again.

    Args:
        folder: the run folder.
        order: names of the arms and rows, as they are sorted.
        cells: what a whole unit of each stage has.
    """

    def __init__(self, folder: Path, order: Sequence[str], cells: Mapping[int, Cells]) -> None:
        self._folder, self._order = folder, list(order)
        there = folder / SCORES_FILE
        scores = ScoreTable.read(there) if there.exists() else ScoreTable()
        units: dict[tuple[int, str, int], set[tuple[int, str]]] = {}
        for s in scores:
            units.setdefault((s.seed, s.arm, s.stage), set()).add((s.evaluated, s.metric))
        whole = {unit for unit, found in units.items() if frozenset(found) == cells.get(unit[2])}
        self.scores = ScoreTable(s for s in scores if (s.seed, s.arm, s.stage) in whole)
        path = folder / COEFFICIENTS_FILE
        self._coefficients = read_coefficients(path) if path.exists() else []

    def done(self, seed: int, row: str, stage: int) -> bool:
        """Return whether a unit is whole."""
        return self.scores.done(seed, row, stage)

    def forget(self, rows: Iterable[str]) -> None:
        """Leave out all there is of some rows, on disk too."""
        names = set(rows)
        if names:
            self._coefficients = [c for c in self._coefficients if c.arm not in names]
            self.scores = ScoreTable(s for s in self.scores if s.arm not in names)
            self._write_coefficients()
            self._write_scores()

    def add(self, scores: Iterable[Score], coefficients: Iterable[Coefficient]) -> None:
        """Record one unit. Coefficients go first, scores seal it."""
        new = list(coefficients)
        if new:
            unit = (new[0].seed, new[0].arm, new[0].stage)
            kept = [c for c in self._coefficients if (c.seed, c.arm, c.stage) != unit]
            place = {name: i for i, name in enumerate(self._order)}
            self._coefficients = sorted(
                [*kept, *new], key=lambda c: (c.seed, place.get(c.arm, len(place)), c.stage)
            )
            self._write_coefficients()
        self.scores.append(scores)
        self._write_scores()

    def _write_scores(self) -> None:
        self.scores.write(self._folder / SCORES_FILE, self._order)

    def _write_coefficients(self) -> None:
        files.write_text(self._folder / COEFFICIENTS_FILE, coefficients_csv(self._coefficients))


def coefficients_csv(coefficients: Iterable[Coefficient]) -> str:
    """Return coefficients as text; floats read back exactly."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COEFFICIENT_COLUMNS)
    for c in coefficients:
        writer.writerow([c.seed, c.arm, c.stage, c.group, c.adapter, repr(c.value)])
    return text.getvalue()


def read_coefficients(path: Path) -> list[Coefficient]:
    """Read ``coefficients.csv``.

    Raises:
        UserError: if it is cut or damaged; names the line and the remedy.
    """
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, f"it cannot be read as text ({error})") from error
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    found: list[Coefficient] = []
    line = 0
    try:
        for line, fields in enumerate(rows, start=1):
            if line == 1:
                missing = [c for c in COEFFICIENT_COLUMNS if c not in fields]
                if missing:
                    s = "s" * (len(missing) > 1)
                    raise _damaged(path, f"missing column{s} {', '.join(missing)}")
                if tuple(fields) != COEFFICIENT_COLUMNS:
                    wanted, got = ",".join(COEFFICIENT_COLUMNS), ",".join(fields)
                    raise _damaged(path, f"expected the columns {wanted} but got {got}")
                continue
            found.append(_parse(dict(zip(COEFFICIENT_COLUMNS, fields, strict=True))))
    except (csv.Error, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise _damaged(path, f"line {line}: {error}") from error
    if not line:
        raise _damaged(path, "the file is empty")
    if not text.endswith("\n"):
        # Cut within the last number, it would still read as one.
        raise _damaged(path, "its last line is cut off")
    return found


def _parse(row: Mapping[str, Any]) -> Coefficient:
    value = float(row["value"])
    if not math.isfinite(value):
        raise ValueError(f"expected a finite value but got {row['value']!r}")
    numbers = {key: int(row[key]) for key in ("seed", "stage", "adapter")}
    return Coefficient(
        numbers["seed"], row["arm"], numbers["stage"], row["group"], numbers["adapter"], value
    )


def _damaged(path: Path, problem: str) -> UserError:
    return UserError(
        f"{path} is damaged: {problem}; delete it and {SCORES_FILE} and run the command again: "
        "both are computed from the adapters"
    )
