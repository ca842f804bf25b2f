"""Arms as they are recorded, and the configurations that are shipped."""

from dataclasses import asdict

import pytest
import torch
import yaml

from cl_lora.adapters import Adapter, LoRAFactors
from cl_lora.configuration.choices import config_names
from cl_lora.configuration.compose import compose_config
from cl_lora.experiment.arms import (
    ArmDefaults,
    check_groups,
    check_protocol,
    check_weights,
    make_arm,
    make_arms,
    settings_of,
)
from cl_lora.experiment.references import REFERENCES
from cl_lora.merging import prepare
from cl_lora.models.head_policies import HEAD_POLICIES
from cl_lora.strategies.config import TrainingConfig
from cl_lora.support.errors import UserError

CONFIGS = config_names("arms")


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_recorded_makes_the_same_arm_under_any_default(name):
    """Through YAML, as config.yaml holds it."""
    config = compose_config([f"arms={name}"])
    # A head of its own for one arm needs heads of their own in the run.
    apart = any(HEAD_POLICIES[arm.get("head") or "shared"].apart for arm in config["arms"].values())
    head = "own" if apart else "shared"
    for arm in make_arms(config["arms"], ArmDefaults(5, 32, head)):
        recorded = yaml.safe_load(yaml.safe_dump(arm.variant))
        again = make_arm(arm.name, settings_of(recorded), ArmDefaults(3, 7, head))
        assert again.variant == arm.variant


@pytest.mark.parametrize(("method", "space"), [("cat", "factors"), ("svd", "delta")])
def test_what_is_recorded_of_an_arm_is_what_its_merge_records(method, space):
    factors = LoRAFactors(torch.ones(2, 4), torch.ones(3, 2), 0.5)
    plan = prepare([Adapter("a", {"fc": factors})], method, space=space)
    variant = make_arm("x", {"method": method, "space": space}).variant
    told = {key: variant[key] for key in ("method", "space", "scaling")}
    assert {**told, **variant["options"]} == plan.variant


def test_a_search_works_with_any_method_a_gradient_does_not():
    arm = make_arm("x", {"method": "svd", "coefficients": {"name": "grid", "values": ["1/n", 1]}})
    assert arm.needs_buffer
    with pytest.raises(UserError, match=r"Arm 'x': .*differentiable .* or rule grid"):
        make_arm("x", {"method": "svd", "coefficients": {"name": "adaptive"}})
    with pytest.raises(UserError, match="tune_head"):
        make_arm("x", {"method": "ties", "coefficients": {"name": "grid"}, "tune_head": True})


def test_defaults_in_python_are_those_of_the_configuration():
    strategy = compose_config(["model=vit_tiny", "strategy=lora"])["strategy"]
    assert asdict(TrainingConfig()).items() <= strategy.items()


LEARNED = {"name": "adaptive", "steps": 2}
NO_TRAINED_HEAD = [name for name, policy in HEAD_POLICIES.items() if not policy.tunable]
OF_THE_RUN = [name for name, policy in HEAD_POLICIES.items() if not policy.for_one_arm]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "'method'"),
        ({"method": None}, "method is null"),
        ({"adapt": None, "coefficients": 0.5}, "method is null"),
        ({"method": "ties", "tune_head": True}, "learned coefficients"),
        ({"method": "ties", "tune_head": "yes"}, "true or false"),
        ({"method": "ties", "head": "prototype"}, "prototypes"),
        ({"method": "ties", "rank": 0}, "rank"),
        ({"method": "ties", "space": "delt"}, "delta"),
        ({"method": "svd", "space": "factors"}, "factors"),
        ({"method": "ties", "spc": 0}, "spc"),
        ({"method": "ties", "buffer_batch_size": True}, "buffer_batch_size"),
        ({"method": "ties", "densty": 0.5}, "density"),
    ],
)
def test_bad_arm(settings, message):
    with pytest.raises(UserError, match=f"Arm 'x': .*{message}"):
        make_arm("x", settings, ArmDefaults(spc=1, buffer_batch_size=4))


