"""Coefficients of a merge: fixed, uniform, or learned through a plan that is linear in them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from cl_lora.merging.plan import Plan, require_linear
from cl_lora.merging.registry import (
    OptionSpec,
    check_options,
    choice,
    is_count,
    is_number,
    options_text,
)
from cl_lora.merging.update import Update
from cl_lora.support.errors import UserError, unknown_name

# Coefficients are a handful of numbers: float64 keeps sigmoids from saturating and costs nothing.
_DTYPE = torch.float64

_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")


class CoefficientState(Protocol):
    """Coefficients of one merge: what is learned, and the coefficients it stands for."""

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The learned tensors by name, each requiring grad; empty if nothing is learned."""

    def alpha(self) -> Tensor:
        """Return the coefficients (n,) or (M, n), differentiable in the parameters."""


@dataclass(frozen=True)
class RuleInfo:
    """A coefficient rule and what it declares about itself.

    Attributes:
        name: the name it is chosen by.
        formula: the coefficients.
        paper: where it comes from.
        learned: whether it has parameters to learn.
        options: option name -> its specification.
        start: makes the initial state for n adapters and the modules of a plan.
    """

    name: str
    formula: str
    paper: str
    learned: bool
    options: Mapping[str, OptionSpec]
    start: Callable[[Mapping[str, Any], int, Sequence[str]], CoefficientState]


@dataclass(frozen=True)
class CoefficientRule:
    """A rule with its options, checked: made by :func:`make_rule`.

    Attributes:
        info: what the rule is.
        options: its complete options.
    """

    info: RuleInfo
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of the rule."""
        return self.info.name

    @property
    def learned(self) -> bool:
        """Whether the rule has parameters to learn."""
        return self.info.learned

    @property
    def config(self) -> dict[str, Any]:
        """The name and the complete options: :func:`make_rule` makes the same rule of it."""
        return {"name": self.name, **self.options}

    def state(self, n: int, modules: Sequence[str]) -> CoefficientState:
        """Return fresh coefficients of ``n`` adapters over ``modules``, at their initial values.

        Raises:
            UserError: if n is below 1, or a list of fixed values has another length.
        """
        if n < 1:
            raise UserError(f"Expected at least one adapter to weigh but got {n}")
        return self.info.start(self.options, n, modules)


RULES: dict[str, RuleInfo] = {}
"""Every registered coefficient rule by name."""

Start = Callable[[Mapping[str, Any], int, Sequence[str]], CoefficientState]


def register_rule(
    name: str,
    *,
    formula: str,
    paper: str,
    learned: bool,
    options: Mapping[str, OptionSpec] | None = None,
) -> Callable[[Start], Start]:
    """Register the decorated ``start(options, n, modules) -> state`` as a coefficient rule."""

    def decorate(start: Start) -> Start:
        RULES[name] = RuleInfo(name, formula, paper, learned, options or {}, start)
        return start

    return decorate


def rule_names() -> tuple[str, ...]:
    """Return the names of all coefficient rules, sorted."""
    return tuple(sorted(RULES))


def get_rule(name: str) -> RuleInfo:
    """Return the coefficient rule called ``name``.

    Raises:
        UserError: if there is none, naming the nearest known.
    """
    if name not in RULES:
        raise unknown_name("coefficient rule", name, RULES)
    return RULES[name]


def rules_table() -> list[dict[str, str]]:
    """Return a row per rule, sorted by name: name, formula, learned, options, paper."""
    return [
        {
            "name": info.name,
            "formula": info.formula,
            "learned": "yes" if info.learned else "no",
            "options": options_text(info.options),
            "paper": info.paper,
        }
        for info in map(get_rule, rule_names())
    ]


def make_rule(config: Mapping[str, Any]) -> CoefficientRule:
    """Return the rule that ``config`` describes, everything checked.

    >>> make_rule({"name": "adaptive", "b_max": 3}).options["granularity"]
    'adapter'

    Args:
        config: ``name`` of the rule, and its options.

    Raises:
        UserError: if the name is missing or unknown, an option unknown, or a value not accepted.
    """
    if "name" not in config:
        raise UserError(
            f"Expected a coefficient rule with a name but got {dict(config)!r}; "
            f"name one of {', '.join(rule_names())}"
        )
    info = get_rule(str(config["name"]))
    given = {key: value for key, value in config.items() if key != "name"}
    return CoefficientRule(
        info, check_options(f"coefficient rule {info.name!r}", info.options, given)
    )


# Groups of modules ---------------------------------------------------------------------------


def _by_adapter(module: str) -> str:
    return "all"


def _by_layer(module: str) -> str:
    block = _BLOCK.search(module)
    return f"blocks.{block[1]}" if block else "outside"


def _by_module(module: str) -> str:
    return module


_GROUPINGS: Mapping[str, Callable[[str], str]] = {
    "adapter": _by_adapter,
    "layer": _by_layer,
    "module": _by_module,
}


def module_groups(granularity: str, modules: Iterable[str]) -> list[str]:
    """Return for each module the name of the group that shares coefficients.

    Args:
        granularity: ``adapter`` (one group), ``layer`` (by the N of ``blocks.N.``; all modules
            outside a block form the group ``outside``) or ``module`` (each its own).
        modules: module names.

    Raises:
        UserError: for an unknown granularity.
    """
    if granularity not in _GROUPINGS:
        raise unknown_name("granularity", granularity, _GROUPINGS)
    return [_GROUPINGS[granularity](module) for module in modules]


@dataclass(frozen=True)
class _Rows:
    """How the rows of a (G, n) tensor of grouped coefficients go to modules."""

    count: int
    index: Tensor | None

    def spread(self, grouped: Tensor) -> Tensor:
        """Return (G, n) as (M, n), or as (n,) if there is one group by design."""
        return grouped[0] if self.index is None else grouped[self.index]


def _rows(granularity: str, modules: Sequence[str]) -> _Rows:
    if granularity == "adapter":
        return _Rows(1, None)
    groups = module_groups(granularity, modules)
    order = {name: row for row, name in enumerate(dict.fromkeys(groups))}
    return _Rows(len(order), torch.tensor([order[name] for name in groups]))


# The rules -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Given:
    """Coefficients that are not learned."""

    values: Tensor

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Nothing is learned."""
        return {}

    def alpha(self) -> Tensor:
        """Return the values."""
        return self.values


