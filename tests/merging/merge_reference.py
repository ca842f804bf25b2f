"""Toy adapters, and every merge written again on dense float64 arrays, without our code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cl_lora.adapters import Adapter, LoRAFactors

SHAPES = {
    "blocks.0.q": (12, 10),
    "blocks.0.fc": (10, 12),
    "blocks.1.q": (12, 10),
    "blocks.1.fc": (10, 12),
    "out": (7, 10),
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(10, 12)
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.fc(torch.tanh(self.q(x)))
        return out


class Toy(nn.Module):
    """A model whose linear layers are those of SHAPES."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.out = nn.Linear(10, 7)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.out(x)
        return out


def toy_adapters(
    n: int,
    ranks: int | tuple[int, ...] = 3,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    shapes: Mapping[str, tuple[int, int]] = SHAPES,
) -> list[Adapter]:
    """Random adapters of the layers of Toy, or of others, each with a scaling of its own."""
    generator = torch.Generator().manual_seed(seed)
    each = (ranks,) * n if isinstance(ranks, int) else ranks

    def factors(i: int, shape: tuple[int, int]) -> LoRAFactors:
        A = torch.randn(each[i], shape[1], generator=generator, dtype=dtype)
        B = torch.randn(shape[0], each[i], generator=generator, dtype=dtype)
        return LoRAFactors(A, B, 0.5 + 0.25 * i)

    return [
        Adapter(f"e{i}", {m: factors(i, shape) for m, shape in shapes.items()}) for i in range(n)
    ]


def dense(adapters: list[Adapter]) -> dict[str, np.ndarray]:
    """Module -> float64 array (n, d_out, d_in)."""
    return {
        m: np.stack(
            [
                a.factors[m].scaling
                * a.factors[m].B.double().numpy()
                @ a.factors[m].A.double().numpy()
                for a in adapters
            ]
        )
        for m in adapters[0].factors
    }


def reference(
    adapters: list[Adapter],
    method: str,
    weights: list[float],
    masks: dict[str, np.ndarray] | None = None,
    *,
    density: float = 0.2,
    trim: str = "tensor",
    sign: str = "unweighted",
    elect: str = "total",
    divisor: str = "count",
) -> dict[str, np.ndarray]:
    """The merge in space delta, entry by entry."""
    deltas = dense(adapters)
    if method.startswith("dare"):
        assert masks is not None
        deltas = {m: d * masks[m] / density for m, d in deltas.items()}
    elif method in ("ties", "magnitude_prune"):
        deltas = _trimmed(deltas, density, trim)
    if not method.endswith("ties"):
        return {m: sum(w * d for w, d in zip(weights, ds, strict=True)) for m, ds in deltas.items()}
    return {m: _ties(ds, weights, sign, elect, divisor) for m, ds in deltas.items()}


def _trimmed(deltas: dict[str, np.ndarray], density: float, trim: str) -> dict[str, np.ndarray]:
    result = {m: np.zeros_like(d) for m, d in deltas.items()}
    n = next(iter(deltas.values())).shape[0]
    groups = [[m] for m in deltas] if trim == "tensor" else [list(deltas)]
    for i in range(n):
        for group in groups:
            entries = [(abs(v), m, at) for m in group for at, v in np.ndenumerate(deltas[m][i])]
            entries.sort(key=lambda e: -e[0])
            for _, m, at in entries[: int(density * len(entries))]:
                result[m][i][at] = deltas[m][i][at]
    return result


def _ties(ds: np.ndarray, weights: list[float], sign: str, elect: str, divisor: str) -> np.ndarray:
    result = np.zeros(ds.shape[1:])
    for at in np.ndindex(*result.shape):
        values = [d[at] for d in ds]
        weighted = [w * v for w, v in zip(weights, values, strict=True)]
        voters = weighted if sign == "weighted" else values
        score = sum(voters) if elect == "total" else sum(np.sign(v) for v in voters)
        winner = 1 if score >= 0 else -1
        agree = [i for i, v in enumerate(voters) if np.sign(v) == winner]
        by = {"count": len(agree), "weight_sum": sum(weights[i] for i in agree), "none": 1}[divisor]
        if agree:
            result[at] = sum(weighted[i] for i in agree) / (by if abs(by) > 1e-8 else 1)
    return result


def relative_error(ours: Tensor, theirs: Any) -> float:
    """Frobenius norm of the difference over that of the reference."""
    expected = torch.as_tensor(theirs).double()
    return float((ours.double() - expected).norm() / expected.norm().clamp(min=1e-30))


def check_gradient(function: Callable[[Tensor], Iterable[Tensor]], at: Tensor) -> None:
    """Compare the gradient of every output entry with central differences, in float64.

    All entries at once: what their sum under random weights gives back to the coefficients. One
    entry whose gradient is wrong changes that sum, whatever the weights are, unless they are drawn
    just so, and a backward pass of its own for each of hundreds of entries, as in
    ``torch.autograd.gradcheck``, costs a hundred times as much.

    Args:
        function: from coefficients to tensors.
        at: float64 coefficients of any shape, away from kinks by more than a step of 1e-6.
    """
    step = 1e-6

    def entries(given: Tensor) -> Tensor:
        return torch.cat([output.flatten() for output in function(given)])

    with torch.no_grad():
        slopes = torch.stack(
            [
                (entries(at + step * side) - entries(at - step * side)) / (2 * step)
                for side in torch.eye(at.numel(), dtype=at.dtype).reshape(-1, *at.shape)
            ]
        )
    assert slopes.abs().sum() > 0
    for seed in range(2):
        found = slope_of(function, at, seed).flatten()
        torch.testing.assert_close(
            found, slopes @ weights_of(slopes[0], seed), rtol=1e-6, atol=1e-6
        )


def slope_of(function: Callable[[Tensor], Iterable[Tensor]], at: Tensor, seed: int = 0) -> Tensor:
    """The gradient of the sum of all output entries under random weights, shaped as ``at``."""
    given = at.detach().clone().requires_grad_()
    found = torch.cat([output.flatten() for output in function(given)])
    (slope,) = torch.autograd.grad(found @ weights_of(found, seed), given)
    return slope


def weights_of(entries: Tensor, seed: int) -> Tensor:
    """A random weight for every entry."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(entries), dtype=entries.dtype, generator=generator)
