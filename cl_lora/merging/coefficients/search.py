"""Choosing the coefficients of a plan among candidates, by a loss of the merged update."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from cl_lora.merging.coefficients.learning import Learned, Step
from cl_lora.merging.coefficients.registry import CoefficientRule
from cl_lora.merging.coefficients.state import SearchState
from cl_lora.merging.plan import Plan
from cl_lora.merging.update import Update
from cl_lora.support.errors import UserError


def search(rule: CoefficientRule, plan: Plan, loss: Callable[[Update], float]) -> Learned:
    """Choose the candidate with the lowest loss; it needs no gradient, so any plan will do.

    Every candidate is merged and tried once, in order; the first of equal ones wins. A loss that
    is not finite never wins, but stands in the trace.

    Args:
        rule: a rule that searches.
        plan: any plan.
        loss: called with the update of each candidate. Which samples it sees is the caller's
            choice.

    Returns:
        The choice; its trace has a step for each candidate, and there are no parameters.

    Raises:
        UserError: if the rule does not search or has no candidates, or no loss is finite.
    """
    state = rule.state(plan.n, plan.modules)
    if rule.how != "search" or not isinstance(state, SearchState):
        raise UserError(
            f"Expected a coefficient rule with candidates to choose from but got {rule.name!r}, "
            "whose state has none; use grid, or learn() for a rule that learns by gradient"
        )
    trace = []
    with torch.no_grad():
        for step, alpha in enumerate(state.candidates()):
            trace.append(Step(step, alpha, float(loss(plan.combine(alpha)))))
    finite = [step for step in trace if math.isfinite(step.loss)]
    if not finite:
        raise UserError(
            f"Expected a finite loss for one of the {len(trace)} candidates of coefficient rule "
            f"{rule.name!r} but got {[step.loss for step in trace]}; check the samples for values "
            "that are not finite, or try smaller coefficients"
        )
    return Learned(min(finite, key=lambda step: step.loss).alpha, tuple(trace), {})
