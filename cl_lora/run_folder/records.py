"""The records of a run folder as plain, frozen types, to JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from cl_lora.evaluation.metrics import Metric
from cl_lora.evaluation.shape import Shape

PARAMETERS = "parameters"
"""The quantity of accounts: how many numbers serve all tasks, the backbone once, heads left out."""

PASSES, TO_SERVE, MILLISECONDS = "passes", "bytes_to_serve", "milliseconds"
"""What it takes to serve a row: the first two are quantities of accounts, the last one of times."""

ADAPTERS, STATISTICS = "bytes_of_adapters", "bytes_of_statistics"
BUFFER, DATA = "bytes_of_buffer", "bytes_of_data"
"""Quantities of accounts: what must be kept to take in another experience."""


@dataclass(frozen=True)
class Coefficient:
    """One row of ``coefficients.csv``: the coefficient of one adapter in one group of modules."""

    seed: int
    arm: str
    stage: int
    group: str
    adapter: int
    value: float


@dataclass(frozen=True)
class Account:
    """One row of ``accounts.csv``: what it cost to make, or to keep, what is served at a stage.

    Quantities of an arm that is adapted to a support set: ``trainable_parameters`` (without the
    head), ``seconds`` (wall clock, without features that were there already), ``peak_memory_mb``
    (beyond what was held before), and ``learning_rate_factor`` where one was selected. Of every row
    of a run that merges all at once: ``parameters``, the numbers that serve all tasks, the backbone
    once among them and heads left out. Of every row where all experiences have come, what is said
    by :mod:`cl_lora.experiment.costs`.
    """

    seed: int
    arm: str
    stage: int
    quantity: str
    value: float


@dataclass(frozen=True)
class Timing:
    """One row of ``times.csv``: a time that was measured of what is served at a stage.

    ``milliseconds``: what serving takes an input. Two machines differ in it, and so do two runs on
    one: nothing else depends on it, and ``seals.csv`` leaves it out. So each row has a digest.
    """

    seed: int
    arm: str
    stage: int
    quantity: str
    value: float
    digest: str


@dataclass(frozen=True)
class Seal:
    """One row of ``seals.csv``: the digest of all that was measured of one row at one stage.

    That is its rows of ``scores.csv``, ``coefficients.csv`` and ``accounts.csv``.
    """

    seed: int
    arm: str
    stage: int
    digest: str


@dataclass(frozen=True)
class Similarity:
    """One row of ``similarity.csv``: linear CKA of one adapter with that of a downstream task.

    ``evaluated`` is the index of the downstream experience, ``group`` the module whose outputs are
    compared, ``adapter`` the index of the upstream experience.
    """

    seed: int
    evaluated: int
    group: str
    adapter: int
    value: float


@dataclass(frozen=True)
class Relation:
    """One row of ``relations.csv``: how alike the adapters of two experiences are.

    Measures: ``cosine`` of the updates, ``subspace`` (overlap of their top singular subspaces) and
    ``cka`` of the features under each. ``first`` and ``second`` are indices of experiences, the
    smaller first.
    """

    seed: int
    measure: str
    first: int
    second: int
    value: float


@dataclass(frozen=True)
class AdapterFact:
    """One row of ``adapter_facts.csv``: a quantity of one adapter.

    Quantities: ``norm`` of the update, ``stable_rank``, ``share_<projection>`` of the squared norm,
    and ``feature_variance_share``, which is near 0 where features have collapsed.
    """

    seed: int
    adapter: int
    quantity: str
    value: float


@dataclass(frozen=True)
class Spectrum:
    """One row of ``spectra.csv``: how the singular values of one adapter's updates fall off.

    ``index`` is k, from 1; ``value`` the mean over modules of ``sigma_k / sigma_1``, ``energy`` the
    share of the squared Frobenius norm of all modules in their first k singular values each.
    """

    seed: int
    bank: str
    adapter: int
    index: int
    value: float
    energy: float


@dataclass(frozen=True)
class Embedding:
    """One row of ``embedding.csv``: where t-SNE places a test sample's features under one arm.

    ``sample`` is its index in the inputs of the experience ``evaluated``, ``label`` its class, or
    the bin of its value where a task has no classes.
    """

    seed: int
    arm: str
    evaluated: int
    sample: int
    label: int
    x: float
    y: float


@dataclass(frozen=True)
class TaskRecord:
    """A task, as far as its outputs and scores must be understood without its data.

    Attributes:
        name: of the task.
        kind: name of its kind.
        labels: names of the classes, points, ...
        metrics: what it is scored by.
        scaling: ``mean`` and ``deviation`` by which targets are standardised; None if they are not.
        normaliser: of landmarks, the two points whose distance errors are divided by.
        period: of an angle, in radians.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    metrics: tuple[Metric, ...]
    scaling: Mapping[str, tuple[float, ...]] | None = None
    normaliser: tuple[int, int] | None = None
    period: float = 0.0

    def record(self) -> dict[str, Any]:
        """Return plain JSON that :meth:`from_record` reads; what a task has not is left out."""
        found: dict[str, Any] = {
            "name": self.name,
            "kind": self.kind,
            "labels": list(self.labels),
            "metrics": [metric.record() for metric in self.metrics],
        }
        if self.scaling is not None:
            found["scaling"] = {key: list(values) for key, values in self.scaling.items()}
        if self.normaliser is not None:
            found["normaliser"] = list(self.normaliser)
        if self.period:
            found["period"] = self.period
        return found

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> TaskRecord:
        """Return the task of :meth:`record`; errors as :meth:`StreamRecord.from_record`."""
        scaling, normaliser = record.get("scaling"), record.get("normaliser")
        if normaliser is not None:
            first, second = map(int, normaliser)
            normaliser = first, second
        return cls(
            str(record["name"]),
            str(record["kind"]),
            tuple(map(str, record["labels"])),
            tuple(map(Metric.from_record, record["metrics"])),
            None
            if scaling is None
            else {key: tuple(map(float, scaling[key])) for key in ("mean", "deviation")},
            normaliser,
            float(record.get("period", 0.0)),
        )


