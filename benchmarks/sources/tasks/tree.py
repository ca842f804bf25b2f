"""Labelled images: ``root/class/*``, or ``root/{train,val,test}/class/*`` with its split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from cl_lora.benchmarks.sources.tasks.core import (
    DrawnSource,
    TaskRequest,
    TaskSamples,
    require_place,
    task_source,
)
from cl_lora.benchmarks.sources.tasks.files import ImageFiles
from cl_lora.benchmarks.sources.tree import ImageTree, list_images
from cl_lora.benchmarks.splits import Indices, Split
from cl_lora.configuration.build import required
from cl_lora.tasks import CLASS, Task

_SIDES = ("train", "test")
_VAL = "val"


@task_source("tree", summary="a folder root/class/*, or root/{train,test}/class/* with its split")
@dataclass(frozen=True, kw_only=True)
class TreeSource(DrawnSource):
    """Classes of a tree; see ``DrawnSource`` for the rest.

    With folders ``train`` and ``test`` these are the split, and ``val`` beside them is the
    validation part; else a share of each class is drawn.

    Attributes:
        root: the folder of the class folders, or the one that holds ``train`` and ``test``.
    """

    paths: ClassVar[tuple[str, ...]] = ("root",)

    root: str = required("the folder of the class folders, or of train and test", "DIR")

    def listed(self, request: TaskRequest) -> TaskSamples:
        """List the tree.

        Raises:
            UserError: no such folder or side, classes that are not in all, or one without images.
        """
        root = Path(self.root)
        if not any((root / side).is_dir() for side in _SIDES):
            require_place(root, f"{request.where}.root")
            return _samples(list_images(root, (".",), "part"))
        if not (root / _VAL).is_dir():
            tree = split_tree(root, _SIDES, request.where)
            return _samples(tree, sides_of(tree))
        tree = split_tree(root, (*_SIDES, _VAL), request.where)
        return _samples(tree, sides_of(tree), np.flatnonzero(tree.domain_of == 2))


def _samples(
    tree: ImageTree, given: Split | None = None, val: Indices | None = None
) -> TaskSamples:
    return TaskSamples(
        Task("", CLASS, tree.classes),
        tree.labels,
        ImageFiles(tree.root, tree.paths),
        tree.labels,
        tree.classes,
        given,
        val,
    )


def split_tree(root: Path, sides: tuple[str, ...], where: str) -> ImageTree:
    """List ``root/side/class/*`` of two sides or more.

    Args:
        root: the folder of all.
        sides: the folder to train on, the one to test on, and further ones.
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
