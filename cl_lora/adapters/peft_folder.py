"""A PEFT folder of one LoRA adapter: read strictly, written whole, never over something else.

Beside peft's two files a folder of ours has ``training.json`` (which lists what else belongs to
it) and, where the head is not a module of the base model, ``head.safetensors``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from cl_lora.adapters.base_model import BaseModel
from cl_lora.adapters.factors import LoRAFactors
from cl_lora.adapters.lora_config import LoRASettings, make_lora_config, parse_lora_config
from cl_lora.adapters.model_folder import STATISTICS
from cl_lora.support import files
from cl_lora.support.errors import UserError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
HEAD_FILE = "head.safetensors"
TRAINING_FILE = "training.json"

_FILES = frozenset({CONFIG_FILE, WEIGHTS_FILE, HEAD_FILE, TRAINING_FILE, STATISTICS})
_LISTED = "files"  # in training.json: what else belongs to the adapter
_PREFIX = "base_model.model."
_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight")
# What older versions of peft put between a trained module and its parameters.
_WRAPPING = re.compile(r"^modules_to_save\.(?:default\.)?")


@dataclass(frozen=True, eq=False)
class Contents:
    """What a folder holds; see :class:`~cl_lora.adapters.Adapter`."""

    factors: Mapping[str, LoRAFactors]
    head: Mapping[str, Tensor] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    base: BaseModel = field(default_factory=BaseModel)


def read_folder(folder: Path) -> Contents:
    """Read a PEFT LoRA folder.

    Raises:
        UserError: if the folder is missing or damaged, holds no LoRA adapter, or one whose update
            is not ``s B A``; says which field or tensor.
    """
    files.restore(folder)
    settings = parse_lora_config(_read_config(folder), folder)
    tensors = _read_tensors(folder / WEIGHTS_FILE)
    lora, saved = _sort_tensors(tensors, settings, folder)
    factors = _factors(lora, settings, folder)
    training, listed = _read_training(folder)
    _check_listed(folder, listed)
    head, base = _head(saved, settings.base, folder)
    return Contents(factors, head, training, base)


def write_folder(folder: Path, contents: Contents) -> None:
    """Write a folder that ``peft.PeftModel.from_pretrained`` reads, whole or not at all.

    Raises:
        UserError: if something else than an adapter of ours is there, or the disk refuses.
    """
    check_replaceable(folder)
    with files.whole_folder(folder, replace=True) as temporary:
        write_files(temporary, contents)


def write_files(folder: Path, contents: Contents) -> None:
    """Write the files of an adapter into a folder that is there.

    Raises:
        UserError: if peft refuses the adapter's base, or the disk refuses.
    """
    base = contents.base
    inside = base.head_module if contents.head else None
    tensors = {}
    for module, f in contents.factors.items():
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = _own_copy(f.A)
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = _own_copy(f.B)
    head = {key: _own_copy(value) for key, value in contents.head.items()}
    if inside:
        tensors |= {f"{_PREFIX}{inside}.{key}": value for key, value in head.items()}
    config = make_lora_config(contents.factors, base, saves_head=inside is not None)
    beside = [HEAD_FILE] if head and not inside else []
    safetensors.torch.save_file(tensors, folder / WEIGHTS_FILE, {"format": "pt"})
    files.write_json(folder / CONFIG_FILE, config)
    if beside:
        safetensors.torch.save_file(head, folder / HEAD_FILE)
    files.write_json(folder / TRAINING_FILE, {**contents.training, _LISTED: beside})


def check_replaceable(folder: Path) -> None:
    """Refuse to write over anything but an empty folder and an adapter that this package wrote.

    What peft wrote is refused as well: it has no ``training.json``.

    Raises:
        UserError: names one of the files that would be lost.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"Expected {folder} to be a folder but it is a file; give another name")
    names = {path.name for path in folder.iterdir()}
    foreign, alone = sorted(names - _FILES), sorted(names - {CONFIG_FILE, WEIGHTS_FILE})
    why = None
    if foreign:
        why = f"holds {foreign[0]!r}"
    elif WEIGHTS_FILE in names and TRAINING_FILE not in names:
        why = f"has no {TRAINING_FILE}"
    elif names and not names & {CONFIG_FILE, WEIGHTS_FILE}:
        why = f"holds {alone[0]!r}"
    if why:
        raise UserError(
            f"{folder} {why}, so it is no adapter of ours to be replaced; choose another folder, "
            "or delete this one first"
        )


def is_whole(folder: Path) -> bool:
    """Return whether everything of an adapter is in ``folder`` and can be read.

    Reads the JSON files and the headers of the tensor files, which tell a file that was cut off;
    no tensor is loaded.
    """
    files.restore(folder)
    try:
        _read_config(folder)
        _check_header(folder / WEIGHTS_FILE)
        _check_listed(folder, _read_training(folder)[1])
    except UserError:
        return False
    return True


