"""What a source of a task must say, and the registry: adding one is a file and a line.

A source lists the samples of a task with their targets and decodes nothing; the benchmark splits
them, decodes those that are used and scales the targets.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from cl_lora.benchmarks.cache import ImageSource
from cl_lora.benchmarks.config import WHERE
from cl_lora.benchmarks.sources.settings import MOST_SAMPLES, require_least, require_text
from cl_lora.benchmarks.splits import Indices, Split, SplitSettings
from cl_lora.configuration.build import MISSING, build
from cl_lora.support.errors import UserError
from cl_lora.support.ranges import at_most
from cl_lora.support.registry import check_free, look_up
from cl_lora.tasks import Task

Images = Callable[[Indices, int], ImageSource]
"""From the samples that are used, int64 (M,), and the side in pixels to their images."""


@dataclass(frozen=True, eq=False)
class TaskSamples:
    """All samples of a task, listed and not decoded.

    Attributes:
        task: kind, labels, normaliser and period; name and scaling are the benchmark's to give.
        targets: (N, ...), in their own unit.
        images: how the images of some samples are read.
        strata: int64 (N,), what splits and caps balance, such as the class; None for the quarters
            of the kind. Tasks on the same data have the same strata, so that they get the same
            samples.
        strata_names: a name for each stratum.
        given: train and test samples that come with the data; None to draw them.
        val: samples to choose by that come with the data, beside ``given``; None to draw them.
        subsets: masks by name, bool (N,), that are reported by themselves.
    """

    task: Task
    targets: npt.NDArray[Any]
    images: Images
    strata: Indices | None = None
    strata_names: tuple[str, ...] = ()
    given: Split | None = None
    val: Indices | None = None
    subsets: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskRequest:
    """What samples are asked for by.

    Attributes:
        where: the entry of the config, for messages, e.g. ``benchmark.tasks.age``.
        splitting: how the samples are going to be split; a source that draws its data draws as
            many as this keeps.
    """

    where: str
    splitting: SplitSettings


@dataclass(frozen=True, kw_only=True)
class TaskSource:
    """The settings that all sources share; a source is a subclass with its own.

    Attributes:
        samples_per_class: at most so many train samples per class or stratum; None for the
            benchmark's.
        test_samples_per_class: the same for test samples.
    """

    source: ClassVar[str]
    summary: ClassVar[str]
    drawing: ClassVar[frozenset[str]] = frozenset({"samples_per_class", "test_samples_per_class"})
    """Settings that choose samples of a task but make no other task."""
    paths: ClassVar[tuple[str, ...]] = ()
    """Settings that say where data lies: the first a folder or file, the others relative to it."""
    numbers: ClassVar[tuple[str, ...]] = ()
    """Settings that are finite numbers of at least 0."""

    samples_per_class: int | None = at_most(MOST_SAMPLES, None)
    test_samples_per_class: int | None = at_most(MOST_SAMPLES, None)

    def validate(self, where: str) -> None:
        """Check the values.

        Args:
            where: the entry, without ``benchmark.``, for messages.

        Raises:
            UserError: a value is wrong.
        """
        require_least(f"{where}.samples_per_class", self.samples_per_class, 1)
        require_least(f"{where}.test_samples_per_class", self.test_samples_per_class, 1)
        for name in self.paths:
            require_text(f"{where}.{name}", getattr(self, name))
        for name in self.numbers:
            require_number(f"{where}.{name}", getattr(self, name))

    def splitting(self, shared: SplitSettings) -> SplitSettings:
        """Return how this task is split: as all are, with its own caps."""
        return dataclasses.replace(
            shared,
            samples_per_class=self.samples_per_class or shared.samples_per_class,
            test_samples_per_class=self.test_samples_per_class or shared.test_samples_per_class,
        )

    def places(self) -> tuple[Path, ...]:
        """Return the folders and files that must be there."""
        first = [Path(getattr(self, name)) for name in self.paths[:1]]
        return (*first, *(first[0] / getattr(self, name) for name in self.paths[1:]))

    def listed(self, request: TaskRequest) -> TaskSamples:
        """Find and list the samples; read no image.

        Raises:
            UserError: the data is not there, not complete or malformed.
        """
        raise NotImplementedError

    @property
    def identity(self) -> tuple[object, ...]:
        """What makes it this task: two entries of one identity are one task twice."""
        own = (f.name for f in dataclasses.fields(self) if f.name not in self.drawing)
        return (self.source, *(getattr(self, name) for name in own))


@dataclass(frozen=True, kw_only=True)
class DrawnSource(TaskSource):
    """The settings of a source whose data comes without a split.

    Attributes:
        test_fraction: share of each class or stratum that is held out, between 0 and 1.
    """

    drawing: ClassVar[frozenset[str]] = TaskSource.drawing | {"test_fraction"}

    test_fraction: float = at_most(1, 0.2)

    def validate(self, where: str) -> None:
        """Check the share too."""
        super().validate(where)
        if not 0 < self.test_fraction < 1:
            raise UserError(
                f"Expected {WHERE}.{where}.test_fraction to be a number between 0 and 1 "
                f"but got {self.test_fraction!r}"
            )

    def splitting(self, shared: SplitSettings) -> SplitSettings:
        """Return how this task is split, with its own share."""
        return dataclasses.replace(super().splitting(shared), test_fraction=self.test_fraction)


TASK_SOURCES: dict[str, type[TaskSource]] = {}
"""Every registered source by the name that an entry gives as ``source``."""

SourceType = TypeVar("SourceType", bound=type[TaskSource])


def task_source(name: str, *, summary: str) -> Callable[[SourceType], SourceType]:
    """Register a source, a dataclass, under the name that an entry gives.

    Args:
        name: the name.
        summary: one line for lists.

    Raises:
        UserError: another class has the name.
    """

    def register(cls: SourceType) -> SourceType:
        check_free("task source", name, TASK_SOURCES.get(name), cls)
        cls.source, cls.summary = name, summary
        TASK_SOURCES[name] = cls
        return cls

    return register


def read_source(name: str, entry: Any, root: str | None) -> TaskSource:
    """Return the typed source of an entry of ``benchmark.tasks``.

    Args:
        name: of the entry.
        entry: a mapping with ``source`` and the source's own settings.
        root: the folder that a relative ``root`` of the entry is taken from; None for the
            current one.

    Raises:
        UserError: an unknown source or setting, a missing setting or a bad value.
    """
    where = f"tasks.{name}"
    if not isinstance(entry, Mapping) or not isinstance(entry.get("source"), str):
        raise UserError(
            f"Expected {WHERE}.{where} to be a mapping with a source but got {entry!r}; "
            f"give source, one of {', '.join(TASK_SOURCES)}"
        )
    cls = look_up(f"{WHERE}.{where}.source", TASK_SOURCES, entry["source"])
    given = {key: value for key, value in entry.items() if key != "source"}
    source = build(cls, {**given, **_placed(given.get("root"), root)}, f"{WHERE}.{where}")
    source.validate(where)
    return source


def _placed(own: Any, root: str | None) -> dict[str, str]:
    """Return the setting ``root`` of an entry as it is from the current folder, if it has one."""
    if not isinstance(own, str | os.PathLike) or own in ("", MISSING):
        return {}
    base = Path(root).expanduser() if root is not None else Path()
    return {"root": str(base / Path(own).expanduser())}


def require_place(path: Path, where: str, what: str = "a folder") -> Path:
    """Return ``path``; raise ``UserError`` if there is no such folder, or file if ``what`` says so.

    Args:
        path: what must be there.
        where: the setting that names it.
        what: ``a folder`` or ``a file``.
    """
    if path.is_dir() if what == "a folder" else path.is_file():
        return path
    state = "is not one" if path.exists() else "does not exist"
    raise UserError(
        f"Expected {where} to be {what} but got '{path}', which {state}; "
        f"give {where}={'DIR' if what == 'a folder' else 'FILE'}, or {WHERE}.root=DIR if it is "
        "relative"
    )


def require_number(name: str, value: float) -> None:
    """Raise ``UserError`` unless ``value`` is a finite number of at least 0."""
    if not (math.isfinite(value) and value >= 0):
        raise UserError(f"Expected {WHERE}.{name} to be a number of at least 0 but got {value!r}")
