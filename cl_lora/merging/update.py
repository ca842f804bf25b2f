"""The result of a merge: for each module an update of its weight, low-rank or dense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cl_lora.adapters import Adapter, BaseModel, Entry, LoRAFactors, entry_delta, entry_shape
from cl_lora.adapters import truncate as truncate_factors
from cl_lora.support.errors import UserError, unknown_name


@dataclass(frozen=True, eq=False)
class Update:
    """What is added to the frozen weights: ``W = W0 + delta(module)`` for each module.

    Attributes:
        entries: module name -> :class:`~cl_lora.adapters.LoRAFactors` or a dense float tensor in
            the shape of its parameter.
        variant: everything that defines how the update was made; recorded with every result.
        alpha: the coefficients it was combined with, (n,) or (M, n); None if it was made otherwise.
        base: what all its sources say of the model they were trained on.
    """

    entries: Mapping[str, Entry]
    variant: Mapping[str, Any] = field(default_factory=dict)
    alpha: Tensor | None = None
    base: BaseModel = field(default_factory=BaseModel)

    def modules(self) -> tuple[str, ...]:
        """Return the names of the updated modules, in the order of the adapters."""
        return tuple(self.entries)

    def delta(self, module: str) -> Tensor:
        """Return the dense update of ``module``, in the shape of its parameter.

        Raises:
            UserError: if the update has no such module.
        """
        if module not in self.entries:
            raise unknown_name("module of the update", module, self.entries)
        return entry_delta(self.entries[module])

    def truncate(self, rank: int) -> Update:
        """Return the best approximation of each delta of at most ``rank`` (Eckart-Young).

        Parameters that are no matrix, such as the biases of a whole model, stay what they are.

        Raises:
            UserError: if ``rank`` is below 1.
        """
        entries = {module: truncate_entry(entry, rank) for module, entry in self.entries.items()}
        return Update(entries, {**self.variant, "rank": rank}, self.alpha, self.base)

    def to_adapter(
        self, name: str, rank: int | None = None, head: Mapping[str, Tensor] | None = None
    ) -> Adapter:
        """Return the update as an adapter whose deltas are exactly these (or their truncation).

        A dense delta becomes the factors ``(delta, I)`` or ``(I, delta)`` of rank
        min(d_out, d_in): nothing is lost, whatever its true rank. Where a parameter is no matrix
        the update is that of a fully fine-tuned model, and stays dense throughout.

        Args:
            name: name of the adapter.
            rank: truncate to this rank first; None keeps every delta exactly.
            head: state dict of the head that serves it; None for none.

        Raises:
            UserError: if ``rank`` is below 1.
        """
        update = self if rank is None else self.truncate(rank)
        training = {"merge": dict(update.variant)}
        if any(len(entry_shape(entry)) != 2 for entry in update.entries.values()):
            deltas = {name: entry_delta(entry) for name, entry in update.entries.items()}
            return Adapter(name, {}, dict(head or {}), training, update.base, deltas)
        factors = {module: exact_factors(entry) for module, entry in update.entries.items()}
        return Adapter(name, factors, dict(head or {}), training, update.base)

    def save(
        self,
        folder: str | Path,
        rank: int | None = None,
        head: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write a folder that ``peft.PeftModel.from_pretrained`` reads; see :meth:`to_adapter`.

        The variant goes into ``training.json`` under ``merge``, the head beside the factors. An
        adapter that this package wrote there is replaced.

        Raises:
            UserError: if ``rank`` is below 1, if the folder holds anything else than an adapter of
                ours, or if it cannot be written.
        """
        self.to_adapter(Path(folder).name, rank, head).save(folder)


def exact_factors(entry: Entry) -> LoRAFactors:
    """Return factors with ``B @ A`` equal to a matrix's delta, bit for bit for dense ones."""
    if isinstance(entry, LoRAFactors):
        return entry
    d_out, d_in = entry.shape
    identity = torch.eye(min(d_out, d_in), dtype=entry.dtype, device=entry.device)
    return LoRAFactors(entry, identity) if d_out <= d_in else LoRAFactors(identity, entry)


def truncate_entry(entry: Entry, rank: int) -> Entry:
    """Return the best approximation of at most ``rank``; low-rank entries go through QR.

    What is no matrix stays what it is.

    Raises:
        UserError: if ``rank`` is below 1.
    """
    if isinstance(entry, LoRAFactors):
        return truncate_factors(entry, rank)
    if rank < 1:
        raise UserError(f"Expected a truncation rank of at least 1 but got {rank}; raise it")
    if entry.ndim != 2:
        return entry
    if rank >= min(entry.shape):
        return exact_factors(entry)
    u, s, vh = torch.linalg.svd(entry, full_matrices=False)
    root = s[:rank].sqrt()
    return LoRAFactors(root[:, None] * vh[:rank], u[:, :rank] * root)