def _own_copy(tensor: Tensor) -> Tensor:
    # Safetensors refuses tensors that share memory, as slices of a fused q, k, v do.
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(
            f"Expected a PEFT LoRA folder with {CONFIG_FILE} but found none in {folder}; "
            "give the folder that save_pretrained wrote"
        )
    return _read_json(path)


def _read_training(folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return training.json and the files that it lists; both empty where there is none."""
    path = folder / TRAINING_FILE
    if not path.exists():
        # Of somebody else, or written before files were listed.
        return {}, (HEAD_FILE,) if (folder / HEAD_FILE).exists() else ()
    training = _read_json(path)
    listed = training.pop(_LISTED, [HEAD_FILE] if (folder / HEAD_FILE).exists() else [])
    if not isinstance(listed, list) or set(listed) - _FILES:
        raise UserError(f"{path} lists files that no adapter has ({listed}); write it again")
    return training, tuple(listed)


def _check_listed(folder: Path, listed: Iterable[str]) -> None:
    for name in listed:
        _check_header(folder / name)


def _check_header(path: Path) -> None:
    _expect_file(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no readable safetensors file ({error})") from error


def _expect_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"Expected {path} but it is missing; only safetensors files are read")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); write the adapter again") from error
    if not isinstance(value, dict):
        raise UserError(f"Expected a JSON object in {path} but got {type(value).__name__}")
    return value


def _read_tensors(path: Path) -> dict[str, Tensor]:
    _expect_file(path)
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no readable safetensors file ({error})") from error


def _sort_tensors(
    tensors: Mapping[str, Tensor], settings: LoRASettings, folder: Path
) -> tuple[dict[str, dict[str, Tensor]], dict[str, dict[str, Tensor]]]:
    """Return the factors, module -> side -> tensor, and the saved modules, module -> state."""
    lora: dict[str, dict[str, Tensor]] = {}
    saved: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(_PREFIX)
        match = _LORA.fullmatch(name)
        module = _saved_module(name, settings.modules_to_save)
        if name == key or (match is None and module is None):
            raise UserError(
                f"Unexpected tensor {key!r} in {folder / WEIGHTS_FILE}: only lora_A and lora_B of "
                "linear layers can be merged, beside a head that modules_to_save names"
            )
        if match is not None:
            lora.setdefault(match["module"], {})[match["side"]] = tensor.float()
        elif module is not None:
            parameter = _WRAPPING.sub("", name.removeprefix(f"{module}."))
            saved.setdefault(module, {})[parameter] = tensor
    return lora, saved


def _saved_module(name: str, modules_to_save: tuple[str, ...]) -> str | None:
    """Return the module of a tensor that was trained beside the factors, by the rule of peft.

    An entry of ``modules_to_save`` names every module whose full name ends with it.
    """
    parts = name.split(".")
    modules = (".".join(parts[:end]) for end in range(1, len(parts)))
    return next((module for module in modules if module.endswith(modules_to_save)), None)


def _factors(
    lora: Mapping[str, Mapping[str, Tensor]], settings: LoRASettings, folder: Path
) -> dict[str, LoRAFactors]:
    factors = {}
    for module in sorted(lora, key=_natural):
        pair = lora[module]
        if set(pair) != {"A", "B"}:
            raise UserError(
                f"Module {module!r} in {folder} has only one of lora_A and lora_B; write the "
                "adapter again"
            )
        scaling = settings.scaling(module, pair["A"].shape[0])
        factors[module] = LoRAFactors(pair["A"], pair["B"], scaling)
    if not factors:
        raise UserError(f"The adapter in {folder} holds no LoRA factors; write it again")
    return factors


def _head(
    saved: Mapping[str, Mapping[str, Tensor]], base: BaseModel, folder: Path
) -> tuple[Mapping[str, Tensor], BaseModel]:
    """Return the head, from beside the adapter or from the base model's module, and the base."""
    beside = folder / HEAD_FILE
    if not saved:
        return _read_tensors(beside) if beside.exists() else {}, base
    if len(saved) > 1 or beside.exists():
        places = [*saved, *([HEAD_FILE] if beside.exists() else [])]
        raise UserError(
            f"Expected one module trained beside the factors in {folder}, the head, but it has "
            f"{' and '.join(places)}; save the adapter with one"
        )
    (module, head), *_ = saved.items()
    return head, replace(base, head_module=module)


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key under which blocks.2 comes before blocks.10."""
    return [(0, int(p)) if p.isdigit() else (1, p) for p in name.split(".")]
