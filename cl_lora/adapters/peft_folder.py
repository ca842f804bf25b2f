"""A PEFT folder of one LoRA adapter: read strictly, written whole, never over something else.

It is read at once (:func:`read_folder`), or a module at a time (:func:`open_folder`).

Beside peft's two files a folder of ours has ``training.json`` (which lists what else belongs to
it) and, where the head is not a module of the base model, ``head.safetensors``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from cl_lora.adapters import seals
from cl_lora.adapters.base_model import BaseModel
from cl_lora.adapters.entries import is_finite
from cl_lora.adapters.factors import LoRAFactors
from cl_lora.adapters.lora_config import LoRASettings, make_lora_config, parse_lora_config
from cl_lora.adapters.model_folder import STATISTICS
from cl_lora.adapters.seals import LISTED, TRAINING_FILE
from cl_lora.adapters.tensor_file import (
    FLOATS,
    LazyTensors,
    check_plain,
    kind_of_numbers,
    own_copy,
    unreadable,
)
from cl_lora.support import files
from cl_lora.support.errors import UserError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
HEAD_FILE = "head.safetensors"

_FILES = frozenset({CONFIG_FILE, WEIGHTS_FILE, HEAD_FILE, TRAINING_FILE, STATISTICS})
PREFIX = "base_model.model."
_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight")
# What older versions of peft put between a trained module and its parameters.
_WRAPPING = re.compile(r"^modules_to_save\.(?:default\.)?")
_PICKLES = frozenset({".bin", ".ckpt", ".pkl", ".pt", ".pth"})


@dataclass(frozen=True, eq=False)
class Contents:
    """What a folder holds; see :class:`~cl_lora.adapters.Adapter`."""

    factors: Mapping[str, LoRAFactors]
    head: Mapping[str, Tensor] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    base: BaseModel = field(default_factory=BaseModel)


@dataclass(frozen=True, eq=False)
class OpenFolder:
    """A PEFT folder of which a tensor is read when it is asked for, and never kept.

    Attributes:
        factors: module -> its factors.
        saved: module of the base model that was trained beside the factors (``modules_to_save``) ->
            its parameters.
        head: the head that is kept beside the adapter; empty if there is none.
        training: contents of ``training.json``.
        base: the model the adapter was trained on.
    """

    factors: StoredFactors
    saved: Mapping[str, Mapping[str, Tensor]]
    head: Mapping[str, Tensor]
    training: Mapping[str, Any]
    base: BaseModel


def read_folder(folder: Path) -> Contents:
    """Read a PEFT LoRA folder.

    Raises:
        UserError: if the folder is missing or damaged, holds no LoRA adapter, or one whose update
            is not ``s B A``; says which field or tensor.
    """
    opened = _opened(folder, _read_tensors)
    head, base = head_of(opened, folder)
    factors = {module: opened.factors.read(module) for module in opened.factors}
    return Contents(factors, dict(head), opened.training, base)


def open_folder(folder: Path) -> OpenFolder:
    """Check a PEFT LoRA folder and return what reads its tensors when they are asked for.

    Raises:
        UserError: as :func:`read_folder`; for a tensor that is not finite, when it is read.
    """
    return _opened(folder, LazyTensors)


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
        tensors[f"{PREFIX}{module}.lora_A.weight"] = own_copy(f.A)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = own_copy(f.B)
    head = {key: own_copy(value) for key, value in contents.head.items()}
    if inside:
        tensors |= {f"{PREFIX}{inside}.{key}": value for key, value in head.items()}
    config = make_lora_config(contents.factors, base, saves_head=inside is not None)
    beside = [HEAD_FILE] if head and not inside else []
    safetensors.torch.save_file(tensors, folder / WEIGHTS_FILE, {"format": "pt"})
    files.write_json(folder / CONFIG_FILE, config)
    if beside:
        safetensors.torch.save_file(head, folder / HEAD_FILE)
    seals.write_record(folder, contents.training, beside, [WEIGHTS_FILE, CONFIG_FILE, *beside])


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
    listed = training.get(LISTED, [HEAD_FILE] if (folder / HEAD_FILE).exists() else [])
    if not isinstance(listed, list) or any(name not in list(_FILES) for name in listed):
        raise UserError(f"{path} lists files that no adapter has ({listed}); write it again")
    return seals.training_of(training), tuple(listed)


def _check_listed(folder: Path, listed: Iterable[str]) -> None:
    for name in listed:
        _check_header(folder / name)


def _check_header(path: Path) -> None:
    _expect_file(path)
    LazyTensors(path)


def _expect_file(path: Path) -> None:
    if path.is_file():
        return
    pickles = sorted(p.name for p in path.parent.glob("*") if p.suffix in _PICKLES)
    if pickles:
        raise UserError(
            f"Expected {path} but found {pickles[0]}, a pickle, which may run code when it is "
            "read; load it where you trust it and save it as safetensors"
        )
    raise UserError(f"Expected {path} but it is missing; only safetensors files are read")


def _read_json(path: Path) -> dict[str, Any]:
    return files.read_json(path, "is not valid JSON", "write the adapter again")


def _read_tensors(path: Path) -> dict[str, Tensor]:
    _expect_file(path)
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error) from error


def _read_pickle(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors of peft's older file; nothing but tensors is ever unpickled."""
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    try:
        try:
            found = torch.load(path, mmap=True, **options)
        except RuntimeError:  # written before torch wrote archives, which alone can be mapped
            found = torch.load(path, **options)
    except Exception as error:
        # Bytes that are no pickle of tensors fail wherever the reader happens to be.
        said = " ".join(str(error).split())[:80] or type(error).__name__
        raise UserError(
            f"{path} is a pickle that holds more than tensors, or is damaged ({said}); save the "
            "adapter as safetensors"
        ) from error
    if not isinstance(found, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items()
    ):
        raise UserError(
            f"Expected {path} to hold a dictionary of tensors but it holds something else; save "
            "the adapter as safetensors"
        )
    return found


