"""Stages of the protocols, and those that go on from earlier commands."""

from __future__ import annotations

import pytest

from cl_lora.experiment.arms import ArmDefaults, make_arm
from cl_lora.experiment.references import REFERENCES
from cl_lora.experiment.stages import Outline, Stage, continued, get_protocol, shots_of

NAMES = ("photo", "cartoon", "sketch")
POOL = (10.0, 20.0, 30.0)


def few_shot(*, downstream=(2,), shots=(1, "all"), draws=1, protocol="shots"):
    outline = Outline(NAMES, downstream, POOL, shots, draws)
    return get_protocol(protocol).stages(outline)


def test_prefixes_are_scored_before_training_too() -> None:
    stages = get_protocol("prefixes").stages(Outline(NAMES))
    assert [s.index for s in stages] == [-1, 0, 1, 2]
    assert [s.members for s in stages] == [(), (0,), (0, 1), (0, 1, 2)]


def test_one_downstream_experience_is_adapted_to_from_all_others() -> None:
    stages = few_shot(shots=(0, 1, "all"), draws=2)
    told = [(s.index, s.name, s.x, s.draw, s.support) for s in stages]
    assert told == [
        (0, "K=0", 0.0, 0, ()),
        (1, "K=1", 1.0, 0, (2,)),
        (2, "K=1", 1.0, 1, (2,)),
        (3, "K=all", 30.0, 0, (2,)),  # all of it is one support set
    ]
    assert {s.members for s in stages} == {(0, 1)}
    assert {s.evaluated for s in stages} == {(2,)}
    assert [shots_of(s) for s in stages] == [0, 1, 1, "all"]


def test_without_a_downstream_experience_each_is_held_out_in_turn() -> None:
    stages = few_shot(downstream=(), shots=("all",))
    assert [(s.members, s.evaluated, s.x) for s in stages] == [
        ((1, 2), (0,), 10.0),
        ((0, 2), (1,), 20.0),
        ((0, 1), (2,), 30.0),
    ]


def test_a_stream_of_few_shot_tasks_adapts_first_and_merges_then() -> None:
    stages = few_shot(downstream=(), shots=(1, 5), protocol="few_shot_stream")
    assert [(s.name, s.members, s.evaluated, s.x) for s in stages] == [
        ("photo", (0,), (0,), None),
        ("K=1", (0,), (1,), 1.0),
        ("K=5", (0,), (1,), 5.0),
        ("cartoon", (0, 1), (0, 1), None),
        ("K=1", (0, 1), (2,), 1.0),
        ("K=5", (0, 1), (2,), 5.0),
        ("sketch", (0, 1, 2), (0, 1, 2), None),
    ]
    assert [s.index for s in stages] == list(range(7))


def test_stages_of_an_earlier_command_keep_their_numbers() -> None:
    first = few_shot(shots=(1, "all"))
    later = continued(first, few_shot(shots=(1, 5, "all"), draws=2))
    assert later[:2] == first
    assert [(s.index, s.name, s.draw) for s in later[2:]] == [
        (2, "K=1", 1),
        (3, "K=5", 0),
        (4, "K=5", 1),
    ]
    assert continued(later, first) == later  # nothing is lost by asking for less
    assert continued((), first) == first


def arm(**settings):
    return make_arm("x", settings, ArmDefaults(head="own"))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"adapt": "lora"}, {"K=0", "K=1"}),
        # What is chosen on samples cannot be chosen without any.
        ({"method": "cat", "coefficients": "best", "adapt": "lora"}, {"K=1"}),
        ({"method": "cat", "coefficients": "softmax", "adapt": "coefficients"}, {"K=0", "K=1"}),
        # A merge with given coefficients serves all tasks so far as well.
        ({"method": "cat", "adapt": "head"}, {"K=0", "K=1", *NAMES}),
        ({"method": "ties", "coefficients": 1}, set(NAMES)),
    ],
)
def test_at_which_stages_an_arm_is_scored(settings, expected) -> None:
    stages = few_shot(downstream=(), shots=(0, 1), protocol="few_shot_stream")
    assert {s.name for s in arm(**settings).scored(stages)} == expected


def test_reference_rows_are_scored_in_time_only() -> None:
    stages = few_shot(downstream=(), shots=(1,), protocol="few_shot_stream")
    assert {s.name for s in REFERENCES["last"].scored(stages)} == set(NAMES)


def test_the_first_members_only() -> None:
    stage = Stage(0, "K=1", (0, 1, 3), (2,), (2,), 1.0)
    assert arm(method="cat", adapt="head", members=2).of(stage) == (0, 1)
    assert arm(method="cat", adapt="head").of(stage) == (0, 1, 3)
