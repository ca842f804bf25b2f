"""Reading the folder of a run: the one door through which every report gets its numbers."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cl_lora.evaluation.metrics import METRICS
from cl_lora.evaluation.scores import ScoreTable
from cl_lora.run_folder import layout
from cl_lora.run_folder.config_file import read_config
from cl_lora.run_folder.identity import filled
from cl_lora.run_folder.layout import (
    ADAPTERS,
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    SCORES_FILE,
    STREAM_FILE,
)
from cl_lora.run_folder.parts import Joined, missing_parts, part_folders, with_stopped
from cl_lora.run_folder.records import StageRecord, StreamRecord
from cl_lora.run_folder.rows import (
    ACCOUNTS,
    COEFFICIENTS,
    EMBEDDINGS,
    FACTS,
    RELATIONS,
    SIMILARITIES,
    SPECTRA,
    TIMES,
    RowFile,
)
from cl_lora.run_folder.seals import is_table_intact
from cl_lora.support import files
from cl_lora.support.errors import UserError

_TRAINING_FILE = "training.json"
_BANK = re.compile(r"^seed-(?P<seed>-?\d+)(?:-(?P<bank>.+))?$")
_ADAPTER = re.compile(r"^(?P<index>\d{2,})-(?P<name>.+)$")


@dataclass(frozen=True)
class TrainingCurve:
    """The losses of one adapter's training (``training.json``).

    Attributes:
        seed: the run's seed.
        bank: ``fresh``, ``sequential``, ``joint``, ...
        experience: index in the bank, from 0.
        name: name of the experience.
        epochs: (E,) epoch numbers.
        losses: (E,) mean training loss.
        metric: name of the metric that was measured on the training samples; empty if none was.
        values: (E,) that metric, as recorded; NaN where it was not measured.
    """

    seed: int
    bank: str
    experience: int
    name: str
    epochs: tuple[int, ...]
    losses: tuple[float, ...]
    metric: str
    values: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class RunFolder:
    """Everything a finished run left on disk.

    Attributes:
        path: the folder.
        config: contents of ``config.yaml``.
        environment: contents of ``environment.json``.
        stream: what was trained and scored on.
        scores: contents of ``scores.csv``.
        coefficients: contents of ``coefficients.csv``: seed, arm, stage, group, adapter, value.
        accounts: contents of ``accounts.csv``: seed, arm, stage, quantity, value.
        times: contents of ``times.csv``: seed, arm, stage, quantity, value, digest.
        similarity: contents of ``similarity.csv``: seed, evaluated, group, adapter, value.
        relations: contents of ``relations.csv``: seed, measure, first, second, value.
        adapter_facts: contents of ``adapter_facts.csv``: seed, adapter, quantity, value.
        spectra: contents of ``spectra.csv``: seed, bank, adapter, index, value, energy.
        embedding: contents of ``embedding.csv``: seed, arm, evaluated, sample, label, x, y.
        curves: training curves of every adapter, by seed, bank and experience.
        missing_parts: a sentence on the parts that are not whole where several processes score the
            run side by side; empty if there is none.
        lost_units: a sentence on what was measured and is not there as it was; empty if all is.
    """

    path: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    stream: StreamRecord
    scores: ScoreTable
    coefficients: pd.DataFrame
    accounts: pd.DataFrame
    times: pd.DataFrame
    similarity: pd.DataFrame
    relations: pd.DataFrame
    adapter_facts: pd.DataFrame
    spectra: pd.DataFrame
    embedding: pd.DataFrame
    curves: tuple[TrainingCurve, ...]
    missing_parts: str = ""
    lost_units: str = ""

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.config["name"])

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, as configured."""
        return tuple(self.config["seeds"])

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms without the references, as configured."""
        return tuple(a for a in self.config["arms"] if a not in self.references)

    @property
    def references(self) -> tuple[str, ...]:
        """Names of the baselines, as configured."""
        return tuple(self.config["references"])

    @property
    def yardstick(self) -> str | None:
        """The row that a report measures the arms by: as recorded, or else the first reference."""
        recorded = self.config["yardstick"]
        rows = (*self.references, *self.arms)
        return recorded if recorded in rows else next(iter(self.references), None)

    @property
    def experiences(self) -> tuple[str, ...]:
        """Names of the experiences, in order."""
        return self.stream.names

    @property
    def roles(self) -> Mapping[str, str]:
        """What rows stand for, by name: ``single``, ``trivial``, or ``control`` (arms too)."""
        roles: Mapping[str, str] = self.config.get("roles") or {}
        return roles

    def row_of(self, role: str) -> str | None:
        """Return the baseline that stands for ``role``, the first; None if there is none."""
        return next((row for row in self.references if self.roles.get(row) == role), None)

    def settings(self, arm: str) -> Mapping[str, Any]:
        """Return the settings of ``arm``; empty for a baseline."""
        settings: Mapping[str, Any] = self.config["arms"].get(arm) or {}
        return settings

    def variant(self, arm: str) -> Mapping[str, Any]:
        """Return ``arm`` with every default, as recorded; empty if it was not.

        Of a baseline only its ``bank`` may be there, where it is not the usual one.
        """
        variants: Mapping[str, Mapping[str, Any]] = self.config.get("variants") or {}
        return variants.get(arm, {})

    def description(self, arm: str) -> str:
        """Return the sentences that say what an arm or a baseline is; empty if none do."""
        descriptions: Mapping[str, str] = self.config.get("descriptions") or {}
        return str(descriptions.get(arm, ""))

    @property
    def identity(self) -> Mapping[str, Any]:
        """What decides the run's numbers, as recorded."""
        identity: Mapping[str, Any] = self.config["identity"]
        return identity

    def identity_beside(self, other: RunFolder) -> Mapping[str, Any]:
        """Return the identity with every option that only ``other`` knows, at its default."""
        return filled(self.identity, other.config["identity_defaults"])

    @classmethod
    def read(cls, path: str | Path, *, allow_unfinished: bool = False) -> RunFolder:
        """Read a run folder.

        Args:
            path: the folder that ``cl-lora run`` wrote.
            allow_unfinished: read what is there of a run that is not finished; scores and
                coefficients may then be empty.

        Raises:
            UserError: if the folder is no run folder, was written by another version, is
                unfinished, or holds a damaged file; one sentence that says which and what to do.
        """
        path = Path(path)
        if not path.is_dir():
            raise UserError(
                f"Expected a run folder but {path} {'is a file' if path.exists() else 'is missing'}"
                "; give the folder that cl-lora run wrote"
            )
        if not (path / CONFIG_FILE).is_file():
            raise UserError(
                f"{path} is no run folder: it has no {CONFIG_FILE}; "
                "give the folder that cl-lora run wrote"
            )
        parts = part_folders(path)
        config = with_stopped(read_config(path), parts).record()
        if not (path / STREAM_FILE).is_file():
            raise UserError(
                f"{path} is unfinished: it has a {CONFIG_FILE} but no {STREAM_FILE}, so nothing "
                "was trained yet; run the same command again to finish it"
            )
        stream = read_stream(path / STREAM_FILE)
        joined = Joined(path, parts, {**METRICS, **stream.metrics})
        order = (*config["arms"], *config["references"])
        scores = ScoreTable(joined.scores(order))
        for what, found, listed in (
            ("experiences", scores.experiences, len(stream.names)),
            ("stages", scores.stages, len(stream.trained_stages)),
        ):
            if found > listed:
                raise UserError(
                    f"{path / SCORES_FILE} has scores on {found} {what} but {STREAM_FILE} lists "
                    f"{listed} {what}; they belong to two runs: delete {SCORES_FILE} and run the "
                    "command again"
                )
        # What was scored of an arm that was stopped stays in the file, and out of every report.
        rows = {*config["arms"], *config["references"]}
        scores = ScoreTable(score for score in scores if score.arm in rows)
        coefficients, accounts, times = (
            _frame(path / file.name, file, joined.rows(file, order), stream, rows)
            for file in (COEFFICIENTS, ACCOUNTS, TIMES)
        )
        similarity, relations, adapter_facts, spectra, embedding = (
            _frame(path / file.name, file, _rows(path / file.name, file), stream, rows)
            for file in (SIMILARITIES, RELATIONS, FACTS, SPECTRA, EMBEDDINGS)
        )
        environment = path / ENVIRONMENT_FILE
        run = cls(
            path=path,
            config=config,
            environment=_read_json(environment) if environment.is_file() else {},
            stream=stream,
            scores=scores,
            coefficients=coefficients,
            accounts=accounts,
            times=times,
            similarity=similarity,
            relations=relations,
            adapter_facts=adapter_facts,
            spectra=spectra,
            embedding=embedding,
            curves=_read_curves(path / ADAPTERS),
            missing_parts=missing_parts(path, scores, config.get("stopped") or ()),
            lost_units=_lost(path, [unit for unit in joined.broken if unit[1] in rows]),
        )
        if not allow_unfinished:
            run.check_finished()
        return run

    def missing(self) -> tuple[tuple[int, str], ...]:
        """Return the (seed, arm) without a score at the last stage at which it is scored.

        Or at an earlier one, of an arm of a stream in time: a command that asks for more than an
        earlier one measures these stages again.
        """
        return tuple(
            (seed, arm)
            for seed in self.seeds
            for arm in (*self.arms, *self.references)
            if not all(self.scores.done(seed, arm, stage) for stage in self._stages_of(arm))
        )

    def _stages_of(self, arm: str) -> Sequence[int]:
        """Return stages at which a row is scored, the last among them."""
        last = self.last_stage(arm)
        stages = self.stream.trained_stages
        if arm not in self.arms or not self.stream.ordered or any(s.x is not None for s in stages):
            return (last,)
        return tuple(s.index for s in stages if s.index <= last)

    def last_stage(self, arm: str) -> int:
        """Return the index of the last stage at which a row is scored."""
        ends: Mapping[str, int] = self.config.get("last_stages") or {}
        return ends.get(arm, self.stream.stages[-1].index)

    def check_finished(self) -> None:
        """Raise an error that says what is there and what is missing, if anything is.

        Raises:
            UserError: if an arm has no score after the last experience, a part is not whole, or
                what was measured was lost or changed since.
        """
        if self.missing_parts:
            raise UserError(self.missing_parts)
        if self.lost_units:
            raise UserError(self.lost_units)
        missing = self.missing()
        if not missing:
            return
        total = len(self.seeds) * len({*self.arms, *self.references})
        adapters = len([c for c in self.curves if c.bank == layout.FRESH])
        names = [f"{arm!r} of seed {seed}" for seed, arm in missing[:3]]
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"{self.path} is unfinished: {adapters} of {len(self.seeds) * len(self.experiences)} "
            f"adapters are trained and {total - len(missing)} of {total} arms are scored, missing "
            f"{', '.join(names)}{more}; run the same command again to finish it"
        )


