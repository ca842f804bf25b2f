"""Safetensors files tensor by tensor: read when it is asked for, written as it is made."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import safetensors
import torch
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
        # A dictionary for its order and its quick look-up.
        self._names = dict.fromkeys(self._opened(lambda file: list(file.keys())))

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._opened(lambda file: _tensor(file, name))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, which stays on the disk."""
        found = self._opened(lambda file: file.get_slice(name).get_shape())
        return tuple(found)

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


_DTYPES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What the header calls the precisions."""

_ENTRY = 160  # bytes of the header that hold precision, shape and place of a tensor, and more


class TensorWriter:
    """A safetensors file that is written a tensor at a time; see :func:`writing`."""

    def __init__(self, file: BinaryIO, names: Sequence[str]) -> None:
        self._file = file
        # The header stands in front of the tensors and is known after them: room is kept for it,
        # and blanks fill what is left, as the format allows.
        room = sum(len(json.dumps(name)) + _ENTRY for name in names) + _ENTRY
        self._room = room + -room % 8
        self._header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._names = set(names)
        self.size = 0
        file.seek(8 + self._room)

    def add(self, name: str, tensor: Tensor) -> None:
        """Write the next tensor, one of the names that were announced."""
        self._names.remove(name)
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        self._header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [self.size, self.size + data.numel()],
        }
        self._file.write(data.numpy().data)
        self.size += data.numel()

    def close(self) -> None:
        """Write the header."""
        assert not self._names, f"announced and not written: {sorted(self._names)}"
        header = json.dumps(self._header, separators=(",", ":")).encode()
        self._file.seek(0)
        self._file.write(self._room.to_bytes(8, "little") + header.ljust(self._room))


@contextmanager
def writing(path: Path, names: Sequence[str]) -> Iterator[TensorWriter]:
    """Yield what writes a safetensors file tensor by tensor, none of which it keeps.

    Wider numbers should come before narrower ones, so that all lie at multiples of their width.

    Args:
        path: the file.
        names: of all tensors that will be written, in any order.
    """
    with path.open("wb") as file:
        writer = TensorWriter(file, names)
        yield writer
        writer.close()
