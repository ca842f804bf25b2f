"""One trained adapter: what it adds to each module, and what was trained beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from cl_lora.adapters.base_model import BaseModel
from cl_lora.adapters.entries import Entry, entry_shape
from cl_lora.adapters.factors import LoRAFactors
from cl_lora.adapters.model_folder import (
    is_model_folder,
    read_model,
    statistics_of,
    write_model,
)
from cl_lora.adapters.peft_folder import (
    Contents,
    head_of,
    open_folder,
    read_folder,
    write_folder,
)
from cl_lora.adapters.tensor_file import LazyTensors
from cl_lora.support.errors import UserError


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter, or a fully fine-tuned model as what it adds to its base.

    Attributes:
        name: how the adapter is called in messages and files.
        factors: module name (as in the backbone, e.g. ``blocks.0.attn.qkv``) -> factors; empty for
            a fully fine-tuned model.
        head: state dict of the head trained with the adapter; empty if there is none.
        training: contents of ``training.json`` (data fingerprint, seed, config, losses, time).
        base: the model it was trained on, as far as that is known.
        deltas: of a fully fine-tuned model: entry name (a parameter's without ``.weight``) ->
            dense difference to the base, which may be read only when it is asked for.
        statistics: name of a statistic, such as ``gram`` -> entry name -> its tensor; the same.
    """

    name: str
    factors: Mapping[str, LoRAFactors]
    head: Mapping[str, Tensor] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    base: BaseModel = field(default_factory=BaseModel)
    deltas: Mapping[str, Tensor] = field(default_factory=dict)
    statistics: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    @property
    def entries(self) -> Mapping[str, Entry]:
        """What is added to each module or parameter: factors, or dense deltas."""
        return self.factors or self.deltas

    def modules(self) -> tuple[str, ...]:
        """Return the names of the adapted modules, in the order of the backbone."""
        return tuple(self.entries)

    def shape(self, module: str) -> tuple[int, ...]:
        """Return the shape of what is added to a module; a delta on the disk is not read for it."""
        if isinstance(self.entries, LazyTensors):
            return self.entries.shape(module)
        return entry_shape(self.entries[module])

    @classmethod
    def load(cls, folder: str | Path) -> Adapter:
        """Read any PEFT LoRA folder, or a fully fine-tuned model that this package wrote.

        Head, training.json and statistics are read where they are there. The rank is taken from
        each A, the scaling from ``lora_alpha``, ``alpha_pattern`` and ``use_rslora`` of
        ``adapter_config.json``; a module of ``modules_to_save`` is the head. Weights come from
        safetensors only; the deltas of a whole model and statistics are read when asked for.

        Raises:
            UserError: if the folder is missing or damaged, no LoRA adapter, or holds a variant
                whose update is not ``s B A`` (DoRA, PiSSA, LoRA on embeddings, a trained bias).
        """
        folder = Path(folder)
        if is_model_folder(folder):
            deltas, head, training = read_model(folder)
            return cls(
                folder.name, {}, head, training, deltas=deltas, statistics=statistics_of(folder)
            )
        contents = read_folder(folder)
        return cls(
            folder.name,
            contents.factors,
            contents.head,
            contents.training,
            contents.base,
            statistics=statistics_of(folder),
        )

    @classmethod
    def open(cls, folder: str | Path) -> Adapter:
        """Return the adapter of a folder with factors and head that are read when asked for.

        Nothing that was read is kept, so that adapters which do not fit into memory together can
        be merged module by module.

        Raises:
            UserError: as :meth:`load`; for NaN or infinity, when the module is read.
        """
        folder = Path(folder)
        if is_model_folder(folder):
            return cls.load(folder)
        opened = open_folder(folder)
        head, base = head_of(opened, folder)
        return cls(
            folder.name,
            opened.factors,
            head,
            opened.training,
            base,
            statistics=statistics_of(folder),
        )

    def save(self, folder: str | Path) -> None:
        """Write the adapter, whole or not at all: a LoRA as a folder that ``peft`` reads.

        One that this package wrote there is replaced; a process that is killed meanwhile leaves
        the old one or the new one. Statistics are not written: they are gathered of what is there.

        Raises:
            UserError: if the adapter has no modules, if the folder holds anything else, or if it
                cannot be written.
        """
        if not self.entries:
            raise UserError(
                f"Expected adapter {self.name!r} to have modules but it has none; train it or "
                "load one"
            )
        if not self.factors:
            write_model(Path(folder), self.deltas, self.head, self.training)
            return
        contents = Contents(self.factors, self.head, self.training, self.base)
        write_folder(Path(folder), contents)
