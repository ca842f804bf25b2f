"""The banks of a seed: each adapter is trained once, and never again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_lora.adapters import Adapter, AdapterBank
from cl_lora.benchmarks.core import DomainBenchmark
from cl_lora.experiment.settings import Settings
from cl_lora.models.backbones import Backbone

log = logging.getLogger(__name__)

FRESH, SEQUENTIAL, JOINT = "fresh", "sequential", "joint"


@dataclass(frozen=True)
class Banks:
    """The adapters of one seed.

    Attributes:
        fresh: one adapter an experience.
        sequential: the states of the one adapter that is trained on; empty if not asked for.
        joint: the adapter trained on all experiences at once, or None.
    """

    fresh: tuple[Adapter, ...]
    sequential: tuple[Adapter, ...]
    joint: Adapter | None


def bank_folder(run: Path, seed: int, kind: str = FRESH) -> Path:
    """Return where a run keeps the adapters of one seed and kind."""
    return run / "adapters" / (f"seed-{seed}" if kind == FRESH else f"seed-{seed}-{kind}")


def train_banks(
    settings: Settings,
    benchmark: DomainBenchmark,
    backbone: Backbone,
    run: Path,
    seed: int,
    references: Sequence[str],
) -> Banks:
    """Train what is missing of a seed's banks, and return all of it.

    Args:
        settings: the run.
        benchmark: the stream.
        backbone: the frozen backbone; it is the same again afterwards.
        run: the run folder.
        seed: which seed.
        references: the reference rows that are wanted; ``sequential`` and ``joint`` need a
            training of their own.
    """
    trainer = _Trainer(settings, benchmark, backbone, run, seed)
    names = benchmark.domains
    fresh = trainer.bank(FRESH, names)
    sequential: tuple[Adapter, ...] = ()
    if "sequential" in references:
        # The first experience is the same training in both; copying it saves one.
        first = AdapterBank(bank_folder(run, seed, SEQUENTIAL))
        if not first.has(0, names[0]):
            first.save(0, names[0], fresh[0])
        sequential = trainer.bank(SEQUENTIAL, names)
    joint = trainer.bank(JOINT, ("joint",)) if "joint" in references else ()
    return Banks(fresh, sequential, joint[0] if joint else None)


class _Trainer:
    def __init__(
        self,
        settings: Settings,
        benchmark: DomainBenchmark,
        backbone: Backbone,
        run: Path,
        seed: int,
    ) -> None:
        self.settings, self.benchmark, self.backbone = settings, benchmark, backbone
        self.run, self.seed = run, seed

    def bank(self, kind: str, names: tuple[str, ...]) -> tuple[Adapter, ...]:
        """Return the adapters of one kind, trained where they are not there yet."""
        bank = AdapterBank(bank_folder(self.run, self.seed, kind))
        missing = [t for t, name in enumerate(names) if not bank.has(t, name)]
        if missing:
            self._train(kind, names, bank, first=missing[0])
        return tuple(bank.load(t, name) for t, name in enumerate(names))

    def _train(self, kind: str, names: tuple[str, ...], bank: AdapterBank, first: int) -> None:
        # Avalanche takes seconds to import: a run that trains nothing does not pay for it.
        from cl_lora.benchmarks.stream import avalanche_benchmark, joint_benchmark
        from cl_lora.strategies.lora import LoRAStrategy

        make = joint_benchmark if kind == JOINT else avalanche_benchmark
        strategy = LoRAStrategy(
            backbone=self.backbone,
            classes=len(self.benchmark.classes),
            lora=self.settings.lora,
            training=self.settings.training,
            seed=self.seed,
            kind=SEQUENTIAL if kind == SEQUENTIAL else FRESH,
            device=self.settings.device,
            bf16=self.settings.bf16,
        )
        if first:
            strategy.resume(bank.load(first - 1, names[first - 1]))
        stream: Any = make(self.benchmark).train_stream
        for experience in list(stream)[first:]:
            t = experience.current_experience
            title = (
                names[t] if kind == FRESH else f"{kind} {names[t]}".replace("joint joint", JOINT)
            )
            adapter = strategy.train_adapter(experience, title, label=f"{kind}-{t}")
            record = {
                **adapter.training,
                "kind": kind,
                "fingerprint": self.benchmark.fingerprint,
                "samples": len(experience.dataset),
                "config": dict(self.settings.raw["strategy"]),
            }
            bank.save(t, names[t], Adapter(adapter.name, adapter.factors, adapter.head, record))
            end = record["loss"][-1]
            log.info(
                "seed %d: trained %s (%d images, loss %.3f, train accuracy %.1f %%, %.0f s)",
                self.seed,
                title,
                record["samples"],
                end["loss"],
                100 * end["accuracy"],
                record["seconds"],
            )
