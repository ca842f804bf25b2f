"""What a run folder is to hold: the arms, rows and seeds of earlier commands and of this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cl_lora.experiment.arms import Arm, make_arm, settings_of
from cl_lora.experiment.banks import FRESH
from cl_lora.experiment.describe import describe_arm, describe_reference
from cl_lora.experiment.references import CONTROL, Reference, get_references
from cl_lora.experiment.settings import Settings, strategy_defaults
from cl_lora.experiment.stages import Stage
from cl_lora.run_folder.config_file import ConfigRecord
from cl_lora.run_folder.identity import first_difference
from cl_lora.support.errors import UserError


@dataclass(frozen=True)
class Ledger:
    """Everything that one folder is to hold.

    Attributes:
        given: name of an arm -> its settings, as they were given.
        arms: the arms; those of earlier commands mean what they meant then.
        references: the baselines.
        seeds: ascending.
        stopped: arms that diverged and were not named again.
        renewed: names of arms that diverged and are named again with other settings.
    """

    given: Mapping[str, Mapping[str, Any]]
    arms: tuple[Arm, ...]
    references: tuple[Reference, ...]
    seeds: tuple[int, ...]
    stopped: Mapping[str, Mapping[str, Any]]
    renewed: tuple[str, ...]

    @property
    def rows(self) -> list[str]:
        """Names of arms and rows, as they are sorted."""
        return [*(arm.name for arm in self.arms), *(row.name for row in self.references)]

    @property
    def banks(self) -> tuple[str, ...]:
        """Names of the banks that are needed."""
        kinds = [arm.bank for arm in self.arms]
        kinds += [bank for row in self.references for bank in row.banks]
        kinds = kinds or [FRESH]
        kinds += [kind.begins_like for kind in kinds if kind.begins_like is not None]
        return tuple(dict.fromkeys(kind.name for kind in kinds))

    @property
    def statistics(self) -> dict[str, tuple[str, ...]]:
        """Names of the statistics that arms need of each kind of bank."""
        found: dict[str, dict[str, None]] = {}
        for arm in self.arms:
            found.setdefault(arm.bank.name, {}).update(dict.fromkeys(arm.statistics))
        for row in self.references:
            for bank in row.banks:
                names = dict.fromkeys(row.statistics if bank.name in row.of_statistics else ())
                found.setdefault(bank.name, {}).update(names)
        return {kind: tuple(names) for kind, names in found.items()}

    def without(self, arm: Arm, reason: str) -> Ledger:
        """Return the ledger after an arm diverged: later commands skip it until they name it."""
        entry = {"arm": self.given[arm.name], "variant": arm.variant, "reason": reason}
        return replace(
            self,
            given={name: given for name, given in self.given.items() if name != arm.name},
            arms=tuple(a for a in self.arms if a.name != arm.name),
            stopped={**self.stopped, arm.name: entry},
        )

    def last_stages(self, stages: Sequence[Stage]) -> dict[str, int]:
        """Return the last stage at which each arm and row is scored that stops before the end."""
        if not stages:
            return {}
        ends = {arm.name: arm.scored(stages)[-1].index for arm in self.arms}
        ends |= {row.name: row.scored(stages)[-1].index for row in self.references}
        return {name: end for name, end in ends.items() if end != stages[-1].index}

    def _yardstick(self, settings: Settings) -> str | None:
        """Return the row that a report measures the others by: as asked, or the fairest."""
        wanted = settings.options.yardstick
        if wanted in self.rows:
            return wanted
        if not self.references:
            return None
        return max(self.references, key=lambda row: row.yardstick).name

    @property
    def _roles(self) -> dict[str, str]:
        """What rows, and arms that are controls, stand for in the analysis of a run."""
        controls = [a for a in self.arms if a.head is not None and a.policy.control]
        return {row.name: row.role for row in self.references if row.role} | {
            arm.name: CONTROL for arm in controls
        }

    @property
    def _banks_of_rows(self) -> dict[str, dict[str, str]]:
        """Which bank a baseline serves, where that is not the usual one."""
        return {
            row.name: {"bank": row.banks[0].name}
            for row in self.references
            if len(row.banks) == 1 and row.banks[0] is not FRESH
        }

    def record(
        self, settings: Settings, identity: Mapping[str, Any], stages: Sequence[Stage] = ()
    ) -> ConfigRecord:
        """Return what ``config.yaml`` says."""
        raw = settings.raw
        descriptions = {arm.name: describe_arm(arm) for arm in self.arms}
        descriptions |= {row.name: describe_reference(row) for row in self.references}
        return ConfigRecord(
            name=f"{settings.benchmark_name}-{raw['model']['name']}",
            identity=identity,
            identity_defaults=strategy_defaults(),
            arms=self.given,
            variants={arm.name: arm.variant for arm in self.arms} | self._banks_of_rows,
            descriptions=descriptions,
            references=tuple(row.name for row in self.references),
            yardstick=self._yardstick(settings),
            seeds=self.seeds,
            stopped=self.stopped,
            last_stages=self.last_stages(stages),
            roles=self._roles,
            settings={**raw, "run_dir": None, "runs_root": None},
        )


def open_ledger(folder: Path, recorded: ConfigRecord | None, settings: Settings) -> Ledger:
    """Put what a folder records and what a command asks for together.

    Args:
        folder: the run folder.
        recorded: its ``config.yaml``; None for a new folder.
        settings: those of the command.

    Raises:
        UserError: if an arm would mean two things.
    """
    recorded = recorded or ConfigRecord("", {})
    wanted = settings.raw["arms"]
    # An arm of an earlier command means what it meant then, whatever the defaults of today.
    known = {
        name: make_arm(
            name, {**given, **settings_of(recorded.variants.get(name, {}))}, settings.defaults
        )
        for name, given in recorded.arms.items()
    }
    asked = {arm.name: arm for arm in settings.arms}
    for name in asked.keys() & known.keys():
        difference = first_difference(known[name].variant, asked[name].variant)
        if difference:
            key, old, new = difference
            raise UserError(
                f"Arm {name!r} is defined twice: {key} is {old!r} in {folder} and {new!r} here; "
                "give the new one another name, or choose another run_dir"
            )
    made = {**known, **asked}
    given = {**recorded.arms, **wanted}
    rows = dict.fromkeys([*recorded.references, *(row.name for row in settings.references)])
    return Ledger(
        given=given,
        arms=tuple(made[name] for name in given),
        references=get_references(tuple(rows)),
        seeds=tuple(sorted({*recorded.seeds, *settings.seeds})),
        stopped={name: s for name, s in recorded.stopped.items() if name not in wanted},
        renewed=tuple(
            name
            for name, arm in asked.items()
            if name in recorded.stopped and recorded.stopped[name]["variant"] != arm.variant
        ),
    )
