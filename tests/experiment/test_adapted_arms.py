"""Arms that are adapted to support sets, as the configuration gives them."""

from __future__ import annotations

import pytest

from cl_lora.experiment.arms import ArmDefaults, make_arm, settings_of
from cl_lora.experiment.describe import describe_arm
from cl_lora.strategies.config import AdaptationConfig
from cl_lora.support.errors import UserError

DEFAULTS = ArmDefaults(head="own")
SUM = {"method": "task_arithmetic"}


def arm(**settings):
    return make_arm("x", settings, DEFAULTS)


def test_an_arm_without_a_method_starts_from_the_bare_backbone() -> None:
    made = arm(adapt="lora")
    assert made.method is None
    assert made.variant["start"] == "base"
    assert made.variant["method"] is None
    assert arm(**SUM, adapt="lora").variant["start"] == "merge"


def test_an_arm_that_is_not_adapted_is_what_it_was() -> None:
    variant = arm(**SUM).variant
    assert not {"adapt", "start", "adaptation", "members"} & set(variant)


@pytest.mark.parametrize(
    "settings",
    [
        {"adapt": "head"},
        {"adapt": "none"},
        {"adapt": "full", "adaptation": {"full_lr": 0.001}},
        {**SUM, "coefficients": "softmax", "adapt": "coefficients"},
        {**SUM, "coefficients": "best", "adapt": "lora", "members": 2},
        {**SUM, "adapt": "lora", "truncate": True, "head_start": "average"},
        {"method": "ties", "density": 0.3, "coefficients": {"name": "adaptive", "b_max": 2.0},
         "adapt": "coefficients"},
    ],
)  # fmt: skip
def test_the_recorded_variant_makes_the_same_arm(settings) -> None:
    """Whatever the defaults of a later command are."""
    made = arm(**settings)
    later = ArmDefaults(head="own", adaptation=AdaptationConfig(steps=7, lora_lr=0.5))
    assert make_arm("x", settings_of(made.variant), later).variant == made.variant


def test_an_arm_may_have_an_adaptation_of_its_own() -> None:
    made = arm(adapt="lora", adaptation={"lora_lr": 0.5})
    assert made.adaptation.config.lora_lr == 0.5
    assert made.adaptation.config.steps == DEFAULTS.adaptation.steps


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"adapt": "loar"}, "Unknown adapt 'loar': did you mean 'lora'"),
        ({}, "expected a mapping with a 'method'"),
        ({**SUM, "start": "base", "adapt": "lora"}, "start=base merges nothing but method"),
        ({"adapt": "lora", "coefficients": 1}, "start=base merges nothing but coefficients"),
        ({"adapt": "lora", "start": "merge"}, "start=merge needs a merge"),
        ({"adapt": "lora", "start": "middle"}, "Unknown start 'middle'"),
        ({"adapt": "coefficients"}, "learns the coefficients of a merge"),
        ({**SUM, "adapt": "coefficients"}, "learns the coefficients of a merge"),
        ({**SUM, "coefficients": "softmax", "adapt": "head"}, "adapt=head learns none"),
        ({**SUM, "coefficients": {"name": "softmax", "steps": 3}, "adapt": "coefficients"},
         "set adaptation.steps"),
        ({"adapt": "lora", "truncate": True}, "truncate is for a LoRA that takes over a merge"),
        ({**SUM, "adapt": "head", "truncate": True}, "truncate is for a LoRA"),
        ({**SUM, "adapt": "lora", "truncate": 1}, "expected truncate to be true or false"),
        ({"adapt": "head", "head_start": "means"}, "cannot be trained on"),
        ({"adapt": "none", "head_start": "zero"}, "no head that could serve without training"),
        ({"adapt": "head", "head_start": "one"}, "Unknown head_start 'one'"),
        ({"adapt": "head", "head": "prototypes"}, "give head_start, not head"),
        ({"adapt": "head", "tune_head": True}, "tune_head needs learned coefficients"),
        ({**SUM, "truncate": True}, "truncate is for an arm that is adapted"),
        ({"adapt": "head", "adaptation": 3}, "expected adaptation to be a mapping"),
        ({"adapt": "head", "adaptation": {"step": 3}}, "Unknown adaptation option 'step'"),
        ({"adapt": "head", "adaptation": {"head_lr": -1.0}}, "adaptation.head_lr to be above 0"),
        ({"adapt": "head", "members": 2}, "start=base merges nothing but members"),
        ({**SUM, "adapt": "head", "members": 0}, "expected members to be a whole number"),
        ({"method": "svd", "coefficients": "softmax", "adapt": "coefficients"}, "differentiable"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_by_name(settings, said) -> None:
    with pytest.raises(UserError, match="Arm 'x'") as caught:
        arm(**settings)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"warmup_steps": -1}, "adaptation.warmup_steps to be at least 0"),
        ({"batch_size": 0}, "adaptation.batch_size to be at least 1"),
        ({"steps": 0, "epochs": 0}, "adaptation.steps or adaptation.epochs above 0"),
        ({"lora_lr": float("nan")}, "adaptation.lora_lr to be above 0"),
        ({"weight_decay": -0.1}, "adaptation.weight_decay to be 0 or more"),
        ({"grid": ()}, "holds 1"),
        ({"grid": (0.3, 3.0)}, "holds 1"),
        ({"grid": (3.0, 1.0)}, "ascending order"),
        ({"select_on": "test"}, "Unknown adaptation.select_on 'test'"),
    ],
)
def test_settings_of_an_adaptation_are_checked(settings, said) -> None:
    with pytest.raises(UserError) as caught:
        AdaptationConfig(**settings)
    assert said in str(caught.value)


def test_arms_in_words() -> None:
    words = describe_arm(arm(**SUM, coefficients="best", adapt="lora", members=2))
    assert "The first 2 adapters only." in words
    assert "Adapted to K samples per class: a LoRA and the head" in words
    assert "The head begins as: all weights zero." in words
    assert "buffer" not in words
    assert describe_arm(arm(adapt="none")).startswith("Starts from the bare backbone.")
