"""A folder of adapters, one per experience, in the order they were trained."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from cl_lora.adapters.adapter import CONFIG_FILE, Adapter
from cl_lora.support.errors import UserError

_NAME = re.compile(r"(\d{2,})-")


class AdapterBank:
    """The adapters ``folder/NN-name`` of one stream, NN being the experience index from 0.

    A sub-folder that exists is whole (:meth:`Adapter.save` renames it into place), so what is in
    the bank never needs to be trained again.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, experience: int, name: str) -> Path:
        """Return the folder of the adapter of ``experience``."""
        # A domain of a table may be called a/b, which must not become two folders.
        return self.folder / f"{experience:02d}-{name.replace('/', '_')}"

    def has(self, experience: int, name: str) -> bool:
        """Return whether the adapter of ``experience`` is finished."""
        return (self.path(experience, name) / CONFIG_FILE).is_file()

    def save(self, experience: int, name: str, adapter: Adapter) -> None:
        """Write the adapter of ``experience``, whole or not at all."""
        adapter.save(self.path(experience, name))

    def load(self, experience: int, name: str) -> Adapter:
        """Read the adapter of ``experience``."""
        return Adapter.load(self.path(experience, name))

    def paths(self) -> tuple[Path, ...]:
        """Return the folders of all finished adapters, in order of experience."""
        if not self.folder.is_dir():
            raise UserError(f"Expected a folder of adapters but {self.folder} does not exist")
        # By number and not by text: 100-x comes after 99-y.
        found = (
            (int(match[1]), path)
            for path in self.folder.iterdir()
            if (match := _NAME.match(path.name)) and (path / CONFIG_FILE).is_file()
        )
        return tuple(path for _, path in sorted(found))

    def __len__(self) -> int:
        return len(self.paths())

    def __iter__(self) -> Iterator[Adapter]:
        return (Adapter.load(path) for path in self.paths())
