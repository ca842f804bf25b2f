"""Intervals over test samples, for a single seed: the paired bootstrap of right and wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cl_lora.evaluation.aggregate import Difference

BoolArray = NDArray[np.bool_]


def paired_bootstrap(
    a: Sequence[BoolArray],
    b: Sequence[BoolArray],
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Return ``mean_j (mean a_j - mean b_j)`` with its percentile interval over test samples.

    Efron 1979. A resample draws the N_j samples of every experience j anew with replacement, both
    arms together. As ``a - b`` takes the values -1, 0 and 1 only, it is enough to draw how often
    each of them occurs: a multinomial of three counts, which is the same distribution.

    The interval answers whether the difference is more than the luck of which test samples there
    are. Another seed would train other adapters: of that it says nothing.

    Args:
        a: for each experience bool (N_j,), whether the arm is right.
        b: the same of the other arm, on the same samples.
        confidence: coverage of the interval.
        resamples: how many resamples are drawn.
        seed: of the draw.

    Returns:
        The difference; ``n`` counts the test samples, and there is no p value. All NaN without
        samples.

    Raises:
        ValueError: if the arms were not served the same samples, or an argument is out of range.

    Example:
        >>> right, wrong = np.ones(4, dtype=bool), np.zeros(4, dtype=bool)
        >>> paired_bootstrap([right], [wrong])
        Difference(mean=1.0, low=1.0, high=1.0, n=4, p=nan, holm=nan)
    """
    sizes = [len(x) for x in a]
    if sizes != [len(x) for x in b]:
        raise ValueError(f"Expected pairs but got {sizes} and {[len(x) for x in b]} samples")
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(
            f"Expected confidence in (0, 1) and resamples of at least 1 but got {confidence} and "
            f"{resamples}"
        )
    if not sizes or not all(sizes):
        return Difference(math.nan, math.nan, math.nan, sum(sizes))
    # Imported late: it imports torch, which most reports do without.
    from cl_lora.support.seeding import numpy_generator

    generator = numpy_generator(seed, "bootstrap")
    mean = 0.0
    resampled = np.zeros(resamples)
    for x, y in zip(a, b, strict=True):
        lost, won = int((~x & y).sum()), int((x & ~y).sum())
        counts = generator.multinomial(
            len(x), [lost / len(x), won / len(x), 1 - (lost + won) / len(x)], size=resamples
        )
        resampled += (counts[:, 1] - counts[:, 0]) / len(x) / len(a)
        mean += (won - lost) / len(x) / len(a)
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Difference(mean, float(low), float(high), sum(sizes))
