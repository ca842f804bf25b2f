"""The registry of merge methods: what each is called, computes, accepts and declares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias

from torch import Tensor

from cl_lora.adapters import Entry
from cl_lora.merging.spaces import SPACES, Sources
from cl_lora.support.errors import UserError, shown, unknown_name
from cl_lora.support.ranges import check_most
from cl_lora.support.registry import check_free, look_up

Differentiability: TypeAlias = Literal["linear", "differentiable", "no"]
"""How a merged update depends on its coefficients.

``linear``: a weighted sum of fixed tensors. ``differentiable``: with a gradient almost everywhere
that plain automatic differentiation finds. ``no``: without one, or with one not to be trusted.
"""


class Kernel(Protocol):
    """The computation behind a plan: all that does not depend on the coefficients is settled."""

    def combine(self, module: str, alpha: Tensor) -> Entry:
        """Return the update of one module for coefficients ``alpha`` (n,)."""

    def materialise(self) -> Kernel:
        """Return the same kernel with all in memory that does not depend on the coefficients."""


@dataclass(frozen=True)
class OptionSpec:
    """One option: its default, which values are accepted, and what it does.

    Attributes:
        default: value if none is given.
        accepts: tells whether a value is valid.
        expected: the accepted values in words, for errors and the table.
        help: one sentence for the table.
        most: the largest sensible number, whatever the kind of the value; negative numbers are at
            least ``-most``.
        complete: turns an accepted value into what is recorded, with the defaults of its parts.
    """

    default: Any
    accepts: Callable[[Any], bool]
    expected: str
    help: str
    most: float = 1_000_000
    complete: Callable[[Any], Any] = lambda value: value


def choice(default: str, *others: str, help: str) -> OptionSpec:
    """Return the option that is one of a few words."""
    words = (default, *others)
    return OptionSpec(default, lambda v: v in words, f"one of {', '.join(words)}", help)


def is_number(value: object) -> bool:
    """Return whether ``value`` is a finite int or float, and no bool."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def is_count(value: object, least: int = 1) -> bool:
    """Return whether ``value`` is an int of at least ``least``, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_fraction(value: object) -> bool:
    """Return whether ``value`` is a number in (0, 1]."""
    return isinstance(value, int | float) and is_number(value) and 0 < value <= 1


DENSITY = OptionSpec(
    0.2,
    lambda v: all(map(is_fraction, v)) if isinstance(v, list | tuple) and v else is_fraction(v),
    "a fraction, or a list of one for each adapter, in (0, 1]",
    "the fraction of entries kept in each adapter",
)
LARGEST = "largest"
"""The rank that stands for the largest of any adapter in any module."""

RANK = OptionSpec(
    None,
    lambda v: v is None or v == LARGEST or is_count(v),
    f"none, {LARGEST} or an integer of at least 1",
    "truncate each merged delta to this rank by SVD (peft's *_svd), or to the largest rank of the "
    "adapters (peft's default)",
)


@dataclass(frozen=True)
class Linearity:
    """When the merged update is linear in the coefficients, and what it is otherwise.

    Attributes:
        text: the condition in words; empty where it is never linear.
        holds: tells it from the space and the complete options.
        otherwise: ``differentiable`` or ``no``.
    """

    text: str
    holds: Callable[[str, Mapping[str, Any]], bool]
    otherwise: Differentiability = "no"

    def of(self, space: str, options: Mapping[str, Any]) -> Differentiability:
        """Return how the update depends on alpha under these complete options.

        A truncated one counts as ``no``: the gradient that torch gives an SVD divides by the
        differences of squared singular values and by the roots of the values, and the many zeros
        of a low-rank delta make both infinite.
        """
        if options["rank"] is not None:
            return "no"
        return "linear" if self.holds(space, options) else self.otherwise

    @property
    def learned_how(self) -> str:
        """How coefficients are learned by gradient, in words for the table."""
        if self.otherwise == "no":
            return self.text
        if not self.text:
            return "by merging again"
        return f"linear fast path {self.text}; else by merging again"


IN_DELTA = Linearity("in delta", lambda space, options: space == "delta", "differentiable")
ALWAYS = Linearity("linear fast path", lambda space, options: True)
DIFFERENTIABLE = Linearity("", lambda space, options: False, "differentiable")
NEVER = Linearity("no", lambda space, options: False)


@dataclass(frozen=True)
class MethodInfo:
    """A merge method and what it declares about itself.

    Attributes:
        name: the name it is chosen by.
        summary: one sentence.
        formula: the merged update for coefficients alpha.
        paper: where it comes from.
        prepare: settles what does not depend on the coefficients.
        linearity: when the update is linear in the coefficients, and what it is otherwise.
        spaces: the spaces it works in.
        options: option name -> its specification; every method also has ``rank``.
        scaling: how the coefficient alpha and the adapter's scaling s enter, for a method that
            does the same in every space; None for one that does as its space does.
        random: complete options -> whether it draws at random, so that the run's seed is part of
            what defines an update.
        statistic: complete options -> name of the statistic that it needs of every adapter, one of
            :data:`cl_lora.models.statistics.STATISTICS`; None if it needs nothing but adapters.
        needs_task_id: the task must be known at inference.
        ordered: whether the order of the adapters counts, as of one that merges them in sequence.
        across_modules: complete options -> whether the result of a module depends on the others,
            so that all of them must be merged with the same options.
        plain: whether in space delta it is the plain weighted sum of the updates, so that adapters
            may stay apart and each input may have coefficients of its own.
    """

    name: str
    summary: str
    formula: str
    paper: str
    prepare: Callable[[Sources, str, Mapping[str, Any]], Kernel]
    linearity: Linearity
    spaces: tuple[str, ...]
    options: Mapping[str, OptionSpec]
    scaling: str | None = None
    random: Callable[[Mapping[str, Any]], bool] = lambda options: False
    statistic: Callable[[Mapping[str, Any]], str] | None = None
    needs_task_id: bool = False
    ordered: bool = False
    across_modules: Callable[[Mapping[str, Any]], bool] = lambda options: False
    plain: bool = False

    @property
    def data_free(self) -> bool:
        """Whether it needs no samples beyond the adapters."""
        return self.statistic is None


METHODS: dict[str, MethodInfo] = {}
"""Every registered merge method by name."""

Prepare = Callable[[Sources, str, Mapping[str, Any]], Kernel]


def register(
    name: str,
    *,
    summary: str,
    formula: str,
    paper: str,
    linearity: Linearity,
    spaces: tuple[str, ...] = ("delta", "factors"),
    options: Mapping[str, OptionSpec] | None = None,
    default_rank: int | str | None = None,
    **flags: Any,
) -> Callable[[Prepare], Prepare]:
    """Register the decorated ``prepare(sources, space, options) -> kernel`` as a merge method.

    Further arguments are fields of :class:`MethodInfo`. ``default_rank`` is what the result is
    truncated to if no rank is given; None leaves it exact. Decorators may be stacked to give one
    computation several names.

    Raises:
        UserError: if another function is registered by this name.
    """

    def decorate(prepare: Prepare) -> Prepare:
        taken = METHODS.get(name)
        check_free("merge method", name, taken.prepare if taken else None, prepare)
        specs = {**(options or {}), "rank": replace(RANK, default=default_rank)}
        METHODS[name] = MethodInfo(
            name, summary, formula, paper, prepare, linearity, spaces, specs, **flags
        )
        return prepare

    return decorate


def method_names() -> tuple[str, ...]:
    """Return the names of all merge methods, sorted."""
    return tuple(sorted(METHODS))


def get_method(name: str) -> MethodInfo:
    """Return the merge method called ``name``.

    Raises:
        UserError: if there is none, naming the nearest known.
    """
    return look_up("merge method", METHODS, name)


def check_options(
    owner: str, specs: Mapping[str, OptionSpec], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the complete options: the defaults with what is given in their place.

    Args:
        owner: whose options they are, e.g. ``"merge method 'ties'"``.
        specs: option name -> specification.
        given: option name -> value.

    Raises:
        UserError: for an unknown option or a value that is not accepted.
    """
    for name, value in given.items():
        if name not in specs:
            raise unknown_name(f"option of {owner}", name, specs)
        check_most(value, specs[name].most, f"{name} of {owner}")
        if not specs[name].accepts(value):
            raise UserError(
                f"Expected {name} of {owner} to be {specs[name].expected} but got {shown(value)}; "
                f"{name}: {specs[name].help}"
            )
    return {name: spec.complete(given.get(name, spec.default)) for name, spec in specs.items()}


