"""The registry of task kinds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from cl_lora.evaluation.metrics import ACCURACY, METRICS, Metric
from cl_lora.support.errors import UserError
from cl_lora.tasks import CLASS, KINDS, Accumulator, Task, TaskKind, get_kind, register_kind

ERROR = Metric("toy_error", "Error", "kg", False, 0.0)


def scalar_kind(kind_name: str, *kind_metrics: Metric) -> type[TaskKind]:
    class Scalar(TaskKind):
        name: ClassVar[str] = kind_name
        summary: ClassVar[str] = "one number"
        metrics: ClassVar[tuple[Metric, ...]] = kind_metrics
        target_dtype: ClassVar[torch.dtype] = torch.float32

        def outputs(self, task: Task) -> int:
            return 1

        def loss(self, task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
            return (outputs.squeeze(1) - targets).square().mean()

        def accumulator(self, task: Task) -> Accumulator:
            raise NotImplementedError

        def strata(self, task: Task, targets: Any) -> tuple[Any, tuple[str, ...]]:
            return np.zeros(len(targets), dtype=np.int64), ("all",)

        def hits(self, outputs: Tensor, targets: Tensor) -> None:
            return None

    return Scalar


@pytest.fixture(autouse=True)
def _registries() -> Iterator[None]:
    """What a test registers is gone after it."""
    kinds, metrics = dict(KINDS), dict(METRICS)
    yield
    for registry, before in ((KINDS, kinds), (METRICS, metrics)):
        registry.clear()
        registry.update(before)


def test_a_registered_kind_and_its_metrics_are_found():
    kind = register_kind(scalar_kind("toy_scalar", ERROR))
    assert type(get_kind("toy_scalar")) is kind
    assert METRICS["toy_error"] is ERROR
    assert Task("weight", get_kind("toy_scalar")).outputs == 1


def test_kinds_may_share_a_metric():
    register_kind(scalar_kind("toy_scalar", ERROR))
    register_kind(scalar_kind("toy_other", ERROR, ACCURACY))
    assert get_kind("toy_other").metrics[0] is get_kind("toy_scalar").metrics[0]


def test_a_name_that_is_taken_is_an_error_and_changes_nothing():
    with pytest.raises(UserError, match=r"'class' is registered already, by cl_lora.tasks.classes"):
        register_kind(scalar_kind("class", ERROR))
    assert get_kind("class") is CLASS
    assert "toy_error" not in METRICS


def test_a_metric_that_is_taken_is_an_error():
    with pytest.raises(UserError, match="metric 'accuracy' is registered already"):
        register_kind(scalar_kind("toy_scalar", Metric("accuracy", "Share", "%")))
    assert "toy_scalar" not in KINDS


def test_an_unknown_kind_names_the_nearest():
    with pytest.raises(UserError, match="Unknown task kind 'clas': did you mean 'class'"):
        get_kind("clas")


def test_tasks_are_the_same_when_all_they_say_is():
    assert Task("a", CLASS, ("x",)) == Task("a", CLASS, ("x",))
    assert len({Task("a", CLASS, ("x",)), Task("a", CLASS, ("x",)), Task("b", CLASS, ("x",))}) == 2


def test_a_kind_that_cannot_draw_targets_says_what_to_choose():
    register_kind(scalar_kind("toy_scalar", ERROR))
    task = Task("weight", get_kind("toy_scalar"))
    with pytest.raises(UserError, match=r"'toy_scalar' of task 'weight' cannot .* labels=data of"):
        task.drawn_loss(torch.zeros(2, 1), torch.Generator())
