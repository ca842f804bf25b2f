"""Heads on pooled features: linear, MLPs, cosines, class means, constants; and sums of heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cl_lora.support.errors import UserError
from cl_lora.support.registry import look_up
from cl_lora.support.seeding import torch_generator

HeadState = Mapping[str, Tensor]
"""A head's state dict, as it lies beside its adapter."""


class MLPHead(nn.Module):
    """Two layers on pooled features: ``out(relu(hidden(norm(f))))``.

    The normalisation comes first because pooled features of a Vision Transformer are large (a norm
    of 50 is usual): without it the hidden units die in the first steps of a regression.

    Args:
        features: d, size of the features.
        outputs: size of the output.
        hidden: number of hidden units.
    """

    def __init__(self, features: int, outputs: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.hidden = nn.Linear(features, hidden)
        self.out = nn.Linear(hidden, outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Return outputs (batch, outputs) of features (batch, d)."""
        made: Tensor = self.out(F.relu(self.hidden(self.norm(features))))
        return made


@dataclass(frozen=True)
class HeadShape:
    """A shape that a head can have.

    Attributes:
        name: the name it is chosen by.
        summary: a few words.
        draw: (features, outputs, hidden units, generator) -> a new head.
        mixes: whether a sum of such heads' weights is the sum of the heads.
    """

    name: str
    summary: str
    draw: Callable[[int, int, int, torch.Generator], nn.Module]
    mixes: bool


def _linear(features: int, outputs: int, hidden: int, generator: torch.Generator) -> nn.Linear:
    head = nn.Linear(features, outputs)
    _start(head, generator)
    return head


def _mlp(features: int, outputs: int, hidden: int, generator: torch.Generator) -> MLPHead:
    head = MLPHead(features, outputs, hidden)
    _start(head.out, generator)
    nn.init.kaiming_normal_(head.hidden.weight, nonlinearity="relu", generator=generator)
    nn.init.zeros_(head.hidden.bias)
    return head


def _start(layer: nn.Linear, generator: torch.Generator) -> None:
    nn.init.trunc_normal_(layer.weight, std=0.02, generator=generator)
    nn.init.zeros_(layer.bias)


HEAD_SHAPES: Mapping[str, HeadShape] = {
    shape.name: shape
    for shape in (
        HeadShape("linear", "one linear layer", _linear, mixes=True),
        HeadShape("mlp", "LayerNorm, then two layers with ReLU between", _mlp, mixes=False),
    )
}
"""Every shape of a head by name."""

LINEAR = "linear"


def new_head(
    shape: str, features: int, outputs: int, seed: int, hidden: int = 512, keys: Sequence[str] = ()
) -> nn.Module:
    """Return a head (features -> outputs) drawn from (seed, "head", keys).

    Weights of the last layer are truncated normal with standard deviation 0.02 and biases are zero,
    as timm initialises the head of a Vision Transformer; the hidden layer of an MLP keeps the
    variance of its input (He et al. 2015).

    Args:
        shape: one of :data:`HEAD_SHAPES`.
        features: size of the features.
        outputs: size of the output.
        seed: of the run.
        hidden: hidden units of an MLP.
        keys: of a head that is to be drawn apart from the run's.

    Raises:
        UserError: for an unknown shape.
    """
    made = look_up("strategy.head_shape", HEAD_SHAPES, shape)
    return made.draw(features, outputs, hidden, torch_generator(seed, "head", *keys))


def new_linear_head(features: int, outputs: int, seed: int) -> nn.Linear:
    """Return a linear head; see :func:`new_head`."""
    head = new_head(LINEAR, features, outputs, seed)
    assert isinstance(head, nn.Linear)
    return head


def head_of(state: HeadState) -> nn.Module:
    """Return the head with these weights, whatever its shape.

    Linear: weight (outputs, features) and bias (outputs,); cosines: weight and scale (); MLP: those
    of ``norm``, ``hidden`` and ``out``; tokens: letters (n,).

    Raises:
        UserError: if they are of none of these.
    """
    head: nn.Module
    if set(state) == {"weight", "bias"}:
        outputs, features = state["weight"].shape
        head = nn.Linear(features, outputs)
    elif set(state) == {"letters"}:
        head = TokenHead(state["letters"])
    elif set(state) == {"weight", "scale"}:
        head = CosineHead(state["weight"], state["scale"])
    elif {"norm.weight", "hidden.weight", "out.weight"} <= set(state):
        hidden, features = state["hidden.weight"].shape
        head = MLPHead(features, len(state["out.weight"]), hidden)
    else:
        raise UserError(
            "Expected the weights of a head, weight and bias or scale, or those of norm, hidden "
            f"and out, but got {', '.join(sorted(state)) or 'none'}; train the adapter again"
        )
    head.load_state_dict({key: value.clone() for key, value in state.items()})
    return head


class CosineHead(nn.Module):
    """Directions of the outputs: ``logits = scale * cos(f, w_c)`` (Radford et al. 2021).

    Args:
        weight: float32 (outputs, features), a direction for each output.
        scale: float32 (), what cosines are multiplied by.
    """

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.scale = nn.Parameter(scale.detach().clone())

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (batch, outputs) of features (batch, d)."""
        return self.scale * F.normalize(features, dim=1) @ F.normalize(self.weight, dim=1).T


class TokenHead(nn.Module):
    """The first n letters of a language model's features, all else taken together.

    Of features ``[z_1, ..., z_L, r, m]``, logits of L letters and the log-sum-exp r and largest m
    of all other tokens, the outputs are ``[z_1, ..., z_n, logsumexp(z_n+1, ..., z_L, r),
    max(z_n+1, ..., z_L, m)]``. It has nothing to train.

    Args:
        letters: int64 (n,), the tokens of the n letters, for the record.
    """

    letters: Tensor

    def __init__(self, letters: Tensor) -> None:
        super().__init__()
        self.register_buffer("letters", letters.detach().clone())

    def forward(self, features: Tensor) -> Tensor:
        """Return outputs (batch, n + 2) of features (batch, L + 2)."""
        count = len(self.letters)
        chosen, others = features[:, :count], features[:, count:-2]
        rest = torch.cat([others, features[:, -2:-1]], dim=1).logsumexp(dim=1, keepdim=True)
        top = torch.cat([others, features[:, -1:]], dim=1).amax(dim=1, keepdim=True)
        return torch.cat([chosen, rest, top], dim=1)


class ConstantHead(nn.Module):
    """The trivial predictor: the same outputs whatever the features are.

    Args:
        outputs: float32 (outputs,).
    """

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.outputs = nn.Parameter(outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Return the outputs for every one of the features (batch, d)."""
        return self.outputs.expand(len(features), -1)


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
        labels: int64 tensor (n,); a class that does not occur has the logit 0.
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
