import subprocess
import sys

import pytest
import yaml
from fabricate import fabricate_run, variant_of
from other_runs import as_stages

from cl_lora.evaluation.metrics import ACCURACY, Metric
from cl_lora.reporting.describe import arm_settings, at_the_end, in_unit
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
    "by_adapter": {"method": "task_arithmetic", "coefficients": {"name": "softmax"}},
    "unknown": {"method": "a_method_of_tomorrow", "coefficients": 2},
}


@pytest.fixture
def run(tmp_path):
    plain = {name: {"method": "ties", "coefficients": 1} for name in ARMS}
    path = fabricate_run(tmp_path / "run", arms=plain)
    config = yaml.safe_load((path / "config.yaml").read_text())
    # The settings as they were given are not read, only what the run recorded of them.
    config["variants"] = {name: variant_of(arm) for name, arm in ARMS.items()}
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return RunFolder.read(path)


@pytest.mark.parametrize(
    ("arm", "rule", "axis", "family"),
    [
        ("short", "fixed", ("W", 0.5), "task_arithmetic, delta, fixed"),
        ("listed", "fixed", None, "task_arithmetic, delta, fixed, value [0.5, 1, 1, 1]"),
        ("uniform", "uniform", None, "ties, delta, uniform, density 0.3"),
        ("left_out", "uniform", None, "ties, delta, uniform, density 0.2"),
        (
            "adaptive",
            "adaptive",
            ("b_max", 3.0),
            "ties, delta, adaptive, density 0.2, spc 5, prototypes head",
        ),
        ("peft", "fixed", ("W", 1.0), "linear, factors, fixed"),
        (
            "tuned",
            "softmax",
            None,
            "task_arithmetic, delta, softmax, granularity layer, spc 1, tuned head",
        ),
        (
            "by_adapter",
            "softmax",
            None,
            "task_arithmetic, delta, softmax, granularity adapter, spc 5",
        ),
        ("unknown", "fixed", ("W", 2.0), "a_method_of_tomorrow, delta, fixed"),
        ("joint", "", None, ""),
    ],
)
def test_a_family_is_named_by_what_tells_it_apart(run, arm, rule, axis, family):
    settings = arm_settings(run, arm)
    assert settings.rule == rule
    assert settings.axis == axis
    assert settings.family() == family


@pytest.mark.parametrize("space", ["delta", "factors"])
@pytest.mark.parametrize("coefficients", [1.0, {"name": "adaptive", "b_max": 3}])
def test_what_all_arms_have_in_common_is_not_told(tmp_path, space, coefficients):
    shared = {"space": space, "coefficients": coefficients, "spc": 1}
    arms = {method: {"method": method, **shared} for method in ("ties", "linear")}
    run = RunFolder.read(fabricate_run(tmp_path / "run", arms=arms))
    spc = ", spc 1" if isinstance(coefficients, dict) else ""
    assert [arm_settings(run, arm).family() for arm in arms] == [f"ties{spc}", f"linear{spc}"]
    assert [arm_settings(run, arm).merge for arm in arms] == ["ties", "linear"]


def test_the_scale_is_the_option_that_was_recorded_as_one(tmp_path):
    rule = {"name": "a_rule_of_tomorrow", "bound": 2, "value": 7}
    # An option of the method is read as one, whatever it is called.
    arms = {"new": {"method": "ties", "value": 0.3, "spc_of_old": 4}}
    path = fabricate_run(tmp_path / "run", arms={"new": {"method": "ties", "coefficients": 1}})
    config = yaml.safe_load((path / "config.yaml").read_text())
    variant = variant_of(arms["new"])
    variant |= {"coefficients": rule, "scale": "bound", "scale_title": "B"}
    config["variants"] = {"new": variant}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    settings = arm_settings(RunFolder.read(path), "new")
    assert settings.axis == ("B", 2.0)
    assert settings.rule_options == {"bound": 2, "value": 7}
    assert settings.options == {"density": 0.2, "trim": "tensor", "value": 0.3, "spc_of_old": 4}


def test_every_default_is_known(run):
    settings = arm_settings(run, "adaptive")
    assert settings.rule_options == {
        "granularity": "adapter",
        "steps": 100,
        "lr": 0.05,
        "b_max": 3,
    }
    assert settings.options == {"density": 0.2, "trim": "tensor"}
    assert settings.spc == 5
    assert settings.head == "prototypes"


def test_descriptions_are_those_that_were_recorded(run):
    assert run.description("joint") == "Reference row: what joint is."
    assert run.description("short").startswith("The method ties.")
    assert run.description("nobody") == ""


def test_the_unit_stands_behind_the_title():
    assert in_unit(ACCURACY) == "Accuracy in %"
    assert in_unit(Metric("r2", "R squared")) == "R squared"


def test_final_scores_are_after_the_last_domain_or_at_a_stage(run, tmp_path):
    assert at_the_end(run) == "after the last domain"
    path = as_stages(fabricate_run(tmp_path / "run2"), {"all": None})
    assert at_the_end(RunFolder.read(path)) == "at stage all"


def test_reporting_imports_neither_the_trunk_nor_the_merging():
    code = (
        "import sys, cl_lora.reporting.html, cl_lora.reporting.compare; "
        "print([m for m in sys.modules if m.startswith("
        "('cl_lora.experiment', 'cl_lora.merging', 'cl_lora.models', 'torch'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
