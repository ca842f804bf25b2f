"""What rows cost: bytes by hand, times by a clock that the test sets, once for the same work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from bench import arm, samples_of_test, serve, stage, workbench
from test_routed import ROUTED, SOFT, with_statistics
from tiny_vit import tiny_backbone
from torch import Tensor

from cl_lora.benchmarks import Benchmark
from cl_lora.experiment import costs
from cl_lora.experiment.costs import Costs, Kept, bytes_of_samples, bytes_to_serve, is_told, serving
from cl_lora.experiment.evaluator import Evaluator
from cl_lora.experiment.references import REFERENCES
from cl_lora.experiment.serving import Workbench
from cl_lora.experiment.stages import Outline, Stage, get_protocol
from cl_lora.run_folder.seals import is_time_intact

SUM = {"method": "task_arithmetic"}
HEAD = 4 * (16 * 3 + 3)
"""Bytes of a linear head: 16 features, 3 classes, float32."""
ADAPTER = 4 * 2 * (2 * (16 + 48) + 2 * (16 + 64))
"""Bytes of an adapter of rank 2 on qkv and fc1 of two blocks."""
FEATURES = 8 * 3 + 4 * (3 * 16 + 16 * 17 // 2)
"""Bytes of the features of 3 classes: counts in float64, means, half a covariance."""
ROUTER = 8 * 3 + 4 * (3 * 32 + 32 * 33 // 2)
"""Bytes of as many styles, which have twice the width."""


@pytest.fixture(scope="module")
def bench(benchmark_16: Benchmark) -> Workbench:
    return with_statistics(workbench(benchmark_16, tiny_backbone()))


@pytest.fixture
def image(bench: Workbench) -> int:
    """Bytes of an image at the size that the model sees: one for each colour of a pixel."""
    _, height, width, colours = bench.benchmark.experiences[0].inputs.shape
    return int(height * width * colours)


def kept(bench: Workbench, t: int = 2, **settings: object) -> Kept:
    given = arm(bench, **settings)
    served = serve(bench, t, **settings)
    return costs.kept_by_arm(bench, given, stage(bench, t), served.coefficients)


# What is kept -------------------------------------------------------------------------------------


def test_a_merge_keeps_every_adapter_and_no_data(bench: Workbench) -> None:
    assert kept(bench, 1, **SUM) == Kept(adapters=2 * (ADAPTER + HEAD))
    assert kept(bench, 2, **SUM) == Kept(adapters=3 * (ADAPTER + HEAD))


def test_an_adapter_of_coefficient_zero_is_not_kept(bench: Workbench) -> None:
    newest = {**SUM, "bank": "sequential", "coefficients": {"name": "ema", "weight": 1}}
    assert kept(bench, 2, **newest) == Kept(adapters=ADAPTER + HEAD)
    # Of a bank that is trained on the newest state is needed, whatever it weighs.
    first = {**newest, "coefficients": {"name": "fixed", "value": [1.0, 0.0, 0.0]}}
    assert kept(bench, 2, **first) == Kept(adapters=2 * (ADAPTER + HEAD))
    fresh = {**first, "bank": "fresh"}
    assert kept(bench, 2, **fresh) == Kept(adapters=ADAPTER + HEAD)


def test_statistics_of_all_members_are_kept(bench: Workbench) -> None:
    """Those of an adapter that is not kept too: its means are in the head."""
    newest = {**SUM, "coefficients": {"name": "ema", "weight": 1}, "head": "mixture"}
    assert kept(bench, 2, **newest) == Kept(ADAPTER + HEAD, statistics=3 * FEATURES)
    routed = {**SUM, "coefficients": ROUTED, "head": "gaussian"}
    every = Kept(3 * (ADAPTER + HEAD), statistics=3 * (FEATURES + ROUTER))
    assert kept(bench, 2, **routed) == every


def test_a_buffer_is_kept_where_one_is_seen(bench: Workbench, image: int) -> None:
    learned = {"name": "adaptive", "b_max": 1, "steps": 1}
    assert kept(bench, 1, **SUM, coefficients=learned, spc=2).buffer == 2 * 3 * 2 * image
    moved = kept(bench, 2, **SUM, coefficients=0.5, head="mixture_moved", spc=4)
    assert (moved.buffer, moved.statistics) == (3 * 3 * 4 * image, 3 * FEATURES)
    assert kept(bench, 2, **SUM, coefficients=0.5, spc=2).buffer == 0


def test_the_validation_part_is_kept_where_it_is_seen(bench: Workbench, image: int) -> None:
    parts = tuple(replace(e, val=e.train[:5]) for e in bench.benchmark.experiences)
    there = replace(bench, benchmark=replace(bench.benchmark, experiences=parts))
    grid = {"name": "grid", "values": [0.5, 1.0]}
    given = arm(there, **SUM, coefficients=grid, select_on="val")
    assert costs.kept_by_arm(there, given, stage(there, 1)).buffer == 2 * 5 * image


def row(bench: Workbench, name: str, t: int = 2) -> Kept:
    at = stage(bench, t)
    return costs.kept_by_reference(bench, REFERENCES[name], at, REFERENCES[name].serve(bench, at))


def test_reference_rows_keep_what_they_serve(bench: Workbench) -> None:
    assert row(bench, "base") == Kept(HEAD)
    assert row(bench, "last") == row(bench, "sequential") == Kept(ADAPTER + HEAD)
    assert row(bench, "oracle", 1) == row(bench, "oracle_sequential", 1)
    assert row(bench, "oracle", 1) == Kept(2 * (ADAPTER + HEAD))
    mixture = row(bench, "sequential_mixture", 1)
    assert mixture == Kept(ADAPTER + HEAD, statistics=2 * FEATURES)


def test_joint_training_keeps_all_train_samples(bench: Workbench, image: int) -> None:
    count = sum(len(e.train) for e in bench.benchmark.experiences)
    assert row(bench, "joint") == Kept(ADAPTER + HEAD, data=count * image)
    of_statistics = row(bench, "joint_gaussian")
    assert of_statistics == Kept(ADAPTER + HEAD, statistics=3 * FEATURES, data=count * image)


def test_rows_under_heads_of_a_buffer_keep_it(bench: Workbench, image: int) -> None:
    there = workbench(bench.benchmark, bench.backbone, head="prototypes")
    assert row(there, "last", 1).buffer == 2 * 3 * there.spc * image


def test_texts_count_by_their_letters(bench: Workbench) -> None:
    texts = np.array([["é", "", "abc"], ["x", "y", "z"]], dtype=object)
    experience = replace(bench.benchmark.experiences[0])
    object.__setattr__(experience, "inputs", texts)
    assert bytes_of_samples(experience, np.array([0])) == 5
    assert bytes_of_samples(experience, np.array([0, 1])) == 8


# What is served -----------------------------------------------------------------------------------


def test_bytes_to_serve(bench: Workbench) -> None:
    assert bytes_to_serve(serve(bench, 2, method="cat")) == 3 * ADAPTER + HEAD
    newest = serve(bench, 2, method="cat", coefficients={"name": "ema", "weight": 1})
    assert bytes_to_serve(newest) == ADAPTER + HEAD  # the others are zero


def test_a_base_that_all_share_is_stored_once(bench: Workbench) -> None:
    own = workbench(bench.benchmark, bench.backbone, head="own")
    given = {"method": "cat", "residual": {"name": "low_rank", "q": 1}}
    served = serve(own, 2, **given)
    base = bytes_to_serve(serve(own, 2, method="cat")) - 3 * HEAD
    assert base == 3 * ADAPTER
    residuals = 3 * (ADAPTER // 2 + 4 * 4)  # rank 1 instead of 2, and a singular value a layer
    assert bytes_to_serve(served) == base + residuals + 3 * HEAD


# Times --------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock whose passes take what the test says, in seconds."""
    taken: list[float] = []
    now = [0.0]

    def ticks() -> Iterator[float]:
        while True:
            yield now[0]
            now[0] += taken.pop(0)
            yield now[0]

    made = ticks()
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(made))
    return taken


