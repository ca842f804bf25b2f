"""One trained adapter: low-rank factors per module, as a PEFT folder on disk."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from cl_lora.adapters.factors import LoRAFactors
from cl_lora.support import files
from cl_lora.support.errors import UserError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
HEAD_FILE = "head.safetensors"
TRAINING_FILE = "training.json"

_PREFIX = "base_model.model."
_KEY = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight$")


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter: for each adapted module its factors, and what was trained beside it.

    Attributes:
        name: how the adapter is called in messages and files.
        factors: module name (as in the backbone, e.g. ``blocks.0.attn.qkv``) -> factors.
        head: state dict of the head trained with the adapter; empty if there is none.
        training: contents of ``training.json`` (data fingerprint, seed, config, losses, time).
    """

    name: str
    factors: Mapping[str, LoRAFactors]
    head: Mapping[str, Tensor] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)

    def modules(self) -> tuple[str, ...]:
        """Return the names of the adapted modules, in the order of the backbone."""
        return tuple(self.factors)

    @classmethod
    def load(cls, folder: str | Path) -> Adapter:
        """Read any PEFT LoRA folder; head and training.json are read where they are there.

        The rank is taken from each A, the scaling from ``lora_alpha``, ``alpha_pattern`` and
        ``use_rslora`` of ``adapter_config.json``. Weights come from safetensors only.

        Raises:
            UserError: if the folder is missing, no LoRA adapter, or holds a variant whose update
                is not ``s B A`` (DoRA, LoRA on embeddings, a trained bias).
        """
        folder = Path(folder)
        config = _read_config(folder)
        factors = _factors(_read_tensors(folder / WEIGHTS_FILE), config, folder)
        head = folder / HEAD_FILE
        training = folder / TRAINING_FILE
        return cls(
            name=folder.name,
            factors=factors,
            head=_read_tensors(head) if head.exists() else {},
            training=_read_json(training) if training.exists() else {},
        )

    def save(self, folder: str | Path) -> None:
        """Write a folder that ``peft.PeftModel.from_pretrained`` reads, whole or not at all.

        Raises:
            UserError: if the adapter has no modules, or the folder cannot be written.
        """
        if not self.factors:
            raise UserError(f"Expected adapter {self.name!r} to have modules but it has none")
        with files.whole_folder(Path(folder)) as temporary:
            tensors = {}
            for module, f in self.factors.items():
                tensors[f"{_PREFIX}{module}.lora_A.weight"] = _own_copy(f.A)
                tensors[f"{_PREFIX}{module}.lora_B.weight"] = _own_copy(f.B)
            safetensors.torch.save_file(tensors, temporary / WEIGHTS_FILE, {"format": "pt"})
            files.write_json(temporary / CONFIG_FILE, peft_config(self.factors))
            if self.head:
                head = {k: _own_copy(v) for k, v in self.head.items()}
                safetensors.torch.save_file(head, temporary / HEAD_FILE)
            if self.training:
                files.write_json(temporary / TRAINING_FILE, dict(self.training))


def _own_copy(tensor: Tensor) -> Tensor:
    # Safetensors refuses tensors that share memory, as slices of a fused q, k, v do.
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def peft_config(factors: Mapping[str, LoRAFactors]) -> dict[str, Any]:
    """Return the adapter_config.json that makes peft compute exactly these updates.

    peft derives the scaling as ``lora_alpha / r``; ranks and alphas that differ from the first
    module's go into ``rank_pattern`` and ``alpha_pattern``.
    """
    first = next(iter(factors.values()))
    alpha = first.scaling * first.rank
    # peft matches a pattern's key as the end of a module name: full names, anchored, are exact.
    ranks = {f"^{re.escape(m)}": f.rank for m, f in factors.items() if f.rank != first.rank}
    alphas = {
        f"^{re.escape(m)}": f.scaling * f.rank
        for m, f in factors.items()
        if f.scaling * f.rank != alpha
    }
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": first.rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "target_modules": list(factors),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
    }


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(
            f"Expected a PEFT LoRA folder with {CONFIG_FILE} but found none in {folder}; "
            "give the folder that save_pretrained wrote"
        )
    config = _read_json(path)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UserError(f"Expected a LoRA adapter in {folder} but its peft_type is {kind!r}")
    for option in ("use_dora", "lora_bias", "use_qalora", "fan_in_fan_out"):
        if config.get(option):
            raise UserError(
                f"The adapter in {folder} has {option}=true, so its update is not s*B*A; "
                "only plain LoRA and rsLoRA can be merged"
            )
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); write the adapter again") from error
    if not isinstance(value, dict):
        raise UserError(f"Expected a JSON object in {path} but got {type(value).__name__}")
    return value


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"Expected {path} but it is missing; only safetensors files are read")
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no readable safetensors file ({error})") from error


def _factors(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path
) -> dict[str, LoRAFactors]:
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.match(key)
        if match is None:
            raise UserError(
                f"Unexpected tensor {key!r} in {folder / WEIGHTS_FILE}: "
                "only lora_A and lora_B of linear layers can be merged"
            )
        sides.setdefault(match["module"], {})[match["side"]] = tensor.float()
    factors = {}
    for module in sorted(sides, key=_natural):
        pair = sides[module]
        if set(pair) != {"A", "B"}:
            raise UserError(f"Module {module!r} in {folder} has only one of lora_A and lora_B")
        factors[module] = LoRAFactors(pair["A"], pair["B"], _scaling(module, pair["A"], config))
    if not factors:
        raise UserError(f"The adapter in {folder} holds no LoRA factors")
    return factors


def _scaling(module: str, A: Tensor, config: Mapping[str, Any]) -> float:
    alpha = config.get("lora_alpha", 8)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        # The rule of peft: a pattern matches the whole name or what follows a dot in it.
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    rank = A.shape[0]
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key under which blocks.2 comes before blocks.10."""
    return [(0, int(p)) if p.isdigit() else (1, p) for p in name.split(".")]
