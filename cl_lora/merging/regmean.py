"""Regression mean: the layer whose outputs are nearest to those of every model on its own inputs.

The merged weight minimises ``sum_i alpha_i |X_i (W - W_i)^T|_F^2 / N_i`` over the inputs X_i that
layer has seen in model i, which only their Gram matrices are needed for (Jin et al. 2023).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from cl_lora.adapters import Entry, LoRAFactors, entry_delta, entry_shape
from cl_lora.merging.averaging import (
    check_shape,
    require_shares,
    statistics_of,
    weighted_mean,
)
from cl_lora.merging.registry import DIFFERENTIABLE, Kernel, OptionSpec, is_number, register
from cl_lora.merging.spaces import DeltaSpace, Sources

_NAME = "regmean"
_STATISTIC = "gram"
_NEXT_TO_NOTHING = 1e-100
"""What a layer counts whose inputs were all zero: any number that leaves the sum solvable."""


@dataclass(frozen=True, eq=False)
class Terms:
    """The parts of one module's solution that do not depend on the coefficients, in float64.

    Attributes:
        left: ``s_i B_i`` of every model, (d_out, r_i); None where the updates are dense.
        right: ``A_i G_i'`` of every model, (r_i, d_in); ``dW_i G_i'`` where they are dense.
        grams: ``G_i'``, (n, d_in, d_in).
    """

    left: tuple[Tensor, ...] | None
    right: tuple[Tensor, ...]
    grams: Tensor

    def solve(self, alpha: Tensor, dtype: torch.dtype) -> Entry:
        """Return the module's update for shares ``alpha`` (n,)."""
        shares = (alpha / alpha.sum()).to(self.grams)
        total = torch.einsum("n,nij->ij", shares, self.grams)
        factor = torch.linalg.cholesky(total)
        if self.left is None:
            rows = sum(a * right for a, right in zip(shares, self.right, strict=True))
            assert isinstance(rows, Tensor)
            return torch.cholesky_solve(rows.T, factor).T.contiguous().to(dtype)
        A = torch.cholesky_solve(torch.cat(self.right).T, factor).T.contiguous()
        B = torch.cat([a * left for a, left in zip(shares, self.left, strict=True)], dim=1)
        return LoRAFactors(A.to(dtype), B.to(dtype), 1.0)


KeptTerms: TypeAlias = Mapping[str, Terms | None]


@dataclass(frozen=True, eq=False)
class RegMean:
    """The closed-form solution module by module; low-rank updates stay low-rank.

    Attributes:
        sources: the models and their Gram matrices.
        off_diagonal: what entries of a Gram matrix beside its diagonal are multiplied with.
        ridge: of the mean of its diagonal, added to the diagonal.
        kept: the terms of each module, if they are held in memory.
    """

    sources: Sources
    off_diagonal: float
    ridge: float
    kept: KeptTerms | None = None

    def combine(self, module: str, alpha: Tensor) -> Entry:
        """Return the module's update: factors of rank ``sum r_i``, or a dense delta."""
        require_shares(alpha, _NAME)
        terms = self._terms(module) if self.kept is None else self.kept[module]
        if terms is None:
            return weighted_mean(self.sources, module, alpha)
        return terms.solve(alpha, self.sources.dtype)

    def materialise(self) -> RegMean:
        """Return the same with all products of updates and Gram matrices in memory."""
        kept = {module: self._terms(module) for module in self.sources.modules}
        return RegMean(self.sources, self.off_diagonal, self.ridge, kept)

    def _terms(self, module: str) -> Terms | None:
        found = statistics_of(self.sources, module, _STATISTIC)
        if not found:
            return None
        grams = torch.stack([self._shrunk(gram) for gram in found])
        factors = self.sources.factors(module)
        if factors is None:
            deltas = [entry_delta(entry).double() for entry in self.sources.modules[module]]
            return Terms(None, _times(deltas, grams), grams)
        left = tuple(f.scaling * f.B.double() for f in factors)
        return Terms(left, _times([f.A.double() for f in factors], grams), grams)

    def _shrunk(self, gram: Tensor) -> Tensor:
        """Return ``G'``: off-diagonal entries scaled, the ridge on the diagonal."""
        gram = gram.double()
        diagonal = gram.diagonal()
        ridge = self.ridge * float(diagonal.mean()) or _NEXT_TO_NOTHING
        result = self.off_diagonal * (gram + gram.T) / 2
        result.diagonal().copy_(diagonal + ridge)
        return result


def _times(rows: Sequence[Tensor], grams: Tensor) -> tuple[Tensor, ...]:
    return tuple(part @ gram for part, gram in zip(rows, grams, strict=True))


@register(
    _NAME,
    summary="the linear layers whose outputs are nearest to every model's own, by least squares "
    "over its own inputs; the coefficients are shares, only their ratios count",
    formula="(sum_i alpha_i dW_i G_i')(sum_i alpha_i G_i')^-1, G_i = X_i^T X_i / N_i, G_i' = "
    "off_diagonal G_i + (1 - off_diagonal) diag(G_i) + ridge mean(diag G_i) I",
    paper="Jin et al. 2023",
    linearity=DIFFERENTIABLE,
    spaces=("delta",),
    options={
        "off_diagonal": OptionSpec(
            1.0,
            lambda v: is_number(v) and 0 <= v <= 1,
            "a number in [0, 1]",
            "what entries of a Gram matrix beside its diagonal are multiplied with; the paper "
            "takes about 0.9, on this project's ViT-Ti nothing was better than 1",
        ),
        "ridge": OptionSpec(
            1e-4,
            lambda v: is_number(v) and v >= 1e-12,
            "a number of at least 1e-12",
            "added to every Gram matrix, in units of the mean of its diagonal: directions without "
            "inputs take a weighted mean",
        ),
    },
    scaling=DeltaSpace.scaling,
    statistic=lambda options: _STATISTIC,
)
def _regmean(sources: Sources, space: str, options: Mapping[str, Any]) -> Kernel:
    """Check the Gram matrices of all models and prepare the solution.

    What is no linear layer and has no Gram matrix takes the weighted mean.

    Raises:
        UserError: if a Gram matrix does not fit its module, is not finite, or is missing in some
            models only.
    """
    for module, entries in sources.modules.items():
        for gram in statistics_of(sources, module, _STATISTIC):
            d_in = entry_shape(entries[0])[-1]
            check_shape(gram, (d_in, d_in), module, _STATISTIC)
    return RegMean(sources, options["off_diagonal"], options["ridge"])
