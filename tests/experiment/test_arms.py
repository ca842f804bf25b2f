"""Arms as they are recorded, and the configurations that are shipped."""

from dataclasses import asdict

import pytest
import yaml

from cl_lora.configuration.choices import config_names
from cl_lora.configuration.compose import compose_config
from cl_lora.experiment.arms import make_arm, make_arms, settings_of
from cl_lora.strategies.config import TrainingConfig

CONFIGS = config_names("arms")


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_recorded_makes_the_same_arm_under_any_default(name):
    """Through YAML, as config.yaml holds it."""
    config = compose_config([f"arms={name}"])
    for arm in make_arms(config["arms"], spc=5, buffer_batch_size=32):
        recorded = yaml.safe_load(yaml.safe_dump(arm.variant))
        again = make_arm(arm.name, settings_of(recorded), spc=3, buffer_batch_size=7)
        assert again.variant == arm.variant


def test_defaults_in_python_are_those_of_the_configuration():
    strategy = compose_config(["model=vit_tiny", "strategy=lora"])["strategy"]
    assert asdict(TrainingConfig()).items() <= strategy.items()
