"""Benchmarks as Avalanche streams."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from avalanche.benchmarks import with_classes_timeline
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.models import MultiHeadClassifier, MultiTaskModule
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from benchmark_views import held_out_of, images_of, labels_of, train_of
from torch import nn
from torch.utils.data import DataLoader
from toy_tasks import PointsKind, ScalarKind, make_experience, scalars

from cl_lora.benchmarks import Benchmark, make_benchmark
from cl_lora.benchmarks.avalanche import avalanche_benchmark, joint_benchmark
from cl_lora.models.images import ImageBackbone
from cl_lora.support.errors import UserError
from cl_lora.tasks import CLASS, Task


@pytest.fixture
def data(folder_config) -> Benchmark:
    return make_benchmark(folder_config, 8)


def check(dataset, data: Benchmark, indices: np.ndarray) -> None:
    assert len(dataset) == len(indices)
    assert list(dataset.targets) == labels_of(data)[indices].tolist()
    for item, index in enumerate(indices):
        image, label = dataset[item]
        assert image.dtype == torch.uint8
        assert image.shape == (3, 8, 8)
        assert image.is_contiguous()
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), images_of(data)[index])
        assert type(label) is int
        assert label == labels_of(data)[index]


def test_stream_has_an_experience_for_each_domain_and_no_task_labels(data):
    streams = avalanche_benchmark(data, ImageBackbone.encode)
    assert len(streams.train_stream) == len(streams.test_stream) == 2
    for number, experience in enumerate(streams.train_stream):
        assert experience.current_experience == number
        check(experience.dataset, data, train_of(data)[number])
        assert not hasattr(experience.dataset, "targets_task_labels")
    for number, experience in enumerate(streams.test_stream):
        check(experience.dataset, data, held_out_of(data)[number])


def test_joint_stream_has_all_train_data_in_one_experience(data):
    streams = joint_benchmark(data, ImageBackbone.encode)
    assert len(streams.train_stream) == 1
    check(streams.train_stream[0].dataset, data, np.concatenate(train_of(data)))
    assert len(streams.test_stream) == 2


def test_a_loader_collates_items(data):
    dataset = avalanche_benchmark(data, ImageBackbone.encode).train_stream[1].dataset
    images, labels = next(iter(DataLoader(dataset, batch_size=5)))
    assert images.shape == (5, 3, 8, 8)
    assert images.dtype == torch.uint8
    assert labels.tolist() == labels_of(data)[train_of(data)[1][:5]].tolist()


def test_joint_stream_of_inputs_that_are_not_shared():
    data = scalars()
    (joint,) = joint_benchmark(data, ImageBackbone.encode).train_stream
    first, second = data.experiences
    assert len(joint.dataset) == len(first.train) + len(second.train)
    for one, offset in ((first, 0), (second, len(first.train))):
        image, target = joint.dataset[offset + 3]
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), one.inputs[3])
        assert float(target) == pytest.approx(one.targets[3])


def test_joint_training_of_several_tasks_is_refused():
    first, second = scalars().experiences
    other = make_experience("r", Task("weight", ScalarKind()), np.zeros(9))
    data = Benchmark("several", (first, other, second), "x")
    assert len(avalanche_benchmark(data, ImageBackbone.encode).train_stream) == 3
    with pytest.raises(UserError, match=r"'several' to share one task .* but got 'size', 'weight'"):
        joint_benchmark(data, ImageBackbone.encode)


def test_scalar_targets_collate_to_the_dtype_of_their_kind():
    dataset = avalanche_benchmark(scalars(), ImageBackbone.encode).train_stream[0].dataset
    images, targets = next(iter(DataLoader(dataset, batch_size=5)))
    assert images.shape == (5, 3, 2, 2)
    assert targets.dtype == torch.float32
    expected = scalars().experiences[0].targets[:5].astype(np.float32)
    np.testing.assert_array_equal(targets.numpy(), expected)


def test_targets_may_be_arrays():
    points = np.random.default_rng(0).uniform(size=(10, 2))
    data = Benchmark("toy", (make_experience("p", Task("points", PointsKind()), points),), "x")
    dataset = avalanche_benchmark(data, ImageBackbone.encode).train_stream[0].dataset
    _, targets = next(iter(DataLoader(dataset, batch_size=4)))
    np.testing.assert_array_equal(targets.numpy(), points[:4].astype(np.float32))
    _, target = dataset.subset([2])[0]
    np.testing.assert_array_equal(target.numpy(), points[2].astype(np.float32))


class Linear(nn.Module):
    """A number from the mean colour."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.float().mean(dim=(2, 3)) / 255)


