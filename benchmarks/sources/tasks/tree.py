"""A tree of labelled images, ``root/{train,test}/class/*``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from cl_lora.benchmarks.sources.tasks.core import (
    TaskRequest,
    TaskSamples,
    TaskSource,
    require_place,
    task_source,
)
from cl_lora.benchmarks.sources.tasks.files import ImageFiles
from cl_lora.benchmarks.sources.tree import ImageTree, list_images
from cl_lora.benchmarks.splits import Split
from cl_lora.configuration.build import required
from cl_lora.tasks import CLASS, Task

_SIDES = ("train", "test")


@task_source("tree", summary="a folder root/{train,test}/class/*")
@dataclass(frozen=True, kw_only=True)
class TreeSource(TaskSource):
    """Classes of a tree with a split; see ``TaskSource`` for the rest.

    Attributes:
        root: the folder that holds ``train`` and ``test``.
    """

    paths: ClassVar[tuple[str, ...]] = ("root",)

    root: str = required("the folder that holds train and test", "DIR")

    def listed(self, request: TaskRequest) -> TaskSamples:
        """List the tree.

        Raises:
            UserError: no such folder or side, classes that are not in both, or one without images.
        """
        tree = split_tree(Path(self.root), _SIDES, request.where)
        return TaskSamples(
            Task("", CLASS, tree.classes),
            tree.labels,
            ImageFiles(tree.root, tree.paths),
            tree.labels,
            tree.classes,
            sides_of(tree),
        )


def split_tree(root: Path, sides: tuple[str, str], where: str) -> ImageTree:
    """List ``root/side/class/*`` of two sides.

    Args:
        root: the folder of both.
        sides: the folder to train on, then the one to test on.
        where: the entry, for messages.

    Raises:
        UserError: as of :meth:`TreeSource.listed`.
    """
    require_place(root, f"{where}.root")
    for side in sides:
        require_place(root / side, f"the folder {side!r} of {where}.root")
    return list_images(root, sides, "part")


def sides_of(tree: ImageTree) -> Split:
    """Return the samples of the first and those of the second folder of a tree."""
    return np.flatnonzero(tree.domain_of == 0), np.flatnonzero(tree.domain_of == 1)
