"""Learning the coefficients of a plan by gradient steps on a loss of the merged update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cl_lora.merging.coefficients.registry import CoefficientRule
from cl_lora.merging.coefficients.solvers import ADAM, FRESH, PREVIOUS, SOLVERS, UNNAMED
from cl_lora.merging.plan import Plan, require_learnable
from cl_lora.merging.registry import OptionSpec, choice, is_number
from cl_lora.merging.update import Update
from cl_lora.support.errors import UserError


def learning_options(steps: int, lr: float, granularity: tuple[str, ...]) -> dict[str, OptionSpec]:
    """Return the options of a rule learned by gradient or without one, with these defaults.

    Args:
        steps: how many steps of Adam.
        lr: the learning rate.
        granularity: the granularities the rule has, the default first.
    """
    options = {
        "granularity": choice(
            *granularity, help="which modules share coefficients: all, those of a block, none"
        ),
        "solver": OptionSpec(
            UNNAMED["solver"],
            lambda v: v in tuple(SOLVERS),
            f"one of {', '.join(SOLVERS)}",
            "; ".join(f"{info.name}: {info.summary}" for info in SOLVERS.values()),
        ),
        "start": choice(
            FRESH,
            PREVIOUS,
            help="where learning starts: at the initial values, or, in a stream, from the "
            "coefficients of the stage before",
        ),
    }
    for info in SOLVERS.values():
        options.update(info.options)
    options["steps"] = replace(options["steps"], default=steps)
    options["lr"] = replace(options["lr"], default=lr)
    return options


@dataclass(frozen=True)
class Step:
    """One step of learning or of a search: the coefficients at it, and their loss."""

    step: int
    alpha: Tensor
    loss: float


@dataclass(frozen=True)
class Learned:
    """Learned coefficients.

    Attributes:
        alpha: the final coefficients, float64 (n,) or (M, n).
        trace: every step, or every candidate tried, in order.
        parameters: the final parameters of the rule by name; none after a search.
        evaluations: how often an update was merged and its loss, or what that is made of, computed.
    """

    alpha: Tensor
    trace: tuple[Step, ...]
    parameters: dict[str, Tensor]
    evaluations: int = 0


def learn(
    rule: CoefficientRule,
    plan: Plan,
    loss: Callable[[Update, int], Tensor],
    *,
    extra_parameters: Iterable[Tensor] = (),
    extra_lr: float | None = None,
    previous: Tensor | None = None,
) -> Learned:
    """Learn the coefficients of a plan by Adam on a loss of the merged update.

    The plan is materialised: a step of a linear plan costs a weighted sum, one of a plan that is
    only differentiable merges again, without sparsifying again.

    Args:
        rule: a rule learned by gradient, whose solver is Adam; its ``steps`` and ``lr`` are used.
        plan: a plan that is differentiable in its coefficients.
        loss: called with the update and the step from 0; returns a scalar that depends on the
            update. Which samples it sees is the caller's choice.
        extra_parameters: further tensors to train along, e.g. of a head.
        extra_lr: their learning rate; None takes the rule's.
        previous: coefficients to start from, see :meth:`CoefficientRule.state`.

    Raises:
        UserError: if the rule has nothing to learn, the plan is not differentiable,
            ``extra_lr`` is not above 0, a loss is not finite or not connected to the coefficients,
            or the coefficients end not finite.
    """
    if rule.how != "gradient":
        raise UserError(
            f"Expected a coefficient rule learned by gradient but {rule.name!r} has nothing to "
            "learn so; use its state's alpha(), or search() for a rule that searches"
        )
    if not rule.solver.in_batches:
        raise UserError(
            f"Expected a rule with a solver that learns in batches but {rule.name!r} has "
            f"solver={rule.solver.name}; use minimise(), or solver={ADAM.name}"
        )
    require_learnable(plan)
    lr = rule.options["lr"]
    extra_lr = lr if extra_lr is None else extra_lr
    if not (is_number(extra_lr) and extra_lr > 0):
        raise UserError(f"Expected extra_lr to be a finite number above 0 but got {extra_lr}")
    plan = plan.materialise()
    state = rule.state(plan.n, plan.modules, previous)
    groups = [{"params": list(state.parameters.values()), "lr": lr}]
    extra = list(extra_parameters)
    if extra:
        groups.append({"params": extra, "lr": extra_lr})
    optimizer = torch.optim.Adam(groups)
    trace = []
    for step in range(rule.options["steps"]):
        alpha = state.alpha()
        value = loss(plan.combine(alpha), step)
        trace.append(Step(step, alpha.detach().clone(), _check_loss(value, step, lr)))
        optimizer.zero_grad()
        torch.autograd.backward([value])
        optimizer.step()
    final = {name: tensor.detach().clone() for name, tensor in state.parameters.items()}
    alpha = state.alpha().detach().clone()
    if not alpha.isfinite().all():
        raise UserError(
            f"Learning ended in coefficients that are not finite; lower its learning rate (lr, now "
            f"{lr:g}) or b_max"
        )
    return Learned(alpha, tuple(trace), final, len(trace))


def _check_loss(value: Tensor, step: int, lr: float) -> float:
    if not value.requires_grad:
        raise UserError(
            f"Expected a loss that depends on the merged update but at step {step} it has no "
            "gradient; compute it from the update it is given"
        )
    number = float(value.detach())
    if not math.isfinite(number):
        raise UserError(
            f"The loss is {number} at step {step} of learning coefficients; lower their learning "
            f"rate (lr, now {lr:g}) or b_max, and check the samples for values that are not finite"
        )
    return number
