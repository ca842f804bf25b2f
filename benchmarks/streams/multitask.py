"""Unlike tasks, each with data, targets and a head of its own (Kesim and Helli 2024)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cl_lora.benchmarks.cache import cache_folder, cache_key, cached_images
from cl_lora.benchmarks.config import WHERE, benchmark_kind
from cl_lora.benchmarks.core import Benchmark, Experience
from cl_lora.benchmarks.images import Pixels
from cl_lora.benchmarks.sources.settings import (
    MOST_SAMPLES,
    require_least,
    require_share,
    require_text,
)
from cl_lora.benchmarks.sources.tasks import TaskRequest, TaskSamples, TaskSource, read_source
from cl_lora.benchmarks.splits import Indices, Split, Splits, SplitSettings, split_domains
from cl_lora.configuration.build import required
from cl_lora.support.errors import UserError, shown
from cl_lora.support.files import digest
from cl_lora.support.ranges import LARGEST_SEED, at_most
from cl_lora.tasks import CLASS, Scaling

_UNUSED_FRACTION = 0.2  # stands where a source brings a split; one that does not has its own

# A direction has no unit to take away, and a class no value.
_STANDARDISED = ("scalar", "points")


@benchmark_kind("multitask")
@dataclass(frozen=True, kw_only=True)
class MultitaskConfig:
    """Settings of a stream of unlike tasks.

    Attributes:
        tasks: in stream order, from a task's name to its ``source`` and that source's settings.
        name: of the benchmark, for reports.
        root: the folder that relative roots of the tasks are taken from; None for the current one.
        val_fraction: share of the train samples of each class or stratum that is held out to
            choose by.
        split_seed: splits and caps are drawn with it.
        samples_per_class: at most so many train samples per class or stratum; None for all.
        test_samples_per_class: the same for test samples.
        standardise: whether scalar and landmark targets are learned with the mean and std
            of the train part taken away; metrics are in the targets' unit either way.
        cache_dir: where decoded images are kept; None for the user's cache folder.
    """

    tasks: Mapping[str, Any] = required("the tasks by name", "{age: {source: NAME}}")
    name: str = "multitask"
    root: str | None = None
    val_fraction: float = at_most(1, 0.1)
    split_seed: int = at_most(LARGEST_SEED, 0)
    samples_per_class: int | None = at_most(MOST_SAMPLES, None)
    test_samples_per_class: int | None = at_most(MOST_SAMPLES, None)
    standardise: bool = True
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        require_text("name", self.name)
        require_text("root", self.root)
        require_share("val_fraction", self.val_fraction)
        require_least("split_seed", self.split_seed, 0)
        require_least("samples_per_class", self.samples_per_class, 1)
        require_least("test_samples_per_class", self.test_samples_per_class, 1)
        require_text("cache_dir", self.cache_dir)
        if not self.tasks:
            raise UserError(
                f"Expected {WHERE}.tasks to hold at least one task but it is empty; add one, as "
                "{age: {source: NAME}}"
            )
        sources = self.sources()
        _require_different(sources)
        if self.root is not None and not any("root" in entry for entry in self.tasks.values()):
            raise UserError(
                f"{WHERE}.root={shown(self.root)} names a folder of data but no task has a root "
                f"below it; leave it out, or give {WHERE}.tasks.NAME.root=DIR"
            )

    def sources(self) -> dict[str, TaskSource]:
        """Return the typed source of every task by the task's name."""
        return {
            str(name): read_source(str(name), entry, self.root)
            for name, entry in self.tasks.items()
        }

    def check(self) -> None:
        """Find, list and split the data of every task; decode nothing."""
        for name, source in self.sources().items():
            self._split(name, source)

    def found(self) -> str | None:
        """Say how much there is of each task, or None if the data of one is not there."""
        sources = self.sources()
        if not all(place.exists() for source in sources.values() for place in source.places()):
            return None
        samples = {name: self._split(name, source)[0] for name, source in sources.items()}
        return ", ".join(f"{name} ({len(s.targets)} samples)" for name, s in samples.items())

    def build(self, image_size: int) -> Benchmark:
        """Load the benchmark, decoding what is used of each task if no earlier run has."""
        experiences, contents = [], []
        decoded: dict[str, Pixels] = {}  # tasks on the same images share one array
        for name, source in self.sources().items():
            samples, parts = self._split(name, source)
            used = np.sort(np.concatenate([parts.train, parts.val, parts.test]))
            images = samples.images(used, image_size)
            key = cache_key(images, image_size)
            if key not in decoded:
                decoded[key] = cached_images(images, image_size, cache_folder(self.cache_dir))
            experience = _experience(
                name, samples, parts, used, decoded[key], standardise=self.standardise
            )
            experiences.append(experience)
            contents.append(digest(key, *_content(experience)))
        return Benchmark(self.name, tuple(experiences), digest("multitask", contents))

    def _split(self, name: str, source: TaskSource) -> tuple[TaskSamples, Splits]:
        """Return a task's samples and their parts, checked."""
        shared = SplitSettings(
            _UNUSED_FRACTION,
            self.split_seed,
            self.samples_per_class,
            self.test_samples_per_class,
            self.val_fraction,
        )
        request = TaskRequest(f"{WHERE}.tasks.{name}", source.splitting(shared))
        samples = source.listed(request)
        # Not drawn with the task's name: tasks on the same data have the same parts.
        parts = split_samples(samples, source.source, request.splitting)
        task = dataclasses.replace(samples.task, name=name)
        samples = dataclasses.replace(samples, task=task)
        task.check_targets(samples.targets, f"task {name!r}")
        if task.kind is CLASS:
            _require_every_class(name, samples, parts)
        return samples, parts


