"""How adapters are alike, and what their merge may lose; nothing is merged."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cl_lora.adapters import Adapter, Entry, LoRAFactors, entry_shape
from cl_lora.joining.inputs import Inputs
from cl_lora.joining.sizes import fits
from cl_lora.merging.geometry import DIRECTIONS, inner, singular_directions
from cl_lora.merging.kernels import CHUNK
from cl_lora.merging.spaces import Stack
from cl_lora.support import progress
from cl_lora.support.errors import UserError

Matrix = NDArray[np.float64]

INTERFERENCE = (
    "Predicted interference: subspace overlap times (1 - cosine) / 2. 0: the updates lie in "
    "different directions, or agree; 1: they lie in the same directions and are opposite. A guess "
    "from the weights alone."
)


@dataclass(frozen=True, eq=False)
class Comparison:
    """n adapters side by side.

    Attributes:
        names: of the adapters.
        modules: how many modules each changes.
        ranks: the lowest and the highest rank of each; None for whole models.
        scalings: the lowest and the highest factor in front of ``B A``; None for whole models.
        norms: Frobenius norm of each update.
        stable_ranks: mean over modules of ``|dW|_F^2 / |dW|_2^2``; NaN for whole models.
        cosine: (n, n) of the updates as long vectors.
        overlap: (n, n) of their top singular subspaces; NaN where there are none to compare.
        conflicts: (n, n) share of the entries that both change whose signs differ.
    """

    names: tuple[str, ...]
    modules: tuple[int, ...]
    ranks: tuple[tuple[int, int] | None, ...]
    scalings: tuple[tuple[float, float] | None, ...]
    norms: tuple[float, ...]
    stable_ranks: tuple[float, ...]
    cosine: Matrix
    overlap: Matrix
    conflicts: Matrix

    @property
    def interference(self) -> Matrix:
        """(n, n) overlap times (1 - cosine) / 2; NaN where there is no overlap to be had."""
        predicted: Matrix = self.overlap * (1 - self.cosine) / 2
        return predicted

    def record(self) -> dict[str, Any]:
        """Return everything as plain values for JSON; null where there is nothing to compare."""
        return {
            "adapters": [
                {
                    "name": name,
                    "modules": self.modules[i],
                    "ranks": self.ranks[i],
                    "scalings": self.scalings[i],
                    "norm": self.norms[i],
                    "stable_rank": _known(self.stable_ranks[i]),
                }
                for i, name in enumerate(self.names)
            ],
            "directions": DIRECTIONS,
            "cosine": _rows(self.cosine),
            "overlap": _rows(self.overlap),
            "sign_conflicts": _rows(self.conflicts),
            "interference": _rows(self.interference),
            "interference_is": INTERFERENCE,
        }


def compare(inputs: Inputs) -> Comparison:
    """Compare what is merged, a module at a time.

    Modules may differ; pairs are compared over those that both change.

    Args:
        inputs: what is compared.

    Raises:
        UserError: if a module has different shapes, or an adapter changes nothing.
    """
    adapters = inputs.adapters
    n = len(adapters)
    products, overlaps = np.zeros((n, n)), np.zeros((n, n))
    compared, conflicts, changed = np.zeros((n, n)), np.zeros((n, n)), np.zeros((n, n))
    stable: list[list[float]] = [[] for _ in range(n)]
    ranks: list[list[int]] = [[] for _ in range(n)]
    scalings: list[list[float]] = [[] for _ in range(n)]
    modules = list(dict.fromkeys(name for adapter in adapters for name in adapter.entries))
    for name in progress.track(modules, "Comparing", len(modules)):
        here = [i for i, adapter in enumerate(adapters) if name in adapter.entries]
        entries = _alike([adapters[i].entries[name] for i in here])
        _check_shapes(name, [adapters[i] for i in here], entries)
        _check_sizes(name, [adapters[i] for i in here], entries)
        place = np.ix_(here, here)
        products[place] += _products(entries)
        against, both = _signs(entries)
        conflicts[place] += against
        changed[place] += both
        low_rank = [e for e in entries if isinstance(e, LoRAFactors)]
        if len(low_rank) < len(entries):
            continue
        found = [singular_directions(f) for f in low_rank]
        alike, pairs = _overlaps(found)
        overlaps[place] += alike
        compared[place] += pairs
        for i, f, (_, s, _) in zip(here, low_rank, found, strict=True):
            ranks[i].append(f.rank)
            scalings[i].append(f.scaling)
            if len(s):
                stable[i].append(float((s / s[0]).square().sum()))
    norms = np.sqrt(np.clip(np.diag(products), 0, None))
    for adapter, norm in zip(adapters, norms, strict=True):
        if norm == 0:
            raise UserError(
                f"Expected adapters that change the model but the update of {adapter.name!r} is "
                "zero; train it, or leave it out"
            )
    with np.errstate(invalid="ignore", divide="ignore"):
        return Comparison(
            names=tuple(adapter.name for adapter in adapters),
            modules=tuple(len(adapter.entries) for adapter in adapters),
            ranks=tuple((min(found), max(found)) if found else None for found in ranks),
            scalings=tuple((min(found), max(found)) if found else None for found in scalings),
            norms=tuple(norms.tolist()),
            stable_ranks=tuple(sum(found) / len(found) if found else math.nan for found in stable),
            cosine=np.clip(products / np.outer(norms, norms), -1, 1),
            overlap=np.clip(overlaps / compared, 0, 1),
            conflicts=conflicts / changed,
        )


def _check_shapes(module: str, adapters: Sequence[Adapter], entries: Sequence[Entry]) -> None:
    first = entry_shape(entries[0])
    for adapter, entry in zip(adapters, entries, strict=True):
        if entry_shape(entry) != first:
            raise UserError(
                f"Expected updates of one shape but module {module!r} has {first} in "
                f"{adapters[0].name!r} and {entry_shape(entry)} in {adapter.name!r}; give adapters "
                "of the same base model"
            )


def _check_sizes(module: str, adapters: Sequence[Adapter], entries: Sequence[Entry]) -> None:
    for adapter, entry in zip(adapters, entries, strict=True):
        if not fits(entry):
            raise UserError(
                f"Expected finite updates but that of module {module!r} in adapter "
                f"{adapter.name!r} is beyond what its precision holds; leave the adapter out"
            )


def _alike(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries in one precision, the widest of them."""
    dtypes = [entry.B.dtype if isinstance(entry, LoRAFactors) else entry.dtype for entry in entries]
    dtype = functools.reduce(torch.promote_types, dtypes)
    return [_cast(entry, dtype) for entry in entries]


