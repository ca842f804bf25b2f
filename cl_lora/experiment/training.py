"""Training the banks of a seed: each adapter once, and never again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_lora.adapters import Adapter, AdapterBank
from cl_lora.benchmarks.core import Benchmark
from cl_lora.experiment.banks import BANKS, BankKind, Banks
from cl_lora.experiment.settings import Settings
from cl_lora.models.backbones import Backbone
from cl_lora.run_folder.layout import bank_folder

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
            device=self.settings.device,
            bf16=self.settings.bf16,
        )
        if first:
            strategy.resume(bank.load(first - 1, names[first - 1]))
        stream: Any = make(self.benchmark, self.backbone.encode).train_stream
        for experience in list(stream)[first:]:
            t = experience.current_experience
            title = kind.title(names[t])
            adapter = strategy.train_adapter(experience, title, label=f"{kind.name}-{t}")
            record = {
                **adapter.training,
                "kind": kind.name,
                "fingerprint": self.benchmark.fingerprint,
                "samples": len(experience.dataset),
                "config": dict(self.settings.raw["strategy"]),
            }
            bank.save(t, names[t], Adapter(adapter.name, adapter.factors, adapter.head, record))
            self._report(title, record)

    def _report(self, title: str, record: Mapping[str, Any]) -> None:
        end, name = record["loss"][-1], record["metric"]
        metric = next(m for m in self.benchmark.tasks[0].kind.metrics if m.name == name)
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
