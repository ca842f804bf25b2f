"""The few largest singular triples of each matrix (PERU-LoRA)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from cl_lora.adapters import Entry, LoRAFactors, entry_shape
from cl_lora.adapters.factors import decompose
from cl_lora.merging.registry import OptionSpec, is_count
from cl_lora.merging.residuals.difference import Differences
from cl_lora.merging.residuals.parts import Part, SingularDelta, WholeDelta
from cl_lora.merging.residuals.registry import Residual, register_residual
from cl_lora.merging.residuals.residue import Residue
from cl_lora.support.errors import UserError


@register_residual
class LowRank(Residual):
    """Truncated SVD of ``u_t = v_t - base``: the best matrices of rank q (Eckart-Young).

    Factors go through QR, so that no (d_out, d_in) matrix is made of them; dense matrices are
    decomposed as they are. What is no matrix (a bias, a scale, an embedding of more dimensions) is
    kept whole. A matrix takes ``q (d_out + d_in + 1)`` numbers, whatever is whole all of its own.
    With q the rank of an adapter, and no base, the task is served as by its own adapter.
    """

    name = "low_rank"
    summary = "the q largest singular triples of each matrix of the difference to the base"
    formula = "base + U_t(q) S_t(q) V_t(q), the truncated SVD of u_t = v_t - base"
    paper = "Jiang et al. 2023, PERU-LoRA"
    options: ClassVar = {
        "q": OptionSpec(
            8,
            is_count,
            "an integer of at least 1",
            "how many singular triples are kept of a matrix, at most its rank",
        )
    }

    def take(
        self,
        own: Mapping[str, Entry],
        base: Mapping[str, Entry] | None,
        options: Mapping[str, Any],
    ) -> Residue:
        """Return the singular triples of each matrix, and all else whole."""
        differences = Differences(own, base or {})
        return Residue({m: _part(m, differences[m], options["q"]) for m in differences})

    def check_rank(self, options: Mapping[str, Any], rank: int) -> None:
        """Refuse a q above the rank of the adapters."""
        if options["q"] > rank:
            raise UserError(
                f"Expected q of residual 'low_rank' to be at most the rank {rank} of the adapters "
                f"but got {options['q']}; lower q, or train adapters of a higher rank"
            )


def _part(module: str, u: Entry, q: int) -> Part:
    shape = entry_shape(u)
    if len(shape) != 2:
        assert not isinstance(u, LoRAFactors)  # factors are always of a matrix
        return WholeDelta(u)
    rank = min(*shape, u.rank) if isinstance(u, LoRAFactors) else min(shape)
    if q > rank:
        raise UserError(
            f"Expected q of residual 'low_rank' to be at most the rank {rank} of module {module!r} "
            f"but got {q}; lower q"
        )
    if isinstance(u, LoRAFactors):
        return SingularDelta(*decompose(u, q))
    left, values, right = torch.linalg.svd(u, full_matrices=False)
    # Copies: a slice would keep the whole decomposition in memory.
    return SingularDelta(left[:, :q].clone(), values[:q].clone(), right[:q].clone())
