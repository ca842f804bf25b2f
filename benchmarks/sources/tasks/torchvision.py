"""Published sets of classes through torchvision: MNIST, GTSRB, SVHN, SUN397, EuroSAT, DTD, ..."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cl_lora.benchmarks.config import WHERE
from cl_lora.benchmarks.sources.settings import require_names
from cl_lora.benchmarks.sources.tasks.core import (
    DrawnSource,
    TaskRequest,
    TaskSamples,
    task_source,
)
from cl_lora.benchmarks.sources.torchvision_sets import PUBLISHED, list_published
from cl_lora.configuration.build import required
from cl_lora.support.errors import UserError
from cl_lora.support.registry import look_up
from cl_lora.tasks import CLASS, Task


@task_source("torchvision", summary=f"a set of torchvision: {', '.join(PUBLISHED)}")
@dataclass(frozen=True, kw_only=True)
class TorchvisionSource(DrawnSource):
    """Classes of one of torchvision's sets; see ``DrawnSource`` for the rest.

    The set's own train and test part are the split, parts of training and of validation being one
    train part; of a set without a split (EuroSAT, SUN397) a share of each class is drawn.

    Attributes:
        root: the folder that torchvision's data lies in.
        set: the name of torchvision's class.
        download: whether data that is not there may be downloaded.
        labels: other names of the classes, in the set's order; None for the set's own.
    """

    drawing: ClassVar[frozenset[str]] = DrawnSource.drawing | {"download", "labels"}
    paths: ClassVar[tuple[str, ...]] = ("root",)

    root: str = required("the folder that torchvision's data lies in", "DIR")
    set: str = required("the name of torchvision's class", "MNIST")
    download: bool = False
    labels: tuple[str, ...] | None = None

    def validate(self, where: str) -> None:
        """Check the set and the names too."""
        super().validate(where)
        look_up(f"{WHERE}.{where}.set", PUBLISHED, self.set)
        require_names(f"{where}.labels", self.labels)

    def places(self) -> tuple[Path, ...]:
        """Return the folder and where in it the set lies."""
        return (Path(self.root), Path(self.root) / PUBLISHED[self.set].folder)

    def listed(self, request: TaskRequest) -> TaskSamples:
        """List the set.

        Raises:
            UserError: the data is not there, is broken or cannot be downloaded, or there are not
                as many names as classes.
        """
        found = list_published(
            self.set, Path(self.root), download=self.download, where=request.where
        )
        names = self.labels or found.classes
        if len(names) != len(found.classes):
            raise UserError(
                f"Expected {request.where}.labels to name the {len(found.classes)} classes of "
                f"{self.set} but got {len(names)} names; correct them or leave them out"
            )
        return TaskSamples(
            Task("", CLASS, names),
            found.labels,
            lambda chosen, _: found.images(chosen),
            found.labels,
            names,
            found.given,
        )
