"""Features of a run that are computed once: by what is served, and by sample."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from cl_lora.benchmarks.batches import batches, target_tensor
from cl_lora.benchmarks.core import Benchmark, Experience
from cl_lora.benchmarks.splits import Indices
from cl_lora.models.backbones import Backbone
from cl_lora.models.compute import Batch, Compute
from cl_lora.models.features import kept_features
from cl_lora.models.routing import style, styles
from cl_lora.models.weights import Change, begins_at, changed


@dataclass(eq=False)
class _Known:
    """Features of some samples of one experience: ``place[i]`` is the row of sample i, or -1."""

    place: Indices
    rows: Tensor


BUDGET = 2**30
"""How many bytes of tokens are kept, where nothing else is said."""


class _Prefix:
    """Tokens that enter the first adapted block, batch by batch, as long as there is room.

    What is below that block is the same whatever is served. A batch is known by its samples and
    their order, so that going on from it is what a whole pass does, to the last bit. The first to
    come are kept: a pass over more than there is room for would push out each before its turn.
    """

    def __init__(self, compute: Compute, backbone: Backbone, block: int, budget: int) -> None:
        self.block = min(block, backbone.depth)
        self._compute, self._backbone = compute, backbone
        self._room = budget
        self._kept: dict[Hashable, Tensor] = {}

    def tokens(self, key: Hashable, inputs: Callable[[], Tensor]) -> Tensor:
        """Return the tokens of a batch; its inputs are asked for where it is not there."""
        if key not in self._kept:
            tokens = self._compute.tokens(self._backbone, inputs(), self.block)
            size = tokens.numel() * tokens.element_size()
            if size > self._room:
                return tokens
            self._room -= size
            self._kept[key] = tokens
        return self._kept[key]

    def features(self, tokens: Tensor) -> Tensor:
        """Return the features of tokens under the backbone as it stands, float32 (batch, d)."""
        return self._compute.resumed(self._backbone, tokens, self.block)


@dataclass(frozen=True, eq=False)
class FeatureStore:
    """Features under what stays as it is: the bare backbone, a merge with given coefficients.

    Nested support sets, the pool and the query each cost one pass, whatever arm asks first. Where
    no adapter touches the first blocks, what these compute of test samples is kept too, and every
    arm and stage pays for the blocks above alone.

    Attributes:
        benchmark: where samples come from.
        backbone: frozen.
        compute: where and how precisely.
        batch_size: inputs per forward pass.
        first_block: the first that adapters of the run touch; 0: nothing is kept below one.
        budget: how many bytes of tokens are kept; the scores are the same with any number.
    """

    benchmark: Benchmark
    backbone: Backbone
    compute: Compute
    batch_size: int
    first_block: int = 0
    budget: int = field(default_factory=lambda: BUDGET)
    _known: dict[tuple[Hashable, int], _Known] = field(default_factory=dict)

    @cached_property
    def _prefix(self) -> _Prefix:
        return _Prefix(self.compute, self.backbone, self.first_block, self.budget)

    def _begins(self, lowest: int) -> bool:
        """Return whether a pass may go on from kept tokens where block ``lowest`` is touched."""
        return bool(self.budget) and 0 < self._prefix.block <= lowest

    def features(self, lowest: int, j: int, indices: Indices) -> Iterator[Batch]:
        """Yield features, float32 (batch, d), and targets under the backbone as it stands.

        Each batch is computed when it is asked for.

        Args:
            lowest: the first block that was touched: see
                :func:`~cl_lora.models.weights.lowest_block`.
            j: index of the experience.
            indices: int64 (N,) into its inputs.
        """
        if not self._begins(lowest):
            yield from self.compute.features(self.backbone, self._batches(j, indices))
            return
        for tokens, targets in self._begun(j, indices):
            yield self._prefix.features(tokens), targets

    def passes(self, batches: Sequence[Batch]) -> Callable[[int], Iterator[Batch]]:
        """Return what makes a pass over the same batches (inputs, targets) again and again.

        It takes the first block that was touched, and gives what :meth:`features` does. Tokens are
        kept as long as it is.
        """
        prefix = _Prefix(self.compute, self.backbone, self.first_block, self.budget)

        def features(lowest: int) -> Iterator[Batch]:
            if not self._begins(lowest):
                yield from self.compute.features(self.backbone, batches)
                return
            for number, (inputs, targets) in enumerate(batches):
                tokens = prefix.tokens(number, partial(_same, inputs))
                yield prefix.features(tokens), targets.to(self.compute.device)

        return features

    def styles(self, block: int, j: int, indices: Indices) -> Tensor:
        """Return the styles of samples, float32 (N, 2 d): see :mod:`cl_lora.models.routing`."""

        def compute(missing: Indices) -> Tensor:
            if block == self._prefix.block and self._begins(block):
                begun = (tokens for tokens, _ in self._begun(j, missing))
                return torch.cat([style(self.backbone.patches(tokens)) for tokens in begun])
            pairs = styles(self.compute, self.backbone, self._batches(j, missing), block)
            return torch.cat([found for found, _ in pairs])

        return self._kept(("style", block), j, indices, compute)

    def get(self, key: Hashable, change: Change, j: int, indices: Indices) -> Tensor:
        """Return the features of samples of experience ``j``, float32 (N, d), on the device.

        Args:
            key: what names ``change``: equal keys are one and the same backbone. None for one that
                comes but once: nothing is kept of it.
            change: what is done to the backbone.
            j: index of the experience.
            indices: int64 (N,) into its inputs.
        """
        if key is None:
            return self._compute(change, j, indices)
        return self._kept(key, j, indices, partial(self._compute, change, j))

    def _kept(
        self, key: Hashable, j: int, indices: Indices, compute: Callable[[Indices], Tensor]
    ) -> Tensor:
        """Return a row for each sample; what is not there yet is computed, and kept."""
        experience = self.benchmark.experiences[j]
        known = self._known.setdefault(
            (key, j),
            _Known(np.full(len(experience.inputs), -1, dtype=np.int64), torch.empty(0)),
        )
        missing = np.unique(indices[known.place[indices] < 0])
        if len(missing):
            found = compute(missing)
            there = known.rows if len(known.rows) else found[:0]
            known.place[missing] = len(there) + np.arange(len(missing))
            known.rows = torch.cat([there, found])
        return known.rows[torch.from_numpy(known.place[indices]).to(known.rows.device)]

    def forget(self) -> None:
        """Let go of everything."""
        self._known.clear()
        self.__dict__.pop("_prefix", None)

    def _compute(self, change: Change, j: int, indices: Indices) -> Tensor:
        with changed(self.backbone.network, change):
            pairs = self.features(begins_at(change), j, indices)
            features, _ = kept_features(self.backbone, pairs)
        return features

    def _begun(self, j: int, indices: Indices) -> Iterator[Batch]:
        """Yield what the first adapted block receives, and the targets, of every batch."""
        experience = self.benchmark.experiences[j]
        for start in range(0, len(indices), self.batch_size):
            chosen = indices[start : start + self.batch_size]
            read = partial(_encoded, experience, chosen, self.backbone)
            tokens = self._prefix.tokens((j, chosen.tobytes()), read)
            yield tokens, target_tensor(experience, chosen).to(tokens.device)

    def _batches(self, j: int, indices: Indices) -> Iterator[Batch]:
        experience = self.benchmark.experiences[j]
        return batches(experience, indices, self.batch_size, self.backbone.encode)


def _encoded(experience: Experience, indices: Indices, backbone: Backbone) -> Tensor:
    return backbone.encode(experience.inputs[indices])


def _same(inputs: Tensor) -> Tensor:
    return inputs
