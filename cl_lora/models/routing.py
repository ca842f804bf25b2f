"""Telling which adapter an input needs, from statistics of the bare backbone alone.

Adapters of a stream differ by the domain that they were trained on. Domains differ in style, which
shows in the mean and in the spread of patch tokens in the lower blocks, before any adapter is
needed; so one shared pass through these blocks tells the domain of an image, and no image is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from cl_lora.models.base import Backbone
from cl_lora.models.compute import Batch, Compute
from cl_lora.models.gaussians import Densities, Gaussians

RIDGE = 0.01
"""What is added to the covariance of the router, as a share of its mean variance."""


def default_block(backbone: Backbone) -> int:
    """Return the block whose input is looked at where none is named: a third of the depth."""
    return backbone.depth // 3


def style(patches: Tensor) -> Tensor:
    """Return mean and standard deviation over patch tokens, float32 (batch, 2 d) of (batch, P, d).

    ``z = [mean_p h_p ; std_p h_p]``
    """
    values = patches.float()
    return torch.cat([values.mean(1), values.std(1, correction=0)], dim=1)


@torch.no_grad()
def styles(
    compute: Compute, backbone: Backbone, batches: Iterable[Batch], block: int
) -> Iterator[Batch]:
    """Yield the style of every sample at the input of a block, and the targets of every batch."""
    for inputs, targets in batches:
        tokens = compute.tokens(backbone, inputs, block)
        yield style(backbone.patches(tokens)), targets.to(compute.device)


class Router:
    """The posterior of domains given an image's style.

    ``score_d(x) = logsumexp_c l_dc(z(x))``: a Gaussian for each class of each domain, as else the
    differences of classes would fill the covariance.

    Args:
        results: what :meth:`~cl_lora.models.gaussians.Moments.result` gave of the styles of each
            domain, in order.
        device: where it computes.
    """

    def __init__(
        self, results: Sequence[Mapping[str, Tensor]], device: torch.device | str = "cpu"
    ) -> None:
        self.densities: Densities = Gaussians.of(results).densities(RIDGE).to(device)

    def scores(self, styles: Tensor) -> Tensor:
        """Return log-densities (batch, D) of styles (batch, 2 d)."""
        return self.densities.of_domains(styles)

    def hard(self, styles: Tensor) -> Tensor:
        """Return the index of the likeliest domain, int64 (batch,)."""
        return self.scores(styles).argmax(1)

    def soft(self, styles: Tensor, temperature: float) -> Tensor:
        """Return ``softmax(score / temperature)``, float32 (batch, D)."""
        return (self.scores(styles) / temperature).softmax(1)
