"""Class-Gaussians against scikit-learn and dense float64 algebra; moments that go on exactly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor, nn

from cl_lora.models.gaussians import (
    Gaussians,
    HalvesHead,
    MixtureHead,
    Moments,
    shrunk_drift,
)
from cl_lora.support.errors import UserError

C, D = 4, 6


def samples(seed: int, count: int = 90, classes: int = C) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % classes)
    mixing = rng.normal(size=(D, D))
    values = 3 * rng.normal(size=(classes, D))[labels] + rng.normal(size=(count, D)) @ mixing + 50
    return torch.from_numpy(values), torch.from_numpy(labels)


def moments(values: Tensor, labels: Tensor) -> Moments:
    made = Moments(C, values.shape[1])
    made.add(values, labels)
    return made


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 90), max_size=5), st.integers(0, 5))
def test_batches_give_what_one_batch_of_everything_gives(cuts: list[int], seed: int) -> None:
    values, labels = samples(seed)
    edges = [0, *sorted(cuts), len(labels)]
    joined = Moments(C, D)
    for a, b in itertools.pairwise(edges):
        part = Moments(C, D)
        if b > a:
            part.add(values[a:b], labels[a:b])
        joined.merge(part)
    whole = moments(values, labels)
    torch.testing.assert_close(joined.counts, whole.counts, rtol=0, atol=0)
    torch.testing.assert_close(joined.means, whole.means, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(joined.scatter, whole.scatter, rtol=1e-10, atol=1e-9)


def test_moments_are_those_of_numpy() -> None:
    values, labels = samples(1)
    made = moments(values, labels)
    x, y = values.numpy(), labels.numpy()
    for c in range(C):
        np.testing.assert_allclose(made.means[c], x[y == c].mean(0), rtol=1e-12)
    within = sum(
        (x[y == c] - x[y == c].mean(0)).T @ (x[y == c] - x[y == c].mean(0)) for c in range(C)
    )
    np.testing.assert_allclose(made.scatter, within, rtol=1e-10, atol=1e-9)


def test_features_far_from_zero_keep_their_covariance() -> None:
    """The plain formula E[x x^T] - m m^T in float32 would lose it."""
    values, labels = samples(2)
    near, far = moments(values, labels).scatter, moments(values + 1e6, labels).scatter
    torch.testing.assert_close(near, far, rtol=1e-6, atol=1e-4)


def test_what_is_kept_is_what_was_summed() -> None:
    values, labels = samples(3)
    whole = moments(values, labels)
    gaussians = Gaussians.of([whole.result()])
    torch.testing.assert_close(gaussians.means[0], whole.means, rtol=1e-6, atol=1e-5)
    covariance = whole.scatter / len(labels)
    torch.testing.assert_close(gaussians.covariance, covariance, rtol=1e-5, atol=1e-5)
    assert gaussians.covariance.equal(gaussians.covariance.T)
    assert whole.result()["covariance"].numel() == D * (D + 1) // 2


def test_one_domain_is_linear_discriminant_analysis() -> None:
    values, labels = samples(4, 88)
    head = MixtureHead(Gaussians.of([moments(values, labels).result()]).densities(0.0))
    reference = LinearDiscriminantAnalysis("lsqr", priors=[1 / C] * C).fit(values, labels)
    queries, _ = samples(5)
    found = head(queries.float()).softmax(1)
    np.testing.assert_allclose(found, reference.predict_proba(queries.numpy()), atol=1e-4)


def _reference(gaussians: Gaussians, ridge: float, x: np.ndarray) -> np.ndarray:
    """Return the log-densities (N, D, C), by scipy, up to a constant for each sample."""
    covariance = gaussians.covariance.numpy()
    shrunk = covariance + ridge * covariance.diagonal().mean() * np.eye(len(covariance))
    return np.stack(
        [
            [multivariate_normal(mean, shrunk).logpdf(x) for mean in means]
            for means in gaussians.means.numpy()
        ]
    ).transpose(2, 0, 1)


@pytest.mark.parametrize("ridge", [0.01, 0.1])
def test_domains_and_classes_are_told_by_the_densities_of_scipy(ridge: float) -> None:
    results = [moments(*samples(seed)).result() for seed in (6, 7, 8)]
    gaussians = Gaussians.of(results)
    queries = samples(9)[0]
    log = torch.from_numpy(_reference(gaussians, ridge, queries.numpy()))
    made = gaussians.densities(ridge)
    for ours, reference in (
        (made.of_classes(queries), log.logsumexp(1)),
        (made.of_domains(queries), log.logsumexp(2)),
    ):
        difference = ours.double() - reference
        spread = difference - difference.mean(1, keepdim=True)  # what all have in common
        assert float(spread.abs().max()) < 2e-2 * float(reference.std())
        assert ours.argmax(1).equal(reference.argmax(1))


def test_covariances_count_by_their_samples() -> None:
    few, many = samples(10, 20), samples(11, 200)
    pooled = Gaussians.of([moments(*few).result(), moments(*many).result()]).covariance
    expected = (moments(*few).scatter + moments(*many).scatter) / 220
    torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-5)


def test_a_class_that_a_domain_lacks_is_never_chosen_there_and_stays_finite() -> None:
    values, labels = samples(12, classes=3)  # of four
    densities = Gaussians.of([moments(values, labels).result()]).densities(0.05)
    logits = MixtureHead(densities)(values.float())
    assert bool(logits.isfinite().all())
    assert set(logits.argmax(1).tolist()) <= {0, 1, 2}
    assert float(logits.softmax(1)[:, 3].max()) == 0.0


def test_halves_are_the_mean_of_probabilities() -> None:
    first, second = nn.Linear(D, C), nn.Linear(D, C)
    f = torch.randn(5, D)
    expected = (first(f).softmax(1) + second(f).softmax(1)) / 2
    torch.testing.assert_close(HalvesHead(first, second)(f).exp(), expected)


def test_drift_is_shrunk_to_that_of_the_domain() -> None:
    drifts = torch.tensor([[1.0], [3.0], [5.0]])
    made = shrunk_drift(drifts, torch.tensor([0, 0, 1]), 3, strength=10.0)
    # By hand: the domain's drift is 3; class 0 has two samples of mean 2, class 1 one of 5.
    expected = [(2 * 2 + 10 * 3) / 12, (5 + 10 * 3) / 11, 3.0]
    torch.testing.assert_close(made[:, 0], torch.tensor(expected, dtype=torch.float64))


def test_nothing_and_what_is_not_finite_are_refused() -> None:
    with pytest.raises(UserError, match="at least one sample"):
        Moments(C, D).result()
    made = Moments(C, D)
    made.add(torch.full((1, D), torch.nan), torch.tensor([0]))
    with pytest.raises(UserError, match="NaN or infinite"):
        made.result()


def test_a_singular_covariance_has_an_inverse_with_its_ridge() -> None:
    values, labels = samples(2, count=C + 2)  # two dimensions vary, of D
    made = moments(values, labels)
    assert made.lacks_samples
    assert not moments(*samples(2)).lacks_samples
    gaussians = Gaussians.of([made.result()])
    assert torch.linalg.matrix_rank(gaussians.covariance, rtol=1e-5) == 2
    densities = gaussians.densities(0.05)
    matrix = gaussians.covariance + 0.05 * gaussians.covariance.diagonal().mean() * torch.eye(D)
    expected = torch.linalg.solve(matrix, (gaussians.means[0] - gaussians.means[0].mean(0)).T).T
    torch.testing.assert_close(densities.weight[0].double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [C, 3 * C])
def test_features_that_do_not_vary_within_a_class_are_refused(count: int) -> None:
    labels = torch.arange(count) % C
    values = torch.arange(C * D).view(C, D)[labels].float() / 7
    with pytest.raises(UserError, match=r"vary within a class.*more images"):
        Gaussians.of([moments(values, labels).result()]).densities(0.05)
