"""Classification heads on pooled features, and how heads of several experiences are joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cl_lora.support.seeding import torch_generator

HEAD_POLICIES: Mapping[str, str] = {
    "shared": "one linear head, trained on from experience to experience, never merged",
    "per_experience": "a head kept with each adapter, merged with the adapters' coefficients",
    "frozen": "the head trained with the first adapter, fixed from then on",
    "prototypes": "class means of the merged backbone's features over the buffer (cosine)",
}


def new_linear_head(features: int, classes: int, seed: int) -> nn.Linear:
    """Return a linear head (features -> classes) drawn from (seed, "head").

    Weights are truncated normal with deviation 0.02 and the bias is zero, as timm initialises
    the head of a Vision Transformer.
    """
    head = nn.Linear(features, classes)
    with torch.no_grad():
        nn.init.trunc_normal_(head.weight, std=0.02, generator=torch_generator(seed, "head"))
        head.bias.zero_()
    return head


def linear_head(state: Mapping[str, Tensor]) -> nn.Linear:
    """Return the linear head with these weights: weight (classes, features), bias (classes,)."""
    classes, features = state["weight"].shape
    head = nn.Linear(features, classes)
    head.load_state_dict({key: value.clone() for key, value in state.items()})
    return head


def merge_heads(heads: Sequence[Mapping[str, Tensor]], coefficients: Tensor) -> dict[str, Tensor]:
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


class PrototypeHead(nn.Module):
    """Nearest class mean by cosine similarity: ``logits = scale * cos(f, mu_c)``.

    Args:
        features: float tensor (n, d), features of the buffer.
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
