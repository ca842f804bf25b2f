"""Weights of a network from anybody's file: read safely, and looked at before they count.

Nothing is unpickled but tensors, and nothing is guessed: numbers that are no plain floating-point
numbers, or not finite, are refused by the tensor's name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from cl_lora.adapters.tensor_file import FLOATS, LazyTensors, check_plain, kind_of_numbers
from cl_lora.support.errors import UserError

_INSIDE = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Keys under which training scripts keep the weights, in the order in which timm looks for them."""

_WRAPPERS = ("_orig_mod.", "module.")
"""What torch.compile and parallel training put in front of every name."""

_DEEPEST = 4
"""How many of these lie in each other at most."""


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, without what a training script wraps them in.

    Of a checkpoint that holds averaged weights too (``state_dict_ema``), those are taken, as timm
    does.

    Args:
        path: a safetensors file, or one of torch that holds only tensors.

    Raises:
        UserError: if it is no such file, or a tensor has no plain numbers in memory.
    """
    state = _unwrapped(_read(path), path)
    for name, tensor in state.items():
        check_plain(name, tensor, path)
    return state


def _read(path: Path) -> Any:
    if not path.is_file():  # a pipe or a device would be read without end
        kind = "a folder" if path.is_dir() else "no file"
        raise UserError(
            f"Expected a checkpoint but {path} is {kind}; give the file with the weights"
        )
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Bytes that are no checkpoint fail wherever the reader happens to be: any error means that.
        raise UserError(
            f"{path} is no checkpoint that can be read safely ({type(error).__name__}); expected "
            "safetensors, or a torch file that holds only tensors"
        ) from error


def _unwrapped(found: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(_DEEPEST):
        inside = found if isinstance(found, Mapping) else {}
        key = next((k for k in _INSIDE if isinstance(inside.get(k), Mapping)), None)
        if key is None:
            break
        found = inside[key]
    if not isinstance(found, Mapping) or not found:
        held = "nothing" if isinstance(found, Mapping) else f"a {type(found).__name__}"
        raise _no_mapping(path, f"it holds {held}")
    state: dict[str, Tensor] = {}
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise _no_mapping(path, f"{str(key)[:60]!r} is a {type(value).__name__}")
        name = _bare(key)
        if name in state:
            raise UserError(
                f"The checkpoint {path} has {name!r} twice, with and without a wrapper's prefix; "
                "save it with one of them"
            )
        state[name] = value.detach()
    return state


def _no_mapping(path: Path, detail: str) -> UserError:
    return UserError(
        f"{path} is no checkpoint: expected a mapping of names to tensors but {detail}; save the "
        "state_dict of the model"
    )


def _bare(name: str) -> str:
    """Return the name of a tensor without the prefixes of wrappers, in whatever order they are."""
    while prefix := next((p for p in _WRAPPERS if name.startswith(p)), None):
        name = name.removeprefix(prefix)
    return name


def check_finite(name: str, tensor: Tensor, path: object) -> None:
    """Check that a weight holds finite floating-point numbers.

    Raises:
        UserError: naming the tensor.
    """
    if tensor.dtype not in FLOATS:
        raise UserError(
            f"Expected floating-point numbers but tensor {name!r} of {path} holds "
            f"{kind_of_numbers(tensor)}; save it as float32, without quantisation"
        )
    if not bool(tensor.float().isfinite().all()):
        raise UserError(
            f"Expected finite weights but tensor {name!r} of {path} holds NaN, infinity or numbers "
            "beyond single precision; give an undamaged file"
        )


def check_all_finite(tensors: Iterable[tuple[str, Tensor]], path: object) -> None:
    """Check every weight of a network that was loaded; integers, such as places, may be among them.

    Raises:
        UserError: naming the first tensor that is not finite.
    """
    for name, tensor in tensors:
        if tensor.is_floating_point():
            check_finite(name, tensor, path)


def check_stored(place: str) -> None:
    """Check that the weights in a folder of transformers are stored as floating-point numbers.

    It would cast integers without undoing a quantisation. A name on the hub is not looked at.

    Raises:
        UserError: naming the first tensor that is not.
    """
    folder = Path(place)
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else []:
        tensors = LazyTensors(path)
        for name in tensors:
            if name.endswith((".weight", ".bias")) and tensors.dtype(name) not in FLOATS:
                raise UserError(
                    f"Expected floating-point numbers but tensor {name!r} of {path} holds "
                    f"{str(tensors.dtype(name)).removeprefix('torch.')}; save it as float32, "
                    "without quantisation"
                )


def is_grid(tokens: int) -> bool:
    """Return whether so many tokens are a square of patches."""
    return tokens > 0 and math.isqrt(tokens) ** 2 == tokens
