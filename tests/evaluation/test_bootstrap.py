import math

import numpy as np
import pytest
from scipy import stats

from cl_lora.evaluation.bootstrap import paired_bootstrap


def pairs(sizes=(300, 500, 80), seed=0):
    """Two arms whose hits go together, as those of two models on the same images do."""
    generator = np.random.default_rng(seed)
    a, b = [], []
    for n in sizes:
        hard = generator.uniform(0, 1, n)
        a.append(hard + generator.normal(0, 0.1, n) < 0.8)
        b.append(hard + generator.normal(0, 0.1, n) < 0.75)
    return a, b


def naive(a, b, resamples):
    """Resample the images themselves, one experience after another, with indices."""
    generator = np.random.default_rng(99)
    found = []
    for _ in range(resamples):
        of_experience = []
        for x, y in zip(a, b, strict=True):
            chosen = generator.integers(0, len(x), len(x))
            of_experience.append(x[chosen].mean() - y[chosen].mean())
        found.append(np.mean(of_experience))
    return np.array(found)


def test_it_is_the_resampling_of_images():
    a, b = pairs()
    ours = paired_bootstrap(a, b)
    drawn = naive(a, b, 4000)
    low, high = np.quantile(drawn, [0.025, 0.975])
    error = 4 * drawn.std() / math.sqrt(4000) * 2  # of a quantile in the tail
    assert (ours.low, ours.high) == (pytest.approx(low, abs=error), pytest.approx(high, abs=error))
    means = [x.mean() - y.mean() for x, y in zip(a, b, strict=True)]
    assert ours.mean == pytest.approx(np.mean(means))
    assert ours.n == 880
    assert math.isnan(ours.p)


def test_on_many_images_it_is_the_normal_approximation():
    a, b = pairs((20_000, 30_000))
    ours = paired_bootstrap(a, b, confidence=0.9)
    d = [x.astype(float) - y for x, y in zip(a, b, strict=True)]
    error = math.sqrt(sum(x.var() / len(x) for x in d)) / len(d)
    half = stats.norm.ppf(0.95) * error
    assert ours.high - ours.mean == pytest.approx(half, rel=0.03)
    assert ours.mean - ours.low == pytest.approx(half, rel=0.03)


def test_pairing_tells_more_than_two_arms_apart():
    a, b = pairs((2000,))
    paired = paired_bootstrap(a, b)
    mixed = [np.random.default_rng(1).permutation(b[0])]
    unpaired = paired_bootstrap(a, mixed)
    assert paired.mean == pytest.approx(unpaired.mean)
    assert paired.high - paired.low < 0.7 * (unpaired.high - unpaired.low)


def test_every_experience_weighs_the_same():
    right, wrong = np.ones(1000, dtype=bool), np.zeros(10, dtype=bool)
    found = paired_bootstrap([right, wrong], [~right, ~wrong])
    assert found.mean == 0
    assert (found.low, found.high) == (0, 0)


def test_the_same_arm_has_no_difference_and_the_same_draw_the_same_interval():
    a, b = pairs()
    same = paired_bootstrap(a, a)
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    assert paired_bootstrap(a, b).low == paired_bootstrap(a, b).low
    assert paired_bootstrap(a, b, seed=1).low != paired_bootstrap(a, b).low


def test_without_images_there_is_nothing():
    empty = [np.zeros(0, dtype=bool)]
    for arrays in (empty, []):
        found = paired_bootstrap(arrays, arrays)
        assert math.isnan(found.mean)
        assert found.n == 0


def test_bad_arguments_are_named():
    a, b = pairs((10,))
    with pytest.raises(ValueError, match="Expected pairs but got"):
        paired_bootstrap(a, [b[0][:9]])
    for wrong in ({"confidence": 1.0}, {"resamples": 0}):
        with pytest.raises(ValueError, match="Expected confidence"):
            paired_bootstrap(a, b, **wrong)
