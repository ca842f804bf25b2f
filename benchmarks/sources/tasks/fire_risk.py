"""FireRisk: aerial images by fire risk (Shen et al. 2023), seven classes joined to three."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from cl_lora.benchmarks.sources.tasks.core import (
    TaskRequest,
    TaskSamples,
    TaskSource,
    task_source,
)
from cl_lora.benchmarks.sources.tasks.files import ImageFiles
from cl_lora.benchmarks.sources.tasks.tree import sides_of, split_tree
from cl_lora.configuration.build import required
from cl_lora.support.errors import UserError
from cl_lora.tasks import CLASS, Task

BINS = ("none", "high", "low")
"""The paper's three classes."""

_BIN_OF = {
    "water": "none",
    "non_burnable": "none",
    "very_high": "high",
    "high": "high",
    "moderate": "high",
    "low": "low",
    "very_low": "low",
}
_SIDES = ("train", "val")


@task_source("fire_risk", summary="FireRisk: aerial images, seven classes in three bins of risk")
@dataclass(frozen=True, kw_only=True)
class FireRiskSource(TaskSource):
    """Class folders of FireRisk in three bins; see ``TaskSource`` for the rest.

    Water and non-burnable are ``none``; very high, high and moderate are ``high``; low and very
    low are ``low``. The published part ``val`` is what is tested on.

    Attributes:
        root: the folder that holds ``train`` and ``val``.
    """

    paths: ClassVar[tuple[str, ...]] = ("root",)

    root: str = required("the folder that holds train and val", "DIR")

    def listed(self, request: TaskRequest) -> TaskSamples:
        """List the folders; blanks, ``-`` and ``_`` in their names are the same.

        Raises:
            UserError: no such folder or side, a class that is unknown, missing or without images.
        """
        tree = split_tree(Path(self.root), _SIDES, request.where)
        names = [_plain(name) for name in tree.classes]
        if sorted(names) != sorted(_BIN_OF):
            raise UserError(
                f"Expected {self.root} to hold the class folders {', '.join(_BIN_OF)} of FireRisk "
                f"but got {', '.join(tree.classes)}; complete or rename them"
            )
        bins = np.array([BINS.index(_BIN_OF[name]) for name in names], dtype=np.int64)
        labels = bins[tree.labels]
        return TaskSamples(
            Task("", CLASS, BINS),
            labels,
            ImageFiles(tree.root, tree.paths),
            labels,
            BINS,
            sides_of(tree),
        )


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_")
