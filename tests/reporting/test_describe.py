import pytest
import yaml
from fabricate import fabricate_run

from cl_lora.experiment.arms import make_arm
from cl_lora.reporting.describe import arm_settings, in_words
from cl_lora.run_folder.reader import RunFolder

ARMS = {
    "short": {"method": "task_arithmetic", "coefficients": 0.5},
    "listed": {"method": "task_arithmetic", "coefficients": [0.5, 1, 1, 1]},
    "uniform": {"method": "ties", "coefficients": "uniform", "density": 0.3},
    "left_out": {"method": "ties"},
    "adaptive": {
        "method": "ties",
        "coefficients": {"name": "adaptive", "b_max": 3},
        "head": "prototypes",
    },
    "peft": {"method": "linear", "space": "factors", "coefficients": {"name": "fixed", "value": 1}},
    "tuned": {
        "method": "task_arithmetic",
        "coefficients": {"name": "softmax", "granularity": "layer"},
        "spc": 1,
        "tune_head": True,
    },
    "unknown": {"method": "a_method_of_tomorrow", "coefficients": 2},
    "other_options": {"method": "ties", "coefficients": 1, "an_option_of_tomorrow": 3},
}


@pytest.fixture
def run(tmp_path):
    plain = {name: {"method": "ties", "coefficients": 1} for name in ARMS}
    path = fabricate_run(tmp_path / "run", arms=plain)
    config = yaml.safe_load((path / "config.yaml").read_text())
    (path / "config.yaml").write_text(yaml.safe_dump({**config, "arms": ARMS}, sort_keys=False))
    return RunFolder.read(path)


def test_defaults_are_those_that_were_recorded(run):
    """A folder of a version with other defaults is described by what it says itself."""
    path = run.path / "config.yaml"
    arm = make_arm("adaptive", ARMS["adaptive"], spc=5, buffer_batch_size=8)
    rule = {**arm.variant["coefficients"], "steps": 77}
    variants = {"adaptive": {**arm.variant, "density": 0.35, "coefficients": rule}}
    config = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**config, "variants": variants}))
    words = in_words(RunFolder.read(run.path), "adaptive")
    for part in ("density = 0.35", "trim = tensor", "steps = 77", "lr = 0.05", "batches of 8"):
        assert part in words


def test_a_bound_left_open_is_a_point_of_the_sweep(run):
    settings = {"method": "ties", "coefficients": {"name": "adaptive"}}
    path = run.path / "config.yaml"
    config = yaml.safe_load(path.read_text())
    arm = make_arm("short", settings, spc=5, buffer_batch_size=8)
    changed = {**config, "variants": {"short": arm.variant}}
    changed["arms"]["short"] = settings
    path.write_text(yaml.safe_dump(changed))
    assert arm_settings(RunFolder.read(run.path), "short").axis == ("b_max", 1.0)


@pytest.mark.parametrize(
    ("arm", "rule", "axis", "family"),
    [
        ("short", "fixed", ("W", 0.5), "task_arithmetic"),
        ("listed", "fixed", None, "task_arithmetic, value [0.5, 1, 1, 1]"),
        ("uniform", "uniform", None, "ties, uniform, density 0.3"),
        ("left_out", "uniform", None, "ties, uniform"),
        ("adaptive", "adaptive", ("b_max", 3.0), "ties, adaptive, spc 5, prototypes head"),
        ("peft", "fixed", ("W", 1.0), "linear, factors"),
        (
            "tuned",
            "softmax",
            None,
            "task_arithmetic, softmax, granularity layer, spc 1, tuned head",
        ),
        ("joint", "", None, ""),
    ],
)
def test_short_forms_are_written_out(run, arm, rule, axis, family):
    settings = arm_settings(run, arm)
    assert settings.rule == rule
    assert settings.axis == axis
    assert settings.family() == family


@pytest.mark.parametrize(
    ("arm", "parts"),
    [
        ("short", ["on the updates dW = s B A", "fixed at 0.5 for every adapter"]),
        ("listed", ["fixed at [0.5, 1, 1, 1], one for each adapter"]),
        ("uniform", ["density = 0.3", "uniform, 1/n for n adapters"]),
        ("left_out", ["density = 0.2"]),  # the default, which config.yaml leaves open
        (
            "adaptive",
            [
                "adaptive with b_max = 3, learned on 5 samples per class and domain",
                "Head: prototypes, in place of the run's",
            ],
        ),
        ("peft", ["on the factors A and B apart, as peft does"]),
        ("tuned", ["learned on 1 samples", "The head is trained on the buffer"]),
        ("unknown", ["a_method_of_tomorrow", "fixed at 2"]),
        ("other_options", ["this version knows other options", "an_option_of_tomorrow = 3"]),
        ("joint", ["Reference row: one LoRA trained on all experiences at once"]),
    ],
)
def test_in_words(run, arm, parts):
    words = in_words(run, arm)
    for part in parts:
        assert part in words
    assert words.endswith(".")
    assert "None" not in words
