"""What is served: parts, parameters, baselines; and how it is scored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bench import (
    LORA,
    Counting,
    arm,
    features,
    random_adapter,
    samples_of_test,
    serve,
    stage,
    workbench,
)

from cl_lora.adapters.injection import inject
from cl_lora.benchmarks import Benchmark
from cl_lora.experiment.banks import BANKS, FRESH
from cl_lora.experiment.evaluator import Evaluator
from cl_lora.experiment.references import REFERENCES, get_references
from cl_lora.experiment.serving import Workbench
from cl_lora.experiment.stages import Outline, get_protocol
from cl_lora.models.backbones import Backbone
from cl_lora.models.heads import PrototypeHead, head_of, new_linear_head
from cl_lora.support.errors import UserError

HEAD = 16 * 3 + 3
"""Numbers of a linear head: 16 features, 3 classes."""
ADAPTER = 2 * (2 * (16 + 48) + 2 * (16 + 64))
"""Numbers of an adapter of rank 2 on qkv (48 x 16) and fc1 (64 x 16) of two blocks."""
DENSE = 2 * (48 * 16 + 64 * 16)
"""Numbers of a dense update of the same layers."""


@pytest.fixture
def bench(benchmark_16: Benchmark, backbone: Backbone) -> Workbench:
    return workbench(benchmark_16, backbone)


ALONE = {n: r for n, r in REFERENCES.items() if not (r.needs_partner or r.statistics)}
"""Rows that need no other seed and no statistics."""


def row(bench: Workbench, name: str, t: int) -> Any:
    return REFERENCES[name].serve(bench, stage(bench, t))


def accuracy(bench: Workbench, update: Any, head: Any, j: int) -> float:
    """Return the accuracy of an update and a head, counted here."""
    inputs, targets = samples_of_test(bench, j)
    right = head(features(bench.backbone, update, inputs)).argmax(1) == targets
    return float(right.double().mean())


# How many numbers are stored -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "t", "expected"),
    [
        ("base", 1, HEAD),
        ("last", 1, ADAPTER + HEAD),
        ("sequential", 2, ADAPTER + HEAD),
        ("joint", 2, ADAPTER + HEAD),
        ("oracle", 0, ADAPTER + HEAD),
        ("oracle", 1, 2 * (ADAPTER + HEAD)),
        ("oracle", 2, 3 * (ADAPTER + HEAD)),
    ],
)
def test_parameters_of_reference_rows(bench, name, t, expected) -> None:
    served = row(bench, name, t)
    assert served.parameters == expected
    assert served.passes == 1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # Concatenated factors of three adapters: rank 6.
        ({"method": "cat"}, 3 * ADAPTER + HEAD),
        ({"method": "svd", "rank": 1}, ADAPTER // 2 + HEAD),
        # peft's space averages the factors: still rank 2.
        ({"method": "linear", "space": "factors"}, ADAPTER + HEAD),
        # Trimmed in the dense update.
        ({"method": "ties"}, DENSE + HEAD),
        # Class means without a bias.
        ({"method": "cat", "head": "prototypes"}, 3 * ADAPTER + 16 * 3),
    ],
)
def test_parameters_of_a_merge(bench, settings, expected) -> None:
    assert serve(bench, 2, **settings).parameters == expected


# Baselines ------------------------------------------------------------------------------


def test_before_training_every_row_is_the_bare_backbone_under_the_initial_head(bench) -> None:
    served = bench.untrained(stage(bench, -1))
    head = new_linear_head(bench.backbone.features, 3, seed=0)
    results = Evaluator(bench).score(served, stage(bench, -1))
    for j in range(3):
        assert results[j].scores["accuracy"] == pytest.approx(accuracy(bench, None, head, j))


@pytest.mark.parametrize("t", [0, 1, 2])
def test_base_is_the_bare_backbone_under_the_newest_head(bench, t) -> None:
    served = row(bench, "base", t)
    head = head_of(bench.banks["fresh"][t].head)
    assert all(served.update(j) is None for j in range(3))
    results = Evaluator(bench).score(served, stage(bench, t))
    assert [results[j].scores["accuracy"] for j in range(3)] == [
        pytest.approx(accuracy(bench, None, head, j)) for j in range(3)
    ]


def serves(served: Any, j: int, adapter: Any) -> bool:
    """Return whether an experience is served by one adapter and its head."""
    update, head = served.update(j), served.head(j)
    return (
        update.modules() == adapter.modules()
        and all(torch.equal(update.delta(m), f.delta()) for m, f in adapter.factors.items())
        and torch.equal(head.weight, adapter.head["weight"])
    )


@pytest.mark.parametrize("t", [0, 1, 2])
@pytest.mark.parametrize(
    ("name", "bank", "member"),
    [("last", "fresh", None), ("sequential", "sequential", None), ("joint", "joint", 0)],
)
def test_rows_of_one_adapter(bench, name, bank, member, t) -> None:
    served = row(bench, name, t)
    adapter = bench.banks[bank][t if member is None else member]
    assert all(serves(served, j, adapter) for j in range(3))


@pytest.mark.parametrize("t", [0, 1, 2])
def test_oracle_serves_an_unseen_experience_with_the_newest_adapter_there_is(bench, t) -> None:
    """Never with one that is trained later."""
    served = row(bench, "oracle", t)
    for j in range(3):
        assert serves(served, j, bench.banks["fresh"][min(j, t)])


def test_joint_is_scored_before_training_and_when_all_was_seen(bench) -> None:
    stages = get_protocol("prefixes").stages(Outline(bench.benchmark.names))
    assert [s.index for s in REFERENCES["joint"].scored(stages)] == [-1, 2]
    assert [s.index for s in REFERENCES["last"].scored(stages)] == [-1, 0, 1, 2]


def test_reference_rows_by_name() -> None:
    assert [r.name for r in get_references(("joint", "base"))] == ["base", "joint"]
    assert get_references(()) == ()
    with pytest.raises(UserError, match=r"orcle.*did you mean 'oracle'"):
        get_references(("orcle",))


@pytest.mark.parametrize("name", list(REFERENCES))
def test_a_row_says_what_it_is(name) -> None:
    assert REFERENCES[name].summary
    assert set(REFERENCES[name].banks) <= {*BANKS.values()}


def test_rows_without_an_adapter_need_no_bank() -> None:
    bare = [name for name, row in REFERENCES.items() if not row.banks]
    assert bare == ["head_only", "trivial"]
    assert REFERENCES["single_full"].banks == (BANKS["full"],)


def test_prototypes_of_a_row_see_the_buffer_of_its_time(benchmark_16, backbone) -> None:
    """oracle's head for an early experience is that of the time when its adapter was the newest."""
    from bench import support

    bench = workbench(benchmark_16, backbone, head="prototypes")
    served = row(bench, "oracle", 2)
    for j in range(3):
        inputs, targets = support(bench, 2, upto=j)
        update = served.update(j)
        expected = PrototypeHead(features(backbone, update, inputs), targets, 3)
        torch.testing.assert_close(
            served.head(j).weight, expected.weight.detach(), rtol=1e-4, atol=1e-5
        )


