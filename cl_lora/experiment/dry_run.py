"""What a run would train and score, and how long that takes: nothing is trained, nothing written.

Only decoded images are put into their cache, as everything that a run checks is checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from cl_lora.adapters import AdapterBank
from cl_lora.experiment.banks import BANKS
from cl_lora.experiment.estimate import (
    Estimate,
    Scoring,
    Training,
    adaptation_time,
    scoring_time,
    training_time,
)
from cl_lora.experiment.pipeline import Run, prepare
from cl_lora.run_folder import layout
from cl_lora.run_folder.parts import part_folders
from cl_lora.run_folder.records import MILLISECONDS

_SECONDS = "seconds"
"""The quantity of ``accounts.csv``: how long adapting to a support set took."""


@dataclass(frozen=True)
class BankOutlook:
    """What there is of the adapters of one bank and seed.

    Attributes:
        seed: the seed.
        bank: the kind of bank.
        there: how many adapters are there and stay.
        copied: how many are copied from another bank.
        missing: names of those that would be trained.
    """

    seed: int
    bank: str
    there: int
    copied: int
    missing: tuple[str, ...]


@dataclass(frozen=True)
class ScoreOutlook:
    """What there is of the scores of one seed. One score is one row at one stage.

    Attributes:
        seed: the seed.
        there: how many are there.
        missing: how many would be computed.
        inputs: how many test inputs these pass through the model.
        learned: how many of these learn or choose coefficients before.
    """

    seed: int
    there: int
    missing: int
    inputs: int
    learned: int


@dataclass(frozen=True)
class Outlook:
    """What a command would do.

    Attributes:
        folder: the run folder.
        new: whether it is not there yet.
        data: what the benchmark is called.
        experiences: their names.
        stages: how many stages there are, that before any training left out.
        arms: names of the arms.
        baselines: names of the baselines.
        banks: adapters, for each seed and bank.
        scores: scores, for each seed.
        training: how long training takes.
        adaptation: how long adapting to support sets takes.
        scoring: how long passing test inputs through the model takes.
    """

    folder: Path
    new: bool
    data: str
    experiences: tuple[str, ...]
    stages: int
    arms: tuple[str, ...]
    baselines: tuple[str, ...]
    banks: tuple[BankOutlook, ...]
    scores: tuple[ScoreOutlook, ...]
    training: Estimate
    adaptation: Estimate
    scoring: Estimate

    @property
    def total(self) -> Estimate:
        """How long everything takes of which something was measured."""
        return self.training + self.adaptation + self.scoring


def look_ahead(raw: Mapping[str, Any]) -> Outlook:
    """Check a configuration as a run does, and return what it would do.

    Args:
        raw: the resolved configuration, plain containers only.

    Raises:
        UserError: for whatever a run would refuse before training.
    """
    given = prepare(raw)
    return _RunAhead(given, part_folders(given.folder)).outlook()


class _RunAhead(Run):
    """A run that is looked at and not begun."""

    def outlook(self) -> Outlook:
        self._check_merges()
        seeds = self.ledger.seeds
        missing = {
            (seed, kind): self._to_train(seed, kind) for seed in seeds for kind in self._kinds
        }
        scoring = {seed: list(self._to_score(seed)) for seed in seeds}
        wanted = [unit for units in scoring.values() for unit in units]
        return Outlook(
            folder=self.folder,
            new=not (self.folder / layout.CONFIG_FILE).exists(),
            data=self.benchmark.name,
            experiences=self.benchmark.names,
            stages=sum(stage.index >= 0 for stage in self.stages),
            arms=tuple(arm.name for arm in self.ledger.arms),
            baselines=tuple(row.name for row in self.ledger.references),
            banks=tuple(self._of_bank(*place, todo) for place, todo in missing.items()),
            scores=tuple(self._of_scores(seed, scoring[seed]) for seed in seeds),
            training=training_time(
                [adapter for todo in missing.values() for adapter in todo], list(self._trained())
            ),
            adaptation=adaptation_time(wanted, self._adapted()),
            scoring=scoring_time(wanted, self._timed()),
        )

    @property
    def _kinds(self) -> tuple[str, ...]:
        return self.ledger.banks

    def _name(self, of: Training) -> str:
        return BANKS[of.bank].names(self.benchmark)[of.index]

    def _samples(self, kind: str, t: int) -> int:
        experiences = self.benchmark.experiences
        of = experiences if BANKS[kind].joint else (experiences[t],)
        return sum(len(experience.train) for experience in of)

    def _to_train(self, seed: int, kind: str) -> list[Training]:
        """Return what would be trained of a bank: from the first gap on, everything."""
        bank, names = self._bank(seed, kind), BANKS[kind].names(self.benchmark)
        copied = 0 if BANKS[kind].begins_like is None else 1
        gaps = (t for t in range(copied, len(names)) if not bank.has(t, names[t]))
        first = next(gaps, len(names))
        return [Training(kind, t, self._samples(kind, t)) for t in range(first, len(names))]

    def _of_bank(self, seed: int, kind: str, missing: list[Training]) -> BankOutlook:
        bank, names = self._bank(seed, kind), BANKS[kind].names(self.benchmark)
        kept = len(names) - len(missing)
        there = sum(bank.has(t, name) for t, name in enumerate(names[:kept]))
        return BankOutlook(seed, kind, there, kept - there, tuple(map(self._name, missing)))

    def _bank(self, seed: int, kind: str, folder: Path | None = None) -> AdapterBank:
        return AdapterBank(layout.bank_folder(folder or self.folder, seed, kind))

    def _trained(self) -> Iterator[Training]:
        """Yield every adapter that tells how long its training took, of the run's other parts too.

        Jobs of a sweep that differ in their seeds alone have folders side by side, which their
        seeds name.
        """
        for folder in self._folders():
            for kind in self._kinds:
                for seed in _seeds_in(folder, kind):
                    bank = self._bank(seed, kind, folder)
                    for t, name in enumerate(BANKS[kind].names(self.benchmark)):
                        if bank.has(t, name):
                            seconds = bank.load(t, name).training.get(_SECONDS)
                            if isinstance(seconds, int | float):
                                yield Training(kind, t, self._samples(kind, t), float(seconds))

    def _folders(self) -> list[Path]:
        if self.settings.given_folder is not None:
            return [self.folder]
        base = re.sub(r"(-seed-\d+)+$", "", self.folder.name)
        there = self.folder.parent.glob(f"{base}*") if self.folder.parent.is_dir() else ()
        return sorted(path for path in there if path.is_dir())

    def _to_score(self, seed: int) -> Iterator[Scoring]:
        for row, stage in self._missing(seed):
            if row.name not in self.ledger.stopped:
                inputs = sum(len(self.benchmark.experiences[j].test) for j in stage.evaluated)
                adapts = row.arm is not None and row.arm.adaptation is not None and stage.few_shot
                yield Scoring(row.name, stage.index, inputs, adapts)

    def _of_scores(self, seed: int, missing: list[Scoring]) -> ScoreOutlook:
        arms = {arm.name: arm for arm in self.ledger.arms}
        rows = [row for row in self._rows(seed) if row.name not in self.ledger.stopped]
        total = sum(len(row.stages) for row in rows)
        learned = sum(
            unit.stage >= 0 and unit.row in arms and arms[unit.row].rule.learned
            for unit in missing
            if not unit.adapts
        )
        inputs = sum(unit.inputs for unit in missing)
        return ScoreOutlook(seed, total - len(missing), len(missing), inputs, learned)

    def _adapted(self) -> dict[tuple[str, int], list[float]]:
        found: dict[tuple[str, int], list[float]] = {}
        for account in self.results.accounts:
            if account.quantity == _SECONDS:
                found.setdefault((account.arm, account.stage), []).append(account.value)
        return found

    def _timed(self) -> dict[str, float]:
        found: dict[str, list[float]] = {}
        for timing in self.results.times:
            if timing.quantity == MILLISECONDS:
                found.setdefault(timing.arm, []).append(timing.value)
        return {row: fmean(values) for row, values in found.items()}


def _seeds_in(folder: Path, kind: str) -> list[int]:
    """Return the seeds of which a run folder has adapters of a bank."""
    places = {
        seed: layout.bank_folder(folder, seed, kind)
        for path in folder.glob(f"{layout.ADAPTERS}/seed-*")
        if (match := re.match(r"seed-(\d+)", path.name)) is not None
        for seed in (int(match[1]),)
    }
    return sorted(seed for seed, place in places.items() if place.is_dir())
