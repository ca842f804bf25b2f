"""Class-Gaussians of features: moments that go on exactly, and the heads and routers made of them.

Features of a class in an experience are taken as a Gaussian with a mean of its own and a covariance
that all share. The posterior is then linear in the feature for one mean, and a logsumexp of linear
functions where a class, or a domain, has several means. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cl_lora.support.errors import UserError

ABSENT = -1e30
"""The log-density of a mean that does not exist: finite, and never chosen."""

_ROUNDING = 1e-7


class Moments:
    """Class means of features and their scatter within the classes, as sums that can go on.

    In float64, by the update of Chan et al. 1983: what several passes or batches give is what one
    pass over everything gives, but for rounding.

    Args:
        classes: C, how many classes there may be.
        features: d, size of the features.
    """

    def __init__(self, classes: int, features: int) -> None:
        self.counts = torch.zeros(classes, dtype=torch.float64)
        self.means = torch.zeros(classes, features, dtype=torch.float64)
        self.scatter = torch.zeros(features, features, dtype=torch.float64)

    @property
    def lacks_samples(self) -> bool:
        """Whether there were too few samples for their covariance to have an inverse."""
        freedom = self.counts.sum() - (self.counts > 0).sum()
        return bool(freedom < len(self.scatter))

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Add samples.

        Args:
            features: float (N, d).
            targets: int64 (N,), classes.
        """
        values, labels = features.detach().double().cpu(), targets.cpu()
        batch = Moments(len(self.counts), values.shape[1])
        batch.counts = torch.bincount(labels, minlength=len(self.counts)).double()
        batch.means.index_add_(0, labels, values)
        batch.means /= batch.counts.clamp(min=1)[:, None]
        centred = values - batch.means[labels]
        batch.scatter = centred.T @ centred
        self.merge(batch)

    def merge(self, other: Moments) -> None:
        """Add all that another pass has summed."""
        total = self.counts + other.counts
        apart = other.means - self.means
        share = other.counts / total.clamp(min=1)
        between = (self.counts * share).sqrt()[:, None] * apart
        self.scatter = self.scatter + other.scatter + between.T @ between
        self.means = self.means + share[:, None] * apart
        self.counts = total

    def result(self) -> dict[str, Tensor]:
        """Return counts float64 (C,), means float32 (C, d) and the covariance within the classes.

        The covariance is the scatter over the number of samples; of a symmetric matrix the upper
        triangle is kept, float32 (d (d + 1) / 2,).

        Raises:
            UserError: if there was no sample, or a number is not finite.
        """
        count = float(self.counts.sum())
        if not count:
            raise UserError("Expected at least one sample to gather a statistic of but got none")
        covariance = _triangle(self.scatter / count).float()
        if not bool(self.means.isfinite().all() and covariance.isfinite().all()):
            raise UserError(
                "Expected finite features but some are NaN or infinite; use precision=fp32, or "
                "train with a smaller learning rate"
            )
        return {"counts": self.counts, "means": self.means.float(), "covariance": covariance}


def _triangle(matrix: Tensor) -> Tensor:
    rows, columns = torch.triu_indices(*matrix.shape)
    return matrix[rows, columns]


def _square(triangle: Tensor, size: int) -> Tensor:
    matrix = triangle.new_zeros(size, size)
    rows, columns = torch.triu_indices(size, size)
    matrix[rows, columns] = triangle
    matrix[columns, rows] = triangle
    return matrix


