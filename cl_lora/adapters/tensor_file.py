"""A safetensors file as a mapping that reads a tensor when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors
from safetensors import SafetensorError
from torch import Tensor

from cl_lora.support.errors import UserError

Read = TypeVar("Read")


class LazyTensors(Mapping[str, Tensor]):
    """The tensors of one file by name, in the order of the file; none is kept once it is read.

    Raises:
        UserError: if the file is missing, was cut short, or is no safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._names = tuple(self._opened(lambda file: list(file.keys())))

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._opened(lambda file: _tensor(file, name))

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _opened(self, read: Callable[[Any], Read]) -> Read:
        if not self.path.is_file():
            raise UserError(
                f"Expected {self.path} but it is missing; only safetensors files are read"
            )
        try:
            with safetensors.safe_open(self.path, framework="pt") as file:
                return read(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{self.path} is no readable safetensors file ({error})") from error


def _tensor(file: Any, name: str) -> Tensor:
    tensor: Tensor = file.get_tensor(name)
    return tensor