# Scoring -------------------------------------------------------------------------------------


def test_a_part_that_is_known_is_not_scored_again(bench) -> None:
    evaluator = Evaluator(bench)
    done: list[int] = []

    def score(name: str, t: int) -> tuple[dict[int, Any], int]:
        before = Counting.passes
        results = evaluator.score(row(bench, name, t), stage(bench, t), lambda: done.append(1))
        return results, Counting.passes - before

    last, passes = score("last", 2)
    assert passes == 3
    oracle, passes = score("oracle", 2)
    assert passes == 2  # its third experience is last's
    assert oracle[2] is last[2]
    assert score("last", 2)[1] == score("oracle", 2)[1] == 0
    # Adapters of an earlier stage are known too, on the experience that each was scored on.
    assert score("oracle", 1)[1] == 1
    assert score("joint", 2)[1] == 3
    assert len(done) == 6 * 3  # progress counts what is known, too


def test_features_of_the_bare_backbone_are_computed_once(bench) -> None:
    evaluator = Evaluator(bench)
    evaluator.score(bench.untrained(stage(bench, -1)), stage(bench, -1))
    assert Counting.passes == 3
    for t in range(3):
        evaluator.score(row(bench, "base", t), stage(bench, t))
    assert Counting.passes == 3


def test_what_is_known_holds_for_its_own_adapter_and_bank(bench) -> None:
    """With one evaluator for all rows, each scores as with one of its own."""
    shared = Evaluator(bench)
    for t in range(3):
        for name in (
            n for n, one in REFERENCES.items() if not (one.needs_partner or one.statistics)
        ):
            served = row(bench, name, t)
            found = shared.score(served, stage(bench, t))
            own = Evaluator(bench).score(served, stage(bench, t))
            assert [found[j].scores for j in found] == [own[j].scores for j in own]
            for j in range(3):
                assert found[j].scores["accuracy"] == pytest.approx(
                    accuracy(bench, served.update(j), served.head(j), j)
                )


