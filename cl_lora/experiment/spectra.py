"""How fast the singular values of each adapter of a bank fall off."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from cl_lora.adapters import Entry, LoRAFactors
from cl_lora.experiment.serving import Workbench
from cl_lora.run_folder.records import Spectrum

_MATRIX = 2

Values = NDArray[np.float64]
"""Singular values of one module, descending."""


def spectra(
    bench: Workbench, bank_name: str, advance: Callable[[], None] = lambda: None
) -> list[Spectrum]:
    """Return the singular-value decay and the cumulative energy of every adapter of a bank.

    For each k: ``mean_m sigma_m,k / sigma_m,1`` over the modules m that are changed, and
    ``sum_m sum_{i<=k} sigma_m,i^2 / sum_m |dW_m|_F^2``, which is what truncating every module to
    rank k keeps of the squared norm. A module of fewer singular values counts as 0 beyond them.
    Only matrices have any: of a fully fine-tuned model biases, tokens and convolutions are left
    out. An adapter that changes nothing has no rows.

    Args:
        bench: a seed of a run.
        bank_name: which of its banks.
        advance: called after each adapter.
    """
    found = []
    for i, adapter in enumerate(bench.banks[bank_name]):
        every = map(singular_values, adapter.entries.values())
        decay, energy = profile(values for values in every if values is not None)
        found += [
            Spectrum(bench.seed, bank_name, i, k, float(value), float(share))
            for k, (value, share) in enumerate(zip(decay, energy, strict=True), start=1)
        ]
        advance()
    return found


@torch.no_grad()
def singular_values(entry: Entry) -> Values | None:
    """Return the singular values of an update, descending; None for a delta that is no matrix.

    Of low-rank factors there are r, from ``svd(s R_B R_A^T)`` with ``B = Q_B R_B`` and
    ``A^T = Q_A R_A``: no (d_out, d_in) matrix is made.
    """
    if isinstance(entry, LoRAFactors):
        r_b = torch.linalg.qr(entry.B.double(), mode="r").R
        r_a = torch.linalg.qr(entry.A.double().T, mode="r").R
        values = torch.linalg.svdvals(entry.scaling * (r_b @ r_a.T))
    elif entry.ndim == _MATRIX:
        values = torch.linalg.svdvals(entry.float())
    else:
        return None
    found: Values = values.cpu().double().numpy()
    return found


def profile(modules: Iterable[Values]) -> tuple[Values, Values]:
    """Return decay and cumulative energy (K,), K the most singular values of any module.

    Args:
        modules: the singular values of each; those of modules that do not change are left out.

    Example:
        >>> decay, energy = profile([np.array([2.0, 1.0]), np.array([1.0])])
        >>> decay.tolist(), [round(e, 3) for e in energy.tolist()]
        ([1.0, 0.25], [0.833, 1.0])
    """
    changed = [s for s in modules if len(s) and s[0] > 0]
    if not changed:
        return np.zeros(0), np.zeros(0)
    longest = max(map(len, changed))
    padded = np.array([np.pad(s, (0, longest - len(s))) for s in changed])
    decay: Values = (padded / padded[:, :1]).mean(axis=0)
    squares = np.square(padded).sum(axis=0)
    energy: Values = np.cumsum(squares) / squares.sum()
    return decay, energy