@pytest.mark.parametrize("name", ["", "a b", "a/b", ".hidden", "é"])
def test_bad_name(name):
    with pytest.raises(UserError, match="rename it"):
        make_arm(name, {"method": "ties"})


def test_a_name_that_no_file_could_have():
    make_arm("a" * 100, {"method": "ties"})
    with pytest.raises(UserError, match=r"^Arm 'aaa.* at most 100 letters, .* got 300; shorten it"):
        make_arm("a" * 300, {"method": "ties"})


@pytest.mark.parametrize("name", [".", "..", "../../esc", "a\nb", "a\x1b[31m"])
def test_a_name_that_would_be_another_folder(name):
    with pytest.raises(UserError, match="rename it") as caught:
        make_arm(name, {"method": "ties"})
    assert str(caught.value).isprintable()


def test_a_run_without_arms_and_rows_is_refused():
    with pytest.raises(UserError, match="arms and references are both empty; name one"):
        check_protocol([], [], False, ())


@pytest.mark.parametrize("name", list(REFERENCES))
def test_a_name_that_a_reference_row_has(name):
    with pytest.raises(UserError, match=f"Arm '{name}': .*baseline"):
        make_arm(name, {"method": "ties"})


def test_a_trained_head_needs_a_policy_that_serves_one():
    """Whether the policy is the run's or the arm's own."""
    settings = {"method": "ties", "coefficients": LEARNED, "tune_head": True}
    of_statistics = [name for name, policy in HEAD_POLICIES.items() if policy.statistics]
    assert of_statistics == ["gaussian", "mixture", "mixture_moved"]
    assert ["prototypes", *of_statistics, "own", "text", "refit"] == NO_TRAINED_HEAD
    for policy in HEAD_POLICIES:
        if policy not in NO_TRAINED_HEAD:
            assert make_arm("x", settings, ArmDefaults(head=policy)).tune_head
    for own, run in ((None, "prototypes"), ("prototypes", "shared")):
        with pytest.raises(UserError, match="Arm 'x': tune_head cannot go with head=prototypes"):
            make_arm("x", {**settings, "head": own}, ArmDefaults(head=run))


@pytest.mark.parametrize("head", OF_THE_RUN)
def test_a_head_that_decides_training_is_the_runs(head):
    assert set(OF_THE_RUN) == {"shared", "frozen", "per_experience", "own", "text"}
    with pytest.raises(UserError, match=rf"Arm 'x': .*set strategy\.head={head} .*prototypes"):
        make_arm("x", {"method": "ties", "head": head}, ArmDefaults(head=head))


def test_the_policy_is_the_arms_own_or_the_runs():
    own = make_arm("x", {"method": "ties", "head": "prototypes"}, ArmDefaults(head="frozen"))
    assert own.policy is HEAD_POLICIES["prototypes"]
    assert own.needs_buffer
    assert own.variant["spc"] == 5
    runs = make_arm("x", {"method": "ties"}, ArmDefaults(head="frozen"))
    assert runs.policy is HEAD_POLICIES["frozen"]
    assert not runs.needs_buffer
    assert runs.variant["spc"] is None
    # The run's head is no part of an arm: it is a part of the run's identity.
    assert runs.variant["head"] is None


def test_fixed_coefficients_are_one_for_each_experience():
    arms = make_arms({"x": {"method": "ties", "coefficients": [1, 2]}}, ArmDefaults())
    check_weights(arms, 2)
    with pytest.raises(UserError, match=r"Arm 'x': expected 3 fixed coefficients.*got 2"):
        check_weights(arms, 3)
    (arm,) = arms
    assert arm.given((1, 0), ("m",)).tolist() == [2.0, 1.0]


def test_layers_that_are_none_are_refused_by_the_arms_name():
    rule = {**LEARNED, "granularity": "layer"}
    arms = make_arms({"x": {"method": "ties", "coefficients": rule}}, ArmDefaults())
    check_groups(arms, ("blocks.0.fc",))
    with pytest.raises(UserError, match=r"Arm 'x': .*granularity 'layer'"):
        check_groups(arms, ("fc", "head"))
