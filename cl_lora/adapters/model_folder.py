"""A folder of one fully fine-tuned model: its differences to the base model, tensor by tensor.

Beside ``delta.safetensors`` it has ``head.safetensors`` where the model has a head, and
``training.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from cl_lora.adapters import seals
from cl_lora.adapters.seals import LISTED, TRAINING_FILE
from cl_lora.adapters.tensor_file import LazyTensors, own_copy
from cl_lora.support import files
from cl_lora.support.errors import UserError

DELTA_FILE = "delta.safetensors"
HEAD_FILE = "head.safetensors"
STATISTICS = "statistics"

_FILES = frozenset({DELTA_FILE, HEAD_FILE, TRAINING_FILE, STATISTICS})


def is_model_folder(folder: Path) -> bool:
    """Return whether a folder holds a fully fine-tuned model."""
    files.restore(folder)
    return (folder / DELTA_FILE).is_file()


def read_model(
    folder: Path,
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Any]]:
    """Return the deltas, read when they are asked for, the head and what is known of training.

    Raises:
        UserError: if a file is missing or cannot be read.
    """
    training = files.read_json(folder / TRAINING_FILE, "cannot be read", "train the model again")
    head = folder / HEAD_FILE
    listed = training.get(LISTED, [HEAD_FILE] if head.exists() else [])
    return (
        LazyTensors(folder / DELTA_FILE),
        dict(LazyTensors(head)) if listed else {},
        seals.training_of(training),
    )


def write_model(
    folder: Path,
    deltas: Mapping[str, Tensor],
    head: Mapping[str, Tensor],
    training: Mapping[str, Any],
) -> None:
    """Write a fully fine-tuned model, whole or not at all; one of ours is replaced.

    Raises:
        UserError: if something else is there, or the disk refuses.
    """
    if folder.is_dir():
        foreign = sorted(path.name for path in folder.iterdir() if path.name not in _FILES)
        if foreign:
            raise UserError(
                f"{folder} holds {foreign[0]!r}, so it is no model of ours to be replaced; choose "
                "another folder, or delete this one first"
            )
    with files.whole_folder(folder, replace=True) as temporary:
        safetensors.torch.save_file(_owned(deltas), temporary / DELTA_FILE, {"format": "pt"})
        if head:
            safetensors.torch.save_file(_owned(head), temporary / HEAD_FILE)
        listed = [HEAD_FILE] if head else []
        seals.write_record(temporary, training, listed, [DELTA_FILE, *listed])


def is_whole_model(folder: Path) -> bool:
    """Return whether all of a fully fine-tuned model is there; no tensor is loaded."""
    try:
        read_model(folder)
    except UserError:
        return False
    return True


def statistics_of(folder: Path) -> dict[str, Mapping[str, Tensor]]:
    """Return the statistics beside an adapter by name, read when they are asked for."""
    # What a killed process leaves beside them has another end.
    found = sorted(folder.glob(f"{STATISTICS}/*.safetensors"))
    return {
        path.stem: LazyTensors(path)
        for path in found
        # One that a killed process wrote and did not record is gathered again.
        if seals.holds(folder, _statistic_file(path.stem))
    }


def write_statistic(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Write a statistic beside an adapter, whole or not at all.

    Raises:
        UserError: if the disk refuses.
    """
    data = safetensors.torch.save(_owned(tensors))
    # The digest first: a file that is there is known, and one that is not is gathered again.
    seals.add(folder, _statistic_file(name), data)
    files.write_bytes(folder / _statistic_file(name), data)


def _statistic_file(name: str) -> str:
    return f"{STATISTICS}/{name}.safetensors"


def _owned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: own_copy(tensor) for name, tensor in tensors.items()}
