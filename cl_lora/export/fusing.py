"""From the modules that were adapted to those that timm has, and from deltas to factors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cl_lora.adapters import Entry, LoRAFactors, entry_delta, truncate
from cl_lora.merging.update import exact_factors, truncate_entry
from cl_lora.support.errors import UserError

_PART = re.compile(r"(?P<fused>.+\.qkv)\.(?P<part>[qkv])")
_PARTS = ("q", "k", "v")


def fused(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return the same update with q, k and v of an attention as one module, as timm has it.

    ``[s_q B_q A_q; s_k B_k A_k; s_v B_v A_v] = diag(s_q B_q, s_k B_k, s_v B_v) [A_q; A_k; A_v]``:
    exact, and the ranks add up. A part that is not there has a delta of zero.

    Args:
        entries: module -> factors, or a dense delta (d_out, d_in).
    """
    found: dict[str, Entry | dict[str, Entry]] = {}
    for module, entry in entries.items():
        match = _PART.fullmatch(module)
        if match is None:
            found[module] = entry
            continue
        parts = found.setdefault(match["fused"], {})
        assert isinstance(parts, dict)
        parts[match["part"]] = entry
    return {m: _joined(e) if isinstance(e, dict) else e for m, e in found.items()}


def _joined(parts: Mapping[str, Entry]) -> Entry:
    rows, columns = next(iter(parts.values())).shape
    low_rank = {p: e for p, e in parts.items() if isinstance(e, LoRAFactors)}
    if len(low_rank) < len(parts):
        nothing = entry_delta(next(iter(parts.values()))).new_zeros(rows, columns)
        return torch.cat([entry_delta(parts[p]) if p in parts else nothing for p in _PARTS])
    A = torch.cat([low_rank[p].A for p in _PARTS if p in low_rank])
    B = A.new_zeros(len(_PARTS) * rows, len(A))
    column = 0
    for place, part in enumerate(_PARTS):
        if part in low_rank:
            f = low_rank[part]
            B[place * rows : (place + 1) * rows, column : column + f.rank] = f.scaling * f.B
            column += f.rank
    return LoRAFactors(A, B)


@dataclass(frozen=True, eq=False)
class LowRank:
    """An update as factors.

    Attributes:
        factors: module -> float32 factors.
        rank: what it was cut to; None where nothing was.
        error: relative error in the Frobenius norm over all modules,
            ``sqrt(sum_m ||D_m - D'_m||^2 / sum_m ||D_m||^2)``; 0 where nothing was cut.
        dense: how many modules have a dense delta.
        full: how many modules have factors of full rank, though theirs are low-rank: the ranks of
            the adapters add up to more.
    """

    factors: Mapping[str, LoRAFactors]
    rank: int | None
    error: float
    dense: int
    full: int

    @property
    def ranks(self) -> tuple[int, int]:
        """The lowest and the highest rank of a module."""
        ranks = [f.rank for f in self.factors.values()]
        return min(ranks), max(ranks)


def low_rank(entries: Mapping[str, Entry], rank: int | None, dense: bool) -> LowRank:
    """Return an update as factors: exact, or the best approximation of a rank (Eckart-Young).

    Computed in float64; factors whose rank is beyond that of a matrix of their shape are written
    with that rank.

    Args:
        entries: module -> factors, or a dense delta (d_out, d_in).
        rank: at most this rank for every module; None cuts nothing.
        dense: whether a dense delta may be written as factors of full rank.

    Raises:
        UserError: if ``rank`` is below 1, or a delta is dense and neither ``rank`` nor ``dense``
            says how it may be written.
    """
    if rank is not None and rank < 1:
        raise UserError(f"Expected --rank to be at least 1 but got {rank}; raise it")
    if rank is not None and dense:
        raise UserError("--rank cuts the update and --dense keeps all of it; give one of the two")
    deltas = [module for module, entry in entries.items() if isinstance(entry, Tensor)]
    if deltas and rank is None and not dense:
        raise UserError(
            f"This update is dense in {len(deltas)} of its {len(entries)} modules (e.g. "
            f"{deltas[0]}): its method gives no low-rank factors; give --rank R for the best "
            "approximation of rank R, or --dense for factors of full rank, as large as the weights"
        )
    factors, missing, total, full = {}, 0.0, 0.0, 0
    for module, entry in entries.items():
        precise = _precise(entry)
        most = min(precise.shape)
        full += isinstance(entry, LoRAFactors) and entry.rank > most and rank is None
        f = (
            truncate(precise, rank or most)
            if isinstance(precise, LoRAFactors)
            else exact_factors(truncate_entry(precise, rank or most))
        )
        factors[module] = LoRAFactors(f.A.float(), (f.scaling * f.B).float())
        if rank is not None:
            delta = entry_delta(precise)
            total += float(delta.square().sum())
            missing += float((delta - entry_delta(_precise(factors[module]))).square().sum())
    error = (missing / total) ** 0.5 if total else 0.0
    return LowRank(factors, rank, error, len(deltas), full)


def _precise(entry: Entry) -> Entry:
    if isinstance(entry, LoRAFactors):
        return LoRAFactors(entry.A.double(), entry.B.double(), entry.scaling)
    return entry.double()
