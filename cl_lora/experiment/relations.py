"""How alike the adapters of a bank are, two by two, and what each does to the backbone."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from itertools import combinations

import numpy as np
from torch import Tensor

from cl_lora.benchmarks.splits import Indices
from cl_lora.evaluation.continual import FloatArray
from cl_lora.evaluation.similarity import linear_cka
from cl_lora.experiment.banks import FRESH
from cl_lora.experiment.serving import OwnUpdate, Workbench
from cl_lora.merging import geometry
from cl_lora.run_folder.records import AdapterFact, Relation
from cl_lora.support.errors import UserError
from cl_lora.support.seeding import numpy_generator

COSINE, SUBSPACE, CKA = "cosine", "subspace", "cka"
"""The measures of a pair."""

_COMPARED = 100
"""Train images of either task on which features are compared."""

_OWN = 200
"""Train images of its own on which the variance of an adapter's features is measured."""

log = logging.getLogger(__name__)


def relations(bench: Workbench, advance: Callable[[], None] = lambda: None) -> list[Relation]:
    """Return cosine, overlap of subspaces and linear CKA of every pair of the bank.

    CKA compares the backbone's pooled features under each adapter alone, on the same train images:
    as many of the one task as of the other. A pair whose features are all equal has none.

    Args:
        bench: a seed of a run.
        advance: called after each adapter.
    """
    bank = bench.banks[FRESH.name]
    features: dict[tuple[int, int], FloatArray] = {}
    for i in range(len(bank)):
        for j in range(len(bank)):
            features[i, j] = _features(bench, i, j, _COMPARED)
        advance()
    measures: dict[str, Callable[[int, int], float]] = {
        COSINE: lambda a, b: geometry.cosine(bank[a].factors, bank[b].factors),
        SUBSPACE: lambda a, b: geometry.subspace_overlap(bank[a].factors, bank[b].factors),
        CKA: lambda a, b: linear_cka(_both(features, a, (a, b)), _both(features, b, (a, b))),
    }
    found = []
    for a, b in combinations(range(len(bank)), 2):
        for name, measure in measures.items():
            try:
                found.append(Relation(bench.seed, name, a, b, measure(a, b)))
            except UserError as error:  # of features that have collapsed: it says so
                names = " and ".join(repr(bench.benchmark.names[i]) for i in (a, b))
                log.warning("seed %d: no %s of %s: %s", bench.seed, name, names, error)
    return found


def facts(bench: Workbench) -> list[AdapterFact]:
    """Return norm, stable rank, shares by projection, and the share of features' variance.

    The last is ``tr(Cov f) / E|f|^2`` of the features f of the adapter's own train images: what of
    them differs between images. It is near 0 where training made all features alike.
    """
    found = []
    for j, adapter in enumerate(bench.banks[FRESH.name]):
        values = {
            "feature_variance_share": variance_share(_features(bench, j, j, _OWN)),
            "norm": geometry.norm(adapter.factors),
        }
        if values["norm"]:
            values["stable_rank"] = geometry.stable_rank(adapter.factors)
            shares = geometry.shares(adapter.factors)
            values |= {f"share_{part}": share for part, share in shares.items()}
        found += [
            AdapterFact(bench.seed, j, name, value)
            for name, value in values.items()
            if math.isfinite(value)  # features may overflow in half precision
        ]
    return found


def variance_share(features: FloatArray) -> float:
    """Return ``tr(Cov f) / E|f|^2 = 1 - |E f|^2 / E|f|^2`` of features (N, d), in [0, 1].

    Example:
        >>> variance_share(np.array([[1.0, 0.0], [0.0, 1.0]])), variance_share(np.ones((3, 2)))
        (0.5, 0.0)
    """
    x = np.asarray(features, dtype=np.float64)
    spread = ((x - x.mean(axis=0)) ** 2).sum(axis=1).mean()
    whole = (x**2).sum(axis=1).mean()
    return float(spread / whole) if whole else 0.0


def _both(
    features: Mapping[tuple[int, int], FloatArray], i: int, tasks: tuple[int, int]
) -> FloatArray:
    """Return the features under adapter ``i`` of the images of two tasks."""
    return np.concatenate([features[i, j] for j in tasks])


def _features(bench: Workbench, i: int, j: int, count: int) -> FloatArray:
    """Return the features (N, d) under adapter ``i`` of at most ``count`` train images of ``j``."""
    pool = bench.benchmark.experiences[j].train
    chosen = numpy_generator(bench.seed, "relations", j).permutation(pool)[:count]
    indices: Indices = np.sort(chosen)
    update = OwnUpdate(bench.banks[FRESH.name][i])
    features: Tensor = bench.store.get(None, update, j, indices)
    found: FloatArray = features.cpu().double().numpy()
    return found
