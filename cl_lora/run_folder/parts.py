"""Parts of a run: what several processes score side by side, each in a folder of its own.

``parts/plan.json`` says which part scores which units, (seed, row, stage). The first process writes
it and no other changes it. ``parts/shard-i-of-n/`` is laid out as the run folder itself and holds
what part i has scored so far. Whoever reads the run joins them; a command that writes to all of the
run moves them into its tables, and ``parts/`` is gone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from cl_lora.evaluation.metrics import METRICS, Metric
from cl_lora.evaluation.scores import Key, Score, ScoreTable
from cl_lora.run_folder import layout
from cl_lora.run_folder.config_file import ConfigRecord, read_config
from cl_lora.run_folder.hits import Hits, read_hits
from cl_lora.run_folder.hits import Unit as StageAndExperience
from cl_lora.run_folder.identity import first_difference
from cl_lora.run_folder.records import Account, Coefficient, Timing
from cl_lora.run_folder.rows import ACCOUNTS, COEFFICIENTS, SEALS, TIMES, RowFile
from cl_lora.run_folder.seals import is_time_intact, seal_of
from cl_lora.support import files
from cl_lora.support.errors import UserError

Unit = tuple[int, str, int]
"""A seed, the name of an arm or a baseline, and a stage: what is scored at once."""

OfUnit = TypeVar("OfUnit", bound=Coefficient | Account | Timing)

_SHARD = re.compile(r"(?P<number>\d{1,6})/(?P<count>\d{1,6})")
_FOLDER = re.compile(r"shard-(?P<number>\d+)-of-(?P<count>\d+)")


@dataclass(frozen=True, order=True)
class Shard:
    """One of several processes that score a run together.

    Attributes:
        number: which, from 1.
        count: of how many.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard that ``i/n`` names.

        Raises:
            UserError: if it names none.
        """
        found = _SHARD.fullmatch(text)
        shard = cls(*map(int, found.groups())) if found else None
        if shard is None or not 1 <= shard.number <= shard.count:
            raise UserError(
                f"Expected --shard i/n, part i of n with 1 <= i <= n, but got {text!r}; of three "
                "processes give each one of 1/3, 2/3 and 3/3"
            )
        return shard

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def folder(self, run: Path) -> Path:
        """Return where its part of a run lies."""
        return run / layout.PARTS / f"shard-{self.number}-of-{self.count}"


def part_folders(run: Path) -> tuple[Path, ...]:
    """Return the folders of all parts that have begun, in order."""
    parts = run / layout.PARTS
    found = [(_FOLDER.fullmatch(p.name), p) for p in (parts.iterdir() if parts.is_dir() else ())]
    begun = [(m, p) for m, p in found if m and (p / layout.CONFIG_FILE).is_file()]
    return tuple(p for _, p in sorted((tuple(map(int, m.groups())), p) for m, p in begun))


# Who scores what ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """Which part scores what (``parts/plan.json``).

    Attributes:
        wanted: what is dealt out: arms, rows, seeds and stages, plain containers.
        units: of each part.
    """

    wanted: Mapping[str, Any]
    units: tuple[frozenset[Unit], ...]

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The parts, in order."""
        return tuple(Shard(i + 1, len(self.units)) for i in range(len(self.units)))

    def of(self, shard: Shard) -> frozenset[Unit]:
        """Return the units of a part."""
        return self.units[shard.number - 1]

    def require(self, run: Path, shard: Shard, wanted: Mapping[str, Any]) -> None:
        """Refuse a process whose command deals out something else.

        Raises:
            UserError: naming the difference.
        """
        join = "or join what is there first, by the command without --shard"
        if shard.count != len(self.units):
            raise UserError(
                f"{run} is dealt out to {len(self.units)} shards but got --shard {shard}; give "
                f"--shard i/{len(self.units)}, {join}"
            )
        difference = first_difference(self.wanted, _plain(wanted))
        if difference:
            key, old, new = difference
            raise UserError(
                f"The shards of {run} were dealt out by another command ({key} is {old!r} there "
                f"and {new!r} here); give each shard the same command, {join}"
            )

    def write(self, run: Path) -> None:
        """Write it, whole or not at all."""
        parts = []
        for units in self.units:
            stages: dict[tuple[int, str], list[int]] = {}
            for seed, row, stage in sorted(units):
                stages.setdefault((seed, row), []).append(stage)
            parts.append([[seed, row, s] for (seed, row), s in stages.items()])
        text = json.dumps(files.sealed({"wanted": _plain(self.wanted), "parts": parts}))
        files.write_text(layout.plan_file(run), text + "\n")

    @classmethod
    def read(cls, run: Path) -> Plan | None:
        """Return the plan of a run; None where it is not dealt out.

        Raises:
            UserError: if the file is damaged.
        """
        path = layout.plan_file(run)
        if not path.is_file():
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            units = tuple(
                frozenset(
                    (int(seed), str(row), int(s)) for seed, row, stages in part for s in stages
                )
                for part in record["parts"]
            )
            wanted = dict(record["wanted"])
            if not files.is_intact(record):
                raise ValueError("its contents are not those that were written")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is damaged ({error}); run the command without --shard, which keeps what "
                "the parts hold and does the rest"
            ) from error
        return cls(wanted, units)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(values))
    return made


