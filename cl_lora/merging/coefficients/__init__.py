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
from cl_lora.merging.coefficients.gauss_newton import minimise
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
from cl_lora.merging.coefficients.solvers import (
    ADAM,
    GAUSS_NEWTON,
    SOLVERS,
    Size,
    SolverInfo,
    get_solver,
    register_solver,
)
from cl_lora.merging.coefficients.state import CoefficientState, Following, Given, SearchState

__all__ = [
    "ADAM",
    "GAUSS_NEWTON",
    "RULES",
    "SOLVERS",
    "CoefficientRule",
    "CoefficientState",
    "Following",
    "Given",
    "How",
    "Learned",
    "RuleInfo",
    "SearchState",
    "Size",
    "SolverInfo",
    "Step",
    "adaptive_alpha",
    "coefficient_rows",
    "ema",
    "fixed",
    "get_rule",
    "get_solver",
    "grid",
    "learn",
    "learning_options",
    "make_rule",
    "minimise",
    "module_groups",
    "register_rule",
    "register_solver",
    "routed",
    "rule_names",
    "rules_table",
    "search",
    "single",
    "softmax",
    "unbounded",
    "uniform",
]
