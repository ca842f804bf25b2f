"""What is merged, opened: nothing is in memory but names, shapes and settings."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cl_lora.adapters import Adapter, BaseModel, seals
from cl_lora.adapters.checkpoints import Checkpoint, Differences, fine_tuned
from cl_lora.adapters.model_folder import is_model_folder, statistics_of
from cl_lora.adapters.peft_folder import CONFIG_FILE, OpenFolder, StoredFactors, open_folder
from cl_lora.joining.recipe import Recipe
from cl_lora.support.errors import UserError, shown


@dataclass(frozen=True, eq=False)
class Head:
    """What was trained beside one adapter, as parameters of the base model or beside it.

    Attributes:
        modules: the modules of the base model (``modules_to_save``); empty for a head that is kept
            beside the adapter.
        tensors: name -> tensor, read when it is asked for; a name is that of the parameter in the
            base model, or in the head.
    """

    modules: tuple[str, ...] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Inputs:
    """What is merged.

    Attributes:
        paths: where each is.
        adapters: LoRA adapters, or fully fine-tuned models.
        heads: what was trained beside each.
        base: the model that all belong to, in the words of peft.
        checkpoint: the base model of whole models, where their differences are taken from it.
        notes: what a reader should know, a sentence each.
    """

    paths: tuple[Path, ...]
    adapters: tuple[Adapter, ...]
    heads: tuple[Head, ...]
    base: BaseModel = field(default_factory=BaseModel)
    checkpoint: Checkpoint | None = None
    notes: tuple[str, ...] = ()

    @property
    def low_rank(self) -> bool:
        """Whether these are LoRA adapters."""
        return bool(self.adapters[0].factors)

    def stored_dtype(self) -> torch.dtype:
        """Return the precision that holds what is stored in all of them."""
        found = [dtype for adapter in self.adapters for dtype in _dtypes(adapter)]
        return functools.reduce(torch.promote_types, found)

    def parameter(self, entry: str) -> str:
        """Return the name of the parameter that an entry belongs to, as filters see it."""
        deltas = self.adapters[0].deltas
        if isinstance(deltas, Differences):
            return deltas.parameters[entry]
        return entry if self.adapters[0].deltas else f"{entry}.weight"


def open_inputs(recipe: Recipe, *, allow_different_base: bool = False) -> Inputs:
    """Open everything that a recipe merges.

    Args:
        recipe: names the folders or files.
        allow_different_base: whether adapters may say that they belong to different base models.

    Raises:
        UserError: for what is no LoRA adapter and no model, adapters of different base models, or
            adapters beside whole models.
    """
    paths = [member.path for member in recipe.members]
    kinds = {path: _is_adapter(path) for path in paths}
    adapters = [path for path, adapter in kinds.items() if adapter]
    models = [path for path, adapter in kinds.items() if not adapter]
    if models and recipe.base is None:
        raise UserError(
            f"Expected a PEFT LoRA folder but {models[0]} has no {CONFIG_FILE}; give the folder "
            "that save_pretrained wrote, or --base for models that were fine-tuned as a whole"
        )
    if adapters and models:
        raise UserError(
            f"Expected either adapters or whole models but {adapters[0]} is an adapter and "
            f"{models[0]} is none; merge either"
        )
    if adapters:
        return _open_adapters(recipe, paths, allow_different_base)
    assert recipe.base is not None
    base = Checkpoint(recipe.base)
    opened = _named([fine_tuned(base, path) for path in paths])
    return Inputs(tuple(paths), opened, (Head(),) * len(paths), checkpoint=base)


def _is_adapter(path: Path) -> bool:
    try:
        there = path.exists()
    except (OSError, ValueError):  # a name that no file can have
        there = False
    if not there:
        raise UserError(
            f"Expected a folder of an adapter but {str(path)[:200]} does not exist; check its name"
        )
    return (path / CONFIG_FILE).is_file() or is_model_folder(path)


def _open_adapters(recipe: Recipe, paths: Sequence[Path], allow_different_base: bool) -> Inputs:
    whole = [is_model_folder(path) for path in paths]
    if any(whole):
        if not all(whole):
            raise UserError(
                f"Expected LoRA adapters but {paths[whole.index(True)]} is a fully fine-tuned "
                "model; merge either"
            )
        opened = _named([Adapter.open(path) for path in paths])
        heads = tuple(Head((), adapter.head) for adapter in opened)
        return Inputs(tuple(paths), opened, heads)
    for path in paths:
        _check_seals(path)
    folders = [open_folder(path) for path in paths]
    named = [
        ("the recipe", str(recipe.base) if recipe.base_name and recipe.base else recipe.base_name),
        *((str(m.path), m.base_name) for m in recipe.members if m.base_name),
        *((str(p), f.base.name_or_path) for p, f in zip(paths, folders, strict=True)),
    ]
    if not allow_different_base:
        _check_base(named)
        revisions = [(str(p), f.base.revision) for p, f in zip(paths, folders, strict=True)]
        _check_base(revisions, " in revision")
    _check_layout(paths, folders)
    adapters = _named(
        [
            Adapter(
                path.resolve().name,
                folder.factors,
                training=folder.training,
                base=folder.base,
                statistics=statistics_of(path),
            )
            for path, folder in zip(paths, folders, strict=True)
        ]
    )
    base, notes = _agreed([folder.base for folder in folders])
    if base.name_or_path is None:
        base = replace(base, name_or_path=next((name for _, name in named if name), None))
    return Inputs(tuple(paths), adapters, tuple(map(_head, folders)), base, notes=notes)


def _check_seals(path: Path) -> None:
    """Compare an adapter of ours with its digests; others have none."""
    try:
        seals.check(path)
    except UserError as error:
        what = str(error).partition(";")[0]
        raise UserError(
            f"{what}; restore the folder, or delete its training.json if the change is wanted"
        ) from error


def _check_base(named: Sequence[tuple[str, str | None]], how: str = "") -> None:
    known = [(where, name) for where, name in named if name]
    for where, name in known[1:]:
        first, expected = known[0]
        if not _is_same(name, expected):
            raise UserError(
                f"Expected adapters of one base model but {first} names {shown(expected)} and "
                f"{where} {shown(name)}{how}; give --allow-different-base if they are the same"
            )


def _is_same(name: str, other: str) -> bool:
    """Return whether two names are of one model: alike, or of one folder."""
    paths = Path(name), Path(other)
    try:
        same = all(path.exists() for path in paths) and paths[0].samefile(paths[1])
    except (OSError, ValueError):  # no name of a file
        same = False
    return same or name.rstrip("/") == other.rstrip("/")


def _check_layout(paths: Sequence[Path], folders: Sequence[OpenFolder]) -> None:
    flags = [folder.base.fan_in_fan_out for folder in folders]
    if len(set(flags)) > 1:
        raise UserError(
            f"Expected adapters of one base model but fan_in_fan_out is true in "
            f"{paths[flags.index(True)]} and false in {paths[flags.index(False)]}: their layers "
            "keep weights the other way round; merge adapters of one model"
        )


def _agreed(bases: Sequence[BaseModel]) -> tuple[BaseModel, tuple[str, ...]]:
    """Return what the adapters say of their base model, and on what they differ."""
    values: dict[str, Any] = {}
    notes = []
    for each in fields(BaseModel):
        known = [v for v in (getattr(base, each.name) for base in bases) if v is not None]
        values[each.name] = known[0] if known else None
        if any(value != known[0] for value in known):
            notes.append(
                f"The adapters differ in {each.name}; the result has that of the first, "
                f"{str(known[0])!r}."
            )
    return BaseModel(**values), tuple(notes)


def _head(folder: OpenFolder) -> Head:
    if not folder.saved:
        return Head((), folder.head)
    tensors: dict[str, tuple[Mapping[str, Tensor], str]] = {}
    for module, parameters in folder.saved.items():
        for name in parameters:
            tensors[f"{module}.{name}"] = (parameters, name)
    return Head(tuple(folder.saved), _Joined(tensors))


class _Joined(Mapping[str, Tensor]):
    """Tensors of several mappings under one name each, read when they are asked for."""

    def __init__(self, places: Mapping[str, tuple[Mapping[str, Tensor], str]]) -> None:
        self._places = places

    def __getitem__(self, name: str) -> Tensor:
        tensors, own = self._places[name]
        return tensors[own]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _dtypes(adapter: Adapter) -> Iterator[torch.dtype]:
    if isinstance(adapter.factors, StoredFactors):
        yield from map(adapter.factors.dtype, adapter.factors)
    for delta in adapter.deltas.values():
        yield delta.dtype


def _named(adapters: Sequence[Adapter]) -> tuple[Adapter, ...]:
    """Return the adapters with names that tell them apart in messages."""
    names = [adapter.name for adapter in adapters]
    return tuple(
        replace(a, name=f"{a.name} (number {i + 1})") if names.count(a.name) > 1 else a
        for i, a in enumerate(adapters)
    )