def _read_json(path: Path, unsealed: Container[str] = ()) -> dict[str, Any]:
    value = files.read_json(path, "is damaged", "delete it and run the command again")
    if not files.is_intact(value, unsealed):
        raise _damaged(path, "its contents are not those that were written")
    value.pop(files.SEAL, None)
    return value


def read_stream(path: Path) -> StreamRecord:
    """Read ``stream.json``.

    Raises:
        UserError: if it is damaged.
    """
    data = _read_json(path)
    try:
        return StreamRecord.from_record(data)
    except KeyError as error:
        raise _damaged(path, f"{error} is missing") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, str(error)) from error


def read_stages(path: Path) -> tuple[StageRecord, ...]:
    """Return the stages that ``stream.json`` lists, which a later command adds some to.

    Raises:
        UserError: if it is damaged. Without it nothing says what the stages of scores are.
    """
    try:
        return read_stream(path).stages
    except UserError as error:
        raise stages_lost(path, str(error).partition(";")[0].removeprefix(f"{path} is ")) from error


def stages_lost(path: Path, how: str) -> UserError:
    """Return the error that nothing says what the stages of the scores are."""
    return UserError(
        f"{path} is {how}, and nothing else says what the stages in {SCORES_FILE} are; delete both "
        "and run every command of this folder again: all is measured again, and nothing trained"
    )


