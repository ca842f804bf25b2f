"""The low-rank factors of one adapted weight, and exact algebra on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cl_lora.support.errors import UserError


@dataclass(frozen=True, eq=False)
class LoRAFactors:
    """The update ``dW = scaling * B @ A`` of one weight ``W0`` of shape (d_out, d_in).

    LoRA, Hu et al. 2022: ``scaling`` is ``lora_alpha / r``, or ``lora_alpha / sqrt(r)`` with
    rsLoRA (Kalajdzievski 2023).

    Attributes:
        A: float tensor (r, d_in).
        B: float tensor (d_out, r).
        scaling: the factor s in front of ``B @ A``.

    Raises:
        UserError: if the shapes of ``A`` and ``B`` do not share a rank.
    """

    A: Tensor
    B: Tensor
    scaling: float = 1.0

    def __post_init__(self) -> None:
        if self.A.ndim != 2 or self.B.ndim != 2 or self.A.shape[0] != self.B.shape[1]:
            raise UserError(
                "Expected LoRA factors A (r, d_in) and B (d_out, r) with one rank r but got "
                f"A {tuple(self.A.shape)} and B {tuple(self.B.shape)}; check the adapter's file"
            )

    @property
    def rank(self) -> int:
        """The rank r of the factors, an upper bound of the rank of ``dW``."""
        return self.A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (d_out, d_in) of the weight that ``dW`` is added to."""
        return self.B.shape[0], self.A.shape[1]

    def delta(self) -> Tensor:
        """Return the dense update ``scaling * B @ A``, shape (d_out, d_in)."""
        return self.scaling * (self.B @ self.A)


def concatenate(factors: Sequence[LoRAFactors], weights: Tensor) -> LoRAFactors:
    """Return the exact weighted sum of updates as one update of rank ``sum r_i``.

    ``sum_i w_i s_i B_i A_i = [w_1 s_1 B_1 .. w_n s_n B_n] [A_1; ..; A_n]``

    Args:
        factors: n updates of one weight; ranks may differ.
        weights: float tensor (n,); any sign; may require grad.
    """
    A = torch.cat([f.A for f in factors])
    B = torch.cat([w * f.scaling * f.B for w, f in zip(weights, factors, strict=True)], dim=1)
    return LoRAFactors(A, B, 1.0)


def decompose(factors: LoRAFactors, rank: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the largest singular triples of ``dW = U diag(S) Vh``.

    With ``B = Q_b R_b`` and ``A^T = Q_a R_a`` the singular values of ``dW`` are those of the small
    matrix ``s R_b R_a^T``, (r, r) or less where d_out or d_in is below r, so no (d_out, d_in)
    matrix is ever decomposed. The small one is decomposed in float64: that costs little, and where
    singular values lie close the triples of float32 are ten times less exact.

    Args:
        factors: an update of one weight.
        rank: how many triples; None for all that the factors have.

    Returns:
        U (d_out, k), S (k,) descending and Vh (k, d_in), k the lesser of ``rank`` and r.
    """
    q_b, r_b = torch.linalg.qr(factors.B)
    q_a, r_a = torch.linalg.qr(factors.A.T)
    small = factors.scaling * (r_b.double() @ r_a.double().T)
    u, s, vh = torch.linalg.svd(small, full_matrices=False)
    return q_b @ u[:, :rank].to(q_b), s[:rank].to(q_b), vh[:rank].to(q_a) @ q_a.T


def truncate(factors: LoRAFactors, rank: int) -> LoRAFactors:
    """Return the best approximation of ``dW`` of at most ``rank`` (Eckart-Young).

    See :func:`decompose`; the singular values are split evenly over the two factors.

    Raises:
        UserError: if ``rank`` is below 1.
    """
    if rank < 1:
        raise UserError(f"Expected a truncation rank of at least 1 but got {rank}; raise it")
    if rank >= factors.rank:
        return factors
    u, s, vh = decompose(factors, rank)
    root = s.sqrt()
    return LoRAFactors(root[:, None] * vh, u * root, 1.0)