@pytest.mark.parametrize("make", [avalanche_benchmark, joint_benchmark])
def test_a_strategy_of_avalanche_learns_a_scalar_task(make):
    data = scalars()
    (task,) = data.tasks
    torch.manual_seed(0)  # Avalanche shuffles with the global generator
    model = Linear()
    naive = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        criterion=task.loss,
        train_mb_size=6,
        train_epochs=30,
        evaluator=EvaluationPlugin(loggers=[]),
    )
    for one in make(data, ImageBackbone.encode).train_stream:
        naive.train(one, num_workers=0)
    # The targets are uniform and have nothing to do with the pictures: the best constant in
    # absolute error is their median.
    targets = np.concatenate([e.targets[e.train] for e in data.experiences])
    constant = float(np.abs(targets - np.median(targets)).mean())
    counts = task.accumulator()
    for e in data.experiences:
        inputs = ImageBackbone.encode(e.inputs[e.train])
        counts.update(model(inputs).detach(), torch.from_numpy(e.targets[e.train]))
    assert counts.scores()["toy_mae"] < np.abs(targets).mean() - 0.1
    assert counts.scores()["toy_mae"] < constant + 0.03


def classes_and_a_number() -> Benchmark:
    """Two classes by colour, a number, three classes by another colour, the first task again."""
    draw = np.random.default_rng(0)

    def labelled(name: str, task: Task, channel: int):
        experience = make_experience(name, task, draw.permutation(24) % len(task.labels))
        experience.inputs[..., 0] = 0
        experience.inputs[..., channel] = (90 * experience.targets)[:, None, None]
        return experience

    two, three = (Task(name, CLASS, tuple("abc"[:n])) for name, n in (("two", 2), ("three", 3)))
    return Benchmark(
        "unlike",
        (
            labelled("p", two, 0),
            make_experience("q", Task("size", ScalarKind()), draw.uniform(size=20)),
            labelled("r", three, 2),
            labelled("s", two, 0),
        ),
        "x",
    )


def test_every_sample_says_its_task_where_there_are_several():
    data = classes_and_a_number()
    streams = avalanche_benchmark(data, ImageBackbone.encode)
    for stream, part in ((streams.train_stream, "train"), (streams.test_stream, "test")):
        for experience, own, label in zip(stream, data.experiences, (0, 1, 2, 0), strict=True):
            assert experience.task_labels == [label]
            assert list(experience.dataset.targets_task_labels) == [label] * len(getattr(own, part))
            image, target, said = experience.dataset[0]
            assert said == label
            assert float(target) == pytest.approx(own.targets[getattr(own, part)][0])
            assert torch.equal(image, ImageBackbone.encode(own.inputs[getattr(own, part)[0]]))
    images, targets, labels = next(iter(DataLoader(streams.train_stream[2].dataset, batch_size=3)))
    assert (images.shape, labels.tolist()) == ((3, 3, 2, 2), [2, 2, 2])
    assert targets.dtype == torch.int64


def test_experiences_of_one_task_have_no_labels():
    one, _ = scalars().experiences
    for data in (scalars(), Benchmark("one", (one,), "x")):
        for experience in avalanche_benchmark(data, ImageBackbone.encode).train_stream:
            assert not hasattr(experience.dataset, "targets_task_labels")
            assert len(experience.dataset[0]) == 2


class Heads(MultiTaskModule):
    """A head for each task label on the mean colour."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = MultiHeadClassifier(3, initial_out_features=3, masking=False)

    def forward(self, x: torch.Tensor, task_labels: torch.Tensor) -> torch.Tensor:
        return self.classifier(x.float().mean(dim=(2, 3)) / 255, task_labels)


def test_avalanches_own_strategy_and_metrics_keep_tasks_apart():
    data = classes_and_a_number()
    several = Benchmark("several", tuple(data.experiences[i] for i in (0, 2)), "x")
    # Avalanche's heads ask each experience for its classes.
    streams = with_classes_timeline(avalanche_benchmark(several, ImageBackbone.encode))
    torch.manual_seed(0)
    model = Heads()
    naive = Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.05),
        train_mb_size=8,
        train_epochs=60,
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True, stream=True), loggers=[]),
    )
    for experience in streams.train_stream:
        naive.train(experience, num_workers=0)
    found = naive.eval(streams.test_stream, num_workers=0)
    for label, own in enumerate(several.experiences):
        key = f"Top1_Acc_Exp/eval_phase/test_stream/Task{label:03}/Exp{label:03}"
        images, targets = ImageBackbone.encode(own.inputs[own.test]), own.targets[own.test]
        with torch.no_grad():
            said = model(images, torch.full((len(targets),), label)).argmax(1).numpy()
        assert found[key] == pytest.approx((said == targets).mean())
        assert found[key] == 1.0  # the second has not spoilt the first: a head for each


def test_benchmarks_do_not_import_avalanche_or_datasets():
    root = Path(__file__).parents[2]
    heavy = "{'avalanche', 'datasets', 'timm', 'peft'}"
    code = f"import cl_lora.benchmarks, sys; print({heavy} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "set()"