def _is_fixed_value(value: object) -> bool:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return len(value) > 0 and all(map(is_number, value))
    return is_number(value)


@register_rule(
    "fixed",
    formula="alpha_i = value, or value_i of a list",
    paper="Ilharco et al. 2023",
    learned=False,
    options={
        "value": OptionSpec(
            1.0,
            _is_fixed_value,
            "a finite number or a list of them",
            "the coefficient of every adapter, or one per adapter",
        )
    },
)
def _fixed(options: Mapping[str, Any], n: int, modules: Sequence[str]) -> _Given:
    value = options["value"]
    values = [value] * n if is_number(value) else list(value)
    if len(values) != n:
        raise UserError(
            f"Expected {n} fixed coefficients, one per adapter, but got {len(values)}: {values}; "
            "give one number for any number of adapters"
        )
    return _Given(torch.tensor(values, dtype=_DTYPE))


@register_rule("uniform", formula="alpha_i = 1 / n", paper="Asadi et al. 2024", learned=False)
def _uniform(options: Mapping[str, Any], n: int, modules: Sequence[str]) -> _Given:
    return _Given(torch.full((n,), 1 / n, dtype=_DTYPE))


def _learning(steps: int, lr: float, granularity: tuple[str, ...]) -> dict[str, OptionSpec]:
    return {
        "granularity": choice(
            *granularity, help="which modules share coefficients: all, those of a block, none"
        ),
        "steps": OptionSpec(steps, is_count, "an integer of at least 1", "how many steps of Adam"),
        "lr": OptionSpec(
            lr,
            lambda v: is_number(v) and v > 0,
            "a finite number above 0",
            "the learning rate of Adam",
        ),
    }


