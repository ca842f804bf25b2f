"""A tree of labelled images: ``root/class/*``, or ``root/{train,test}/class/*`` with its split."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cl_lora.benchmarks.sources.image_sets import (
    ImageSet,
    SetRequest,
    register_image_set,
    require_no_options,
    require_root,
    split_set,
)
from cl_lora.benchmarks.sources.tree import folder_names, list_images, require_folder, tree_source
from cl_lora.support.errors import UserError

_SIDES = ("train", "test")


@register_image_set("tree", summary="a folder: root/class/*, or root/{train,test}/class/*")
def class_tree(request: SetRequest) -> ImageSet:
    """List the images below ``request.root``.

    With folders ``train`` and ``test`` these are the split; else a share of each class is drawn.

    Raises:
        UserError: no such folder, only one of the two sides, classes that are not in both, or a
            class without an image.
    """
    require_no_options(request, "tree")
    root = require_folder(require_root(request, "the folder that holds a folder for each class"))
    sides = [side for side in _SIDES if (root / side).is_dir()]
    if len(sides) == 1:
        missing = next(side for side in _SIDES if side not in sides)
        raise UserError(
            f"Expected {root} to hold {missing} beside {sides[0]} but it does not; add it, or give "
            "a folder of class folders as benchmark.root"
        )
    tree = list_images(root, _SIDES if sides else (".",), "part")
    given = None
    if sides:
        given = (np.flatnonzero(tree.domain_of == 0), np.flatnonzero(tree.domain_of == 1))
    return ImageSet(
        request.name,
        tree.classes,
        tree.labels,
        split_set(request, tree.labels, tree.classes, given),
        lambda _: tree_source(tree),
    )


def is_split_tree(folder: Path) -> bool:
    """Return whether a folder holds ``train`` and ``test``."""
    return folder.is_dir() and set(_SIDES) <= set(folder_names(folder))
