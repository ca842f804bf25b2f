"""The features of one task under every arm, placed in the plane by t-SNE: a picture only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from cl_lora.benchmarks.splits import Indices
from cl_lora.experiment.serving import Served, Workbench
from cl_lora.run_folder.records import Embedding
from cl_lora.support.seeding import derive, numpy_generator

SAMPLES = 200
"""Test samples that are placed, as many as Jiang et al. (2023) show."""

_FEWEST = 4
"""With fewer samples no perplexity makes sense."""

_PERPLEXITY = 30.0

log = logging.getLogger(__name__)


def embed(
    bench: Workbench,
    served_by_name: Mapping[str, Served],
    j: int,
    advance: Callable[[], None] = lambda: None,
) -> list[Embedding]:
    """Return where t-SNE (van der Maaten and Hinton 2008) places test samples, for each arm.

    The backbone's features of the same samples under what every arm serves to experience ``j``, a
    t-SNE of its own for each: places of two arms have nothing to do with one another. It is a
    picture, drawn of test samples: no arm, coefficient or task is chosen by it.

    Labels are classes; where a task has none, the quarter of its value. Samples whose label is
    unknown (-1) are not drawn. A task of too few samples has no rows, and neither has an arm that
    makes all features alike; the log says so.

    Args:
        bench: a seed of a run; reports need the first alone.
        served_by_name: name of an arm or a row -> what it serves, with a part for ``j``.
        j: index of the experience.
        advance: called after each arm.
    """
    samples, labels = _drawn(bench, j)
    if len(samples) < _FEWEST:
        log.warning(
            "seed %d: no picture of the features of %r: expected at least %d test samples but got "
            "%d",
            *(bench.seed, bench.benchmark.names[j], _FEWEST, len(samples)),
        )
        return []
    found = []
    for name, served in served_by_name.items():
        # Without a key nothing is kept: features in other batches could differ in their last bit.
        features = bench.store.get(None, served.update(j), j, samples)
        places = place(features.cpu().double().numpy(), derive(bench.seed, "embedding", j))
        advance()
        if places is None:
            log.warning(
                "seed %d: no picture of the features of %r under %r: they are all alike, or not "
                "finite",
                *(bench.seed, bench.benchmark.names[j], name),
            )
            continue
        found += [
            Embedding(bench.seed, name, j, int(sample), int(label), float(x), float(y))
            for sample, label, (x, y) in zip(samples, labels, places, strict=True)
        ]
    return found


def place(features: NDArray[np.float64], state: int) -> NDArray[np.float64] | None:
    """Return places (N, 2) of features (N, d) by t-SNE, started from their principal components.

    Exact gradients, perplexity ``min(30, (N - 1) / 3)``: at most a third of the others are
    neighbours.

    Args:
        features: of at least 4 samples.
        state: what the random state derives from.

    Returns:
        The places; None where the features are all equal, or not finite.
    """
    # Imported late: it costs half a second that most commands never need.
    from sklearn.manifold import TSNE

    if not np.isfinite(features).all() or not features.std(axis=0).any():
        return None
    maker = TSNE(
        perplexity=min(_PERPLEXITY, (len(features) - 1) / 3),
        init="pca",
        method="exact",
        random_state=state % 2**32,
    )
    places: NDArray[np.float64] = maker.fit_transform(features).astype(np.float64)
    return places if np.isfinite(places).all() else None


def _drawn(bench: Workbench, j: int) -> tuple[Indices, NDArray[np.int64]]:
    """Return the test samples that are placed, ascending, and the label of each."""
    experience = bench.benchmark.experiences[j]
    task = experience.task
    labels, _ = task.kind.strata(task, experience.targets[experience.test])
    known = np.flatnonzero(labels >= 0)
    chosen = np.sort(numpy_generator(bench.seed, "embedding", j).permutation(known)[:SAMPLES])
    samples: Indices = experience.test[chosen]
    return samples, labels[chosen]