def missing_parts(run: Path, scores: ScoreTable, stopped: Iterable[str]) -> str:
    """Return a sentence on the parts that are not whole; empty if there is none.

    Args:
        run: the run folder.
        scores: all that is there, joined.
        stopped: arms that diverged: nothing of them is missing.

    Raises:
        UserError: if the plan is damaged.
    """
    plan = Plan.read(run)
    if plan is None:
        return ""
    out = set(stopped)
    left = {
        shard: sum(unit[1] not in out and not scores.done(*unit) for unit in plan.of(shard))
        for shard in plan.shards
    }
    lacking = [shard for shard, count in left.items() if count]
    if not lacking:
        return ""
    one, units = len(lacking) == 1, sum(left.values())
    names = ", ".join(map(str, lacking[:8])) + (", ..." if len(lacking) > 8 else "")
    return (
        f"{run} lacks the part{'' if one else 's'} {names}: {units} unit{'s' * (units != 1)} (an "
        "arm at a stage of a seed each) not scored yet; run the same command with --shard "
        f"{lacking[0]}{'' if one else ' and so on'}, or without --shard, which does all that is "
        "missing"
    )


# What the parts hold ------------------------------------------------------------------------------


class Joined:
    """What a run folder and its parts hold together.

    A unit counts where its scores are: they are written last, so what goes with them is there. It
    counts only as it was measured: where the digest of its rows is not the one that was recorded,
    rows were lost or changed, and it is measured again. A unit that lies in several places is the
    same everywhere, but for the time that it took.

    Args:
        run: the run folder.
        parts: the folders of its parts.
        metrics: what the scores are of.

    Raises:
        UserError: if a file is damaged, or a unit that is there twice differs.
    """

    def __init__(
        self, run: Path, parts: Sequence[Path] = (), metrics: Mapping[str, Metric] = METRICS
    ) -> None:
        self._places = (run, *parts)
        self._owner: dict[Unit, Path] = {}
        self._units: dict[Unit, dict[Key, Score]] = {}
        self._twice: dict[Unit, list[Path]] = {}
        self._rows: dict[tuple[Path, str], dict[Unit, list[Any]]] = {}
        self._broken: dict[Unit, Path] = {}
        for place in self._places:
            self._take(place, metrics)

    @property
    def broken(self) -> dict[Unit, Path]:
        """Units that were measured and are nowhere as they were, and where one was."""
        return {unit: p for unit, p in self._broken.items() if unit not in self._units}

    def scores(self, order: Sequence[str] = ()) -> list[Score]:
        """Return every score; those of several places as one file would have them.

        Args:
            order: names of the arms and rows, as they are sorted.
        """
        found = [score for unit in self._units.values() for score in unit.values()]
        if len(self._places) == 1:
            return found
        rank = _rank(order)
        return sorted(found, key=lambda s: (*rank(s), s.stage, s.evaluated, s.metric))

    def rows(self, file: RowFile[OfUnit], order: Sequence[str] = ()) -> list[OfUnit]:
        """Return the rows of a table that belong to units, each from where its scores are.

        Args:
            file: the table.
            order: as in :meth:`scores`.

        Raises:
            UserError: if the file is damaged, or the coefficients of a unit differ.
        """
        found: list[OfUnit] = []
        run = self._places[0]
        seen: dict[Unit, dict[Path, list[OfUnit]]] = {unit: {} for unit in self._twice}
        for place in self._places:
            for unit, rows in self._rows[place, file.name].items():
                # What belongs to no scores stays where it is: the unit is measured again.
                if self._owner.get(unit, run) == place:
                    found += rows
                if unit in seen and place in self._twice[unit]:
                    seen[unit][place] = rows
        if file.row is Coefficient:
            for unit, places in self._twice.items():
                first, *others = [(place, seen[unit].get(place, [])) for place in places]
                for place, rows in others:
                    if rows != first[1]:
                        raise _differ(unit, first[0], place)
        if len(self._places) > 1:
            rank = _rank(order)
            found.sort(key=lambda row: (*rank(row), row.stage))
        return found

    def _take(self, place: Path, metrics: Mapping[str, Metric]) -> None:
        path = place / layout.SCORES_FILE
        units: dict[Unit, dict[Key, Score]] = {}
        for score in ScoreTable.read(path, metrics) if path.is_file() else ():
            units.setdefault((score.seed, score.arm, score.stage), {})[score.key] = score
        coefficients, accounts = self._read(place, COEFFICIENTS), self._read(place, ACCOUNTS)
        times = self._read(place, TIMES)
        sealed = None
        if (place / SEALS.name).is_file():
            sealed = {(s.seed, s.arm, s.stage): s.digest for s in SEALS.read(place / SEALS.name)}
            self._broken |= dict.fromkeys(sealed.keys() - units.keys(), place)
        for unit, scores in units.items():
            if not all(map(is_time_intact, times.get(unit, []))):
                self._broken[unit] = place
                continue
            if sealed is not None:
                of_unit = (scores.values(), coefficients.get(unit, []), accounts.get(unit, []))
                if sealed.get(unit) != seal_of(*of_unit):
                    self._broken[unit] = place
                    continue
            there = self._units.get(unit)
            if there is not None:
                if any(scores[key] != there[key] for key in scores.keys() & there.keys()):
                    raise _differ(unit, self._owner[unit], place)
                if scores.keys() == there.keys():
                    self._twice.setdefault(unit, [self._owner[unit]]).append(place)
                if not scores.keys() > there.keys():
                    continue
                self._twice.pop(unit, None)
            self._units[unit], self._owner[unit] = scores, place

    def _read(self, place: Path, file: RowFile[OfUnit]) -> dict[Unit, list[OfUnit]]:
        """Return the rows of a table by their units."""
        path = place / file.name
        units: dict[Unit, list[OfUnit]] = {}
        for row in file.read(path) if path.is_file() else []:
            units.setdefault((row.seed, row.arm, row.stage), []).append(row)
        self._rows[place, file.name] = units
        return units


