"""Coefficients of a merge: given, or learned from samples; a file a rule."""

# Importing a rule registers it.
from cl_lora.merging.coefficients import (
    ema,
    fixed,
    grid,
    routed,
    single,
    softmax,
    unbounded,
    uniform,
)
from cl_lora.merging.coefficients.adaptive import adaptive_alpha
from cl_lora.merging.coefficients.groups import module_groups
from cl_lora.merging.coefficients.learning import Learned, Step, learn, learning_options
from cl_lora.merging.coefficients.registry import (
    RULES,
    CoefficientRule,
    How,
    RuleInfo,
    get_rule,
    make_rule,
    register_rule,
    rule_names,
    rules_table,
)
from cl_lora.merging.coefficients.rows import coefficient_rows
from cl_lora.merging.coefficients.search import search
from cl_lora.merging.coefficients.state import CoefficientState, Given, SearchState

__all__ = [
    "RULES",
    "CoefficientRule",
    "CoefficientState",
    "Given",
    "How",
    "Learned",
    "RuleInfo",
    "SearchState",
    "Step",
    "adaptive_alpha",
    "coefficient_rows",
    "ema",
    "fixed",
    "get_rule",
    "grid",
    "learn",
    "learning_options",
    "make_rule",
    "module_groups",
    "register_rule",
    "routed",
    "rule_names",
    "rules_table",
    "search",
    "single",
    "softmax",
    "unbounded",
    "uniform",
]