@pytest.mark.parametrize(
    ("seconds", "passes", "expected"),
    [
        ([2.0, 1.0, 9.0], 2, 250.0),  # long ones: two are enough, and the quicker one counts
        ([0.04, 0.02, 0.9], 2, 5.0),
        ([0.02, 0.02, 0.004, 0.5, 0.5], 4, 1.0),
        ([0.004] * 9, 5, 1.0),
    ],
)
def test_the_quickest_of_a_few_passes_counts(
    clock: list[float], seconds: list[float], passes: int, expected: float
) -> None:
    clock += seconds
    seen: list[int] = []
    inputs = torch.zeros(4, 2)
    device = torch.device("cpu")
    assert costs.milliseconds(lambda x: seen.append(len(x)), inputs, device) == pytest.approx(
        expected
    )
    assert seen == [4] * passes


@pytest.mark.parametrize(
    "settings",
    [
        SUM,
        {"method": "ties", "head": "mixture"},
        {**SUM, "coefficients": ROUTED, "head": "gaussian"},
        {**SUM, "coefficients": SOFT},
    ],
)
def test_what_is_timed_is_what_is_scored(bench: Workbench, settings: dict[str, object]) -> None:
    """The outputs of the pass that is timed give the accuracy that was scored."""
    served = serve(bench, 2, **settings)
    scored = Evaluator(bench).score(served, stage(bench, 2))
    for j in range(3):
        inputs, targets = samples_of_test(bench, j)
        with serving(bench, served.parts[j]) as make:
            right = make(inputs).argmax(1) == targets
        assert scored[j].hits is not None
        np.testing.assert_array_equal(right.numpy(), scored[j].hits)


