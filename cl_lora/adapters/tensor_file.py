"""Safetensors files tensor by tensor: read when it is asked for, written as it is made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import torch
from safetensors import SafetensorError
from torch import Tensor

from cl_lora.support.errors import UserError

FLOATS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
"""The precisions that weights have."""

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

_PRECISIONS = {name: dtype for dtype, name in _DTYPES.items()}


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in its file."""

    dtype: str
    shape: tuple[int, ...]
    first: int
    size: int


class LazyTensors(Mapping[str, Tensor]):
    """The tensors of one file by name, in the order of the file; none is kept once it is read.

    The file is not mapped: what was read and dropped takes no memory.

    Raises:
        UserError: if the file is missing, was cut short, or is no safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _expect(path)
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                names = list(file.keys())  # the library checks every place before we use it
            self._places = _places(path, names)
        except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
            raise unreadable(path, error) from error

    def __getitem__(self, name: str) -> Tensor:
        place = self._places[name]
        dtype = self.dtype(name)
        if not place.size:
            return torch.empty(place.shape, dtype=dtype)
        _expect(self.path)
        data = bytearray(place.size)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(place.first)
                view, found = memoryview(data), 0
                while found < place.size and (more := file.readinto(view[found:])):
                    found += more
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be read ({error.strerror}); look at the disk"
            ) from error
        if found < place.size:
            raise UserError(f"{self.path} was cut short while it was read; write it again")
        return torch.frombuffer(data, dtype=dtype).view(place.shape)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, which stays on the disk."""
        return self._places[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Return the precision of a tensor, which stays on the disk.

        Raises:
            UserError: if torch has no such numbers.
        """
        kind = self._places[name].dtype
        if kind not in _PRECISIONS:
            raise UserError(
                f"Tensor {name!r} of {self.path} holds numbers of kind {kind}, which cannot be "
                f"read; known: {', '.join(_PRECISIONS)}"
            )
        return _PRECISIONS[kind]

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def own_copy(tensor: Tensor) -> Tensor:
    """Return a contiguous copy on the CPU that shares no memory.

    Safetensors refuses tensors that do, as slices of a fused q, k, v do.
    """
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def check_plain(name: str, tensor: Tensor, path: object) -> None:
    """Check that a tensor's numbers are there, each for itself.

    Raises:
        UserError: if it is sparse, quantised, complex, of eight bits, without data, or larger than
            its data.
    """
    odd = None
    if tensor.layout is not torch.strided:
        odd = "is not dense"
    elif tensor.is_quantized:
        odd = "is quantised"
    elif tensor.device.type != "cpu":
        odd = f"has no data (device {tensor.device.type})"
    elif tensor.is_complex() or (tensor.is_floating_point() and tensor.dtype not in FLOATS):
        odd = f"holds {kind_of_numbers(tensor)}"
    elif tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
        odd = "is larger than its data"
    if odd:
        raise UserError(
            f"Expected plain numbers but tensor {name!r} of {path} {odd}; save it as a dense "
            "float32 tensor"
        )


def kind_of_numbers(tensor: Tensor) -> str:
    """Return the precision of a tensor in a word."""
    return str(tensor.dtype).removeprefix("torch.")


def unreadable(path: Path, error: Exception) -> UserError:
    """Return the error for a file that is no safetensors file."""
    said = " ".join(str(error).split())[:200]
    return UserError(
        f"{path} is no readable safetensors file ({said}); it is damaged or something else, write "
        "it again"
    )


def _expect(path: Path) -> None:
    if path.is_file():
        return
    if path.exists():
        raise UserError(
            f"Expected {path} to be a file but it is something else; only safetensors files are "
            "read"
        )
    raise UserError(f"Expected {path} but it is missing; only safetensors files are read")


def _places(path: Path, names: Sequence[str]) -> dict[str, _Place]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    places = {}
    for name in names:
        about = header[name]
        first, last = about["data_offsets"]
        shape = tuple(about["shape"])
        places[name] = _Place(about["dtype"], shape, 8 + length + first, last - first)
    return places


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