def _opened(folder: Path, read: Callable[[Path], Mapping[str, Tensor]]) -> OpenFolder:
    files.restore(folder)
    settings = parse_lora_config(_read_config(folder), folder)
    weights = folder / WEIGHTS_FILE
    if not weights.exists() and (folder / PICKLE_FILE).is_file():
        tensors = _read_pickle(folder / PICKLE_FILE)
    else:
        _expect_file(weights)
        tensors = read(weights)
    lora, saved = _sort_names(tensors, settings, folder)
    factors = StoredFactors(folder, tensors, lora, settings)
    training, listed = _read_training(folder)
    _check_listed(folder, listed)
    beside = folder / HEAD_FILE
    return OpenFolder(
        factors,
        {module: Renamed(tensors, names) for module, names in saved.items()},
        read(beside) if beside.exists() else {},
        training,
        settings.base,
    )


class Renamed(Mapping[str, Tensor]):
    """Some of the tensors of a mapping under other names.

    Args:
        tensors: what they are read from.
        names: new name -> name in ``tensors``.
    """

    def __init__(self, tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        self._tensors, self._names = tensors, names

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class StoredFactors(Mapping[str, LoRAFactors]):
    """Module -> factors, whose two tensors are read when they are asked for, and never kept.

    Half precision is raised to float32.

    Raises:
        UserError: if a module has only one factor, or there is none; for NaN or infinity, when the
            module is read.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, Tensor],
        names: Mapping[str, Mapping[str, str]],
        settings: LoRASettings,
    ) -> None:
        self._folder, self._tensors, self._settings = folder, tensors, settings
        self._finite: set[str] = set()
        self._names = {module: names[module] for module in sorted(names, key=natural)}
        for module, pair in self._names.items():
            if set(pair) != {"A", "B"}:
                raise UserError(
                    f"Module {module!r} in {folder} has only one of lora_A and lora_B; write the "
                    "adapter again"
                )
            if not settings.selection.has(module):
                raise UserError(
                    f"Module {module!r} in {folder} has factors but {CONFIG_FILE} leaves it out "
                    "(target_modules, exclude_modules, layers_to_transform or modules_to_save), so "
                    "that peft would not use them; write the adapter again"
                )
        if not names:
            raise UserError(f"The adapter in {folder} holds no LoRA factors; write it again")

    def read(self, module: str) -> LoRAFactors:
        """Return the factors of a module as they are, finite or not.

        Raises:
            UserError: for tensors that are no factors of the rank that the configuration says.
        """
        A, B = (self._numbers(module, side) for side in "AB")
        rank = self._settings.rank_of(module)
        if A.ndim != 2 or B.ndim != 2 or (A.shape[0], B.shape[1]) != (rank, rank):
            raise UserError(
                f"Expected factors A (r, d_in) and B (d_out, r) with one rank r={rank}, as "
                f"{CONFIG_FILE} says, but module {module!r} in {self._folder} has A "
                f"{tuple(A.shape)} and B {tuple(B.shape)}; write the adapter again"
            )
        if not A.numel() or not B.numel():
            raise UserError(
                f"Expected factors with numbers but module {module!r} in {self._folder} has none; "
                "write the adapter again"
            )
        dtype = torch.promote_types(torch.float32, torch.promote_types(A.dtype, B.dtype))
        return LoRAFactors(A.to(dtype), B.to(dtype), self._settings.scaling(module, rank))

    def _numbers(self, module: str, side: str) -> Tensor:
        name = self._names[module][side]
        tensor = self._tensors[name]
        check_plain(name, tensor, self._folder)
        if tensor.dtype not in FLOATS:
            raise UserError(
                f"Expected floating-point factors but {name!r} in {self._folder} holds "
                f"{kind_of_numbers(tensor)}; save the adapter as float32, "
                "without quantisation"
            )
        return tensor

    def __getitem__(self, module: str) -> LoRAFactors:
        factors = self.read(module)
        if module not in self._finite and not is_finite(_single(factors)):
            raise UserError(
                f"Expected finite factors but module {module!r} of the adapter in {self._folder} "
                "holds NaN or infinity, or numbers beyond single precision; the file is damaged or "
                "its training diverged: write it again, or leave it out"
            )
        self._finite.add(module)  # looking again would take as long as reading again
        return factors

    def __contains__(self, module: object) -> bool:
        return module in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def dtype(self, module: str) -> torch.dtype:
        """Return in which precision the factors of a module are stored."""
        A, B = (_dtype(self._tensors, self._names[module][side]) for side in "AB")
        return torch.promote_types(A, B)


def _single(factors: LoRAFactors) -> LoRAFactors:
    # What every model takes; of factors that have it nothing is copied.
    return LoRAFactors(factors.A.float(), factors.B.float(), factors.scaling)


def _dtype(tensors: Mapping[str, Tensor], name: str) -> torch.dtype:
    # A lazy file knows it without reading the tensor.
    return tensors.dtype(name) if isinstance(tensors, LazyTensors) else tensors[name].dtype


def _sort_names(
    tensors: Iterable[str], settings: LoRASettings, folder: Path
) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, str]]]:
    """Return where the factors are, module -> side -> name, and the same of the saved modules."""
    lora: dict[str, dict[str, str]] = {}
    saved: dict[str, dict[str, str]] = {}
    for key in tensors:
        name = key.removeprefix(PREFIX)
        match = _LORA.fullmatch(name)
        module = _saved_module(name, settings.modules_to_save)
        if name == key or (match is None and module is None):
            raise UserError(
                f"Unexpected tensor {key!r} in {folder / WEIGHTS_FILE}: only lora_A and lora_B of "
                "linear layers can be merged, beside a head that modules_to_save names; a copy of "
                "the base model's embeddings is left out by save_embedding_layers=False of peft"
            )
        if match is not None:
            _take(lora.setdefault(match["module"], {}), match["side"], key, folder)
        elif module is not None:
            parameter = _WRAPPING.sub("", name.removeprefix(f"{module}."))
            _take(saved.setdefault(module, {}), parameter, key, folder)
    return lora, saved


def _take(names: dict[str, str], name: str, key: str, folder: Path) -> None:
    if name in names:
        raise UserError(
            f"{folder / WEIGHTS_FILE} has two tensors for one, {names[name]!r} and {key!r}; write "
            "the adapter again"
        )
    names[name] = key


def _saved_module(name: str, modules_to_save: tuple[str, ...]) -> str | None:
    """Return the module of a tensor that was trained beside the factors, by the rule of peft.

    An entry of ``modules_to_save`` names every module whose full name ends with it.
    """
    parts = name.split(".")
    modules = (".".join(parts[:end]) for end in range(1, len(parts)))
    return next((module for module in modules if module.endswith(modules_to_save)), None)


def head_of(opened: OpenFolder, folder: Path) -> tuple[Mapping[str, Tensor], BaseModel]:
    """Return the head, from beside the adapter or from the base model's module, and the base.

    Raises:
        UserError: if more than one module was trained beside the factors.
    """
    saved = opened.saved
    if not saved:
        return opened.head, opened.base
    if len(saved) > 1 or opened.head:
        places = [*saved, *([HEAD_FILE] if opened.head else [])]
        raise UserError(
            f"Expected one module trained beside the factors in {folder}, the head, but it has "
            f"{' and '.join(places)}; save the adapter with one"
        )
    (module, head), *_ = saved.items()
    return head, replace(opened.base, head_module=module)


def natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key under which blocks.2 comes before blocks.10."""
    return [(0, int(p)) if p.isdigit() else (1, p) for p in name.split(".")]
