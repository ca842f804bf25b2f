"""Updates of one matrix in a small orthonormal frame, where singular values cost little.

The frame spans the rows and the columns of all low-rank updates, so nothing is lost in it, and what
depends on singular values alone is the same inside as outside: a merge is worked out on matrices of
the size of the ranks, in float64, and lifted as factors. Dense updates are their own frame.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from cl_lora.adapters import Entry, LoRAFactors, entry_delta, entry_shape
from cl_lora.merging.geometry import NEGLIGIBLE
from cl_lora.merging.kernels import weighted_sum
from cl_lora.merging.spaces import Sources

Triples: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""U (a, k), S (k,) descending and V^T (k, b)."""

Change: TypeAlias = Callable[[Tensor, tuple[int, ...]], Tensor]
"""(updates (n, a, b) in their frame, shape of the whole matrix) -> as many of the same shape."""

Finish: TypeAlias = Callable[[Tensor], Tensor]
"""Weighted updates (n, a, b) -> the merged one (a, b)."""


@dataclass(frozen=True, eq=False)
class Frame:
    """n updates of one parameter: ``dW_i = left tensors_i right``.

    Attributes:
        tensors: float64 (n, a, b); the deltas themselves (n, ...) where there is no frame.
        left: orthonormal columns (d_out, a); None for the identity.
        right: orthonormal rows (b, d_in); None for the identity.
        low_rank: whether what is lifted stays factors.
    """

    tensors: Tensor
    left: Tensor | None = None
    right: Tensor | None = None
    low_rank: bool = False

    def lift(self, inside: Entry, dtype: torch.dtype) -> Entry:
        """Return an update that is given inside the frame as one of the whole parameter."""
        if isinstance(inside, LoRAFactors):
            A = inside.A if self.right is None else inside.A @ self.right
            B = inside.B if self.left is None else self.left @ inside.B
            return LoRAFactors(A.to(dtype), B.to(dtype), inside.scaling)
        right = self.right
        rows = inside if right is None else inside @ right
        if self.left is None:
            return rows.to(dtype)
        if not self.low_rank:
            return (self.left @ rows).to(dtype)
        if right is not None and len(right) < len(rows):
            return LoRAFactors(right.to(dtype), (self.left @ inside).to(dtype))
        return LoRAFactors(rows.to(dtype), self.left.to(dtype))


def is_matrix(sources: Sources, module: str) -> bool:
    """Return whether a module's updates are matrices, which have singular values."""
    return len(entry_shape(sources.modules[module][0])) == 2


def deltas_of(sources: Sources, module: str) -> Frame:
    """Return the dense updates of a module, in float64."""
    return Frame(torch.stack([entry_delta(e).double() for e in sources.modules[module]]))


def frame_of(sources: Sources, module: str) -> Frame:
    """Return low-rank updates in the frame of their factors, others as they are."""
    factors = sources.factors(module)
    return deltas_of(sources, module) if factors is None else core_frame(factors, low_rank=True)


def core_frame(factors: tuple[LoRAFactors, ...], low_rank: bool) -> Frame:
    """Return the frame of the singular vectors of the stacked factors (Panariello et al. 2025).

    Its sides are min(d_out, sum r) and min(d_in, sum r).
    """
    wide = [LoRAFactors(f.A.double(), f.B.double(), f.scaling) for f in factors]
    left = torch.linalg.svd(torch.cat([f.B for f in wide], dim=1), full_matrices=False)[0]
    right = torch.linalg.svd(torch.cat([f.A for f in wide]), full_matrices=False)[2]
    tensors = torch.stack([f.scaling * (left.T @ f.B) @ (f.A @ right.T) for f in wide])
    return Frame(tensors, left, right, low_rank)


def singular(matrix: Tensor, most: int | None = None) -> Triples:
    """Return the largest singular triples of a matrix (a, b), at most ``most`` and its rank."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((s > NEGLIGIBLE * s[0]).sum()) if len(s) else 0
    kept = rank if most is None else min(rank, most)
    return u[:, :kept], s[:kept], vh[:kept]


def orthogonalised(matrix: Tensor) -> Tensor:
    """Return the nearest matrix with orthonormal rows or columns (Procrustes).

    In directions that a matrix of lower rank does not have it stays zero.
    """
    u, _, vh = singular(matrix)
    return u @ vh


def added(tensors: Tensor) -> Tensor:
    """Return the sum over n."""
    return tensors.sum(0)


def unchanged(tensors: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the updates as they are."""
    return tensors


@dataclass(frozen=True, eq=False)
class InFrame:
    """A merge worked out module by module in the frame of its updates.

    ``merged = finish(alpha_i change(dW)_i)``: linear in alpha where ``finish`` is the sum.

    Attributes:
        sources: the adapters.
        change: settles what does not depend on the coefficients.
        finish: merges what the coefficients have weighed.
        share: what parameters that are no matrices are scaled by before they are summed; the papers
            of spectral merges average them.
        kept: module -> its changed updates, if they are held in memory.
    """

    sources: Sources
    change: Change = unchanged
    finish: Finish = added
    share: float = 1.0
    kept: Mapping[str, Frame] | None = None

    def combine(self, module: str, alpha: Tensor) -> Entry:
        """Return the module's update: factors where all updates are low-rank, else dense."""
        frame = self.changed(module) if self.kept is None else self.kept[module]
        weights = alpha.to(frame.tensors)
        if self.finish is added or not is_matrix(self.sources, module):
            merged = weighted_sum(weights, frame.tensors)
        else:
            merged = self.finish(weights[:, None, None] * frame.tensors)
        return frame.lift(merged, self.sources.dtype)

    def materialise(self) -> InFrame:
        """Return the same with all changed updates in memory."""
        kept = {module: self.changed(module) for module in self.sources.modules}
        return replace(self, kept=kept)

    def changed(self, module: str) -> Frame:
        """Return the updates of a module after the change, in their frame."""
        if not is_matrix(self.sources, module):
            frame = deltas_of(self.sources, module)
            return replace(frame, tensors=frame.tensors * self.share)
        frame = frame_of(self.sources, module)
        shape = entry_shape(self.sources.modules[module][0])
        return replace(frame, tensors=self.change(frame.tensors, shape))
