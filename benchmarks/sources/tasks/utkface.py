"""UTKFace: age in the file name (Zhang et al. 2017), as one of six classes or in years."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from cl_lora.benchmarks.cache import shortened
from cl_lora.benchmarks.sources.tasks.core import (
    DrawnSource,
    TaskRequest,
    TaskSamples,
    require_place,
    task_source,
)
from cl_lora.benchmarks.sources.tasks.files import ImageFiles
from cl_lora.configuration.build import required
from cl_lora.support.errors import UserError, unknown_name
from cl_lora.tasks import CLASS, Task, get_kind

AGES = ("0-3", "4-16", "17-30", "31-45", "46-59", "60+")
"""The paper's bins of ages."""

TARGETS = ("age_class", "age")
_FIRST_AGES = (4, 17, 31, 46, 60)  # of all bins but the first
_OLDEST = 130
_IMAGES = (".jpg", ".jpeg", ".png")

# Of the published names a few lack the race, the gender or a point, or have a blank.
_NAME = re.compile(r"(?P<age>\d{1,3})_\d?_(?:\d_)?\d{8,20} ?\.?jpg(?:\.chip\.jpg)?")
_FORM = "AGE_GENDER_RACE_TIME.jpg or .jpg.chip.jpg with an age of at most 130"


@task_source("utkface", summary="UTKFace: age from the file name, in six classes or in years")
@dataclass(frozen=True, kw_only=True)
class UTKFaceSource(DrawnSource):
    """Faces, aligned and cropped, with an age; see ``DrawnSource`` for the rest.

    Both targets split and cap by the six age bins: they get the same samples.

    Attributes:
        root: the folder of the images.
        target: ``age_class``, one of six bins, or ``age`` in years.
    """

    paths: ClassVar[tuple[str, ...]] = ("root",)

    root: str = required("the folder of the images", "DIR")
    target: str = required("what is predicted, age_class or age", "age_class")

    def validate(self, where: str) -> None:
        """Check the target too."""
        super().validate(where)
        if self.target not in TARGETS:
            raise unknown_name(f"benchmark.{where}.target", self.target, TARGETS)

    def listed(self, request: TaskRequest) -> TaskSamples:
        """List the images by name.

        Raises:
            UserError: no such folder, no image, or names that are malformed.
        """
        root = require_place(Path(self.root), f"{request.where}.root")
        names = sorted(
            entry.name
            for entry in os.scandir(root)
            if entry.name.lower().endswith(_IMAGES) and not entry.name.startswith(".")
        )
        ages = np.array(_ages(root, names), dtype=np.int64)
        bins = age_bins(ages)
        if self.target == "age":
            task, targets = Task("", get_kind("scalar")), ages.astype(np.float32)
        else:
            task, targets = Task("", CLASS, AGES), bins
        return TaskSamples(task, targets, ImageFiles(root, names), bins, AGES)


def age_bins(ages: np.ndarray) -> np.ndarray:
    """Return the bin of each age, int64 (N,), an index into ``AGES``."""
    return np.searchsorted(_FIRST_AGES, ages, side="right").astype(np.int64)


def _ages(root: Path, names: list[str]) -> list[int]:
    found = [_NAME.fullmatch(name) for name in names]
    ages = [int(match["age"]) if match else _OLDEST + 1 for match in found]
    problems = [repr(name) for name, age in zip(names, ages, strict=True) if age > _OLDEST]
    if problems or not names:
        raise UserError(
            f"Expected the images of {root} to be named {_FORM} but got "
            f"{shortened(problems) or 'no image'}; rename or remove them"
        )
    return ages