@dataclass(frozen=True)
class ExperienceRecord:
    """An experience: its name, the name of its task, and how many samples each part has.

    ``labels`` are the numbers of the task's labels that it brings, where experiences that share a
    task bring labels of their own; None elsewhere.
    """

    name: str
    task: str
    train: int
    val: int
    test: int
    labels: tuple[int, ...] | None = None

    def record(self) -> dict[str, Any]:
        """Return plain JSON that :meth:`from_record` reads; what there is not is left out."""
        found = {key: value for key, value in vars(self).items() if value is not None}
        return {**found, "labels": list(self.labels)} if self.labels is not None else found

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> ExperienceRecord:
        """Return the experience of :meth:`record`; errors as :meth:`StreamRecord.from_record`."""
        labels = record.get("labels")
        return cls(
            str(record["name"]),
            str(record["task"]),
            int(record["train"]),
            int(record["val"]),
            int(record["test"]),
            None if labels is None else tuple(map(int, labels)),
        )


@dataclass(frozen=True)
class StageRecord:
    """A stage: which adapters are merged, and which experiences are scored then.

    Attributes:
        index: as in the column ``stage``; -1 before any training.
        name: for tables and axes.
        members: indices of the merged adapters.
        evaluated: indices of the experiences that are scored.
        support: experiences whose support samples learned coefficients and heads may see.
        x: where the stage lies on the axis of its protocol (K, support samples per class of a
            few-shot run; of the whole pool, its mean), or None for a stage in time.
        draw: number of the support draw; the stages of several draws share name, x and members.
        group: what stages of one kind share, such as ``pairs``, where tables show their mean;
            empty where every stage stands for itself.
    """

    index: int
    name: str
    members: tuple[int, ...]
    evaluated: tuple[int, ...]
    support: tuple[int, ...]
    x: float | None = None
    draw: int = 0
    group: str = ""

    @property
    def few_shot(self) -> bool:
        """Whether adapters of other experiences are adapted to one from K samples per class."""
        return self.x is not None and set(self.evaluated).isdisjoint(self.members)

    @property
    def pool(self) -> bool:
        """Whether the support set of a few-shot stage is the whole pool, and not K samples."""
        return self.few_shot and self.name != f"K={self.x:g}"

    def seen_by(self, member: int) -> StageRecord:
        """Return the stage without the support of experiences after ``member``."""
        return replace(self, support=tuple(j for j in self.support if j <= member))


