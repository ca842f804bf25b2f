"""From a configuration to a finished run folder: validate, train each bank, score every row."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cl_lora.adapters import Adapter, AdapterBank
from cl_lora.benchmarks import make_benchmark, validate_benchmark_config
from cl_lora.benchmarks.core import Benchmark
from cl_lora.benchmarks.draw import ALL, draw_buffer, draw_support
from cl_lora.benchmarks.splits import Indices
from cl_lora.evaluation.metrics import Metric
from cl_lora.experiment.adapting import adapt_arm, edges
from cl_lora.experiment.analyses import (
    compare_features,
    measure_spectra,
    place_features,
    relate_adapters,
)
from cl_lora.experiment.arms import (
    Arm,
    check_groups,
    check_protocol,
    check_residuals,
    check_weights,
)
from cl_lora.experiment.banks import FRESH, Banks
from cl_lora.experiment.checks import check_arms, check_routing, check_tasks, embedded
from cl_lora.experiment.costs import Costs
from cl_lora.experiment.evaluator import Evaluator, NotFiniteError
from cl_lora.experiment.few_shot import check_few_shot, outline
from cl_lora.experiment.ledger import Ledger, open_ledger
from cl_lora.experiment.listener import Listener, Silent
from cl_lora.experiment.merged import serve_arm
from cl_lora.experiment.serving import Served, Workbench, count_parameters, numbers_to_serve
from cl_lora.experiment.settings import (
    RunOptions,
    Settings,
    read_settings,
    set_threads,
    strategy_defaults,
)
from cl_lora.experiment.stages import Stage, Subsets, continued, shots_of
from cl_lora.experiment.task_metrics import metrics_of_task, reported
from cl_lora.experiment.training import check_banks, gather_statistics, train_banks
from cl_lora.merging import prepare as prepare_merge
from cl_lora.models.backbones import Backbone, input_size
from cl_lora.models.compute import Compute
from cl_lora.models.heads import HEAD_SHAPES
from cl_lora.models.prepare import prepare_backbone
from cl_lora.models.statistics import get_statistic
from cl_lora.run_folder import layout
from cl_lora.run_folder.config_file import ConfigRecord, read_config, write_config
from cl_lora.run_folder.environment import device_name, environment, write_environment
from cl_lora.run_folder.folding import fold_hits, fold_records, remove_parts
from cl_lora.run_folder.hits import write_hits
from cl_lora.run_folder.identity import require_same, take_threads
from cl_lora.run_folder.lock import locked, require_run_folder
from cl_lora.run_folder.parts import part_folders, with_stopped
from cl_lora.run_folder.reader import read_stages, stages_lost
from cl_lora.run_folder.records import (
    PARAMETERS,
    Account,
    ExperienceRecord,
    StreamRecord,
    TaskRecord,
)
from cl_lora.run_folder.results import Results
from cl_lora.support import files, progress
from cl_lora.support.errors import DivergedError, UserError, unknown_name
from cl_lora.support.printing import Lines
from cl_lora.tasks import Task

log = logging.getLogger(__name__)

Buffers = dict[int, tuple[Indices, ...]]
"""Samples a class -> for each experience the indices of its buffer."""


def execute(raw: Mapping[str, Any], listener: Listener | None = None) -> Path:
    """Do what is missing of a run, and return its folder.

    Everything that can be wrong with the configuration or the data is found before training.

    Args:
        raw: the resolved configuration, plain containers only.
        listener: is told of the run while it is computed.

    Raises:
        UserError: for the first thing that is wrong, in one sentence.
    """
    given = prepare(raw)
    with locked(given.folder):
        run = Run(given, part_folders(given.folder))
        run.listener = listener or Silent()
        return run.finish()


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a command needs to score a run.

    Attributes:
        settings: of the command.
        benchmark: the stream.
        backbone: the bare backbone.
        modules: names of the modules that adapters change.
        identity: what decides the numbers.
        folder: the run folder.
    """

    settings: Settings
    benchmark: Benchmark
    backbone: Backbone
    modules: Sequence[str]
    identity: Mapping[str, Any]
    folder: Path


