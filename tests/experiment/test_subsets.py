"""The protocol of subsets: which are merged, in which order, and how a folder goes on."""

from __future__ import annotations

from itertools import combinations
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_lora.experiment.arms import ArmDefaults, make_arm
from cl_lora.experiment.references import REFERENCES
from cl_lora.experiment.stages import Outline, Subsets, continued, get_protocol
from cl_lora.run_folder.records import StageRecord
from cl_lora.support.errors import UserError

NAMES = ("class", "age", "points", "sky", "signs")


def stages(names: tuple[str, ...] = NAMES, **asked) -> tuple[StageRecord, ...]:
    return get_protocol("subsets").stages(Outline(names, subsets=Subsets(**asked)))


def members(made: tuple[StageRecord, ...], group: str) -> list[tuple[int, ...]]:
    return [stage.members for stage in made if stage.group == group]


def test_three_tasks_by_hand() -> None:
    told = [(s.index, s.name, s.members, s.group) for s in stages(("a", "b", "c"))]
    assert told == [
        (0, "a", (0,), "alone"),
        (1, "b", (1,), "alone"),
        (2, "c", (2,), "alone"),
        (3, "a + b", (0, 1), "pairs"),
        (4, "a + c", (0, 2), "pairs"),
        (5, "b + c", (1, 2), "pairs"),
    ]


def test_triples_hold_two_names_and_another() -> None:
    made = stages(triples_with=("sky", "age"))
    assert members(made, "triples") == [(0, 1, 3), (1, 2, 3), (1, 3, 4)]
    assert members(made, "pairs") == list(combinations(range(5), 2))
    alone = stages(pairs=False, triples_with=("age", "sky"))
    assert members(alone, "pairs") == []
    assert members(alone, "triples") == members(made, "triples")


def test_all_subsets_up_to_a_size() -> None:
    made = stages(all_subsets=4)
    for group, size in (("alone", 1), ("pairs", 2), ("triples", 3), ("of 4", 4)):
        assert members(made, group) == list(combinations(range(5), size))
    assert len(made) == sum(comb(5, size) for size in range(1, 5))
    assert stages(pairs=False, all_subsets=4) == made
    # What is asked for twice is there once.
    assert stages(all_subsets=4, triples_with=("age", "sky")) == made
    assert len(stages(all_subsets=9)) == 2**5 - 1  # more than there are: all


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 6), st.booleans(), st.none() | st.integers(2, 7))
def test_every_subset_is_scored_on_its_own_tasks_once(count, pairs, largest) -> None:
    if not (pairs or largest):
        return
    made = stages(tuple("abcdef"[:count]), pairs=pairs, all_subsets=largest)
    assert [s.index for s in made] == list(range(len(made)))
    assert all(s.members == s.evaluated == s.support for s in made)
    assert len({s.members for s in made}) == len(made)
    sizes = [len(s.members) for s in made]
    assert sizes == sorted(sizes)
    wanted = set(range(1, min(count, largest or 1) + 1)) | ({1, 2} if pairs else set())
    assert set(sizes) == wanted
    assert len(made) == sum(comb(count, size) for size in wanted)
    assert all((s.group == "alone") == (len(s.members) == 1) for s in made)


def test_a_folder_goes_on_with_further_subsets() -> None:
    """What is there keeps its number, as scores are known by it."""
    first = stages()
    later = continued(first, stages(triples_with=("age", "sky"), all_subsets=2))
    assert later[: len(first)] == first
    assert members(later[len(first) :], "triples") == [(0, 1, 3), (1, 2, 3), (1, 3, 4)]
    assert [s.index for s in later] == list(range(len(later)))
    assert continued(later, first) == later


def test_rows_are_scored_alone_and_arms_where_something_is_merged() -> None:
    made = stages(all_subsets=3)
    arm = make_arm("x", {"method": "cat"}, ArmDefaults(head="own"))
    assert {s.group for s in arm.scored(made)} == {"pairs", "triples"}
    for name in ("last", "oracle", "base", "single", "trivial", "head_only"):
        assert {s.group for s in REFERENCES[name].scored(made)} == {"alone"}, name


def test_what_the_protocol_is() -> None:
    made = get_protocol("subsets")
    assert not made.ordered  # nothing comes before anything: no forgetting
    assert made.extends
    assert made.own_heads
    assert not made.few_shot
    assert all(stage.index >= 0 for stage in stages())


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"triples_with": ("a",)}, r"two different names, .* but got \['a'\]"),
        ({"triples_with": ("a", "a")}, r"two different names, .* but got \['a', 'a'\]"),
        ({"triples_with": ("a", "b", "c")}, "two different names"),
        ({"all_subsets": 1}, "at least 2, but got 1"),
        ({"pairs": False}, r"subsets merges nothing; set subsets\.pairs=true"),
    ],
)
def test_subsets_that_are_none(asked, said) -> None:
    with pytest.raises(UserError, match=said):
        Subsets(**asked)


def test_a_triple_with_an_experience_that_is_not_there() -> None:
    with pytest.raises(
        UserError, match=r"Unknown subsets\.triples_with 'agee': did you mean 'age'"
    ):
        stages(triples_with=("agee", "sky"))