def validate_method(
    method: str, space: str = "delta", options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Check a method with its space and options before anything is trained.

    Returns:
        The complete options, defaults filled in.

    Raises:
        UserError: for an unknown method, space or option, a space the method does not have, or a
            value that is not accepted.
    """
    info = get_method(method)
    if space not in SPACES:
        raise unknown_name("merge space", space, SPACES)
    if space not in info.spaces:
        raise UserError(
            f"Merge method {method!r} has no space {space!r}; use {' or '.join(info.spaces)}"
        )
    complete = check_options(f"merge method {method!r}", info.options, options or {})
    if complete["rank"] is None:
        complete["rank"] = info.options["rank"].default
    return complete


def variant_of(
    method: str, space: str = "delta", options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return everything that defines a merge beside its adapters and coefficients.

    What is recorded of every arm and with every update: method, space, scaling (how alpha and the
    adapter's scaling s enter) and the complete options.

    >>> variant_of("svd")
    {'method': 'svd', 'space': 'delta', 'scaling': 'alpha * s * B A', 'rank': 'largest'}

    Raises:
        UserError: as :func:`validate_method`.
    """
    complete = validate_method(method, space, options)
    scaling = get_method(method).scaling or SPACES[space].scaling
    return {"method": method, "space": space, "scaling": scaling, **complete}


def differentiability(
    method: str, space: str = "delta", options: Mapping[str, Any] | None = None
) -> Differentiability:
    """Return how the merged update depends on the coefficients.

    Masks, signs and divisors that do not depend on the coefficients make the update a weighted
    sum of fixed tensors: ``linear``. Square roots of weights and division by the weight sum have
    gradients, and so have signs elected after weighting, which are constants almost everywhere:
    ``differentiable``. The root has none at a coefficient of exactly 0. Truncation by SVD: ``no``.

    Raises:
        UserError: as :func:`validate_method`.
    """
    return get_method(method).linearity.of(space, validate_method(method, space, options))


def statistic_of(
    method: str, space: str = "delta", options: Mapping[str, Any] | None = None
) -> str | None:
    """Return the name of the statistic that a merge needs of every adapter, None if it needs none.

    Raises:
        UserError: as :func:`validate_method`.
    """
    complete = validate_method(method, space, options)
    needed = get_method(method).statistic
    return None if needed is None else needed(complete)


def is_linear(method: str, space: str = "delta", options: Mapping[str, Any] | None = None) -> bool:
    """Return whether the merged update is linear in the coefficients.

    Raises:
        UserError: as :func:`validate_method`.
    """
    return differentiability(method, space, options) == "linear"


def methods_table() -> list[dict[str, str]]:
    """Return the rows of ``cl-lora list methods``, one per method, sorted by name.

    Columns: name, summary, formula, learned, spaces, options, data, task, paper.
    """
    return [
        {
            "name": info.name,
            "summary": info.summary,
            "formula": info.formula,
            "learned": info.linearity.learned_how,
            "spaces": ", ".join(info.spaces),
            "options": options_text(info.options),
            "data": "none" if info.data_free else "statistics",
            "task": "known" if info.needs_task_id else "unknown",
            "paper": info.paper,
        }
        for info in map(get_method, method_names())
    ]


def options_text(specs: Mapping[str, OptionSpec]) -> str:
    """Return the options with their defaults as ``density=0.2, trim=tensor``."""
    return ", ".join(f"{name}={spec.default}" for name, spec in specs.items())