@dataclass(frozen=True)
class StreamRecord:
    """What was trained and scored on (``stream.json``).

    Attributes:
        name: name of the benchmark.
        experiences: in order.
        tasks: every task of the experiences.
        fingerprint: digest of the data and its splits; scores compare only where it is the same.
        protocol: name of the protocol that made the stages.
        ordered: whether stages follow one another in time: forgetting and transfer exist only
            then.
        stages: every stage, -1 (before any training) first where it is scored.
        backbone: fingerprint of the weights, input size, normalisation; ``parameters``, how many
            numbers it has, where what serves all tasks is measured by it.
    """

    name: str
    experiences: tuple[ExperienceRecord, ...]
    tasks: tuple[TaskRecord, ...]
    fingerprint: str
    protocol: str
    ordered: bool
    stages: tuple[StageRecord, ...]
    backbone: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the experiences, in order."""
        return tuple(experience.name for experience in self.experiences)

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """Every metric of every task by name, the primary metric of the first task first."""
        return {metric.name: metric for task in self.tasks for metric in task.metrics}

    @property
    def trained_stages(self) -> tuple[StageRecord, ...]:
        """The stages after training, in order."""
        return tuple(stage for stage in self.stages if stage.index >= 0)

    def scored_by(self, metric: str) -> tuple[int, ...]:
        """Return the indices of the experiences whose task has the metric."""
        tasks = {t.name for t in self.tasks if metric in {m.name for m in t.metrics}}
        return tuple(j for j, e in enumerate(self.experiences) if e.task in tasks)

    def shape(self, metric: str) -> Shape:
        """Return which scores of a metric a whole run has: stages, experiences, what is scored."""
        scored = set(self.scored_by(metric))
        return Shape(
            stages=len(self.trained_stages),
            experiences=len(self.experiences),
            ordered=self.ordered,
            evaluated=tuple(
                tuple(j for j in stage.evaluated if j in scored) for stage in self.trained_stages
            ),
        )

    def record(self) -> dict[str, Any]:
        """Return plain JSON that :meth:`from_record` reads."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "protocol": {"name": self.protocol, "ordered": self.ordered},
            "experiences": [e.record() for e in self.experiences],
            "tasks": [task.record() for task in self.tasks],
            "stages": [
                {
                    **vars(s),
                    "members": list(s.members),
                    "evaluated": list(s.evaluated),
                    "support": list(s.support),
                }
                for s in self.stages
            ],
            "backbone": dict(self.backbone),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> StreamRecord:
        """Return the stream of :meth:`record`.

        Raises:
            KeyError: if a field is missing.
            TypeError: if a field is of another type.
            ValueError: if the fields contradict one another.
        """
        tasks = tuple(map(TaskRecord.from_record, record["tasks"]))
        experiences = tuple(map(ExperienceRecord.from_record, record["experiences"]))
        stages = tuple(
            StageRecord(
                int(s["index"]),
                str(s["name"]),
                tuple(map(int, s["members"])),
                tuple(map(int, s["evaluated"])),
                tuple(map(int, s["support"])),
                None if s["x"] is None else float(s["x"]),
                int(s.get("draw", 0)),
                str(s.get("group", "")),
            )
            for s in record["stages"]
        )
        if not experiences:
            raise ValueError("it lists no experiences")
        known = set(range(len(experiences)))
        if not all(s.index >= -1 and set(s.evaluated) <= known for s in stages):
            raise ValueError("it lists stages of other experiences")
        if not any(s.index >= 0 for s in stages):
            raise ValueError("it lists no stages")
        if {e.task for e in experiences} - {t.name for t in tasks}:
            raise ValueError("it lists experiences of unknown tasks")
        if not isinstance(record["protocol"]["ordered"], bool):
            raise TypeError("ordered is neither true nor false")
        if not isinstance(record["backbone"], Mapping):
            raise TypeError("backbone is no object")
        return cls(
            name=str(record["name"]),
            experiences=experiences,
            tasks=tasks,
            fingerprint=str(record["fingerprint"]),
            protocol=str(record["protocol"]["name"]),
            ordered=record["protocol"]["ordered"],
            stages=stages,
            backbone=record["backbone"],
        )