@dataclass(frozen=True, eq=False)
class Gaussians:
    """Gaussians of D domains and C classes each, with one covariance.

    Attributes:
        counts: samples, float64 (D, C); 0 for a class that a domain does not have.
        means: float64 (D, C, d).
        covariance: float64 (d, d), within the classes, over all samples.
    """

    counts: Tensor
    means: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, results: Sequence[Mapping[str, Tensor]]) -> Gaussians:
        """Return the Gaussians of D domains from what :meth:`Moments.result` gave of each."""
        counts = torch.stack([r["counts"].double() for r in results])
        means = torch.stack([r["means"].double() for r in results])
        size = means.shape[-1]
        shares = counts.sum(1) / counts.sum()
        covariance = sum(
            share * _square(r["covariance"].double(), size)
            for share, r in zip(shares, results, strict=True)
        )
        assert isinstance(covariance, Tensor)
        return cls(counts, means, covariance)

    def moved(self, shift: Tensor) -> Gaussians:
        """Return them with means that are moved by ``shift`` (D, C, d)."""
        return Gaussians(self.counts, self.means + shift.to(self.means), self.covariance)

    def densities(self, ridge: float) -> Densities:
        """Return the linear functions of a feature that tell the means apart.

        ``l_dc(f) = m_dc^T S^-1 f - m_dc^T S^-1 m_dc / 2`` with ``S = covariance + ridge mean(diag)
        I``: the log-density up to what all have in common (linear discriminant analysis, without
        a prior). The ridge gives a covariance of few samples an inverse.

        Raises:
            UserError: if no feature varies within a class: nothing is then more or less likely.
        """
        size = self.covariance.shape[0]
        mean = self.covariance.diagonal().mean()
        # Below it, what varies is the rounding of features in single precision.
        if mean <= (_ROUNDING * self.means.abs().max()) ** 2:
            raise UserError(
                "Expected features that vary within a class but every class has one image, or "
                "images that are all alike to the backbone, and no Gaussian is made of them; give "
                "more images, or leave out routed coefficients and heads of statistics"
            )
        shrunk = self.covariance + ridge * mean * torch.eye(size, dtype=torch.float64)
        there = self.counts > 0
        # Around a point amid the means, where float32 loses nothing; what is left out is in all.
        centre = self.means[there].mean(0)
        flat = (self.means - centre).reshape(-1, size)
        weight = torch.linalg.solve(shrunk, flat.T).T
        bias = -(weight * flat).sum(1) / 2
        bias[~there.reshape(-1)] = ABSENT
        shape = self.counts.shape
        return Densities(weight.view(self.means.shape), bias.view(shape), centre)


class Densities(nn.Module):
    """Log-densities of features under D x C Gaussians, up to what all have in common.

    Args:
        weight: (D, C, d).
        bias: (D, C).
        centre: (d,), what is taken off every feature first.
    """

    weight: Tensor
    bias: Tensor
    centre: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, centre: Tensor) -> None:
        super().__init__()
        self.register_buffer("centre", centre.float())
        self.register_buffer("weight", weight.float())
        self.register_buffer("bias", bias.float())

    def forward(self, features: Tensor) -> Tensor:
        """Return log-densities (batch, D, C) of features (batch, d)."""
        domains, classes, size = self.weight.shape
        flat = torch.addmm(
            self.bias.view(-1), features.float() - self.centre, self.weight.view(-1, size).T
        )
        return flat.view(-1, domains, classes)

    def of_classes(self, features: Tensor) -> Tensor:
        """Return ``logsumexp_d l_dc``, (batch, C)."""
        return self.forward(features).logsumexp(1)

    def of_domains(self, features: Tensor) -> Tensor:
        """Return ``logsumexp_c l_dc``, (batch, D)."""
        return self.forward(features).logsumexp(2)


class MixtureHead(nn.Module):
    """The class whose Gaussians, one for each domain, are the likeliest together."""

    def __init__(self, densities: Densities) -> None:
        super().__init__()
        self.densities = densities

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (batch, C) of features (batch, d)."""
        return self.densities.of_classes(features)


class HalvesHead(nn.Module):
    """The mean of what two heads give as probabilities.

    ``log((softmax(first(f)) + softmax(second(f))) / 2)``
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, features: Tensor) -> Tensor:
        """Return log-probabilities (batch, C) of features (batch, d)."""
        both = [head(features).log_softmax(-1) for head in (self.first, self.second)]
        return torch.stack(both).logsumexp(0) - torch.log(torch.tensor(2.0))


def shrunk_drift(drifts: Tensor, targets: Tensor, classes: int, strength: float = 10.0) -> Tensor:
    """Return how far the class means of a domain have moved, judged by a few samples.

    ``(n_c delta_c + strength delta) / (n_c + strength)`` with the mean drift of a class and that of
    the domain: that of a class alone is noisy, and none is worse.

    Args:
        drifts: (N, d), what was added to the feature of each sample since its mean was taken.
        targets: int64 (N,).
        classes: C.
        strength: how many samples the domain's drift counts for.

    Returns:
        float64 (C, d).
    """
    moments = Moments(classes, drifts.shape[1])
    moments.add(drifts, targets)
    counts = moments.counts[:, None]
    whole = drifts.detach().double().cpu().mean(0)
    return (counts * moments.means + strength * whole) / (counts + strength)