def split_samples(samples: TaskSamples, key: str, settings: SplitSettings) -> Splits:
    """Return the parts of a task's samples, balanced over its strata.

    Args:
        samples: what to split. Without strata these are the kind's, the quarters of the values,
            in each given part by itself. A given validation part is taken as it is.
        key: what to draw with, together with the seed; stands in messages.
        settings: how.

    Raises:
        UserError: a stratum would be left without a train, a test or a wanted validation sample.
    """
    strata, names = samples.strata, samples.strata_names
    if strata is None:
        strata, names = _strata(samples, samples.given)
    if samples.val is not None:
        settings = dataclasses.replace(settings, val_fraction=0.0)
    (parts,) = split_domains(
        strata,
        np.zeros(len(strata), dtype=np.int64),
        (key,),
        names,
        settings=settings,
        given=None if samples.given is None else {key: samples.given},
    )
    return parts if samples.val is None else dataclasses.replace(parts, val=samples.val)


def _strata(samples: TaskSamples, given: Split | None) -> tuple[Indices, tuple[str, ...]]:
    """Return the kind's strata, in each part by itself; one of all where a part lacks one."""
    strata = np.zeros(len(samples.targets), dtype=np.int64)
    for part in given or (np.arange(len(strata)),):
        found, names = samples.task.kind.strata(samples.task, samples.targets[part])
        if len(set(found.tolist())) < len(names):
            return np.zeros_like(strata), ("samples",)
        strata[part] = found
    return strata, names


def _experience(
    name: str,
    samples: TaskSamples,
    parts: Splits,
    used: Indices,
    inputs: npt.NDArray[Any],
    *,
    standardise: bool,
) -> Experience:
    """Return a task as an experience on the samples that are used."""
    targets = np.ascontiguousarray(samples.targets[used])
    train, val, test = (np.searchsorted(used, p) for p in (parts.train, parts.val, parts.test))
    task = samples.task
    if standardise and task.kind.name in _STANDARDISED:
        task = dataclasses.replace(task, scaling=Scaling.of(targets[train]))
    subsets = {key: mask[used] for key, mask in samples.subsets.items()}
    return Experience(
        name,
        task,
        inputs,
        targets,
        train,
        val,
        test,
        {key: mask for key, mask in subsets.items() if mask[test].any()},
    )


def _content(experience: Experience) -> list[Any]:
    """Return all that an experience is besides its images, for the fingerprint."""
    task = experience.task
    scaling = None if task.scaling is None else [task.scaling.mean, task.scaling.deviation]
    about = [experience.name, task.name, task.kind.name, task.labels, task.normaliser, task.period]
    # A fixed byte order: a digest must not depend on the machine.
    targets = experience.targets.astype(experience.targets.dtype.newbyteorder("<"))
    indices = (experience.train, experience.val, experience.test)
    masks = {key: mask.tobytes().hex() for key, mask in experience.subsets.items()}
    return [
        [*about, scaling, masks],
        targets.tobytes(),
        *(np.ascontiguousarray(part, dtype="<i8").tobytes() for part in indices),
    ]


def _require_different(sources: Mapping[str, TaskSource]) -> None:
    seen: dict[tuple[object, ...], str] = {}
    for name, source in sources.items():
        first = seen.setdefault(source.identity, name)
        if first != name:
            raise UserError(
                f"Expected every task once but {WHERE}.tasks.{first} and {WHERE}.tasks.{name} are "
                f"the same task of {source.source}; remove one or give it another target or root"
            )


def _require_every_class(name: str, samples: TaskSamples, parts: Splits) -> None:
    for side, part in (("train", parts.train), ("test", parts.test)):
        present = set(samples.targets[part].tolist())
        missing = [label for i, label in enumerate(samples.task.labels) if i not in present]
        if missing:
            raise UserError(
                f"Expected a {side} sample of every class in task {name!r} but there is none of "
                f"{', '.join(map(repr, missing))}; add some"
            )
