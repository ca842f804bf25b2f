"""Our measures against Avalanche's, on a stream that Avalanche really trains."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from cl_lora.evaluation.classification import ClassificationCounts
from cl_lora.evaluation.continual import (
    average_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
)
from cl_lora.support.compat import declare_torchvision_operators

T, CLASSES, PER_DOMAIN = 3, 4, 80


class _Rows(TensorDataset):
    def __init__(self, x, y):
        super().__init__(x, y)
        self.targets = y.tolist()


def _domain(generator, shift):
    # Each domain permutes the classes' centres a little further: later training overwrites.
    centres = torch.randn(CLASSES, 6, generator=torch.Generator().manual_seed(0)) * 2
    y = torch.arange(PER_DOMAIN) % CLASSES
    x = centres[(y + shift) % CLASSES] + torch.randn(PER_DOMAIN, 6, generator=generator)
    return _Rows(x, y)


@pytest.fixture(scope="module")
def trained():
    # Torchvision beside a CPU torch must be mended first; importing Avalanche takes seconds.
    declare_torchvision_operators()
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import as_classification_dataset
    from avalanche.evaluation.metrics import (
        accuracy_metrics,
        bwt_metrics,
        forgetting_metrics,
        forward_transfer_metrics,
    )
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import Naive

    generator = torch.Generator().manual_seed(1)
    data = [[_domain(generator, t) for _ in range(2)] for t in range(T)]
    benchmark = benchmark_from_datasets(
        train=[as_classification_dataset(train) for train, _ in data],
        test=[as_classification_dataset(test) for _, test in data],
    )
    torch.manual_seed(2)
    model = nn.Linear(6, CLASSES)
    evaluator = EvaluationPlugin(
        accuracy_metrics(stream=True),
        forgetting_metrics(stream=True),
        bwt_metrics(stream=True),
        forward_transfer_metrics(stream=True),
        loggers=[],
    )
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=16,
        train_epochs=2,
        eval_mb_size=16,
        evaluator=evaluator,
        eval_every=0,
    )

    def scores():
        row = []
        model.eval()
        for _, test in data:
            counts = ClassificationCounts(CLASSES)
            with torch.no_grad():
                counts.update(model(test.tensors[0]), test.tensors[1])
            row.append(counts.scores()["accuracy"])
        return row

    baseline, rows = scores(), []
    for experience in benchmark.train_stream:
        strategy.train(experience, eval_streams=[benchmark.test_stream], num_workers=0)
        rows.append(scores())
    metrics = strategy.eval(benchmark.test_stream, num_workers=0)
    return np.array(rows), np.array(baseline), metrics


def _avalanche(metrics, name):
    (value,) = (v for k, v in metrics.items() if k.startswith(f"{name}/eval_phase/test_stream"))
    return value


def test_the_stream_forgets(trained):
    R, _, _ = trained
    assert forgetting(R) > 0.1


def test_average_accuracy_is_stream_accuracy_on_equal_domains(trained):
    R, _, metrics = trained
    assert average_accuracy(R) == pytest.approx(_avalanche(metrics, "Top1_Acc_Stream"))


def test_backward_transfer(trained):
    R, _, metrics = trained
    assert backward_transfer(R) == pytest.approx(_avalanche(metrics, "StreamBWT"))


def test_forward_transfer(trained):
    R, b, metrics = trained
    assert forward_transfer(R, b) == pytest.approx(_avalanche(metrics, "StreamForwardTransfer"))


def test_avalanches_forgetting_is_minus_bwt_and_never_above_chaudhrys(trained):
    R, _, metrics = trained
    initial_minus_last = _avalanche(metrics, "StreamForgetting")
    assert initial_minus_last == pytest.approx(-backward_transfer(R))
    assert initial_minus_last <= forgetting(R) + 1e-12