def _rank(
    order: Sequence[str],
) -> Callable[[Score | Coefficient | Account | Timing], tuple[int, int]]:
    """Return what sorts by seed, then by the arm's place in ``order``."""
    place = {name: i for i, name in enumerate(order)}
    return lambda row: (row.seed, place.get(row.arm, len(place)))


def _differ(unit: Unit, first: Path, second: Path) -> UserError:
    seed, row, stage = unit
    return UserError(
        f"{first} and {second} both have scored {row!r} of seed {seed} at stage {stage} but not "
        "alike: they belong to two runs, or were computed on unlike machines; delete one of them "
        "and run the command again"
    )


def with_stopped(config: ConfigRecord, parts: Sequence[Path]) -> ConfigRecord:
    """Return what a run records, without the arms that diverged in a part.

    Raises:
        UserError: if the record of a part is damaged, or a part belongs to another run.
    """
    for part in parts:
        theirs = read_config(part)
        difference = first_difference(config.identity, theirs.identity)
        if difference:
            key, old, new = difference
            raise UserError(
                f"{part} belongs to another run ({key} is {new!r} there and {old!r} in the run "
                "folder); delete it and run the command again"
            )
        stopped = {k: v for k, v in theirs.stopped.items() if k in config.arms}
        config = replace(
            config,
            arms={name: arm for name, arm in config.arms.items() if name not in stopped},
            stopped={**config.stopped, **stopped},
        )
    return config


def joined_hits(run: Path, seed: int, arm: str) -> dict[StageAndExperience, Hits]:
    """Return which test samples an arm served right, from the run folder and all parts.

    Raises:
        UserError: if a file is damaged.
    """
    places = (layout.hits_file(place, seed, arm) for place in (run, *part_folders(run)))
    return {unit: hits for p in places if p.is_file() for unit, hits in read_hits(p).items()}