def prepare(raw: Mapping[str, Any]) -> Prepared:
    """Read what a configuration names, and check all that can be before the folder is looked into.

    Raises:
        UserError: for the first thing that is wrong, in one sentence.
    """
    set_threads(raw.get("threads"))
    settings = check(raw)
    if settings.given_folder is not None:
        _look_into(settings.given_folder)  # before data are decoded
    benchmark = make_benchmark(raw["benchmark"], input_size(settings.model))
    check_tasks(settings, benchmark)
    embedded(settings, benchmark)
    if settings.protocol.few_shot:
        check_few_shot(settings, benchmark)
    backbone, modules = prepare_backbone(
        settings.model, settings.lora, settings.device, settings.bf16
    )
    check_routing(settings, backbone)
    for experience in benchmark.experiences:
        backbone.check_samples(experience.inputs, experience.name)
    if _heads_of_texts(settings):
        for task in benchmark.tasks:
            backbone.task_head(task)  # of what it can make none is said before training
    identity = json.loads(json.dumps(settings.identity(benchmark.fingerprint, backbone.record())))
    folder = settings.folder(identity)
    return Prepared(settings, benchmark, backbone, modules, identity, folder)


def check(raw: Mapping[str, Any]) -> Settings:
    """Return the settings of a configuration, checked as far as possible without decoding data.

    Raises:
        UserError: for the first thing that is wrong, in one sentence.
    """
    settings = read_settings(raw)
    validate_benchmark_config(raw["benchmark"])
    policy, protocol = settings.training.policy, settings.protocol
    if protocol.own_heads and not policy.apart:
        raise UserError(
            f"The protocol {protocol.name!r} needs a head of its own for every experience, as one "
            "head that is trained on through the stream has seen the labels of others, but "
            f"strategy.head={policy.name}; set strategy.head=own"
        )
    shape = HEAD_SHAPES[settings.training.head_shape]
    if protocol.few_shot and not shape.mixes:
        raise UserError(
            f"The protocol {protocol.name!r} trains linear heads on support sets but "
            f"strategy.head_shape={shape.name}; set strategy.head_shape=linear"
        )
    if not protocol.subsets and settings.subsets != Subsets():
        raise UserError(
            f"subsets says what the protocol subsets merges but protocol={protocol.name}; leave it "
            "out, or set protocol=subsets"
        )
    if not protocol.few_shot and (settings.options.shots, settings.options.draws) != (
        RunOptions.shots,
        RunOptions.draws,
    ):
        raise UserError(
            f"shots and draws are for few-shot protocols but protocol={protocol.name}; leave them "
            "out, or set protocol=shots"
        )
    if not (protocol.untrained or settings.options.forward_transfer):
        raise UserError(
            "forward_transfer=false leaves out scores on experiences before their turn but "
            f"protocol={protocol.name} takes none; leave it out, or set protocol=prefixes"
        )
    for arm in settings.arms:
        if arm.adaptation is not None and not protocol.few_shot:
            raise UserError(
                f"Arm {arm.name!r} is adapted to support sets, which the protocol "
                f"{protocol.name!r} does not draw; set protocol=shots, or leave adapt out"
            )
    check_arms(settings)
    wanted = settings.options.yardstick
    rows = [*(arm.name for arm in settings.arms), *(row.name for row in settings.references)]
    if wanted is not None and wanted not in rows:
        raise unknown_name("yardstick", wanted, rows)
    return settings


def _heads_of_texts(settings: Settings) -> bool:
    """Return whether the backbone makes the heads that are trained with, or those of an arm."""
    starts = [arm.adaptation.head_start for arm in settings.arms if arm.adaptation is not None]
    return settings.training.policy.from_backbone or any(start.from_backbone for start in starts)


def _look_into(folder: Path) -> None:
    require_run_folder(folder)
    if (folder / layout.CONFIG_FILE).exists():
        read_config(folder)


def _as_recorded(settings: Settings, recorded: ConfigRecord, folder: Path) -> Settings:
    """Return the settings with what an earlier command asked of all rows of the folder."""
    if settings.options.forward_transfer or not recorded.settings.get("forward_transfer", True):
        return settings
    log.warning(
        "%s holds scores of experiences before their turn, so that all its rows get them, whatever "
        "forward_transfer=false says; choose another run_dir to leave them out",
        folder,
    )
    return settings.with_forward_transfer


@dataclass(frozen=True)
class Row:
    """What is scored: an arm or a baseline."""

    name: str
    stages: tuple[Stage, ...]
    serve: Callable[[Workbench, Stage], Served]
    arm: Arm | None = None


