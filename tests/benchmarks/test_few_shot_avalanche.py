"""The four Avalanche streams of few-shot composition."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from avalanche.benchmarks import CLScenario
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn, optim
from toy_tasks import scalars

from cl_lora.benchmarks import Benchmark, draw_support, make_benchmark
from cl_lora.benchmarks.avalanche import few_shot_streams
from cl_lora.models.images import ImageBackbone
from cl_lora.support.errors import UserError

SHOTS = (1, 2, "all")


@pytest.fixture
def data(tree, cache) -> Benchmark:
    root = tree(domains=("art", "photo", "sketch"))
    return make_benchmark(
        {"kind": "covariate_shift", "root": str(root), "downstream": "art"}, image_size=8
    )


def supports(data: Benchmark) -> dict:
    downstream = data.experiences[-1]
    return {shots: draw_support(downstream, shots, 0) for shots in SHOTS}


def pictures(dataset) -> list[int]:
    return [int(dataset[item][0][0, 4, 4]) for item in range(len(dataset))]


def test_streams_hold_upstream_support_and_query_and_share_no_picture(data):
    sets = supports(data)
    streams = few_shot_streams(data, sets, ImageBackbone.encode)
    assert isinstance(streams, CLScenario)
    assert set(streams.streams) == {"upstream_train", "upstream_test", "support", "query"}
    for stream, part in (
        (streams.upstream_train_stream, "train"),
        (streams.upstream_test_stream, "test"),
    ):
        assert len(stream) == 2
        for one, e in zip(stream, data.experiences, strict=False):
            indices = getattr(e, part)
            assert pictures(one.dataset) == e.inputs[indices][:, 4, 4, 0].tolist()
            assert list(one.dataset.targets) == e.targets[indices].tolist()
    downstream = data.experiences[-1]
    assert [len(one.dataset) for one in streams.support_stream] == [2, 4, len(downstream.train)]
    for one, indices in zip(streams.support_stream, sets.values(), strict=True):
        assert pictures(one.dataset) == downstream.inputs[indices][:, 4, 4, 0].tolist()
    (query,) = streams.query_stream
    assert pictures(query.dataset) == downstream.inputs[downstream.test][:, 4, 4, 0].tolist()
    seen = [set(pictures(one.dataset)) for one in (*streams.upstream_train_stream, query)]
    assert not set.intersection(*seen[:2])
    assert not set(pictures(query.dataset)) & (
        seen[0] | seen[1] | set(pictures(streams.support_stream[2].dataset))
    )


def test_an_avalanche_strategy_trains_on_a_support_and_evaluates_the_query(data):
    streams = few_shot_streams(data, supports(data), ImageBackbone.encode)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3 * 8 * 8, 2)

        def forward(self, images):
            return self.head(images.flatten(1).float() / 255)

    model = Model()
    strategy = Naive(
        model=model,
        optimizer=optim.SGD(model.parameters(), lr=0.01),
        train_mb_size=2,
        evaluator=EvaluationPlugin(loggers=[]),
    )
    before = model.head.weight.detach().clone()
    strategy.train(streams.support_stream[1], num_workers=0)
    assert not (model.head.weight == before).all()
    strategy.eval(streams.query_stream, num_workers=0)


def test_targets_of_another_kind_pass():
    data = dataclasses.replace(scalars(), downstream=(1,))
    indices = draw_support(data.experiences[1], 2, 0)
    streams = few_shot_streams(data, {2: indices}, ImageBackbone.encode)
    (support,) = streams.support_stream
    assert [float(t) for t in support.dataset.targets] == pytest.approx(
        data.experiences[1].targets[indices].tolist()
    )


def test_what_cannot_be_streamed(data):
    sets = supports(data)
    downstream = data.experiences[-1]
    with pytest.raises(UserError, match="to have one downstream experience but it has 0; give"):
        few_shot_streams(dataclasses.replace(data, downstream=()), sets, ImageBackbone.encode)
    with pytest.raises(UserError, match="at least one support set but got none"):
        few_shot_streams(data, {}, ImageBackbone.encode)
    for wrong in (downstream.test, np.array([], dtype=np.int64), data.experiences[0].train):
        with pytest.raises(UserError, match="support of shots=3 to hold train samples of 'art'"):
            few_shot_streams(data, {3: wrong}, ImageBackbone.encode)
    empty = dataclasses.replace(downstream, test=np.array([], dtype=np.int64))
    broken = dataclasses.replace(data, experiences=(*data.experiences[:-1], empty))
    with pytest.raises(UserError, match="'art' but its query is empty"):
        few_shot_streams(broken, sets, ImageBackbone.encode)
