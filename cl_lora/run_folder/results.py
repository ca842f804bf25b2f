"""Scores and what goes with them while a run is computed: read once, written as it goes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from cl_lora.evaluation.scores import Score, ScoreTable
from cl_lora.run_folder.layout import SCORES_FILE
from cl_lora.run_folder.parts import Joined
from cl_lora.run_folder.records import Account, Coefficient, Seal, Timing
from cl_lora.run_folder.rows import ACCOUNTS, COEFFICIENTS, SEALS, TIMES, RowFile
from cl_lora.run_folder.seals import seal_of
from cl_lora.support import files

__all__ = ["Results"]

Unit = tuple[int, str, int]
"""A seed, the name of an arm or a baseline, and a stage."""

Cells = frozenset[tuple[int, str]]
"""The (experience, metric) that a whole unit has scores of."""

OfUnit = TypeVar("OfUnit", bound=Coefficient | Account | Timing | Seal)

log = logging.getLogger(__name__)

_PATIENCE = 20
"""How many times as long as writing takes passes between one writing and the next."""


class Results:
    """The tables of one run folder, kept in memory and on disk alike.

    The unit is (seed, row, stage). It is whole where it has a score for every experience and
    metric of its stage, and all its rows are those that were measured; what is there of any other
    is left out, and measured again.

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
        units: dict[Unit, list[Score]] = {}
        for s in there.scores(order):
            units.setdefault((s.seed, s.arm, s.stage), []).append(s)
        whole = {
            unit: found
            for unit, found in units.items()
            if frozenset((s.evaluated, s.metric) for s in found) == cells.get(unit[2])
        }
        self.scores = ScoreTable(s for found in whole.values() for s in found)
        coefficients, accounts = there.rows(COEFFICIENTS), there.rows(ACCOUNTS)
        self._coefficients = _Table(folder, COEFFICIENTS, coefficients, whole, bool(parts))
        self._accounts = _Table(folder, ACCOUNTS, accounts, whole, bool(parts))
        self._times = _Table(folder, TIMES, there.rows(TIMES), whole, bool(parts))
        seals = (
            Seal(*unit, seal_of(found, self._coefficients.of(unit), self._accounts.of(unit)))
            for unit, found in whole.items()
        )
        self._seals = _Table(folder, SEALS, seals, whole, True)
        if there.broken:
            count = len(there.broken)
            log.warning(
                "%s: what was measured of %d unit%s (a row at a stage of a seed each) was lost or "
                "changed since: it is measured again",
                *(folder, count, "s" * (count != 1)),
            )
        # What is left out here, or was written by another program, shall not stay in the files.
        self._pending = bool(there.broken) or len(whole) < len(units)
        self._pending |= self._coefficients.changed or self._accounts.changed
        self._pending |= self._times.changed
        self._pending |= has_foreign_ends(folder / SCORES_FILE)
        self._patience = 0
        self._written, self._took = time.monotonic(), 0.0

    @property
    def accounts(self) -> tuple[Account, ...]:
        """What adapting cost, of every unit."""
        return tuple(self._accounts.rows())

    @property
    def times(self) -> tuple[Timing, ...]:
        """What serving took, of every unit that was timed."""
        return tuple(self._times.rows())

    def done(self, seed: int, row: str, stage: int) -> bool:
        """Return whether a unit is whole."""
        return self.scores.done(seed, row, stage)

    def forget(self, rows: Iterable[str]) -> None:
        """Leave out all there is of some rows, on disk too."""
        names = set(rows)
        if names:
            self._coefficients.keep(lambda c: c.arm not in names)
            self._accounts.keep(lambda a: a.arm not in names)
            self._times.keep(lambda t: t.arm not in names)
            self._seals.keep(lambda s: s.arm not in names)
            self.scores = ScoreTable(s for s in self.scores if s.arm not in names)
            self.write()

    def add(
        self,
        scores: Iterable[Score],
        coefficients: Iterable[Coefficient] = (),
        accounts: Iterable[Account] = (),
        times: Iterable[Timing] = (),
    ) -> None:
        """Record one unit: on disk at once, inside :meth:`writing` soon."""
        scores, coefficients, accounts = list(scores), list(coefficients), list(accounts)
        self.scores.append(scores)
        self._coefficients.add(coefficients)
        self._accounts.add(accounts)
        self._times.add(list(times))
        if scores:
            s = scores[0]
            seal = seal_of(scores, coefficients, accounts)
            self._seals.add([Seal(s.seed, s.arm, s.stage, seal)])
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
        self._times.write(place)
        self._seals.write(place)
        self.scores.write(self._folder / SCORES_FILE, self._order)
        self._written, self._pending = time.monotonic(), False
        self._took = self._written - start


def has_foreign_ends(path: Path) -> bool:
    """Return whether a file has line ends that are not ours, though they read alike."""
    return path.is_file() and b"\r" in path.read_bytes()


class _Table(Generic[OfUnit]):
    """Rows that belong to units, and their file."""

    def __init__(
        self,
        folder: Path,
        file: RowFile[OfUnit],
        there: Iterable[OfUnit],
        whole: Container[Unit],
        changed: bool,
    ) -> None:
        self._path, self._file = folder / file.name, file
        self._units: dict[Unit, list[OfUnit]] = {}
        self._changed = has_foreign_ends(self._path)
        for row in there:
            unit = (row.seed, row.arm, row.stage)
            if unit in whole:
                self._units.setdefault(unit, []).append(row)
            else:
                self._changed = True
        self._changed |= changed and bool(self._units)

    @property
    def changed(self) -> bool:
        """Whether the file is not what is kept here."""
        return self._changed

    def of(self, unit: Unit) -> list[OfUnit]:
        """Return the rows of a unit."""
        return self._units.get(unit, [])

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
