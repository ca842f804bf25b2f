"""Features of a run that are computed once: by what is served, and by sample."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cl_lora.benchmarks.batches import batches
from cl_lora.benchmarks.core import Benchmark
from cl_lora.benchmarks.splits import Indices
from cl_lora.models.backbones import Backbone
from cl_lora.models.compute import Batch, Compute
from cl_lora.models.features import cached_features
from cl_lora.models.routing import styles
from cl_lora.models.weights import Change, changed


@dataclass(eq=False)
class _Known:
    """Features of some samples of one experience: ``place[i]`` is the row of sample i, or -1."""

    place: Indices
    rows: Tensor


@dataclass(frozen=True, eq=False)
class FeatureStore:
    """Features under what stays as it is: the bare backbone, a merge with given coefficients.

    Nested support sets, the pool and the query each cost one pass, whatever arm asks first.

    Attributes:
        benchmark: where samples come from.
        backbone: frozen.
        compute: where and how precisely.
        batch_size: inputs per forward pass.
    """

    benchmark: Benchmark
    backbone: Backbone
    compute: Compute
    batch_size: int
    _known: dict[tuple[Hashable, int], _Known] = field(default_factory=dict)

    def styles(self, block: int, j: int, indices: Indices) -> Tensor:
        """Return the styles of samples, float32 (N, 2 d): see :mod:`cl_lora.models.routing`."""

        def compute(missing: Indices) -> Tensor:
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

    def _compute(self, change: Change, j: int, indices: Indices) -> Tensor:
        with changed(self.backbone.network, change):
            features, _ = cached_features(self.compute, self.backbone, self._batches(j, indices))
        return features

    def _batches(self, j: int, indices: Indices) -> Iterator[Batch]:
        experience = self.benchmark.experiences[j]
        return batches(experience, indices, self.batch_size, self.backbone.encode)
