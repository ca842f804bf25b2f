"""Arms and numbers in words: a report shows these sentences, so they must say what was done."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cl_lora.adapters import LoRAFactors
from cl_lora.experiment.arms import ArmDefaults, make_arm
from cl_lora.experiment.describe import describe_arm, describe_reference
from cl_lora.experiment.references import REFERENCES
from cl_lora.experiment.serving import Part, Served, numbers_of, numbers_to_serve
from cl_lora.merging import Update, get_method
from cl_lora.models.heads import new_linear_head
from cl_lora.support.errors import UserError

LEARNED = {"name": "adaptive", "steps": 3}


def words(**settings: Any) -> str:
    head = "own" if "adapt" in settings else "shared"
    return describe_arm(make_arm("x", settings, ArmDefaults(head=head)))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"spc": 2, "buffer_batch_size": 7}, "learned on 2 samples per class and experience"),
        ({"spc": 2, "buffer_batch_size": 7}, "per class and experience, in batches of 7."),
        ({"select_on": "val", "buffer_batch_size": 7}, "learned on the validation part, in batch"),
        ({"coefficients": {"name": "grid"}, "select_on": "val"}, "chosen on the validation part."),
        ({"coefficients": {"name": "grid"}, "spc": 3}, "chosen on 3 samples per class and exper"),
        ({"members": 2}, "The first 2 adapters only."),
        ({"bank": "full"}, "Of the bank 'full': "),
        ({"density": 0.3}, "density = 0.3"),
        ({"tune_head": True}, "The head is trained on the buffer together with the coefficients."),
        ({"tune_head": {"anchor": 0.5}}, "coefficients, held back to its start (anchor 0.5)."),
    ],
)
def test_an_arm_says_what_it_does(more: dict[str, Any], said: str) -> None:
    assert said in words(**{"method": "ties", "coefficients": LEARNED, **more})


def test_an_arm_does_not_say_what_it_does_not_do() -> None:
    plain = words(method="ties", coefficients=0.5)
    info = get_method("ties")
    assert plain.startswith(f"{info.summary.rstrip('.')} ({info.paper}): {info.formula}; merged ")
    for word in ("buffer", "batches", "samples", "validation", "bank", "head", "adapted", "only"):
        assert word not in plain.lower(), word


def test_an_adaptation_says_its_steps_its_rates_and_what_is_chosen_on_what() -> None:
    own = {"warmup_steps": 2, "steps": 5, "batch_size": 3, "epochs": 4, "head_lr": 0.5,
           "lora_lr": 0.25, "full_lr": 0.125}  # fmt: skip
    said = words(adapt="lora", adaptation=own)
    assert said.startswith("Starts from the bare backbone. Adapted to K samples per class: ")
    assert (
        "The head is warmed up for 2 steps, then everything is trained for at least 5 steps of 3 "
        "and 4 passes (head lr 0.5, LoRA lr 0.25, full lr 0.125)."
    ) in said
    assert "factors" not in said
    grid = {"grid": [0.3, 1.0]}
    for select_on, part in (("support", "a part of the support set"), ("val", "the validation")):
        said = words(adapt="lora", adaptation={**grid, "select_on": select_on})
        assert f"the best of the factors [0.3, 1] by loss on {part}" in said
    assert "cut to its rank" in words(method="ties", adapt="lora", truncate=True)


def test_a_reference_row_says_what_it_is() -> None:
    for reference in REFERENCES.values():
        assert describe_reference(reference) == f"Baseline: {reference.summary}."


def test_an_arm_may_have_a_name_of_a_hundred_letters_and_no_more() -> None:
    assert make_arm("x" * 100, {"method": "ties"}).name == "x" * 100
    with pytest.raises(UserError, match="at most 100 letters"):
        make_arm("x" * 101, {"method": "ties"})


def part(update: Update | None, key: str) -> Part:
    return Part(update, new_linear_head(4, 2, 0), (key,))


def update_of(rank: int) -> Update:
    return Update({"fc": LoRAFactors(torch.ones(rank, 20), torch.ones(30, rank), 1.0)})


def test_serving_costs_the_backbone_once_and_every_adapter_beside_it() -> None:
    """By hand: factors of rank r on a layer of 20 and 30 are 50 r numbers, a dense layer 600."""
    one, two = update_of(1), update_of(2)
    assert [numbers_of(u) for u in (one, two)] == [50, 100]
    # What serves all is folded into the backbone.
    assert numbers_to_serve(Served({0: part(one, "a"), 1: part(one, "a")}), 1000) == 1000
    both = {0: part(one, "a"), 1: part(two, "b")}
    assert numbers_to_serve(Served(both), 1000) == 1000 + 50 + 100
    assert numbers_to_serve(Served({**both, 2: part(None, "c")}), 1000) == 1000 + 50 + 100
    # Never more than a model each.
    assert numbers_to_serve(Served(both), 60) == 2 * 60
