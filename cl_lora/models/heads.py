"""Heads on pooled features: linear ones, class means, and their weighted sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cl_lora.support.seeding import torch_generator

HeadState = Mapping[str, Tensor]
"""A head's state dict, as it lies beside its adapter."""


def new_linear_head(features: int, outputs: int, seed: int) -> nn.Linear:
    """Return a linear head (features -> outputs) drawn from (seed, "head").

    Weights are truncated normal with standard deviation 0.02 and the bias is zero, as timm
    initialises the head of a Vision Transformer.
    """
    head = nn.Linear(features, outputs)
    with torch.no_grad():
        nn.init.trunc_normal_(head.weight, std=0.02, generator=torch_generator(seed, "head"))
        head.bias.zero_()
    return head


def linear_head(state: HeadState) -> nn.Linear:
    """Return the linear head with these weights: weight (outputs, features), bias (outputs,)."""
    outputs, features = state["weight"].shape
    head = nn.Linear(features, outputs)
    head.load_state_dict({key: value.clone() for key, value in state.items()})
    return head


def merge_heads(heads: Sequence[HeadState], coefficients: Tensor) -> dict[str, Tensor]:
    """Return ``sum_i alpha_i head_i``, the heads of n experiences joined like their adapters.

    Args:
        heads: n state dicts of equal shapes.
        coefficients: (n,), or (modules, n), of which the mean over modules is taken.
    """
    alpha = coefficients if coefficients.ndim == 1 else coefficients.mean(dim=0)
    return {
        key: torch.stack([a * head[key] for a, head in zip(alpha, heads, strict=True)]).sum(0)
        for key in heads[0]
    }


def average_heads(heads: Sequence[HeadState]) -> dict[str, Tensor]:
    """Return the mean of n heads."""
    return merge_heads(heads, torch.full((len(heads),), 1 / len(heads)))


class PrototypeHead(nn.Module):
    """Nearest class mean by cosine similarity: ``logits = scale * cos(f, mu_c)``.

    Args:
        features: float tensor (n, d), features of the support samples.
        labels: int64 tensor (n,); every class must occur.
        classes: how many classes there are.
    """

    scale = 10.0

    def __init__(self, features: Tensor, labels: Tensor, classes: int) -> None:
        super().__init__()
        unit = F.normalize(features, dim=1)
        one_hot = F.one_hot(labels, classes).to(unit.dtype)
        means = (one_hot.T @ unit) / one_hot.sum(0).clamp(min=1)[:, None]
        self.weight = nn.Parameter(means)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (batch, classes) of features (batch, d)."""
        return self.scale * F.normalize(features, dim=1) @ F.normalize(self.weight, dim=1).T


def freeze(module: nn.Module) -> nn.Module:
    """Return ``module`` in eval mode, with gradients off."""
    return module.requires_grad_(False).eval()
