"""Scores and what goes with them while a run is computed: read once, written as it goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from cl_lora.evaluation.scores import Score, ScoreTable
from cl_lora.run_folder.layout import SCORES_FILE
from cl_lora.run_folder.parts import Joined
from cl_lora.run_folder.records import Account, Coefficient
from cl_lora.run_folder.rows import ACCOUNTS, COEFFICIENTS, RowFile
from cl_lora.support import files

__all__ = ["Results"]

Cells = frozenset[tuple[int, str]]
"""The (experience, metric) that a whole unit has scores of."""

OfUnit = TypeVar("OfUnit", bound=Coefficient | Account)

_PATIENCE = 20
"""How many times as long as writing takes passes between one writing and the next."""


class Results:
    """The tables of one run folder, kept in memory and on disk alike.

    The unit is (seed, row, stage). It is whole where it has a score for every experience and
    metric of its stage; what is there of any other is left out, and measured again.

    Args:
        folder: the run folder.
        order: names of the arms and rows, as they are sorted.
        cells: what a whole unit of each stage has.
        parts: folders of parts of the run; what they hold counts, and is written here with the
            rest.
    """

    def __init__(
        self,
        folder: Path,
        order: Sequence[str],
        cells: Mapping[int, Cells],
        parts: Sequence[Path] = (),
    ) -> None:
        self._folder, self._order = folder, list(order)
        there = Joined(folder, parts)
        scores = there.scores(order)
        units: dict[tuple[int, str, int], set[tuple[int, str]]] = {}
        for s in scores:
            units.setdefault((s.seed, s.arm, s.stage), set()).add((s.evaluated, s.metric))
        whole = {unit for unit, found in units.items() if frozenset(found) == cells.get(unit[2])}
        self.scores = ScoreTable(s for s in scores if (s.seed, s.arm, s.stage) in whole)
        self._coefficients = _Table(folder, COEFFICIENTS, there.rows(COEFFICIENTS), bool(parts))
        self._accounts = _Table(folder, ACCOUNTS, there.rows(ACCOUNTS), bool(parts))
        self._patience, self._pending = 0, False
        self._written, self._took = time.monotonic(), 0.0

    @property
    def accounts(self) -> tuple[Account, ...]:
        """What adapting cost, of every unit."""
        return tuple(self._accounts.rows())

    def done(self, seed: int, row: str, stage: int) -> bool:
        """Return whether a unit is whole."""
        return self.scores.done(seed, row, stage)

    def forget(self, rows: Iterable[str]) -> None:
        """Leave out all there is of some rows, on disk too."""
        names = set(rows)
        if names:
            self._coefficients.keep(lambda c: c.arm not in names)
            self._accounts.keep(lambda a: a.arm not in names)
            self.scores = ScoreTable(s for s in self.scores if s.arm not in names)
            self.write()

    def add(
        self,
        scores: Iterable[Score],
        coefficients: Iterable[Coefficient] = (),
        accounts: Iterable[Account] = (),
    ) -> None:
        """Record one unit: on disk at once, inside :meth:`writing` soon."""
        self._coefficients.add(list(coefficients))
        self._accounts.add(list(accounts))
        self.scores.append(scores)
        self._pending = True
        if time.monotonic() - self._written >= self._patience * self._took:
            self.write()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Let units wait a little while the context lasts, and write them when it ends.

        A unit that comes waits until twenty times as long as the last writing took has passed:
        writing takes no more than a twentieth of the time, however large the tables have grown.
        """
        self._patience = _PATIENCE
        try:
            yield
        finally:
            self._patience = 0
            if self._pending:
                self.write()

    def write(self) -> None:
        """Write every table that changed. Scores go last: they seal what the others hold."""
        start = time.monotonic()
        place = {name: i for i, name in enumerate(self._order)}
        self._coefficients.write(place)
        self._accounts.write(place)
        self.scores.write(self._folder / SCORES_FILE, self._order)
        self._written, self._pending = time.monotonic(), False
        self._took = self._written - start


class _Table(Generic[OfUnit]):
    """Rows that belong to units, and their file."""

    def __init__(
        self, folder: Path, file: RowFile[OfUnit], there: Iterable[OfUnit], changed: bool
    ) -> None:
        self._path, self._file = folder / file.name, file
        self._units: dict[tuple[int, str, int], list[OfUnit]] = {}
        for row in there:
            self._units.setdefault((row.seed, row.arm, row.stage), []).append(row)
        self._changed = changed and bool(self._units)

    def rows(self) -> Iterator[OfUnit]:
        """Yield every row."""
        return (row for rows in self._units.values() for row in rows)

    def add(self, rows: list[OfUnit]) -> None:
        """Put the rows of one unit in the place of what was there of it."""
        if rows:
            self._units[rows[0].seed, rows[0].arm, rows[0].stage] = rows
            self._changed = True

    def keep(self, wanted: Callable[[OfUnit], bool]) -> None:
        """Leave out every row that is not wanted."""
        self._units = {
            unit: rows
            for unit, rows in self._units.items()
            if all(wanted(row) for row in rows)  # the rows of a unit are of one arm
        }
        self._changed = True

    def write(self, place: Mapping[str, int]) -> None:
        """Write the file, if anything changed."""
        if not self._changed:
            return
        order = sorted(self._units, key=lambda u: (u[0], place.get(u[1], len(place)), u[2]))
        rows = (row for unit in order for row in self._units[unit])
        files.write_text(self._path, self._file.text(rows))
        self._changed = False