def _lost(folder: Path, units: Sequence[tuple[int, str, int]]) -> str:
    if not units:
        return ""
    seed, row, stage = min(units)
    more = f" and {len(units) - 1} more" if len(units) > 1 else ""
    return (
        f"{folder} does not hold what was measured of {row!r} of seed {seed} at stage {stage}{more}"
        f": rows of {SCORES_FILE}, {COEFFICIENTS.name}, {ACCOUNTS.name} or {TIMES.name} were lost "
        "or changed since; run the same command again, which measures them again"
    )


def _rows(path: Path, file: RowFile[Any]) -> list[Any]:
    if not is_table_intact(path.parent, path.name):
        raise _damaged(path, "its contents are not those that were written")
    return file.read(path) if path.is_file() else []


def _frame(
    path: Path, file: RowFile[Any], rows: Sequence[Any], stream: StreamRecord, arms: Set[str]
) -> pd.DataFrame:
    """Return the rows of a file that belong to ``arms``."""
    frame = pd.DataFrame(
        {
            key: pd.Series([getattr(r, key) for r in rows], dtype=kind)
            for key, kind in file.types.items()
        }
    )
    limits = {"stage": len(stream.trained_stages), "adapter": len(stream.names)}
    limits |= dict.fromkeys(("evaluated", "first", "second"), limits["adapter"])
    for column in limits.keys() & set(frame.columns):
        if not frame[column].isin(range(limits[column])).all():
            raise _damaged(
                path,
                f"it has rows of other experiences than the {len(stream.names)} of the stream",
            )
    if "arm" in frame:
        frame = frame[frame["arm"].isin(arms)].reset_index(drop=True)
    return frame


