"""What a merge is written as: a PEFT folder, a whole model, or differences to one."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from cl_lora.adapters import Entry, LoRAFactors, entry_delta
from cl_lora.adapters.checkpoints import INDEX_FILE, MODEL_FILE, Checkpoint, Differences
from cl_lora.adapters.lora_config import make_lora_config
from cl_lora.adapters.model_folder import DELTA_FILE
from cl_lora.adapters.peft_folder import CONFIG_FILE, HEAD_FILE, PREFIX, WEIGHTS_FILE
from cl_lora.adapters.seals import LISTED
from cl_lora.adapters.tensor_file import TensorWriter, writing
from cl_lora.joining.inputs import Inputs
from cl_lora.support import files
from cl_lora.support.errors import UserError

_COPIED = frozenset({".json", ".txt", ".model", ".jinja"})
"""What belongs to a model beside its weights: configuration, tokenizer, templates."""

Head: TypeAlias = Mapping[str, Callable[[], Tensor]]
"""Name of a parameter beside the modules -> what makes it."""


class _File:
    """A safetensors file into which wider numbers go before narrower ones.

    A reader may only map numbers that lie at multiples of their width.

    Args:
        writer: writes it.
        others: tensors that wait for their turn: name -> (bytes of a number, what makes it).
    """

    def __init__(
        self, writer: TensorWriter, others: Mapping[str, tuple[int, Callable[[], Tensor]]]
    ) -> None:
        self._writer = writer
        self._waiting = sorted(
            ((width, name, make) for name, (width, make) in others.items()),
            key=lambda other: -other[0],
        )
        self.numbers = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Write a tensor, after those that are wider."""
        while self._waiting and self._waiting[0][0] >= tensor.itemsize:
            self._next()
        self._write(name, tensor)

    def finish(self) -> None:
        """Write all that still waits."""
        while self._waiting:
            self._next()

    @property
    def size(self) -> int:
        """Bytes written."""
        return self._writer.size

    def _next(self) -> None:
        _, name, make = self._waiting.pop(0)
        self._write(name, make())

    def _write(self, name: str, tensor: Tensor) -> None:
        self._writer.add(name, tensor)
        self.numbers += tensor.numel()


class Output(ABC):
    """Takes modules one after the other and keeps none.

    Attributes:
        listed: what goes into ``training.json``.
    """

    def __init__(self, file: _File) -> None:
        self._file = file
        self.listed: dict[str, Any] = {}

    @abstractmethod
    def add(self, name: str, entry: Entry) -> Entry:
        """Write a module, and return it as it was written.

        Raises:
            UserError: if the precision cannot hold a number of it.
        """

    @property
    def numbers(self) -> int:
        """How many numbers were written."""
        return self._file.numbers

    @property
    def size(self) -> int:
        """Bytes of the weights."""
        return self._file.size


Target: TypeAlias = AbstractContextManager[Output]
"""An output whose folder is complete when it is left."""


class PeftOutput(Output):
    """The factors of a PEFT folder."""

    def __init__(self, file: _File, dtype: torch.dtype) -> None:
        super().__init__(file)
        self._dtype = dtype
        self.shapes: dict[str, LoRAFactors] = {}
        self.listed = {LISTED: []}

    def add(self, name: str, entry: Entry) -> LoRAFactors:
        """Write the factors of a module."""
        assert isinstance(entry, LoRAFactors)
        A, B = (_cast(tensor, self._dtype, name) for tensor in (entry.A, entry.B))
        self._file.add(f"{PREFIX}{name}.lora_A.weight", A)
        self._file.add(f"{PREFIX}{name}.lora_B.weight", B)
        meta = LoRAFactors(A.to("meta"), B.to("meta"), entry.scaling)
        self.shapes[name] = meta
        return entry if A is entry.A and B is entry.B else replace(entry, A=A, B=B)


@contextmanager
def peft_target(
    folder: Path,
    names: Sequence[str],
    head: Head,
    inputs: Inputs,
    dtype: torch.dtype,
    head_dtype: torch.dtype | None,
) -> Iterator[Output]:
    """Yield what writes a folder that ``peft.PeftModel.from_pretrained`` reads.

    Args:
        folder: where.
        names: of all modules.
        head: what was trained beside them.
        inputs: what is merged.
        dtype: of the factors.
        head_dtype: of the head; None leaves it as it is.
    """
    modules = inputs.heads[0].modules if head else ()
    kept = {f"{PREFIX}{name}" if modules else name: make for name, make in head.items()}
    waiting = _waiting(kept, inputs.heads[0].tensors, head, head_dtype)
    factors = [f"{PREFIX}{name}.lora_{side}.weight" for name in names for side in "AB"]
    inside = [*factors, *(kept if modules else ())]
    with writing(folder / WEIGHTS_FILE, inside) as writer:
        file = _File(writer, waiting if modules else {})
        output = PeftOutput(file, dtype)
        yield output
        file.finish()
    config = make_lora_config(output.shapes, inputs.base, saves_head=False)
    files.write_json(folder / CONFIG_FILE, {**config, "modules_to_save": list(modules) or None})
    if kept and not modules:
        _write_head(folder, waiting)
        output.listed[LISTED] = [HEAD_FILE]


