"""A fully fine-tuned model as its difference to the base model, read tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from cl_lora.adapters.adapter import Adapter
from cl_lora.adapters.entries import entry_name
from cl_lora.adapters.peft_folder import CONFIG_FILE, natural
from cl_lora.adapters.tensor_file import FLOATS, LazyTensors
from cl_lora.support.errors import UserError

MODEL_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_PICKLES = frozenset({".bin", ".ckpt", ".pkl", ".pt", ".pth"})


class Checkpoint(Mapping[str, Tensor]):
    """The weights of a model by name, in one file or in several; a tensor is read when asked for.

    Args:
        path: a safetensors file, or a folder with ``model.safetensors``, with parts of it that
            ``model.safetensors.index.json`` lists, or with one safetensors file.

    Raises:
        UserError: if there are no weights, a file was cut short or is a pickle, or a part lacks a
            tensor that the index lists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = _files(path)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, which stays on the disk."""
        return self._files[name].shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """Return the precision of a tensor, which stays on the disk."""
        return self._files[name].dtype(name)

    def __getitem__(self, name: str) -> Tensor:
        return self._files[name][name]

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


class Differences(Mapping[str, Tensor]):
    """Entry -> what fine-tuning added to the parameter, ``W - W_0``; read when it is asked for.

    Entries are called as their parameters, without ``.weight``. Integers, such as position ids,
    have no difference: they must be the same in both models.

    Args:
        base: the model before.
        tuned: the same model after fine-tuning.

    Raises:
        UserError: if a tensor is missing in one of the models or differs in shape; if integers
            differ; for NaN or infinity, when the entry is read.
    """

    def __init__(self, base: Checkpoint, tuned: Checkpoint) -> None:
        _check_same(base, tuned)
        self.base, self.tuned = base, tuned
        self.parameters: dict[str, str] = {}
        for name in sorted(base, key=natural):
            kinds = {base.dtype(name), tuned.dtype(name)}
            if len(kinds) > 1 and not all(kind in FLOATS for kind in kinds):
                raise UserError(
                    f"Expected tensor {name!r} to hold numbers of one kind but it has "
                    f"{base.dtype(name)} in {base.path} and {tuned.dtype(name)} in {tuned.path}; "
                    "undo the quantisation first"
                )
            if base.dtype(name).is_floating_point:
                entry = entry_name(name)
                if entry in self.parameters:
                    raise UserError(
                        f"{base.path} has both {self.parameters[entry]!r} and {name!r}, which "
                        "would be called the same; rename one"
                    )
                self.parameters[entry] = name
            elif not torch.equal(base[name], tuned[name]):
                raise UserError(
                    f"Tensor {name!r} holds no floating-point numbers and differs between "
                    f"{base.path} and {tuned.path}; such a tensor cannot be merged"
                )

    def __getitem__(self, entry: str) -> Tensor:
        name = self.parameters[entry]
        before, after = self.base[name], self.tuned[name]
        dtype = torch.promote_types(torch.float32, torch.promote_types(before.dtype, after.dtype))
        delta = after.to(dtype) - before.to(dtype)
        if not delta.isfinite().all():
            raise UserError(
                f"Expected finite numbers but tensor {name!r} of {self.tuned.path} or "
                f"{self.base.path} holds NaN or infinity; give undamaged models"
            )
        return delta

    def __contains__(self, entry: object) -> bool:
        return entry in self.parameters

    def __iter__(self) -> Iterator[str]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)


def model_name(path: Path) -> str:
    """Return how the model at a path is called in messages."""
    return path.stem if path.is_file() else path.name


def fine_tuned(base: Checkpoint, path: str | Path) -> Adapter:
    """Return a fully fine-tuned model as an adapter of dense deltas, which are read when asked for.

    Args:
        base: the model that was fine-tuned.
        path: the fine-tuned model; see :class:`Checkpoint`.

    Raises:
        UserError: as :class:`Checkpoint` and :class:`Differences`.
    """
    path = Path(path)
    return Adapter(model_name(path), {}, deltas=Differences(base, Checkpoint(path)))


def _check_same(base: Checkpoint, tuned: Checkpoint) -> None:
    odd = sorted(set(base) ^ set(tuned), key=natural)
    if odd:
        has, lacks = (base, tuned) if odd[0] in base else (tuned, base)
        raise UserError(
            f"Expected the same tensors in both models but {has.path} has {odd[0]!r} and "
            f"{lacks.path} lacks it; give a model and what it was fine-tuned from"
        )
    for name in base:
        if base.shape(name) != tuned.shape(name):
            raise UserError(
                f"Expected one shape of tensor {name!r} but it has {base.shape(name)} in "
                f"{base.path} and {tuned.shape(name)} in {tuned.path}; give a model and what it "
                "was fine-tuned from"
            )


def _files(path: Path) -> dict[str, LazyTensors]:
    """Return for each tensor the file that holds it."""
    if not path.exists():
        raise UserError(f"Expected a model at {path} but there is nothing; check its name")
    if path.is_file():
        if path.suffix in _PICKLES:
            raise UserError(
                f"{path} is a pickle, which may run code when it is read; load it where you trust "
                "it and save it as safetensors"
            )
        return dict.fromkeys(file := LazyTensors(path), file)
    if not path.is_dir():
        raise UserError(
            f"Expected a model at {path} but it is neither a file nor a folder; give a safetensors "
            "file, or a folder with one"
        )
    if (path / CONFIG_FILE).is_file():
        raise UserError(
            f"Expected a whole model but {path} is a PEFT folder; leave --base out to merge "
            "adapters"
        )
    single = path / MODEL_FILE
    if single.is_file():
        return dict.fromkeys(file := LazyTensors(single), file)
    if (path / INDEX_FILE).is_file():
        return _parts(path / INDEX_FILE)
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return dict.fromkeys(file := LazyTensors(found[0]), file)
    pickles = sorted(p.name for p in path.iterdir() if p.suffix in _PICKLES)
    instead = f"{pickles[0]}, a pickle" if pickles else f"{len(found)} other safetensors files"
    raise UserError(
        f"Expected {MODEL_FILE} or {INDEX_FILE} in {path} but found {instead}; save the model as "
        "safetensors"
    )


def _parts(index: Path) -> dict[str, LazyTensors]:
    try:
        places = json.loads(index.read_text())["weight_map"]
        wanted = {str(name): str(file) for name, file in places.items()}
    except (ValueError, OSError, LookupError, TypeError, AttributeError, RecursionError) as error:
        said = " ".join(str(error).split())[:100]
        raise UserError(f"{index} is no index of a model ({said}); save the model again") from None
    parts = {file: LazyTensors(index.parent / file) for file in sorted(set(wanted.values()))}
    for name, file in wanted.items():
        if name not in parts[file]:
            raise UserError(
                f"{index} says that {file} holds {name!r} but it does not; save the model again"
            )
    return {name: parts[file] for name, file in wanted.items()}
