"""What a row costs where all experiences have come: to serve it, and to go on learning.

Recorded in ``accounts.csv``, once for each row and seed:

- ``passes``: forward passes of the backbone an input needs.
- ``bytes_to_serve``: what stands beside the backbone to serve every experience: the merged update
  or the adapters, heads, and the router.
- ``bytes_of_adapters``: adapters and trained heads without which it could not take in another
  experience.
- ``bytes_of_statistics``, ``bytes_of_buffer``, ``bytes_of_data``: what must be kept of the data
  for that: statistics, some samples, or all train samples.

And in ``times.csv``, as a clock never says the same twice:

- ``milliseconds``: what an input takes, measured as it would be served.

Numbers count as they are stored, adapters and updates as float32; samples as they are kept in
memory, images as bytes at the size that the model sees.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from cl_lora.adapters import Adapter, Entry, LoRAFactors, entry_numbers
from cl_lora.benchmarks.core import Experience
from cl_lora.benchmarks.splits import Indices
from cl_lora.experiment.arms import Arm
from cl_lora.experiment.references import REFERENCES, Reference
from cl_lora.experiment.serving import Part, Served, Workbench
from cl_lora.experiment.stages import Stage, shots_of
from cl_lora.merging import Update
from cl_lora.merging.residuals import TaskUpdate
from cl_lora.models.bottleneck import Composition
from cl_lora.models.weights import changed
from cl_lora.run_folder.records import (
    ADAPTERS,
    BUFFER,
    DATA,
    MILLISECONDS,
    PASSES,
    STATISTICS,
    TO_SERVE,
    Account,
    Coefficient,
    Timing,
)
from cl_lora.run_folder.seals import timed

_FLOAT32 = 4
_LEAST, _MOST = 2, 5
"""Passes that are timed: the first of its kind prepares more than it computes."""
_ENOUGH = 0.05  # seconds after which no more than the least are


@dataclass(frozen=True)
class Kept:
    """What must be kept to take in another experience, in bytes.

    Attributes:
        adapters: adapters, with the heads that were trained with them.
        statistics: means, covariances and the like: no sample can be read from them.
        buffer: some samples of every experience.
        data: every train sample of every experience.
    """

    adapters: int = 0
    statistics: int = 0
    buffer: int = 0
    data: int = 0


# Sizes --------------------------------------------------------------------------------------------


def bytes_to_serve(served: Served) -> int:
    """Return what stands beside the backbone to serve every experience, as float32.

    A base that several experiences share is stored once, and no direction of an update that is
    zero, as those of an adapter whose coefficient is zero are.
    """
    updates = {id(part.update): part.update for part in served.parts.values()}
    bases = [u.base for u in updates.values() if isinstance(u, TaskUpdate) and u.base is not None]
    once = {id(base): base for base in bases}
    again = sum(map(_numbers, bases)) - sum(map(_numbers, once.values()))
    merged = (u.entries for u in updates.values() if isinstance(u, Update))
    idle = sum(_idle(entry) for entries in merged for entry in entries.values())
    return _FLOAT32 * (served.parameters - again - idle)


def bytes_of_adapters(adapters: Iterable[Adapter]) -> int:
    """Return the size of adapters and of the heads that were trained with them."""
    return sum(
        _FLOAT32 * _numbers(adapter.entries) + _size(adapter.head.values()) for adapter in adapters
    )


def bytes_of_statistics(adapters: Iterable[Adapter], names: Iterable[str]) -> int:
    """Return the size of some statistics beside adapters, each counted once."""
    wanted = tuple(dict.fromkeys(names))
    return sum(_size(a.statistics[name].values()) for a in adapters for name in wanted)


def bytes_of_samples(experience: Experience, indices: Indices) -> int:
    """Return the size of samples: numbers as they are stored, texts in UTF-8."""
    inputs = experience.inputs
    if inputs.dtype.kind in "OU":
        return sum(len(str(text).encode()) for text in np.ravel(inputs[indices]))
    return len(indices) * inputs.itemsize * int(np.prod(inputs.shape[1:]))


def _numbers(entries: Mapping[str, Entry]) -> int:
    return sum(map(entry_numbers, entries.values()))


def _idle(entry: Entry) -> int:
    """Return how many numbers of an entry belong to directions that are zero."""
    if not isinstance(entry, LoRAFactors):
        return 0
    used = (entry.A != 0).any(1) & (entry.B != 0).any(0)
    return int((~used).sum()) * (entry.A.shape[1] + entry.B.shape[0])


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


# What must be kept --------------------------------------------------------------------------------


def kept_by_arm(
    bench: Workbench, arm: Arm, stage: Stage, coefficients: Sequence[Coefficient] = ()
) -> Kept:
    """Return what an arm needs to take in another experience after a stage.

    Args:
        bench: of the seed.
        arm: which.
        stage: the last so far.
        coefficients: what it merged with. An adapter whose coefficients are given and zero is in no
            later merge either, so that it need not be kept.
    """
    members, bank = arm.of(stage), bench.banks[arm.bank.name]
    needed = set(members)
    if not (arm.rule.learned or arm.rule.routed) and coefficients:
        needed = {c.adapter for c in coefficients if c.value}
        if arm.bank.lineage.continues:
            needed.add(members[-1])  # which training goes on from
    experiences = bench.benchmark.experiences
    buffer = _buffer(bench, arm.spc, members) if arm.needs_buffer else 0
    if arm.needs_validation:
        buffer += sum(bytes_of_samples(experiences[m], experiences[m].val) for m in members)
    return Kept(
        adapters=bytes_of_adapters(bank[m] for m in sorted(needed)),
        statistics=bytes_of_statistics((bank[m] for m in members), arm.statistics),
        buffer=buffer,
    )


def kept_by_reference(bench: Workbench, row: Reference, stage: Stage, served: Served) -> Kept:
    """Return what a baseline needs to take in another experience after a stage.

    That is what it serves, and all data where it was trained on all at once.
    """
    one = row.adapter(stage)
    joint = one is not None and one[0].joint
    statistics = sum(
        bytes_of_statistics(_come(bench, name, stage), row.statistics) for name in row.of_statistics
    )
    experiences = bench.benchmark.experiences
    supported = row.head is None and bench.policy.needs_support
    return Kept(
        adapters=bytes_to_serve(served)
        if one is None
        else bytes_of_adapters([bench.banks[one[0].name][one[1]]]),
        statistics=statistics,
        buffer=_buffer(bench, bench.spc, stage.members) if supported else 0,
        data=sum(bytes_of_samples(experiences[m], experiences[m].train) for m in stage.members)
        if joint
        else 0,
    )


def _come(bench: Workbench, bank: str, stage: Stage) -> list[Adapter]:
    """Return the adapters of a bank that are there after a stage."""
    adapters = bench.banks[bank]
    return [adapter for t, adapter in enumerate(adapters) if t in stage.members]


def _buffer(bench: Workbench, spc: int, members: Iterable[int]) -> int:
    experiences, drawn = bench.benchmark.experiences, bench.buffers[spc]
    return sum(bytes_of_samples(experiences[m], drawn[m]) for m in members)


# Times --------------------------------------------------------------------------------------------


def milliseconds(serve: Callable[[Tensor], object], inputs: Tensor, device: torch.device) -> float:
    """Return the wall milliseconds that an input of a batch takes: the quickest of a few passes.

    Args:
        serve: makes outputs of a batch.
        inputs: (batch, ...), on the device.
        device: whose work is waited for.
    """
    taken: list[float] = []
    while len(taken) < _LEAST or (len(taken) < _MOST and sum(taken) < _ENOUGH):
        _wait(device)
        start = time.perf_counter()
        serve(inputs)
        _wait(device)
        taken.append(time.perf_counter() - start)
    return 1000 * min(taken) / len(inputs)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def serving(bench: Workbench, part: Part) -> Iterator[Callable[[Tensor], Tensor]]:
    """Give what makes outputs of a batch, as a part would be served: nothing is stored.

    What is done to the backbone for every input alike is done before.
    """
    with torch.no_grad():
        if part.serve is not None:
            yield part.serve
            return
        head = part.head.to(bench.compute.device)

        def serve(inputs: Tensor) -> Tensor:
            features, _ = next(bench.compute.features(bench.backbone, [(inputs, inputs[:0])]))
            outputs: Tensor = head(features)
            return outputs

        with changed(bench.backbone.network, part.update):
            yield serve


def kind_of_work(part: Part) -> Hashable | None:
    """Return what tells how much work a part is; None where only a clock can.

    An update that is added to the weights costs no time, whatever its numbers: all such parts with
    heads of one shape are the same work.
    """
    if part.serve is not None or isinstance(part.update, Composition):
        return None
    return repr(part.head), *_shapes(part.head)


def _shapes(head: nn.Module) -> tuple[Hashable, ...]:
    return tuple((name, tuple(tensor.shape)) for name, tensor in head.state_dict().items())


# What is recorded ---------------------------------------------------------------------------------


def is_told(stages: Sequence[Stage], stage: Stage, experiences: int) -> bool:
    """Return whether costs are told at a stage: the last of a row, where everything has come."""
    whole = set(stage.members) == set(range(experiences))
    return stage == stages[-1] and whole and not stage.group and shots_of(stage) is None


@dataclass
class Costs:
    """The costs of the rows of one seed. What is the same work is timed once.

    Attributes:
        bench: of the seed.
    """

    bench: Workbench
    _times: dict[Hashable, float] = field(default_factory=dict)

    def of(
        self, row: str, arm: Arm | None, stages: Sequence[Stage], stage: Stage, served: Served
    ) -> tuple[tuple[Account, ...], tuple[Timing, ...]]:
        """Return what is recorded of a row at a stage: nothing but at its last.

        Args:
            row: its name.
            arm: the arm; None for a baseline.
            stages: at which it is scored.
            stage: which it was scored at now.
            served: what it serves there.
        """
        bench = self.bench
        if not is_told(stages, stage, len(bench.benchmark.experiences)):
            return (), ()
        kept = (
            kept_by_reference(bench, REFERENCES[row], stage, served)
            if arm is None
            else kept_by_arm(bench, arm, stage, served.coefficients)
        )
        values = {
            PASSES: float(served.passes),
            TO_SERVE: float(bytes_to_serve(served)),
            **{quantity: float(getattr(kept, what)) for quantity, what in _KEPT.items()},
        }
        accounts = (Account(bench.seed, row, stage.index, q, v) for q, v in values.items())
        taken = self.milliseconds(served, stage)
        return tuple(accounts), (timed(bench.seed, row, stage.index, MILLISECONDS, taken),)

    def milliseconds(self, served: Served, stage: Stage) -> float:
        """Return what an input takes as it would be served, in a batch of the evaluation's size.

        The batch has test inputs of all experiences that its first part serves, as many of each.
        """
        first = served.parts[stage.evaluated[0]]
        work = kind_of_work(first)
        if work is not None and work in self._times:
            return self._times[work]
        inputs = self._inputs([j for j in stage.evaluated if served.parts[j] is first])
        with serving(self.bench, first) as serve:
            taken = milliseconds(serve, inputs, self.bench.compute.device)
        if work is not None:
            self._times[work] = taken
        return taken

    def _inputs(self, experiences: Sequence[int]) -> Tensor:
        bench = self.bench
        each = -(-bench.batch_size // len(experiences))
        chosen = (bench.benchmark.experiences[j] for j in experiences)
        parts = [bench.backbone.encode(e.inputs[e.test[:each]]) for e in chosen]
        return torch.cat(parts)[: bench.batch_size].to(bench.compute.device)


_KEPT: Mapping[str, str] = {
    ADAPTERS: "adapters",
    STATISTICS: "statistics",
    BUFFER: "buffer",
    DATA: "data",
}