class ModelOutput(Output):
    """The weights of a whole model: those of the base, and what was merged added to them."""

    def __init__(self, file: _File, inputs: Inputs, dtype: torch.dtype | None) -> None:
        super().__init__(file)
        self._inputs, self._dtype = inputs, dtype

    def add(self, name: str, entry: Entry) -> Tensor:
        """Write a parameter, and return what it differs from that of the base by."""
        parameter = self._inputs.parameter(name)
        assert self._inputs.checkpoint is not None
        before = self._inputs.checkpoint[parameter]
        delta = entry_delta(entry)
        after = _cast(before.to(delta.dtype) + delta, self._dtype or before.dtype, parameter)
        self._file.add(parameter, after)
        return after.to(delta.dtype).sub(before.to(delta.dtype))


@contextmanager
def checkpoint_target(folder: Path, inputs: Inputs, dtype: torch.dtype | None) -> Iterator[Output]:
    """Yield what writes the whole model, with all that is beside the weights of the base model.

    Args:
        folder: where.
        inputs: what is merged, with the base model.
        dtype: of its numbers; None for that of each parameter of the base model.
    """
    base = inputs.checkpoint
    assert base is not None
    merged = {inputs.parameter(entry) for entry in inputs.adapters[0].entries}
    others = {
        name: (base[name].itemsize, _reader(base, name)) for name in base if name not in merged
    }
    with writing(folder / MODEL_FILE, list(base)) as writer:
        file = _File(writer, others)
        yield ModelOutput(file, inputs, dtype)
        file.finish()
    if base.path.is_dir():
        for path in sorted(base.path.iterdir()):
            if path.suffix in _COPIED and path.name != INDEX_FILE and path.is_file():
                shutil.copyfile(path, folder / path.name)


def checkpoint_order(inputs: Inputs, dtype: torch.dtype | None) -> list[str]:
    """Return the entries in the order in which a model's parameters must be written."""
    deltas = inputs.adapters[0].deltas
    names = list(deltas)
    if dtype is not None or inputs.checkpoint is None or not isinstance(deltas, Differences):
        return names
    widths = {name: inputs.checkpoint[deltas.parameters[name]].itemsize for name in names}
    return sorted(names, key=lambda name: -widths[name])


class DeltaOutput(Output):
    """The differences of a whole model to its base."""

    def __init__(self, file: _File, dtype: torch.dtype | None) -> None:
        super().__init__(file)
        self._dtype = dtype

    def add(self, name: str, entry: Entry) -> Tensor:
        """Write the difference of a parameter."""
        delta = entry_delta(entry)
        written = _cast(delta, self._dtype or delta.dtype, name)
        self._file.add(name, written)
        return delta if written is delta else written.to(delta.dtype)


@contextmanager
def delta_target(
    folder: Path, names: Sequence[str], head: Head, inputs: Inputs, dtype: torch.dtype | None
) -> Iterator[Output]:
    """Yield what writes a folder of differences, as :meth:`cl_lora.Adapter.load` reads it.

    Args:
        folder: where.
        names: of all entries.
        head: what was trained beside them.
        inputs: what is merged.
        dtype: of the numbers; None for that in which they were computed.
    """
    with writing(folder / DELTA_FILE, list(names)) as writer:
        yield DeltaOutput(_File(writer, {}), dtype)
    if head:
        _write_head(folder, _waiting(head, inputs.heads[0].tensors, head, dtype))


def _waiting(
    kept: Head, stored: Mapping[str, Tensor], head: Head, dtype: torch.dtype | None
) -> dict[str, tuple[int, Callable[[], Tensor]]]:
    """Return each tensor of a head with the width of its numbers."""
    found = {}
    for (new, make), name in zip(kept.items(), head, strict=True):
        own = stored[name].dtype
        to = dtype if dtype is not None and own.is_floating_point else own
        found[new] = (to.itemsize, _cast_later(make, to, name))
    return found


def _cast_later(make: Callable[[], Tensor], dtype: torch.dtype, name: str) -> Callable[[], Tensor]:
    return lambda: _cast(make(), dtype, name)


def _reader(tensors: Checkpoint, name: str) -> Callable[[], Tensor]:
    return lambda: tensors[name]


def _write_head(folder: Path, tensors: Mapping[str, tuple[int, Callable[[], Tensor]]]) -> None:
    with writing(folder / HEAD_FILE, list(tensors)) as writer:
        _File(writer, tensors).finish()


def _cast(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """Return a tensor in another precision.

    Raises:
        UserError: if it holds larger numbers than the precision has.
    """
    found = tensor.to(dtype)
    if not found.isfinite().all():
        raise UserError(
            f"{name!r} holds numbers up to {float(tensor.abs().max()):.3g}, which "
            f"{str(dtype).removeprefix('torch.')} cannot hold; choose another --dtype, or "
            "smaller weights"
        )
    return found