def _products(entries: Sequence[Entry]) -> Matrix:
    n = len(entries)
    found = np.zeros((n, n))
    for i in range(n):
        for j in range(i, n):
            found[i, j] = found[j, i] = inner(entries[i], entries[j])
    return found


def _signs(entries: Sequence[Entry]) -> tuple[Matrix, Matrix]:
    """Return of how many entries signs differ, and how many both change, for each pair (n, n)."""
    dtype = torch.float32
    stack = Stack([_cast(entry, dtype) for entry in entries], dtype)
    n = len(entries)
    against, both = np.zeros((n, n)), np.zeros((n, n))
    parts = (stack.rows(*rows) for rows in stack.chunks(CHUNK)) if stack.shape else [stack.whole()]
    for part in parts:
        signs = part.sign_().view(n, -1)
        agreement = (signs @ signs.T).double().numpy()
        changed = signs.abs_()
        present = (changed @ changed.T).double().numpy()
        against += (present - agreement) / 2
        both += present
    return against, both


def _cast(entry: Entry, dtype: torch.dtype) -> Entry:
    if isinstance(entry, LoRAFactors):
        return LoRAFactors(entry.A.to(dtype), entry.B.to(dtype), entry.scaling)
    return entry.to(dtype)


def _overlaps(found: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[Matrix, Matrix]:
    """Return the overlap of each pair in one module, and whether there is one (n, n)."""
    n = len(found)
    alike, pairs = np.zeros((n, n)), np.zeros((n, n))
    for i, (u, s, v) in enumerate(found):
        for j in range(i, n):
            u_other, s_other, v_other = found[j]
            k = min(DIRECTIONS, len(s), len(s_other))
            if k:
                left = (u[:, :k].T @ u_other[:, :k]).square().sum()
                right = (v[:, :k].T @ v_other[:, :k]).square().sum()
                alike[i, j] = alike[j, i] = float(left + right) / (2 * k)
                pairs[i, j] = pairs[j, i] = 1
    return alike, pairs


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _rows(matrix: Matrix) -> list[list[float | None]]:
    return [[_known(value) for value in row] for row in matrix.tolist()]
