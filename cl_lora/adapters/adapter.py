"""One trained adapter: low-rank factors per module, and what was trained beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from cl_lora.adapters.base_model import BaseModel
from cl_lora.adapters.factors import LoRAFactors
from cl_lora.adapters.peft_folder import Contents, read_folder, write_folder
from cl_lora.support.errors import UserError


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter: for each adapted module its factors, and what was trained beside it.

    Attributes:
        name: how the adapter is called in messages and files.
        factors: module name (as in the backbone, e.g. ``blocks.0.attn.qkv``) -> factors.
        head: state dict of the head trained with the adapter; empty if there is none.
        training: contents of ``training.json`` (data fingerprint, seed, config, losses, time).
        base: the model it was trained on, as far as that is known.
    """

    name: str
    factors: Mapping[str, LoRAFactors]
    head: Mapping[str, Tensor] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    base: BaseModel = field(default_factory=BaseModel)

    def modules(self) -> tuple[str, ...]:
        """Return the names of the adapted modules, in the order of the backbone."""
        return tuple(self.factors)

    @classmethod
    def load(cls, folder: str | Path) -> Adapter:
        """Read any PEFT LoRA folder; head and training.json are read where they are there.

        The rank is taken from each A, the scaling from ``lora_alpha``, ``alpha_pattern`` and
        ``use_rslora`` of ``adapter_config.json``; a module of ``modules_to_save`` is the head.
        Weights come from safetensors only.

        Raises:
            UserError: if the folder is missing or damaged, no LoRA adapter, or holds a variant
                whose update is not ``s B A`` (DoRA, PiSSA, LoRA on embeddings, a trained bias).
        """
        folder = Path(folder)
        contents = read_folder(folder)
        return cls(folder.name, contents.factors, contents.head, contents.training, contents.base)

    def save(self, folder: str | Path) -> None:
        """Write a folder that ``peft.PeftModel.from_pretrained`` reads, whole or not at all.

        An adapter that this package wrote there is replaced; a process that is killed meanwhile
        leaves the old one or the new one.

        Raises:
            UserError: if the adapter has no modules, if the folder holds anything else, or if it
                cannot be written.
        """
        if not self.factors:
            raise UserError(
                f"Expected adapter {self.name!r} to have modules but it has none; train it or "
                "load one"
            )
        contents = Contents(self.factors, self.head, self.training, self.base)
        write_folder(Path(folder), contents)