@dataclass(frozen=True)
class _Adaptive:
    """State of :func:`adaptive_alpha`: c (G, n), and b_raw (G, 1), one for each group."""

    c: Tensor
    b_raw: Tensor
    b_max: float
    rows: _Rows

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The logits of the coefficients and of their bound."""
        return {"c": self.c, "b_raw": self.b_raw}

    def alpha(self) -> Tensor:
        """Return the coefficients."""
        return self.rows.spread(adaptive_alpha(self.c, self.b_raw, self.b_max))


def adaptive_alpha(c: Tensor, b_raw: Tensor, b_max: float) -> Tensor:
    """Return ``sigmoid(c) * b`` with ``b = 1 + (b_max - 1) * sigmoid(b_raw)``; in (0, b_max).

    Coleman et al., Adaptive LoRA Merging for Domain-Incremental Learning.

    Args:
        c: float tensor (..., n).
        b_raw: float tensor broadcastable to ``c``.
        b_max: upper limit of the bound b, at least 1.
    """
    return c.sigmoid() * (1 + (b_max - 1) * b_raw.sigmoid())


# The share of the bound at which "uniform" starts where 1/n lies at the bound or above it.
_HIGHEST_START = 0.95


@register_rule(
    "adaptive",
    formula="alpha_i = sigmoid(c_i) b, b = 1 + (b_max - 1) sigmoid(b_raw)",
    paper="Coleman et al. 2024",
    learned=True,
    options={
        "b_max": OptionSpec(
            1.0,
            lambda v: is_number(v) and v >= 1,
            "a finite number of at least 1",
            "no coefficient exceeds it",
        ),
        "init": OptionSpec(
            "zero",
            lambda v: v in ("zero", "uniform") or (is_number(v) and v > 0),
            "zero, uniform or a number in (0, (1 + b_max) / 2)",
            "where alpha starts: c = 0, hence (1 + b_max) / 4; 1/n; or the number itself",
        ),
        **_learning(100, 0.05, ("adapter", "layer", "module")),
    },
)
def _adaptive(options: Mapping[str, Any], n: int, modules: Sequence[str]) -> _Adaptive:
    """Start at b_raw = 0, hence b = (1 + b_max) / 2. One b per group: one for all by adapter."""
    rows = _rows(options["granularity"], modules)
    bound = (1 + options["b_max"]) / 2
    share = _initial_share(options["init"], bound, n)
    c = torch.full((rows.count, n), math.log(share / (1 - share)), dtype=_DTYPE)
    b_raw = torch.zeros(rows.count, 1, dtype=_DTYPE)
    return _Adaptive(c.requires_grad_(), b_raw.requires_grad_(), float(options["b_max"]), rows)


def _initial_share(init: str | float, bound: float, n: int) -> float:
    if init == "zero":
        return 0.5
    if init == "uniform":
        return min(1 / n / bound, _HIGHEST_START)
    if float(init) >= bound:
        raise UserError(
            f"Expected init of coefficient rule 'adaptive' to be below (1 + b_max) / 2 = {bound} "
            f"but got {init}; lower it or raise b_max"
        )
    return float(init) / bound


@dataclass(frozen=True)
class _Softmax:
    """State of the softmax rule: v (G, n)."""

    v: Tensor
    rows: _Rows

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The logits of the coefficients."""
        return {"v": self.v}

    def alpha(self) -> Tensor:
        """Return the coefficients; each group's sum to 1."""
        return self.rows.spread(self.v.softmax(-1))


@register_rule(
    "softmax",
    formula="alpha_i = exp(v_i) / sum_j exp(v_j), v = 0 at the start",
    paper="Asadi et al. 2024",
    learned=True,
    options=_learning(100, 0.05, ("module", "adapter", "layer")),
)
def _softmax(options: Mapping[str, Any], n: int, modules: Sequence[str]) -> _Softmax:
    rows = _rows(options["granularity"], modules)
    return _Softmax(torch.zeros(rows.count, n, dtype=_DTYPE).requires_grad_(), rows)


# Learning ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One step of learning: the coefficients before it, and their loss."""

    step: int
    alpha: Tensor
    loss: float


@dataclass(frozen=True)
class Learned:
    """Learned coefficients.

    Attributes:
        alpha: the final coefficients, float64 (n,) or (M, n).
        trace: every step, in order.
        parameters: the final parameters of the rule by name.
    """

    alpha: Tensor
    trace: tuple[Step, ...]
    parameters: dict[str, Tensor]


def learn(
    rule: CoefficientRule,
    plan: Plan,
    loss: Callable[[Update, int], Tensor],
    *,
    extra_parameters: Iterable[Tensor] = (),
    extra_lr: float | None = None,
) -> Learned:
    """Learn the coefficients of a plan by Adam on a loss of the merged update.

    The plan is materialised, so that a step costs a weighted sum and not a new merge.

    Args:
        rule: a learned rule; its ``steps`` and ``lr`` are used.
        plan: a plan that is linear in its coefficients.
        loss: called with the update and the step from 0; returns a scalar that depends on the
            update. Which samples it sees is the caller's choice.
        extra_parameters: further tensors to train along, e.g. of a head.
        extra_lr: their learning rate; None takes the rule's.

    Raises:
        UserError: if the rule has nothing to learn, the plan is not linear, ``extra_lr`` is not
            above 0, a loss is not finite or not connected to the coefficients, or the coefficients
            end not finite.
    """
    if not rule.learned:
        raise UserError(
            f"Expected a learned coefficient rule but {rule.name!r} has nothing to learn; "
            "take its state's alpha() instead"
        )
    require_linear(plan)
    lr = rule.options["lr"]
    extra_lr = lr if extra_lr is None else extra_lr
    if not (is_number(extra_lr) and extra_lr > 0):
        raise UserError(f"Expected extra_lr to be a finite number above 0 but got {extra_lr}")
    plan = plan.materialise()
    state = rule.state(plan.n, plan.modules)
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
    return Learned(alpha, tuple(trace), final)


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