def _read_curves(folder: Path) -> tuple[TrainingCurve, ...]:
    if not folder.is_dir():
        return ()
    curves = []
    for bank in folder.iterdir():
        matched = _BANK.match(bank.name)
        if matched is None:
            continue
        for adapter in bank.iterdir():
            named = _ADAPTER.match(adapter.name)
            path = adapter / _TRAINING_FILE
            if named is None or not path.is_file():
                continue
            place = (int(matched["seed"]), matched["bank"] or layout.FRESH, int(named["index"]))
            curves.append(_read_curve(path, *place, named["name"]))
    # The bank of own adapters first; the others by name.
    return tuple(
        sorted(curves, key=lambda c: (c.seed, c.bank != layout.FRESH, c.bank, c.experience))
    )


def _read_curve(path: Path, seed: int, bank: str, experience: int, name: str) -> TrainingCurve:
    record = _read_json(path, ("seconds",))  # two trainings of one adapter may differ in it
    entries: Sequence[Mapping[str, Any]] = record.get("loss", [])
    metric = record.get("metric", "")
    if not isinstance(metric, str):
        raise _damaged(path, f"'metric' is no name but {metric!r}")
    try:
        return TrainingCurve(
            seed=seed,
            bank=bank,
            experience=experience,
            name=name,
            epochs=tuple(int(e["epoch"]) for e in entries),
            losses=tuple(float(e["loss"]) for e in entries),
            metric=metric,
            values=tuple(float(e.get(metric, "nan")) for e in entries),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, f"'loss' is no list of epochs, losses: {error}") from error


def _damaged(path: Path, problem: str) -> UserError:
    return UserError(f"{path} is damaged: {problem}; delete it and run the command again")