def test_prototypes_of_another_stage_are_scored_anew(benchmark_16, backbone) -> None:
    bench = workbench(benchmark_16, backbone, head="prototypes")
    first = bench.alone(FRESH, 0, stage(bench, 0))
    later = bench.alone(FRESH, 0, stage(bench, 2))
    assert first[0].key != later[0].key
    assert bench.alone(FRESH, 0, stage(bench, 2).seen_by(0))[0].key == first[0].key


def test_hits_are_the_samples_that_count_as_right(bench) -> None:
    results = Evaluator(bench).score(row(bench, "last", 1), stage(bench, 1))
    for j, result in results.items():
        inputs, targets = samples_of_test(bench, j)
        served = row(bench, "last", 1)
        outputs = served.head(j)(features(bench.backbone, served.update(j), inputs))
        assert result.hits.tolist() == (outputs.argmax(1) == targets).tolist()
        assert result.hits.mean() == pytest.approx(result.scores["accuracy"])


def test_rows_of_the_table_have_every_metric_of_every_experience(bench) -> None:
    results = Evaluator(bench).score(row(bench, "last", 1), stage(bench, 1))
    scores = Evaluator(bench).as_scores("last", stage(bench, 1), results)
    assert [(s.seed, s.arm, s.stage, s.evaluated, s.metric) for s in scores] == [
        (0, "last", 1, j, metric) for j in range(3) for metric in ("accuracy", "f1")
    ]
    assert all(s.higher_is_better for s in scores)


def test_scoring_leaves_the_backbone_bit_for_bit(bench) -> None:
    fingerprint = bench.backbone.fingerprint()
    evaluator = Evaluator(bench)
    learned = {"name": "adaptive", "steps": 2}
    for settings in ({"method": "ties"}, {"method": "cat", "coefficients": learned}):
        evaluator.score(serve(bench, 2, **settings), stage(bench, 2))
    for name in ALONE:
        evaluator.score(row(bench, name, 2), stage(bench, 2))
    assert bench.backbone.fingerprint() == fingerprint


def test_wrapped_model_and_merged_update_agree(
    bench: Workbench, make_backbone: Callable[[], Backbone]
) -> None:
    """One adapter at weight 1 is what was trained: the same features as inside peft."""
    inputs, _ = samples_of_test(bench, 0)
    merged = features(
        bench.backbone, serve(bench, 0, method="cat", coefficients=1).update(0), inputs
    )
    other = make_backbone()
    other.network = inject(other.network, LORA, random_adapter(other, 0).factors).eval()
    with torch.no_grad():
        torch.testing.assert_close(other(inputs), merged, rtol=1e-3, atol=1e-4)


def test_an_arm_makes_no_new_bank_of_the_runs(bench) -> None:
    """Arms merge the fresh adapters, never those of the baselines."""
    assert arm(bench, method="cat").policy is bench.policy
    served = serve(bench, 0, method="cat", coefficients=1)
    module = served.update(0).modules()[0]
    torch.testing.assert_close(
        served.update(0).delta(module), bench.banks["fresh"][0].factors[module].delta()
    )
