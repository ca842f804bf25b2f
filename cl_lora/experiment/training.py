"""Training the banks of a seed: each adapter once, and never again."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cl_lora.adapters import Adapter, AdapterBank
from cl_lora.adapters.injection import module_weight
from cl_lora.benchmarks.batches import batches
from cl_lora.benchmarks.core import Benchmark
from cl_lora.experiment.banks import BANKS, BankKind, Banks
from cl_lora.experiment.serving import OwnUpdate
from cl_lora.experiment.settings import Settings, strategy_defaults
from cl_lora.models.backbones import Backbone
from cl_lora.models.compute import Batch, Compute
from cl_lora.models.heads import freeze, head_of
from cl_lora.models.statistics import Observed, Statistic, Sums, get_statistic
from cl_lora.run_folder.identity import filled, first_difference
from cl_lora.run_folder.layout import bank_folder
from cl_lora.support import progress
from cl_lora.support.errors import UserError
from cl_lora.tasks import Task

log = logging.getLogger(__name__)


def train_banks(
    settings: Settings,
    benchmark: Benchmark,
    backbone: Backbone,
    run: Path,
    seed: int,
    kinds: Iterable[str],
) -> Banks:
    """Train what is missing of a seed's banks, and return all of it.

    Args:
        settings: the run.
        benchmark: the stream.
        backbone: the frozen backbone; it is the same again afterwards.
        run: the run folder.
        seed: which seed.
        kinds: names of the banks that are wanted.
    """
    trainer = _Trainer(settings, benchmark, backbone, run, seed)
    banks: dict[str, tuple[Adapter, ...]] = {}
    for kind in BANKS.values():
        if kind.name in kinds:
            banks[kind.name] = trainer.bank(kind, banks)
    return banks


def gather_statistics(
    settings: Settings,
    benchmark: Benchmark,
    backbone: Backbone,
    run: Path,
    seed: int,
    banks: Banks,
    wanted: Mapping[str, Sequence[str]],
) -> Banks:
    """Gather what is missing of the statistics of a seed's adapters, each in one pass, once.

    Args:
        settings: the run.
        benchmark: the stream.
        backbone: the frozen backbone.
        run: the run folder.
        seed: which seed.
        banks: its adapters.
        wanted: kind of bank -> names of the statistics that each of its adapters must have.

    Returns:
        The banks, with the statistics beside the adapters.
    """
    missing = [
        (BANKS[kind], t, get_statistic(name))
        for kind, names in wanted.items()
        for t, adapter in enumerate(banks[kind])
        for name in names
        if name not in adapter.statistics
    ]
    if not missing:
        return banks
    with progress.meter(f"seed {seed}: gathering statistics", len(missing)) as advance:
        for kind, t, statistic in missing:
            found = _gathered(settings, benchmark, backbone, seed, kind, banks, t, statistic)
            bank = AdapterBank(bank_folder(run, seed, kind.name))
            bank.add_statistic(t, kind.names(benchmark)[t], statistic.name, found.result())
            advance()
    return {
        kind: tuple(
            AdapterBank(bank_folder(run, seed, kind)).load(t, name)
            for t, name in enumerate(BANKS[kind].names(benchmark))
        )
        if kind in wanted
        else adapters
        for kind, adapters in banks.items()
    }


def _gathered(
    settings: Settings,
    benchmark: Benchmark,
    backbone: Backbone,
    seed: int,
    kind: BankKind,
    banks: Banks,
    t: int,
    statistic: Statistic,
) -> Sums:
    """Return a statistic of one adapter over what it was trained on."""
    adapter, sums = banks[kind.name][t], None
    for e in range(len(benchmark.experiences)) if kind.joint else (t,):
        experience = benchmark.experiences[e]
        part = statistic.choose(getattr(experience, statistic.part), experience.name, seed)
        observed = Observed(
            backbone,
            Compute(settings.device, settings.bf16),
            OwnUpdate(adapter),
            freeze(head_of(adapter.head)).to(settings.device),
            _learned(settings, benchmark, kind, t),
            adapter.modules(),
            seed,
            (kind.name, t),
            experience=e,
        )
        # Padding that others of a batch ask for must not count among a sample's tokens.
        size = 1 if backbone.pads else settings.options.eval_batch_size
        found = statistic.gather(observed, batches(experience, part, size, backbone.encode))
        if sums is None:
            sums = found
        else:
            sums.merge(found)
    assert sums is not None
    return sums


def _learned(settings: Settings, benchmark: Benchmark, kind: BankKind, t: int) -> Task:
    """Return what the adapter ``t`` of a bank learns: its task, among the labels known by then.

    A head that is trained on from experience to experience learns all labels seen so far, those of
    earlier experiences as what its samples are not. One that starts anew has nothing to say of
    labels of others, and learns its own.
    """
    if kind.joint:
        return benchmark.experiences[t].task
    alone = settings.training.policy.restarts and not kind.lineage.continues
    return benchmark.asked(t, (t,) if alone else range(t + 1))


def check_banks(
    settings: Settings,
    benchmark: Benchmark,
    backbone: Backbone,
    run: Path,
    seeds: Iterable[int],
    kinds: Iterable[str],
) -> None:
    """Check that every adapter that is there is whole and the one that would be trained here.

    Every file is compared with its digest, and what the adapter was trained on, by which seed and
    settings, with what the run asks for.

    Raises:
        UserError: naming the first that is damaged, or of something else.
    """
    fingerprint = backbone.fingerprint()
    for seed in seeds:
        for kind in kinds:
            bank = AdapterBank(bank_folder(run, seed, kind))
            modules = BANKS[kind].tuning.modules(backbone, settings.lora)
            for t, name in enumerate(BANKS[kind].names(benchmark)):
                if bank.has(t, name):
                    where, adapter = bank.path(t, name), bank.verify(t, name)
                    _check_fits(adapter, where, backbone, modules, fingerprint)
                    _check_origin(
                        adapter, where, _origin(settings, benchmark, BANKS[kind], seed, t)
                    )


def _origin(
    settings: Settings, benchmark: Benchmark, kind: BankKind, seed: int, t: int
) -> dict[str, Any]:
    """Return what tells an adapter from those of other data, seeds, places and settings."""
    return {
        "fingerprint": benchmark.fingerprint,
        "seed": seed,
        "kind": kind.name,
        "experience": t,
        "settings": settings.of_training,
    }


_ORIGINS = {
    "fingerprint": "on other data",
    "seed": "with another seed",
    "kind": "for another bank",
    "experience": "on another experience",
    "settings": "with other settings",
}


def _check_origin(adapter: Adapter, where: Path, wanted: Mapping[str, Any]) -> None:
    known, here = dict(adapter.training), json.loads(json.dumps(wanted))
    if "settings" in known:
        known["settings"] = filled(known["settings"], strategy_defaults())
    if here["experience"] == 0 and BANKS[here["kind"]].begins_like is not None:
        known.pop("kind", None)  # it may be a copy of the one that the bank begins like
    there = {key: known.get(key, here[key]) for key in here}  # an earlier version says less
    difference = first_difference(there, here)
    if difference is not None:
        key, old, new = difference
        raise UserError(
            f"The adapter in {where} was trained {_ORIGINS[key.split('.')[0]]} ({key} is {old!r}, "
            f"expected {new!r}); put the right one in its place, or delete {where} and run the "
            "command again, which trains it again"
        )


def _check_fits(
    adapter: Adapter, where: Path, backbone: Backbone, modules: Sequence[str], fingerprint: str
) -> None:
    known = adapter.training.get("backbone", fingerprint)
    if known != fingerprint:
        raise UserError(
            f"The adapter in {where} was trained on another backbone (weights {known}, expected "
            f"{fingerprint}); use a new run_dir, or the model it was trained on"
        )
    odd = sorted(set(adapter.modules()) ^ set(modules))
    if odd:
        has = odd[0] in adapter.entries
        raise UserError(
            f"The adapter in {where} was trained in other modules than strategy.targets says: it "
            f"{'has' if has else 'lacks'} {odd[0]!r}; use a new run_dir, or its own targets"
        )
    for module in adapter.modules():
        shape, there = tuple(module_weight(backbone.network, module).shape), adapter.shape(module)
        if there != shape:
            raise UserError(
                f"The adapter in {where} belongs to another backbone: {module!r} is {there} in "
                f"it, expected {shape}; use a new run_dir"
            )


@dataclass(frozen=True)
class _Trainer:
    settings: Settings
    benchmark: Benchmark
    backbone: Backbone
    run: Path
    seed: int

    def bank(self, kind: BankKind, there: Banks) -> tuple[Adapter, ...]:
        """Return the adapters of one kind, trained where they are not there yet."""
        names = kind.names(self.benchmark)
        bank = AdapterBank(bank_folder(self.run, self.seed, kind.name))
        if kind.begins_like is not None and not bank.has(0, names[0]):
            bank.save(0, names[0], there[kind.begins_like.name][0])
        missing = [t for t, name in enumerate(names) if not bank.has(t, name)]
        if missing:
            self._train(kind, names, bank, first=missing[0])
        return tuple(bank.load(t, name) for t, name in enumerate(names))

    def _train(self, kind: BankKind, names: tuple[str, ...], bank: AdapterBank, first: int) -> None:
        # Avalanche takes seconds to import: a run that trains nothing does not pay for it.
        from cl_lora.benchmarks.avalanche import avalanche_benchmark, joint_benchmark
        from cl_lora.strategies.lora import LoRAStrategy

        make: Callable[..., Any] = joint_benchmark if kind.joint else avalanche_benchmark
        strategy = LoRAStrategy(
            backbone=self.backbone,
            task=self.benchmark.tasks[0],
            lora=self.settings.lora,
            training=self.settings.training,
            seed=self.seed,
            lineage=kind.lineage,
            tuning=kind.tuning,
            device=self.settings.device,
            bf16=self.settings.bf16,
        )
        if first:
            strategy.resume(bank.load(first - 1, names[first - 1]))
        stream: Any = make(self.benchmark, self.backbone.encode).train_stream
        for experience in list(stream)[first:]:
            t = experience.current_experience
            title = kind.title(names[t])
            task = _learned(self.settings, self.benchmark, kind, t)
            adapter = strategy.train_adapter(
                experience, title, f"{kind.name}-{t}", task, partial(self._validation, kind, t)
            )
            record = {
                **adapter.training,
                **_origin(self.settings, self.benchmark, kind, self.seed, t),
                "backbone": self.backbone.fingerprint(),
                "samples": len(experience.dataset),
                "config": dict(self.settings.raw["strategy"]),
            }
            bank.save(t, names[t], replace(adapter, training=record))
            self._report(title, record, task)

    def _validation(self, kind: BankKind, t: int) -> Iterator[Batch]:
        """Yield the validation samples of what the adapter ``t`` of a bank is trained on."""
        experiences = self.benchmark.experiences if kind.joint else (self.benchmark.experiences[t],)
        size = self.settings.options.eval_batch_size
        for experience in experiences:
            yield from batches(experience, experience.val, size, self.backbone.encode)

    def _report(self, title: str, record: Mapping[str, Any], task: Task) -> None:
        end, name = record["loss"][-1], record["metric"]
        metric = next(m for m in task.kind.metrics if m.name == name)
        log.info(
            "seed %d: trained %s (%d samples, loss %.3f, train %s %.1f%s, %.0f s)",
            self.seed,
            title,
            record["samples"],
            end["loss"],
            metric.in_text,
            metric.scale * end[name],
            f" {metric.unit}" if metric.unit else "",
            record["seconds"],
        )
