"""The registry of coefficient rules: what each is called, computes and accepts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import Tensor

from cl_lora.merging.coefficients.groups import GRANULARITIES, module_groups
from cl_lora.merging.coefficients.solvers import (
    ADAM,
    PREVIOUS,
    SOLVERS,
    UNNAMED,
    SolverInfo,
    get_solver,
)
from cl_lora.merging.coefficients.state import CoefficientState, Following
from cl_lora.merging.registry import OptionSpec, check_options, options_text
from cl_lora.support.errors import UserError
from cl_lora.support.registry import check_free, look_up

How: TypeAlias = Literal["fixed", "gradient", "search", "routed"]
"""How coefficients come about.

``fixed``: they are given. ``gradient``: they depend smoothly on parameters, which a solver finds:
:func:`~cl_lora.merging.coefficients.learn` in batches, by their gradient, or
:func:`~cl_lora.merging.coefficients.minimise` on all samples, without one. ``search``:
:func:`~cl_lora.merging.coefficients.search` chooses among candidates.
``routed``: they depend on the input.
"""

_IN_WORDS = {
    "fixed": "no",
    "gradient": "by gradient",
    "search": "by search",
    "routed": "for each input",
}


@dataclass(frozen=True)
class RuleInfo:
    """A coefficient rule and what it declares about itself.

    Attributes:
        name: the name it is chosen by.
        formula: the coefficients.
        paper: where it comes from.
        how: how its coefficients come about.
        options: option name -> its specification.
        start: makes the initial state for n adapters and the modules of a plan.
        scale: the option that scales all coefficients, and its symbol: runs that differ in it alone
            make a curve. None if there is none.
        difference: how far parameters move where a derivative is the difference of two values.
    """

    name: str
    formula: str
    paper: str
    how: How
    options: Mapping[str, OptionSpec]
    start: Callable[[Mapping[str, Any], int, Sequence[str]], CoefficientState]
    scale: tuple[str, str] | None = None
    difference: float = 0.2


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
    def how(self) -> How:
        """How the coefficients come about."""
        return self.info.how

    @property
    def learned(self) -> bool:
        """Whether the coefficients are learned from samples, by gradient or by search."""
        return self.how in ("gradient", "search")

    @property
    def routed(self) -> bool:
        """Whether the coefficients depend on the input."""
        return self.how == "routed"

    @property
    def solver(self) -> SolverInfo:
        """What finds the parameters of a rule that has some."""
        return get_solver(str(self.options.get("solver", ADAM.name)))

    @property
    def follows(self) -> bool:
        """Whether learning starts from the coefficients of the stage before."""
        return self.options.get("start") == PREVIOUS

    @property
    def config(self) -> dict[str, Any]:
        """The name and the options that count: :func:`make_rule` makes the same rule of it.

        Those of solvers that are not chosen are left out, and what stands for its absence.
        """
        idle = _of_others(self.solver)
        return {
            "name": self.name,
            **{
                key: value
                for key, value in self.options.items()
                if key not in idle and not (key in UNNAMED and UNNAMED[key] == value)
            },
        }

    def groups(self, modules: Sequence[str]) -> list[str]:
        """Return for each module the name of the group that it shares coefficients with.

        As the option ``granularity`` says; each module is its own group under a rule without.

        Raises:
            UserError: as :func:`~cl_lora.merging.coefficients.module_groups`.
        """
        granularity = str(self.options.get("granularity"))
        return module_groups(granularity if granularity in GRANULARITIES else "module", modules)

    def state(
        self, n: int, modules: Sequence[str], previous: Tensor | None = None
    ) -> CoefficientState:
        """Return coefficients of ``n`` adapters over ``modules``, at their initial values.

        Args:
            n: how many adapters.
            modules: names of the modules.
            previous: coefficients (k,) or (M, k) that the first k <= n adapters start from, as
                nearly as the rule has them where they can still move; None for none.

        Raises:
            UserError: if n is below 1, or a list of fixed values has another length; if the rule
                cannot start from coefficients.
        """
        if n < 1:
            raise UserError(f"Expected at least one adapter to weigh but got {n}")
        state = self.info.start(self.options, n, modules)
        if previous is not None:
            if not isinstance(state, Following):
                raise UserError(
                    f"Coefficient rule {self.name!r} cannot start from earlier coefficients; "
                    "leave start=previous out"
                )
            state.follow(previous)
        return state


RULES: dict[str, RuleInfo] = {}
"""Every registered coefficient rule by name."""

Start = Callable[[Mapping[str, Any], int, Sequence[str]], CoefficientState]


def register_rule(
    name: str,
    *,
    formula: str,
    paper: str,
    how: How = "fixed",
    options: Mapping[str, OptionSpec] | None = None,
    scale: tuple[str, str] | None = None,
    difference: float = 0.2,
) -> Callable[[Start], Start]:
    """Register the decorated ``start(options, n, modules) -> state`` as a coefficient rule.

    A rule learned by gradient needs the options ``steps`` and ``lr``, see :func:`learning_options`;
    the state of one that searches has ``candidates()``.

    Raises:
        UserError: if another function is registered by this name.
    """

    def decorate(start: Start) -> Start:
        taken = RULES.get(name)
        check_free("coefficient rule", name, taken.start if taken else None, start)
        RULES[name] = RuleInfo(name, formula, paper, how, options or {}, start, scale, difference)
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
    return look_up("coefficient rule", RULES, name)


def rules_table() -> list[dict[str, str]]:
    """Return a row per rule, sorted by name: name, formula, learned, options, paper."""
    return [
        {
            "name": info.name,
            "formula": info.formula,
            "learned": _IN_WORDS[info.how],
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
    rule = CoefficientRule(
        info, check_options(f"coefficient rule {info.name!r}", info.options, given)
    )
    if info.how == "gradient":
        _check_solver(rule, given)
    return rule


def _of_others(solver: SolverInfo) -> set[str]:
    """Return the names of the options that only other solvers have."""
    return {name for other in SOLVERS.values() for name in other.options} - set(solver.options)


def _check_solver(rule: CoefficientRule, given: Mapping[str, Any]) -> None:
    """Refuse options of a solver that was not chosen."""
    for name in given:
        if name in _of_others(rule.solver):
            owner = next(s.name for s in SOLVERS.values() if name in s.options)
            raise UserError(
                f"{name} is an option of solver={owner} but coefficient rule {rule.name!r} has "
                f"solver={rule.solver.name}; leave {name} out, or give solver={owner}"
            )
