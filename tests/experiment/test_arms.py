"""Arms as they are recorded, and the configurations that are shipped."""

from dataclasses import asdict

import pytest
import torch
import yaml

from cl_lora.adapters import Adapter, LoRAFactors
from cl_lora.configuration.choices import config_names
from cl_lora.configuration.compose import compose_config
from cl_lora.experiment.arms import make_arm, make_arms, settings_of
from cl_lora.merging import prepare
from cl_lora.strategies.config import TrainingConfig
from cl_lora.support.errors import UserError

CONFIGS = config_names("arms")


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_recorded_makes_the_same_arm_under_any_default(name):
    """Through YAML, as config.yaml holds it."""
    config = compose_config([f"arms={name}"])
    for arm in make_arms(config["arms"], spc=5, buffer_batch_size=32):
        recorded = yaml.safe_load(yaml.safe_dump(arm.variant))
        again = make_arm(arm.name, settings_of(recorded), spc=3, buffer_batch_size=7)
        assert again.variant == arm.variant


@pytest.mark.parametrize(("method", "space"), [("cat", "factors"), ("svd", "delta")])
def test_what_is_recorded_of_an_arm_is_what_its_merge_records(method, space):
    factors = LoRAFactors(torch.ones(2, 4), torch.ones(3, 2), 0.5)
    plan = prepare([Adapter("a", {"fc": factors})], method, space=space)
    variant = make_arm("x", {"method": method, "space": space}).variant
    assert plan.variant.items() <= variant.items()


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
