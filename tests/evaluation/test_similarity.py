"""Linear CKA and rank correlation, against formulas written out and known invariances."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_lora.evaluation.similarity import linear_cka, rank_correlation
from cl_lora.support.errors import UserError


def gram_cka(x, y):
    """Return CKA by dense Gram matrices: tr(K H L H) / sqrt(tr(K H K H) tr(L H L H))."""
    n = len(x)
    h = np.eye(n) - np.ones((n, n)) / n
    k, m = x @ x.T, y @ y.T

    def hsic(a, b):
        return np.trace(a @ h @ b @ h)

    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


@st.composite
def features(draw):
    """Draw two sets of features of the same samples, offset, of any sizes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, d1, d2 = (draw(st.integers(low, 12)) for low in (2, 1, 1))
    shared = rng.normal(size=(n, 3))
    mix = draw(st.floats(0, 1))
    x = mix * shared @ rng.normal(size=(3, d1)) + rng.normal(size=(n, d1)) + rng.normal(size=d1)
    y = mix * shared @ rng.normal(size=(3, d2)) + rng.normal(size=(n, d2)) + rng.normal(size=d2)
    return x, y, rng


@given(features())
def test_cka_is_the_dense_formula_over_gram_matrices(drawn):
    x, y, _ = drawn
    assert linear_cka(x, y) == pytest.approx(gram_cka(x, y), rel=1e-8, abs=1e-10)
    assert linear_cka(x, y) == pytest.approx(linear_cka(y, x), rel=1e-10)
    assert 0 <= linear_cka(x, y) <= 1 + 1e-12


@given(features(), st.floats(1e-3, 1e3), st.sampled_from([1, -1]))
def test_cka_ignores_rotations_scales_and_shifts(drawn, scale, sign):
    x, y, rng = drawn
    rotation, _ = np.linalg.qr(rng.normal(size=(x.shape[1], x.shape[1])))
    moved = sign * scale * x @ rotation + rng.normal(size=x.shape[1])
    assert linear_cka(moved, y) == pytest.approx(linear_cka(x, y), rel=1e-5, abs=1e-8)
    assert linear_cka(moved, x) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_cka_of_tiny_and_huge_features(scale):
    x = np.random.default_rng(0).normal(size=(8, 3))
    y = np.random.default_rng(1).normal(size=(8, 4))
    assert linear_cka(scale * x, y) == pytest.approx(linear_cka(x, y), rel=1e-12)


def test_cka_changes_under_a_transform_that_is_not_orthogonal():
    x = np.random.default_rng(0).normal(size=(20, 4))
    y = np.random.default_rng(1).normal(size=(20, 4)) + x
    stretched = x * [100, 1, 1, 1]
    assert abs(linear_cka(stretched, y) - linear_cka(x, y)) > 0.05


def test_cka_worked_by_hand():
    # Centred X = (1, -1) on the first feature; Y = (1, -1) on the second of two.
    assert linear_cka([[2.0], [0.0]], [[5.0, 1.0], [5.0, -1.0]]) == pytest.approx(1)
    # Features of one sample pair each: X varies over samples 1, 2 and Y over 3, 4.
    x = np.array([[1.0], [-1], [0], [0]])
    assert linear_cka(x, x[::-1]) == pytest.approx(0, abs=1e-15)


def test_cka_computes_in_float64():
    rng = np.random.default_rng(0)
    x = (1000 + rng.normal(size=(50, 8))).astype(np.float32)
    assert linear_cka(x, x[:, :4]) == pytest.approx(
        gram_cka(x.astype(np.float64), x[:, :4].astype(np.float64)), rel=1e-6
    )


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.eye(3), np.eye(4), "same samples but got 3 and 4"),
        (np.ones(3), np.eye(3), r"first features as a matrix .* shape \(3,\)"),
        (np.eye(3), np.ones((3, 2, 2)), "second features as a matrix"),
        (np.ones((1, 4)), np.ones((1, 4)), "at least two samples"),
        (np.ones((3, 0)), np.eye(3), "first features as a matrix"),
        (np.eye(3), np.full((3, 2), 0.1), "all 3 rows of the second ones are equal"),
        (np.array([[1, np.nan], [0, 1]]), np.eye(2), "the first ones hold NaN"),
        (np.eye(2), np.array([[1, np.inf], [0, 1]]), "the second ones hold NaN"),
    ],
)
def test_cka_refuses_what_has_no_similarity(x, y, message):
    with pytest.raises(UserError, match=message):
        linear_cka(x, y)


def mean_ranks(values):
    """Return ranks by counting: those below, and half of the equal ones."""
    flat = np.ravel(values)
    return [sum(flat < v) + (sum(flat == v) + 1) / 2 for v in flat]


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=4, max_size=24).filter(
        lambda pairs: all(len(set(side)) > 1 for side in zip(*pairs, strict=True))
    )
)
def test_rank_correlation_is_pearson_of_mean_ranks(pairs):
    pairs = pairs[: len(pairs) // 2 * 2]
    a, b = (np.array(side, dtype=float).reshape(2, -1) for side in zip(*pairs, strict=True))
    if len(set(a.ravel())) == 1 or len(set(b.ravel())) == 1:
        return
    expected = np.corrcoef(mean_ranks(a), mean_ranks(b))[0, 1]
    assert rank_correlation(a, b) == pytest.approx(expected, abs=1e-12)
    assert rank_correlation(np.exp(a), b) == pytest.approx(expected, abs=1e-12)
    assert rank_correlation(-a, b) == pytest.approx(-expected, abs=1e-12)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.eye(2), np.eye(3), r"\(2, 2\) and \(3, 3\)"),
        (np.ones((2, 3)), np.ones((3, 2)), "one shape"),
        ([1.0], [2.0], "at least two entries"),
        (np.eye(2), np.ones((2, 2)), "not all equal, .* 1..1"),
        (np.array([1.0, np.nan]), np.array([1.0, 2.0]), "finite entries"),
    ],
)
def test_rank_correlation_refuses_what_has_no_order(a, b, message):
    with pytest.raises(UserError, match=message):
        rank_correlation(a, b)
