"""Fisher merging: an average of each number, weighted by how sure each model is of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cl_lora.adapters import entry_shape
from cl_lora.merging.averaging import check_shape, require_shares, statistics_of
from cl_lora.merging.kernels import weighted_sum
from cl_lora.merging.registry import (
    DIFFERENTIABLE,
    Kernel,
    OptionSpec,
    choice,
    is_number,
    register,
)
from cl_lora.merging.spaces import DeltaSpace, Sources
from cl_lora.support.errors import UserError

_NAME = "fisher"
_NONE = "none"


def _statistic(options: Mapping[str, Any]) -> str:
    """Return the name of the Fisher information that the options ask for."""
    return f"fisher_{options['labels']}"


@dataclass(frozen=True, eq=False)
class FisherMean:
    """The mean of the deltas, each number weighted by ``alpha_i F_i`` of its own.

    Attributes:
        space: the deltas; the Fisher information is read beside them.
        scales: of each model, what its Fisher information is multiplied with.
        floor: added to every F, in units of the mean F of the module.
        statistic: name of the Fisher information, for messages.
    """

    space: DeltaSpace
    scales: tuple[float, ...]
    floor: float
    statistic: str

    def combine(self, module: str, alpha: Tensor) -> Tensor:
        """Return the dense merged delta of the module."""
        return _mean(*self.parts(module), alpha)

    def materialise(self) -> KeptParts:
        """Return the same mean with numerators and weights in memory."""
        return KeptParts({module: self.parts(module) for module in self.space.sources.modules})

    def parts(self, module: str) -> tuple[Tensor, Tensor]:
        """Return the weighted deltas and the weights, both (n, ...)."""
        deltas = self.space.stack(module, "delta")
        found = statistics_of(self.space.sources, module, self.statistic)
        if not found:
            return deltas, torch.ones_like(deltas)
        weights = torch.stack(
            [f.to(torch.float64) * scale for f, scale in zip(found, self.scales, strict=True)]
        )
        mean = weights.mean()
        # Where no model knows anything of a whole module, nothing tells them apart.
        weights = weights / mean + self.floor if mean > 0 else torch.ones_like(weights)
        weights = weights.to(deltas)
        return deltas.mul_(weights), weights


@dataclass(frozen=True, eq=False)
class KeptParts:
    """Fisher means whose parts are held in memory.

    Attributes:
        parts: module -> weighted deltas and weights, both (n, ...).
    """

    parts: Mapping[str, tuple[Tensor, Tensor]]

    def combine(self, module: str, alpha: Tensor) -> Tensor:
        """Return the dense merged delta of the module."""
        return _mean(*self.parts[module], alpha)

    def materialise(self) -> KeptParts:
        """Return itself."""
        return self


def _mean(weighted: Tensor, weights: Tensor, alpha: Tensor) -> Tensor:
    require_shares(alpha, _NAME)
    # Only ratios count; of numbers below 1e-38, which learning may reach, float32 keeps none.
    shares = (alpha / alpha.sum()).to(weighted)
    return weighted_sum(shares, weighted) / weighted_sum(shares, weights)


@register(
    _NAME,
    summary="mean of each number of the updates, weighted by the models' diagonal Fisher "
    "information; the coefficients are shares, only their ratios count",
    formula="sum_i alpha_i F_i * dW_i / sum_i alpha_i F_i (elementwise), F_i = mean_n (d log p(y_n "
    "| x_n) / dW)^2 / |F_i| + floor",
    paper="Matena and Raffel 2022",
    linearity=DIFFERENTIABLE,
    spaces=("delta",),
    options={
        "labels": choice(
            "model",
            "data",
            help="draw the labels y from the model's own predictions (the true Fisher information) "
            "or take those of the data (the empirical one); on the validation part either way",
        ),
        "normalise": choice(
            "model",
            _NONE,
            help="bring the Fisher information of every model to one norm, as the authors' code "
            "does, or leave it, so that a model that is less sure of everything counts less",
        ),
        "floor": OptionSpec(
            1e-6,
            lambda v: is_number(v) and v > 0,
            "a number above 0",
            "added to every F, in units of the mean F of the layer: where all models' F are far "
            "below it, the result is the weighted mean",
        ),
    },
    statistic=_statistic,
)
def _fisher(sources: Sources, space: str, options: Mapping[str, Any]) -> Kernel:
    """Check the Fisher information of all models and prepare their mean, in one pass over it.

    An entry that no model has any of takes the weighted mean.

    Raises:
        UserError: if a Fisher information does not fit its module, is negative or not finite, is
            missing in some models only, or is zero everywhere and cannot be normalised.
    """
    name = _statistic(options)
    squares = [0.0] * sources.n
    for module, entries in sources.modules.items():
        shape = entry_shape(entries[0])
        for i, f in enumerate(statistics_of(sources, module, name)):
            check_shape(f, shape, module, name)
            if bool((f < 0).any()):
                raise UserError(
                    f"Expected the statistic {name!r} to be squares but that of module {module!r} "
                    f"of model number {i} has numbers below 0; gather it again"
                )
            squares[i] += float(f.double().square().sum())
    scales = [1.0] * sources.n
    if options["normalise"] != _NONE:
        if not all(total > 0 for total in squares):
            raise UserError(
                f"Expected Fisher information to normalise but that of model number "
                f"{squares.index(0.0)} of {sources.n} is 0 everywhere, as for a model that is sure "
                "of every sample; choose normalise=none, or more validation samples"
            )
        scales = [1 / math.sqrt(total) for total in squares]
    return FisherMean(DeltaSpace(sources), tuple(scales), options["floor"], name)
