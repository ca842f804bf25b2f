"""Blocks that no adapter touches are computed once for every test image, and nothing changes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bench import random_adapter
from torch import Tensor
from whole_runs import SMALL

from cl_lora.benchmarks import Benchmark
from cl_lora.configuration.compose import compose_config
from cl_lora.experiment import feature_store
from cl_lora.experiment.feature_store import FeatureStore
from cl_lora.experiment.pipeline import execute
from cl_lora.experiment.serving import OwnUpdate
from cl_lora.models.backbones import Backbone
from cl_lora.models.bottleneck import Bottleneck
from cl_lora.models.compute import Compute
from cl_lora.models.timm_vits import TimmBackbone
from cl_lora.models.weights import NO_BLOCK, Weights, begins_at, changed, lowest_block

SUM = "method: task_arithmetic"
RUN = (
    *("benchmark.classes=3", "benchmark.styles=[photo,cartoon]", "benchmark.samples_per_class=4"),
    *("benchmark.test_samples_per_class=4", "report=false", *SMALL),
    *("strategy.epochs=1", "strategy.batch_size=8", "strategy.rank=2", "strategy.first_block=2"),
    *("eval_batch_size=5", "arms=none", "references=[oracle]"),
    f"+arms.half={{{SUM}, coefficients: 0.5}}",
    "+arms.grid={method: ties, spc: 2, coefficients: {name: grid, values: [0.3, 1.0]}}",
    f"+arms.newton={{{SUM}, spc: 2, "
    "coefficients: {name: adaptive, b_max: 2, solver: gauss_newton}}",
    f"+arms.hard={{{SUM}, coefficients: {{name: routed}}}}",
    f"+arms.soft={{{SUM}, coefficients: {{name: routed, weights: soft, block: 1}}}}",
    f"+arms.moved={{{SUM}, coefficients: 0.5, head: mixture_moved, spc: 2}}",
)
SCORED = ("scores.csv", "coefficients.csv", "seals.csv")


class Counted:
    """Counts the batches that go through the blocks below, by block."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: dict[int, int] = {}
        plain = TimmBackbone.tokens

        def counted(backbone: TimmBackbone, inputs: Tensor, block: int) -> Tensor:
            self.batches[block] = self.batches.get(block, 0) + 1
            return plain(backbone, inputs, block)

        monkeypatch.setattr(TimmBackbone, "tokens", counted)


def test_scores_are_the_same_with_and_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    going_on: list[int] = []
    plain = feature_store._Prefix.features

    def counted(prefix: feature_store._Prefix, tokens: Tensor) -> Tensor:
        going_on.append(prefix.block)
        return plain(prefix, tokens)

    monkeypatch.setattr(feature_store._Prefix, "features", counted)
    folder = execute(compose_config([f"run_dir={tmp_path / 'run'}", *RUN]))
    scored = {name: (folder / name).read_bytes() for name in SCORED}
    assert set(going_on) == {2}
    going_on.clear()
    for name in SCORED:
        (folder / name).unlink()
    monkeypatch.setattr(feature_store, "BUDGET", 0)
    execute(compose_config([f"run_dir={folder}", *RUN]))
    assert not going_on
    assert {name: (folder / name).read_bytes() for name in SCORED} == scored


@pytest.mark.parametrize("bf16", [False, True])
def test_going_on_is_the_whole_pass_bit_for_bit(
    benchmark_16: Benchmark, backbone: Backbone, bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = Compute(torch.device("cpu"), bf16)
    adapter = random_adapter(backbone, 0)
    above = {k: f for k, f in adapter.factors.items() if "blocks.1" in k}
    update = OwnUpdate(SimpleNamespace(entries=above))  # type: ignore[arg-type]
    assert begins_at(update) == 1
    store, plain = (FeatureStore(benchmark_16, backbone, compute, 5, 1, b) for b in (2**20, 0))
    test = benchmark_16.experiences[1].test
    counted = Counted(monkeypatch)
    for change in (update, None, update):
        with changed(backbone.network, change):
            found, wanted = (list(s.features(begins_at(change), 1, test)) for s in (store, plain))
        for (one, labels), (other, same) in zip(found, wanted, strict=True):
            assert torch.equal(one, other)
            assert torch.equal(labels, same)
    assert counted.batches == {1: 3}  # 12 images
    assert torch.equal(store.styles(1, 1, test), plain.styles(1, 1, test))
    assert counted.batches == {1: 6}  # those of the store without room
    inputs = backbone.encode(benchmark_16.experiences[0].inputs[test])
    batches = [(inputs[:5], torch.zeros(5)), (inputs[5:], torch.zeros(len(test) - 5))]
    again, each = store.passes(batches), plain.passes(batches)
    for _ in range(2):
        with changed(backbone.network, update):
            one, other = (torch.cat([f for f, _ in pass_(1)]) for pass_ in (again, each))
        assert torch.equal(one, other)
    assert counted.batches == {1: 8}


def test_what_touches_a_block_below_goes_all_the_way(
    benchmark_16: Benchmark, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    compute = Compute(torch.device("cpu"), bf16=False)
    store = FeatureStore(benchmark_16, backbone, compute, 5, 1)
    update = OwnUpdate(random_adapter(backbone, 0))
    test = benchmark_16.experiences[0].test
    bare = store.get("bare", None, 0, test)
    assert counted.batches == {1: 3}
    assert not torch.equal(store.get("own", update, 0, test), bare)
    plain = FeatureStore(benchmark_16, backbone, compute, 5)
    assert torch.equal(store.get("own", update, 0, test), plain.get("own", update, 0, test))
    assert counted.batches == {1: 3}


def test_no_more_is_kept_than_there_is_room_for(
    benchmark_16: Benchmark, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    compute = Compute(torch.device("cpu"), bf16=False)
    batch = 5 * 5 * 16 * 4  # images, tokens, width, bytes
    store = FeatureStore(benchmark_16, backbone, compute, 5, 1, 2 * batch + 100)
    test = np.asarray(benchmark_16.experiences[0].test)
    for _ in range(3):
        assert len(list(store.features(NO_BLOCK, 0, test))) == 3
    kept = store._prefix._kept.values()
    assert sum(t.numel() * t.element_size() for t in kept) == 2 * batch
    assert counted.batches == {1: 5}  # the third each time
    store.forget()
    list(store.features(NO_BLOCK, 0, test))
    assert counted.batches == {1: 8}


def test_the_lowest_block_of_a_change(backbone: Backbone) -> None:
    assert lowest_block(["blocks.3.attn.qkv", "blocks.11.mlp.fc1"]) == 3
    assert lowest_block(["blocks.3.attn.qkv", "patch_embed.proj"]) == -1
    assert lowest_block([]) == begins_at(None) == NO_BLOCK
    adapter = random_adapter(backbone, 0)
    bottleneck = Bottleneck.of(backbone.network, [adapter])
    assert begins_at(bottleneck.weighted(torch.ones(1))) == 0
    names = [name for name, _ in backbone.network.named_parameters()]
    assert begins_at(Weights.of(backbone.network)) == -1
    assert begins_at(Weights.of(backbone.network, [n for n in names if "blocks.1" in n])) == 1