class Run:
    """One run folder, from what is there to all that is wanted.

    Args:
        given: what the command needs.
        parts: folders of parts of the run that other processes have scored: what they hold counts,
            and is moved into the run.

    Raises:
        UserError: if the command and what is there do not go together.
    """

    def __init__(self, given: Prepared, parts: Sequence[Path] = ()) -> None:
        settings, benchmark, backbone = given.settings, given.benchmark, given.backbone
        self.benchmark, self.backbone = benchmark, backbone
        self.identity, self.folder, self.parts = given.identity, given.folder, parts
        # Where everything that is scored here goes.
        self.place = folder = given.folder
        self.listener: Listener = Silent()
        there = (folder / layout.CONFIG_FILE).exists()
        recorded = read_config(folder) if there else None
        if recorded is not None:
            require_same(folder, recorded.identity, self.identity, strategy_defaults())
            if settings.device.type == "cpu":
                take_threads(folder, recorded.cpu_threads, settings.options.threads)
            recorded = with_stopped(recorded, parts)
            settings = _as_recorded(settings, recorded, folder)
        self.settings = settings
        self.stages = self._all_stages()
        self.ledger: Ledger = open_ledger(folder, recorded, settings)
        self._check_partners()
        few_shot = settings.protocol.few_shot
        check_protocol(self.ledger.arms, self.ledger.references, few_shot, self.stages)
        check_residuals(self.ledger.arms, settings.lora, backbone)
        self._check_statistics()
        check_weights(self.ledger.arms, len(benchmark.experiences))
        check_groups(self.ledger.arms, given.modules)
        check_banks(settings, benchmark, backbone, folder, self.ledger.seeds, self.ledger.banks)
        backbone.one_attention = settings.protocol.few_shot
        self.buffers = {seed: self._draw(seed) for seed in self.ledger.seeds}
        self.supports = {seed: self._supports(seed) for seed in self.ledger.seeds}
        self.results = Results(folder, self.ledger.rows, self._cells(), parts)

    def finish(self) -> Path:
        """Record what is run, do what is missing, and return the folder.

        Raises:
            UserError: if adapters that are there cannot be merged as asked.
            DivergedError: if arms diverged; everything else is finished then.
        """
        self._check_merges()
        self.results.forget(self.ledger.renewed)  # before they are recorded as going on
        self._write_config()
        self._join_parts()
        self._write_environment()
        with logging_to(self.folder / layout.LOG_FILE):
            # A control of one seed looks at the adapters of another.
            if any(row.needs_partner for row in self.ledger.references):
                for seed in self.ledger.seeds:
                    self._train(seed)
            self._write_stream()
            self.listener.begun(self.folder)
            with self.results.writing():
                failed = [error for seed in self.ledger.seeds for error in self._seed(seed)]
            self._say_edges()
        self._raise(failed)
        return self.folder

    def _raise(self, failed: Sequence[DivergedError]) -> None:
        """Say which arms diverged, if any did."""
        if failed:
            names = ", ".join(self.ledger.stopped)
            raise DivergedError(
                f"{failed[0]}; everything else is finished and {self.place} goes on without "
                f"{names}: name an arm with other settings to try it again, or leave it out "
                "(~arms.NAME)"
            )

    def _join_parts(self) -> None:
        """Move what the parts hold into the run; the scores last, as they seal the rest."""
        if self.parts:
            fold_hits(self.folder, self.parts)
            self.results.write()
            fold_records(self.folder, self.parts)
        remove_parts(self.folder)

    def _seed(self, seed: int) -> list[DivergedError]:
        """Train and score what is missing of one seed; return the errors of arms that diverged."""
        self._write_buffers(seed)
        bench = self._bench(seed)
        compare_features(self.folder, bench, self.stages)
        relate_adapters(self.folder, bench, self.stages)
        if self.settings.protocol.counts:
            measure_spectra(self.folder, bench)
        units = self._missing(seed)
        failed = self._score(bench, units) if units else []
        j = embedded(self.settings, self.benchmark)
        if j is not None and seed == self.ledger.seeds[0]:
            place_features(self.folder, bench, j, self._last(seed, bench))
        return failed

    def _last(self, seed: int, bench: Workbench) -> dict[str, Callable[[], Served]]:
        """Return what makes the last thing that each row serves, by its name."""
        last = self.stages[-1]
        rows = [row for row in self._rows(seed) if row.name not in self.ledger.stopped]
        return {row.name: partial(row.serve, bench, last) for row in rows if last in row.stages}

    def _missing(self, seed: int) -> list[tuple[Row, Stage]]:
        """Return what is still to be scored of a seed, stage by stage."""
        rows = [(row, set(row.stages)) for row in self._rows(seed)]
        return [
            (row, stage)
            for stage in self.stages
            for row, scored in rows
            if stage in scored and not self.results.done(seed, row.name, stage.index)
        ]

    def _bench(self, seed: int) -> Workbench:
        """Return all that serving a seed needs; what is missing of its adapters is trained."""
        return Workbench(
            benchmark=self.benchmark,
            backbone=self.backbone,
            banks=self._banks(seed),
            compute=Compute(self.settings.device, self.settings.bf16),
            seed=seed,
            policy=self.settings.training.policy,
            buffers=self.buffers[seed],
            spc=self.settings.options.spc,
            batch_size=self.settings.options.eval_batch_size,
            head_lr=self.settings.training.head_lr,
            lora=self.settings.lora,
            training=self.settings.training,
            relative=self._relative,
            partners=self._partners(seed),
        )

    def _banks(self, seed: int) -> Banks:
        return self._with_statistics(seed, self._train(seed))

    def _train(self, seed: int) -> Banks:
        return train_banks(
            self.settings, self.benchmark, self.backbone, self.folder, seed, self.ledger.banks
        )

    def _with_statistics(self, seed: int, banks: Banks) -> Banks:
        return gather_statistics(
            self.settings,
            self.benchmark,
            self.backbone,
            self.folder,
            seed,
            banks,
            self.ledger.statistics,
        )

    @property
    def _relative(self) -> bool:
        """Whether scores are also told as a share of the single task's: each task has a head."""
        return self.settings.training.policy.apart and not self.settings.protocol.few_shot

    def _partners(self, seed: int) -> tuple[Adapter, ...]:
        """Return the adapters of the smallest other seed, where a row needs them."""
        if not any(row.needs_partner for row in self.ledger.references):
            return ()
        other = min(s for s in self.ledger.seeds if s != seed)
        bank = AdapterBank(layout.bank_folder(self.folder, other, FRESH.name))
        return tuple(bank.load(t, name) for t, name in enumerate(FRESH.names(self.benchmark)))

    def _score(self, bench: Workbench, units: Sequence[tuple[Row, Stage]]) -> list[DivergedError]:
        failed: list[DivergedError] = []
        evaluator, costs = Evaluator(bench), Costs(bench)
        held: tuple[int, ...] = ()
        rows = self._rows(bench.seed)
        arms = sum(row.arm is not None for row in rows)
        references = len(rows) - arms
        total = sum(len(stage.evaluated) for _, stage in units)
        with progress.meter(f"seed {bench.seed}: evaluating {arms} arms", total) as advance:
            for row, stage in units:
                if row.name in self.ledger.stopped:
                    continue
                if stage.few_shot and stage.evaluated != held:
                    held = stage.evaluated
                    bench.store.forget()  # another round: no feature of the last one comes again
                began = time.monotonic()
                try:
                    served = row.serve(bench, stage) if stage.index >= 0 else bench.untrained(stage)
                    results = evaluator.score(served, stage, advance)
                except (DivergedError, NotFiniteError) as error:
                    if isinstance(error, NotFiniteError):
                        error = _of_row(error, row, stage, bench.seed)
                    if row.arm is None:
                        raise error
                    log.warning("%s", error)
                    self.ledger = self.ledger.without(row.arm, str(error))
                    self._write_config()
                    failed.append(error)
                    continue
                hits = {(stage.index, j): r.hits for j, r in results.items() if r.hits is not None}
                if hits:
                    write_hits(layout.hits_file(self.place, bench.seed, row.name), hits)
                scores = list(evaluator.as_scores(row.name, stage, results))
                counted = self._counted(bench, row, stage, served)
                spent, times = costs.of(row.name, row.arm, row.stages, stage, served)
                accounts = (*served.accounts, *counted, *spent)
                self.results.add(scores, served.coefficients, accounts, times)
                self.listener.scored(scores)
                log.debug(
                    "seed %d: scored %s at stage %s (%.1f s)",
                    *(bench.seed, row.name, stage.name, time.monotonic() - began),
                )
        log.info(
            "seed %d: evaluated %d arm%s and %d baseline%s",
            *(bench.seed, arms, "s" * (arms != 1), references, "s" * (references != 1)),
        )
        return failed

    def _counted(
        self, bench: Workbench, row: Row, stage: Stage, served: Served
    ) -> tuple[Account, ...]:
        """Return how many numbers a row needs to serve, where the protocol counts them."""
        if not self.settings.protocol.counts:
            return ()
        backbone = count_parameters(bench.backbone.network)
        numbers = float(numbers_to_serve(served, backbone))
        return (Account(bench.seed, row.name, stage.index, PARAMETERS, numbers),)

    def _rows(self, seed: int) -> list[Row]:
        """Return what is scored for a seed."""
        references = [Row(r.name, r.scored(self.stages), r.serve) for r in self.ledger.references]
        arms = [
            Row(arm.name, arm.scored(self.stages), partial(_serve, arm), arm)
            for arm in self.ledger.arms
        ]
        return [*references, *arms]

    def _cells(self) -> dict[int, frozenset[tuple[int, str]]]:
        """Return for each stage the (experience, metric) that a whole unit has scores of."""
        experiences = self.benchmark.experiences
        return {
            stage.index: frozenset(
                (j, metric.name)
                for j in stage.evaluated
                for metric in reported(experiences[j], self._relative)
            )
            for stage in self.stages
        }

    def _draw(self, seed: int) -> Buffers:
        """Draw the buffers that some arm, or the heads of the baselines, will need."""
        needed = {arm.spc for arm in self.ledger.arms if arm.needs_buffer}
        if self.settings.training.policy.needs_support:
            needed.add(self.settings.options.spc)
        return {spc: draw_buffer(self.benchmark, spc, seed) for spc in sorted(needed)}

    def _check_merges(self) -> None:
        """Prepare every merge of a bank that is there already: what does not fit shows now."""
        for seed in self.ledger.seeds:
            arms = self._arms_of(seed)
            for kind in {arm.bank.name: arm.bank for arm in arms}.values():
                bank = AdapterBank(layout.bank_folder(self.folder, seed, kind.name))
                names = kind.names(self.benchmark)
                if all(bank.has(t, name) for t, name in enumerate(names)):
                    adapters = [bank.load(t, name) for t, name in enumerate(names)]
                    of_kind = [arm for arm in arms if arm.bank is kind]
                    self._check_merges_of(of_kind, bank.folder, adapters, seed)

    def _arms_of(self, seed: int) -> Sequence[Arm]:
        """Return the arms that are scored for a seed."""
        return self.ledger.arms

    def _check_merges_of(
        self, arms: Sequence[Arm], folder: Path, adapters: Sequence[Adapter], seed: int
    ) -> None:
        for arm in arms:
            if arm.method is None:
                continue
            if not all(set(arm.statistics) <= set(a.statistics) for a in adapters):
                continue  # it is gathered first
            try:
                prepare_merge(adapters, arm.method, space=arm.space, seed=seed, **arm.options)
            except UserError as error:
                raise UserError(f"Arm {arm.name!r}, adapters in {folder}: {error}") from error

    def _check_statistics(self) -> None:
        """Refuse what looks at a part of the data that an experience does not have."""
        experiences = self.benchmark.experiences
        for arm in self.ledger.arms:
            try:
                for name in arm.statistics:
                    statistic = get_statistic(name)
                    for e in experiences:
                        statistic.choose(getattr(e, statistic.part), e.name, 0)
            except UserError as error:
                raise UserError(f"Arm {arm.name!r}: {error}") from error
            empty = [e.name for e in experiences if not len(e.val)]
            if arm.needs_validation and empty:
                raise UserError(
                    f"Arm {arm.name!r}: select_on=val chooses on the validation part but that of "
                    f"{empty[0]!r} is empty; set benchmark.val_fraction=0.1, or leave select_on out"
                )

    def _check_partners(self) -> None:
        """Refuse a row that looks at the adapters of another seed where there is none."""
        lonely = [row.name for row in self.ledger.references if row.needs_partner]
        if lonely and len(self.ledger.seeds) < 2:
            raise UserError(
                f"The baseline {lonely[0]!r} needs the adapters of a second seed but "
                f"seeds={list(self.ledger.seeds)}; give two, like seeds=[0,1], or leave it out of "
                "references"
            )

    def _supports(self, seed: int) -> dict[str, dict[str, list[int]]]:
        """Draw every support set, so that one that cannot be drawn is known before training."""
        drawn: dict[str, dict[str, list[int]]] = {}
        for stage in self.stages:
            k = shots_of(stage)
            if k not in (None, 0, ALL):
                experience = self.benchmark.experiences[stage.evaluated[0]]
                indices = draw_support(experience, k, seed, stage.draw)
                name = f"{stage.name}, draw {stage.draw}"
                drawn.setdefault(experience.name, {})[name] = indices.tolist()
        return drawn

    def _all_stages(self) -> tuple[Stage, ...]:
        """Return the stages of this command and of earlier ones into the folder."""
        path = self.folder / layout.STREAM_FILE
        asked = self.settings.protocol.stages(outline(self.settings, self.benchmark))
        if not self.settings.protocol.extends:
            return asked  # always the same, so that the file is made again, whatever it holds
        if path.exists():
            return continued(read_stages(path), asked)
        if any(
            (p / layout.SCORES_FILE).exists() for p in (self.folder, *part_folders(self.folder))
        ):
            raise stages_lost(path, "missing")
        return asked

    def _say_edges(self) -> None:
        """Log which arms chose a learning rate at the edge of their grid."""
        chosen: dict[str, list[float]] = {}
        for account in self.results.accounts:
            if account.quantity == "learning_rate_factor":
                chosen.setdefault(account.arm, []).append(account.value)
        for arm in self.ledger.arms:
            if arm.adaptation is not None and arm.name in chosen:
                grid = arm.adaptation.config.grid
                for sentence in edges({arm.name: chosen[arm.name]}, grid):
                    log.warning("%s", sentence)

    # What is recorded -----------------------------------------------------------------------

    def _write_buffers(self, seed: int) -> None:
        for spc, parts in self.buffers[seed].items():
            named = {
                name: [int(i) for i in part]
                for name, part in zip(self.benchmark.names, parts, strict=True)
            }
            files.write_json(
                layout.buffer_file(self.folder, seed, spc),
                {"seed": seed, "samples_per_class": spc, "indices": named},
            )

        if self.supports[seed]:
            files.write_json(
                layout.support_file(self.folder, seed),
                {"seed": seed, "indices": self.supports[seed]},
            )

    def _write_config(self) -> None:
        write_config(self.place, self._record())

    def _record(self) -> ConfigRecord:
        """Return what ``config.yaml`` says."""
        record = self.ledger.record(self.settings, self.identity, self.stages)
        return dataclasses.replace(record, cpu_threads=torch.get_num_threads())

    def _write_stream(self) -> None:
        record = files.sealed(self._stream().record())
        files.write_json(self.folder / layout.STREAM_FILE, record)

    def _write_environment(self) -> None:
        path = self.place / layout.ENVIRONMENT_FILE
        settings = self.settings
        here = environment(
            device=str(settings.device),
            device_name=device_name(settings.device),
            precision=settings.precision,
            seeds=settings.seeds,
        )
        write_environment(path, here)

    def _stream(self) -> StreamRecord:
        benchmark, protocol = self.benchmark, self.settings.protocol
        return StreamRecord(
            name=benchmark.name,
            experiences=tuple(
                ExperienceRecord(
                    *(e.name, e.task.name, len(e.train), len(e.val), len(e.test), e.labels)
                )
                for e in benchmark.experiences
            ),
            tasks=tuple(
                task_record(task, metrics_of_task(benchmark, task, self._relative))
                for task in benchmark.tasks
            ),
            fingerprint=benchmark.fingerprint,
            protocol=protocol.name,
            ordered=protocol.ordered,
            stages=self.stages,
            backbone=self._backbone_record(),
        )

    def _backbone_record(self) -> dict[str, Any]:
        record = dict(self.identity["backbone"])
        if self.settings.protocol.counts:
            record[PARAMETERS] = count_parameters(self.backbone.network)
        return record


def task_record(task: Task, metrics: tuple[Metric, ...]) -> TaskRecord:
    """Return what a run folder says of a task, and the metrics that it is scored by."""
    scaling = None if task.scaling is None else dataclasses.asdict(task.scaling)
    return TaskRecord(
        task.name,
        task.kind.name,
        task.labels,
        metrics,
        scaling,
        task.normaliser,
        task.period,
    )


def _of_row(error: UserError, row: Row, stage: Stage, seed: int) -> DivergedError:
    what = "Row" if row.arm is None else "Arm"
    return DivergedError(f"{what} {row.name!r}, seed {seed}, stage {stage.name!r}: {error}")


def _serve(arm: Arm, bench: Workbench, stage: Stage) -> Served:
    if shots_of(stage) is None:
        return serve_arm(bench, arm, stage)
    return adapt_arm(bench, arm, stage)


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Write what the package logs to a file as well."""
    with files.explain_write_errors(path):
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(Lines("%(asctime)s %(message)s"))
    handler.setLevel(logging.INFO)
    logger = logging.getLogger("cl_lora")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        # On a full disk closing tries once more to write what is buffered, and must not hide the
        # sentence that says so.
        with suppress(OSError):
            handler.close()
