"""A folder of adapters, one per experience, in the order they were trained."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from cl_lora.adapters import seals
from cl_lora.adapters.adapter import Adapter
from cl_lora.adapters.entries import is_finite
from cl_lora.adapters.model_folder import (
    DELTA_FILE,
    is_model_folder,
    is_whole_model,
    write_statistic,
)
from cl_lora.adapters.peft_folder import CONFIG_FILE, WEIGHTS_FILE, is_whole
from cl_lora.support import files
from cl_lora.support.errors import UserError

_NAME = re.compile(r"(\d{2,})-")


class AdapterBank:
    """The adapters ``folder/NN-name`` of one stream, NN being the experience index from 0.

    What is whole in the bank never needs to be trained again. A process that is killed leaves
    whole adapters only (:meth:`Adapter.save` renames them into place); what was damaged by
    something else is not in the bank, and is replaced when its experience is trained.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, experience: int, name: str) -> Path:
        """Return the folder of the adapter of ``experience``."""
        # A domain of a table may be called a/b, which must not become two folders.
        return self.folder / f"{experience:02d}-{name.replace('/', '_')}"

    def has(self, experience: int, name: str) -> bool:
        """Return whether the adapter of ``experience`` is whole; no tensor is loaded."""
        return _is_whole(self.path(experience, name))

    def save(self, experience: int, name: str, adapter: Adapter) -> None:
        """Write the adapter of ``experience``, whole or not at all."""
        adapter.save(self.path(experience, name))

    def verify(self, experience: int, name: str) -> Adapter:
        """Return the adapter of ``experience``, every byte and number of it looked at.

        Raises:
            UserError: if a file is not what was written, or holds NaN or infinity.
        """
        folder = self.path(experience, name)
        seals.check(folder)
        adapter = self.load(experience, name)
        for what, tensors in (("head", adapter.head), *adapter.statistics.items()):
            odd = next((key for key in tensors if not bool(tensors[key].isfinite().all())), None)
            if odd is not None:
                raise _not_finite(f"tensor {odd!r} of the {what}", folder)
        odd = next((key for key in adapter.entries if not is_finite(adapter.entries[key])), None)
        if odd is not None:
            raise _not_finite(f"module {odd!r}", folder)
        return adapter

    def load(self, experience: int, name: str) -> Adapter:
        """Read the adapter of ``experience``."""
        return Adapter.load(self.path(experience, name))

    def add_statistic(
        self, experience: int, name: str, statistic: str, tensors: Mapping[str, Tensor]
    ) -> None:
        """Write a statistic beside the adapter of ``experience``, whole or not at all."""
        write_statistic(self.path(experience, name), statistic, tensors)

    def paths(self) -> tuple[Path, ...]:
        """Return the folders of all adapters, in order of experience.

        Raises:
            UserError: if the bank does not exist, or an adapter in it is damaged: to leave it out
                would silently merge fewer.
        """
        if not self.folder.is_dir():
            raise UserError(
                f"Expected a folder of adapters but {self.folder} does not exist; check its name"
            )
        files.restore_below(self.folder)
        # By number and not by text: 100-x comes after 99-y.
        found = (
            (int(match[1]), path)
            for path in self.folder.iterdir()
            if (match := _NAME.match(path.name))
            and any((path / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE, DELTA_FILE))
        )
        paths = tuple(path for _, path in sorted(found))
        for path in paths:
            if not _is_whole(path):
                raise UserError(
                    f"The adapter in {path} is damaged: a file of it is missing or cannot be "
                    "read; delete the folder and train it again"
                )
        return paths

    def __len__(self) -> int:
        return len(self.paths())

    def __iter__(self) -> Iterator[Adapter]:
        return (Adapter.load(path) for path in self.paths())


def _is_whole(folder: Path) -> bool:
    return is_whole_model(folder) if is_model_folder(folder) else is_whole(folder)


def _not_finite(what: str, folder: Path) -> UserError:
    return UserError(
        f"Expected finite numbers but {what} of the adapter in {folder} holds NaN or infinity; "
        "delete the folder and run the command again, which trains it again"
    )
