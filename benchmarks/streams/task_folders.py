"""Any set of task folders: every folder below a root is a task with a folder for each class."""

from __future__ import annotations

from dataclasses import dataclass

from cl_lora.benchmarks.config import benchmark_kind
from cl_lora.benchmarks.core import Benchmark
from cl_lora.benchmarks.sources.settings import PartsConfig, require_names, require_text
from cl_lora.benchmarks.sources.tree import folder_names, require_folder
from cl_lora.benchmarks.streams.multitask import MultitaskConfig
from cl_lora.configuration.build import required
from cl_lora.support.errors import UserError, unknown_name
from cl_lora.support.ranges import at_most


@benchmark_kind("task_folders")
@dataclass(frozen=True, kw_only=True)
class TaskFoldersConfig(PartsConfig):
    """Settings of a multitask stream of folders; see ``PartsConfig`` for the rest.

    A task is a folder ``root/NAME/class/*``, of which a share is drawn to test on, or
    ``root/NAME/{train,test}/class/*``, with ``val`` beside them or without.

    Attributes:
        root: the folder of all tasks.
        only: names of folders, in stream order; None for all, in alphabetical order.
        val_fraction: share of each class's train samples to choose by, where there is no ``val``.
    """

    name: str = "task_folders"
    root: str = required("the folder that holds a folder for each task", "DIR")
    only: tuple[str, ...] | None = None
    val_fraction: float = at_most(1, 0.1)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_text("root", self.root)
        require_names("only", self.only)

    def check(self) -> None:
        """Find, list and split every task; decode nothing."""
        self._tasks().check()

    def found(self) -> str | None:
        """Say how much there is of each task, or None if there is no such folder."""
        try:
            require_folder(self.root)
        except UserError:
            return None
        return self._tasks().found()

    def build(self, image_size: int) -> Benchmark:
        """Load the benchmark, decoding what is used of each task if no earlier run has."""
        return self._tasks().build(image_size)

    def _tasks(self) -> MultitaskConfig:
        root = require_folder(self.root)
        folders = folder_names(root)
        if not folders:
            raise UserError(
                f"Expected {root} to hold a folder for each task but it holds no folder; give the "
                "right benchmark.root=DIR"
            )
        for name in self.only or ():
            if name not in folders:
                raise unknown_name(f"task folder of {root}", name, folders)
        return MultitaskConfig(
            tasks={
                name: {"source": "tree", "root": name, "test_fraction": self.test_fraction}
                for name in self.only or folders
            },
            name=self.name,
            root=str(root),
            val_fraction=self.val_fraction,
            split_seed=self.split_seed,
            samples_per_class=self.samples_per_class,
            test_samples_per_class=self.test_samples_per_class,
            cache_dir=self.cache_dir,
        )
