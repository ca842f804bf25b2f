"""One of several processes that score a run side by side, each into a part of its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_lora.adapters import Adapter
from cl_lora.experiment.arms import Arm
from cl_lora.experiment.banks import Banks
from cl_lora.experiment.dealing import counted, deal, pieces
from cl_lora.experiment.pipeline import Prepared, Row, Run, logging_to, prepare
from cl_lora.experiment.stages import Stage
from cl_lora.run_folder import layout
from cl_lora.run_folder.config_file import write_config
from cl_lora.run_folder.lock import in_turn, locked, shared
from cl_lora.run_folder.parts import Plan, Shard, Unit
from cl_lora.run_folder.results import Results
from cl_lora.support.errors import DivergedError

log = logging.getLogger(__name__)

_PLANNING = "plan"


def execute_shard(raw: Mapping[str, Any], shard: Shard) -> Path:
    """Score what falls to one of several processes, and return the run folder.

    Args:
        raw: the resolved configuration, plain containers only; every shard gets the same.
        shard: which.

    Raises:
        UserError: for the first thing that is wrong, in one sentence.
    """
    given = prepare(raw)
    with shared(given.folder):
        with in_turn(given.folder, _PLANNING):
            part = PartOfRun(given, shard)
        if not part.mine:
            return part.folder
        with locked(part.place):
            return part.finish()


class PartOfRun(Run):
    """What falls to one shard of a run.

    The first shard records what all share, configuration, stream, buffers and the plan; the others
    compare. Then each writes to its own part. Only adapters and their statistics that are missing
    are written to the run folder, those of a seed by one process at a time.

    Args:
        given: what the command needs.
        shard: which of how many.

    Raises:
        UserError: if the command and what is there do not go together.
    """

    def __init__(self, given: Prepared, shard: Shard) -> None:
        super().__init__(given)
        self.shard = shard
        self.mine: frozenset[Unit] = frozenset()  # until it is dealt out, nothing is told apart
        self._mine_by_seed: Mapping[int, frozenset[str]] = {}
        plan = Plan.read(self.folder)
        if plan is None:
            plan = self._dealt()
        else:
            plan.require(self.folder, shard, self._wanted())
        self.mine = plan.of(shard)
        self._mine_by_seed = counted(self.mine)
        self.place = shard.folder(self.folder)

    def finish(self) -> Path:
        """Score what is missing of the part, and return the run folder.

        Raises:
            UserError: if adapters that are there cannot be merged as asked.
            DivergedError: if arms diverged; everything else is finished then.
        """
        self._check_merges()
        self.results = Results(self.place, self.ledger.rows, self._cells())
        self._write_config()
        self._write_environment()
        with logging_to(self.place / layout.LOG_FILE), self.results.writing():
            failed = [error for seed in self._mine_by_seed for error in self._seed(seed)]
        self._raise(failed)
        return self.folder

    def _seed(self, seed: int) -> list[DivergedError]:
        units = self._missing(seed)
        return self._score(self._bench(seed), units) if units else []

    def _missing(self, seed: int) -> list[tuple[Row, Stage]]:
        return [
            (row, stage)
            for row, stage in super()._missing(seed)
            if not self.mine or (seed, row.name, stage.index) in self.mine
        ]

    def _rows(self, seed: int) -> list[Row]:
        rows = super()._rows(seed)
        if not self.mine:
            return rows
        return [row for row in rows if row.name in self._mine_by_seed[seed]]

    def _arms_of(self, seed: int) -> Sequence[Arm]:
        mine = self._mine_by_seed.get(seed, frozenset())
        return [arm for arm in self.ledger.arms if arm.name in mine]

    def _banks(self, seed: int) -> Banks:
        with in_turn(self.folder, f"seed-{seed}"):
            return super()._banks(seed)

    def _partners(self, seed: int) -> tuple[Adapter, ...]:
        if any(row.needs_partner for row in self.ledger.references):
            other = min(s for s in self.ledger.seeds if s != seed)
            with in_turn(self.folder, f"seed-{other}"):
                self._train(other)
        return super()._partners(seed)

    # The plan -----------------------------------------------------------------------------------

    def _dealt(self) -> Plan:
        """Record what all shards share, and return what falls to each; the plan comes last."""
        self.results.forget(self.ledger.renewed)
        write_config(self.folder, self._record())
        self._write_stream()
        for seed in self.ledger.seeds:
            self._write_buffers(seed)
        units = (
            ((seed, row.name, stage.index), stage, row.arm)
            for seed in self.ledger.seeds
            for row, stage in self._missing(seed)
        )
        plan = Plan(self._wanted(), deal(pieces(units, self.benchmark), self.shard.count))
        if any(plan.units):
            plan.write(self.folder)
        return plan

    def _wanted(self) -> dict[str, Any]:
        """Return what is dealt out: equal for every shard of one plan."""
        return {
            "arms": {arm.name: arm.variant for arm in self.ledger.arms},
            "references": [row.name for row in self.ledger.references],
            "seeds": list(self.ledger.seeds),
            "stages": {str(stage.index): stage.name for stage in self.stages},
        }