def batches_of(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return a list that gets the batch of everything that is timed."""
    seen: list[Tensor] = []

    def spy(serve: object, inputs: Tensor, device: torch.device) -> float:
        seen.append(inputs)
        return float(len(seen))

    monkeypatch.setattr(costs, "milliseconds", spy)
    return seen


def test_a_batch_has_images_of_all_that_a_part_serves(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = batches_of(bench, monkeypatch)
    at, timed = stage(bench, 2), Costs(bench)
    timed.milliseconds(serve(bench, 2, **SUM, coefficients=ROUTED), at)
    tests = [samples_of_test(bench, j)[0] for j in range(3)]
    assert torch.equal(seen[0], torch.cat([t[:2] for t in tests])[:5])  # batches of 5
    timed.milliseconds(REFERENCES["oracle"].serve(bench, at), at)
    assert torch.equal(seen[1], tests[0][:5])


def test_the_same_work_is_timed_once(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = batches_of(bench, monkeypatch)
    at, timed = stage(bench, 2), Costs(bench)

    def taken(**settings: object) -> float:
        return timed.milliseconds(serve(bench, 2, **settings), at)

    assert taken(**SUM) == taken(method="ties") == 1.0  # added to the weights, both
    assert timed.milliseconds(REFERENCES["last"].serve(bench, at), at) == 1.0
    assert taken(**SUM, head="mixture") == 2.0
    assert taken(**SUM, coefficients=ROUTED) == 3.0
    assert taken(**SUM, coefficients=SOFT) == 4.0
    assert len(seen) == 4


# When it is told ----------------------------------------------------------------------------------


def stages_of(name: str, **more: object) -> tuple[Stage, ...]:
    return get_protocol(name).stages(Outline(("a", "b", "c"), **more))  # type: ignore[arg-type]


def test_costs_are_told_where_everything_has_come() -> None:
    prefixes = stages_of("prefixes")
    assert [is_told(prefixes, s, 3) for s in prefixes] == [False, False, False, True]
    (once,) = stages_of("all_at_once")
    assert is_told((once,), once, 3)
    subsets = stages_of("subsets")
    assert not any(is_told(subsets, s, 3) for s in subsets)
    few = stages_of("shots", shots=(1,), pool=(9.0, 9.0, 9.0))
    assert not any(is_told(few, s, 3) for s in few)


def test_what_is_recorded_of_a_row(bench: Workbench, image: int) -> None:
    given = arm(bench, **SUM, coefficients=ROUTED)
    stages = stages_of("prefixes")
    told = Costs(bench)
    served = serve(bench, 1, **SUM, coefficients=ROUTED)
    assert told.of("x", given, stages, stages[2], served) == ((), ())
    served = serve(bench, 2, **SUM, coefficients=ROUTED)
    accounts, (timing,) = told.of("x", given, stages, stages[3], served)
    assert {(a.seed, a.arm, a.stage) for a in (*accounts, timing)} == {(0, "x", 2)}
    assert {a.quantity: a.value for a in accounts} == {
        "passes": 1.5,
        "bytes_to_serve": 4.0 * served.parameters,
        "bytes_of_adapters": 3.0 * (ADAPTER + HEAD),
        "bytes_of_statistics": 3.0 * ROUTER,
        "bytes_of_buffer": 0.0,
        "bytes_of_data": 0.0,
    }
    assert timing.quantity == "milliseconds"
    assert timing.value > 0
    assert is_time_intact(timing)
    accounts, _ = told.of(
        "joint", None, stages, stages[3], REFERENCES["joint"].serve(bench, stages[3])
    )
    (data,) = (a.value for a in accounts if a.quantity == "bytes_of_data")
    assert data == image * sum(len(e.train) for e in bench.benchmark.experiences)
