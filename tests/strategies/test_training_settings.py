"""Settings of training and adaptation: what is allowed up to which end, and what is the default."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pytest

from cl_lora.configuration.compose import compose_config
from cl_lora.strategies.config import AdaptationConfig, TrainingConfig, schedule
from cl_lora.support.errors import UserError
from cl_lora.support.ranges import largest

SETTINGS = (TrainingConfig, AdaptationConfig)
RATES = [(TrainingConfig, key) for key in ("lr", "full_lr", "head_lr")]
RATES += [(AdaptationConfig, key) for key in ("lora_lr", "full_lr", "head_lr")]
# The smallest allowed whole number; one less is refused.
LEAST = [(TrainingConfig, key, 1) for key in ("epochs", "batch_size", "head_hidden", "patience")]
LEAST += [(AdaptationConfig, key, 0) for key in ("warmup_steps", "steps", "epochs")]
LEAST += [(AdaptationConfig, "batch_size", 1)]


@pytest.mark.parametrize(("cls", "key", "least"), LEAST)
def test_whole_numbers_are_refused_from_one_below_the_least(cls: Any, key: str, least: int) -> None:
    assert getattr(cls(**{key: least}), key) == least
    with pytest.raises(UserError, match=rf"\.{key} to be at least {least} but got {least - 1}"):
        cls(**{key: least - 1})


@pytest.mark.parametrize(("cls", "key"), RATES)
def test_learning_rates_are_positive_and_finite(cls: Any, key: str) -> None:
    assert getattr(cls(**{key: 1e-30}), key) == 1e-30
    for value in (0.0, -1e-3, math.inf, math.nan):
        with pytest.raises(UserError, match=rf"\.{key} to be above 0"):
            cls(**{key: value})


@pytest.mark.parametrize("cls", SETTINGS)
def test_weights_need_not_decay(cls: Any) -> None:
    assert cls(weight_decay=0.0).weight_decay == 0
    for value in (-1e-9, math.inf, math.nan):
        with pytest.raises(UserError, match="weight_decay to be 0 or more"):
            cls(weight_decay=value)


def test_no_warm_up_is_allowed_and_nothing_but_a_warm_up_is_not() -> None:
    assert TrainingConfig(warmup=0.0).warmup == 0
    assert TrainingConfig(warmup=0.99).warmup == 0.99
    for value in (-0.1, 1.0, math.nan):
        with pytest.raises(UserError, match="warmup to be in"):
            TrainingConfig(warmup=value)


def test_an_adaptation_trains_something() -> None:
    for steps, epochs in ((0, 1), (1, 0)):
        assert AdaptationConfig(steps=steps, epochs=epochs).steps == steps
    with pytest.raises(UserError, match="above 0 but got 0 and 0"):
        AdaptationConfig(steps=0, epochs=0)


def test_the_factors_to_choose_from_are_sorted_and_hold_one() -> None:
    assert AdaptationConfig(grid=(0.3, 1.0, 3.0)).grid == (0.3, 1.0, 3.0)
    for grid in ((), (0.3, 3.0), (0.0, 1.0), (-1.0, 1.0), (1.0, math.inf)):
        with pytest.raises(UserError, match="a list of factors above 0 that holds 1"):
            AdaptationConfig(grid=grid)
    for grid in ((3.0, 1.0), (1.0, 1.0)):
        with pytest.raises(UserError, match="ascending order"):
            AdaptationConfig(grid=grid)
    with pytest.raises(UserError, match="did you mean 'support'"):
        AdaptationConfig(select_on="suport")


def test_an_adaptation_takes_its_steps_or_its_epochs_whichever_is_more() -> None:
    made = AdaptationConfig(steps=5, epochs=2, batch_size=4)
    # 8 samples: two epochs of two batches; 9 samples: of three, the last of one sample.
    assert [made.steps_for(n) for n in (1, 8, 9, 40)] == [5, 5, 6, 20]


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.25, 0.9])
def test_the_rate_rises_by_equal_steps_from_above_nothing_and_reaches_its_peak(
    warmup: float,
) -> None:
    shares = [schedule(step, 40, warmup) for step in range(41)]
    top = shares.index(1.0)
    assert top == math.ceil(40 * warmup)
    assert shares[: top + 1] == pytest.approx([(i + 1) / (top + 1) for i in range(top + 1)])
    assert shares[top:] == sorted(shares[top:], reverse=True)
    # Half of a cosine: what is lost by a moment is what is left at its mirror image.
    fall = shares[top:]
    assert [a + b for a, b in zip(fall, fall[::-1], strict=True)] == pytest.approx(
        [1.0] * len(fall)
    )


def test_scripts_and_the_command_line_have_the_same_defaults() -> None:
    config = compose_config(["model=vit_tiny", "strategy=lora"])
    adaptation = asdict(AdaptationConfig())
    assert {**adaptation, "grid": list(adaptation["grid"])} == dict(config["adaptation"])
    assert asdict(TrainingConfig()).items() <= dict(config["strategy"]).items()


@pytest.mark.parametrize("cls", SETTINGS)
def test_the_largest_numbers_are_round_ones(cls: Any) -> None:
    """As they stand in messages; the hidden units' is the power of two that people know."""
    found = largest(cls)
    assert set(found) == {key for key, value in asdict(cls()).items() if not _is_word(value)}
    for key, most in found.items():
        assert most == 2**16 if key == "head_hidden" else most == float(f"{most:.0e}")


def _is_word(value: object) -> bool:
    return isinstance(value, str)
