"""Merging adapters: pure algebra on tensors, from adapters and coefficients to an update.

>>> from cl_lora.merging import differentiability, method_names
>>> "ties" in method_names(), differentiability("ties"), differentiability("ties", "factors")
(True, 'linear', 'differentiable')
"""

# Importing a family registers its methods.
from cl_lora.merging import balanced, dare, fisher, linear, pruning, regmean, spectral, ties
from cl_lora.merging.coefficients import (
    RULES,
    CoefficientRule,
    CoefficientState,
    Learned,
    RuleInfo,
    coefficient_rows,
    get_rule,
    learn,
    make_rule,
    module_groups,
    rule_names,
    rules_table,
    search,
)
from cl_lora.merging.plan import Plan, merge, prepare, require_learnable
from cl_lora.merging.registry import (
    METHODS,
    Differentiability,
    MethodInfo,
    OptionSpec,
    differentiability,
    get_method,
    is_linear,
    method_names,
    methods_table,
    register,
    validate_method,
    variant_of,
)
from cl_lora.merging.update import Update

__all__ = [
    "METHODS",
    "RULES",
    "CoefficientRule",
    "CoefficientState",
    "Differentiability",
    "Learned",
    "MethodInfo",
    "OptionSpec",
    "Plan",
    "RuleInfo",
    "Update",
    "balanced",
    "coefficient_rows",
    "dare",
    "differentiability",
    "fisher",
    "get_method",
    "get_rule",
    "is_linear",
    "learn",
    "linear",
    "make_rule",
    "merge",
    "method_names",
    "methods_table",
    "module_groups",
    "prepare",
    "pruning",
    "register",
    "regmean",
    "require_learnable",
    "rule_names",
    "rules_table",
    "search",
    "spectral",
    "ties",
    "validate_method",
    "variant_of",
]
