"""CKA between upstream and downstream adapters, against a formula written out on dense kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_adapting import few_shot_bench

from cl_lora.adapters.injection import applied
from cl_lora.benchmarks import Benchmark
from cl_lora.benchmarks.streams.covariate_shift import hold_out_last
from cl_lora.experiment.serving import OwnUpdate
from cl_lora.experiment.similarity import pairs_of, similarities
from cl_lora.experiment.stages import Outline, get_protocol


@pytest.fixture
def bench(benchmark_16: Benchmark, backbone):
    return few_shot_bench(hold_out_last(benchmark_16), backbone)


def qkv_outputs(bench, adapter) -> np.ndarray:
    """Return what the fused projection of block 0 makes of the pool, mean over tokens."""
    experience = bench.benchmark.experiences[2]
    images = bench.backbone.encode(experience.inputs[experience.train])
    network = bench.backbone.network
    with applied(network, OwnUpdate(adapter)), torch.no_grad():
        tokens = network._pos_embed(network.patch_embed(bench.backbone.normalise(images)))
        block = network.blocks[0]
        out = torch.nn.functional.linear(
            block.norm1(tokens), block.attn.qkv.weight, block.attn.qkv.bias
        )
    return out.mean(dim=1).double().numpy()


def cka_by_kernels(x: np.ndarray, y: np.ndarray) -> float:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with linear kernels: another way to the same."""
    n = len(x)
    centre = np.eye(n) - 1 / n
    a, b = (centre @ (z @ z.T) @ centre for z in (x, y))
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def test_it_is_the_cka_of_the_layers_outputs(bench) -> None:
    found = {(s.group, s.adapter): s for s in similarities(bench, (2, (0, 1)))}
    assert {m for m, _ in found} == set(bench.banks["fresh"][0].modules())
    assert {(s.seed, s.evaluated) for s in found.values()} == {(0, 2)}
    target = qkv_outputs(bench, bench.banks["fresh"][2])
    for m in (0, 1):
        expected = cka_by_kernels(qkv_outputs(bench, bench.banks["fresh"][m]), target)
        assert found["blocks.0.attn.qkv", m].value == pytest.approx(expected, rel=1e-4)


def test_an_adapter_is_like_itself(bench) -> None:
    assert {round(s.value, 6) for s in similarities(bench, (2, (2,)))} == {1.0}


def test_the_query_is_not_looked_at(bench) -> None:
    experience = bench.benchmark.experiences[2]
    before = [s.value for s in similarities(bench, (2, (0,)))]
    inputs = experience.inputs.copy()
    inputs[experience.test] = 0
    object.__setattr__(experience, "inputs", inputs)
    assert [s.value for s in similarities(bench, (2, (0,)))] == before


def test_every_round_is_compared_once() -> None:
    outline = Outline(("a", "b", "c"), (), (4.0,) * 3, (1, 2), draws=3)
    assert pairs_of(get_protocol("shots").stages(outline)) == (
        (0, (1, 2)),
        (1, (0, 2)),
        (2, (0, 1)),
    )
    assert pairs_of(get_protocol("prefixes").stages(outline)) == ()
