"""Solvers: how the parameters of a rule are found that are learned from samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cl_lora.merging.registry import OptionSpec, is_count, is_number
from cl_lora.support.registry import check_free, look_up

_BACKWARD = 3
"""A step with a gradient costs as much as so many forward passes."""


@dataclass(frozen=True)
class Size:
    """How large a problem is.

    Attributes:
        adapters: how many are merged.
        samples: how many the support set has.
        batch: samples of one batch.
    """

    adapters: int
    samples: int
    batch: int


@dataclass(frozen=True)
class SolverInfo:
    """A solver and what it declares about itself.

    Attributes:
        name: the name it is chosen by.
        summary: one sentence.
        options: option name -> its specification; solvers may share one.
        gradient: whether it needs a gradient of the merged update, and so a merge that has one;
            what has a gradient beside, such as a head, can be trained along.
        in_batches: whether it sees the support set batch after batch; if not, whole every time.
        cost: options and size -> about how many samples pass through the backbone forward.
    """

    name: str
    summary: str
    options: Mapping[str, OptionSpec]
    gradient: bool
    in_batches: bool
    cost: Callable[[Mapping[str, Any], Size], int]


SOLVERS: dict[str, SolverInfo] = {}
"""Every registered solver by name."""


def register_solver(info: SolverInfo) -> SolverInfo:
    """Register a solver, and return it.

    Raises:
        UserError: if another is registered by its name.
    """
    check_free("solver", info.name, SOLVERS.get(info.name), info)
    SOLVERS[info.name] = info
    return info


def get_solver(name: str) -> SolverInfo:
    """Return the solver called ``name``.

    Raises:
        UserError: if there is none, naming the nearest known.
    """
    return look_up("solver", SOLVERS, name)


ADAM = register_solver(
    SolverInfo(
        name="adam",
        summary="Adam on batches of the support set",
        options={
            "steps": OptionSpec(
                100, is_count, "an integer of at least 1", "how many steps of Adam"
            ),
            "lr": OptionSpec(
                0.05,
                lambda v: is_number(v) and v > 0,
                "a finite number above 0",
                "the learning rate of Adam",
                most=1e308,
            ),
        },
        gradient=True,
        in_batches=True,
        cost=lambda options, size: _BACKWARD * int(options["steps"]) * size.batch,
    )
)
"""The solver of the papers, and of every arm that names none."""

_USUAL_ITERATIONS = 5
"""How many it takes until the loss stays, more or less: for a guess of its cost."""

GAUSS_NEWTON = register_solver(
    SolverInfo(
        name="gauss_newton",
        summary="damped Gauss-Newton on the whole support set, by differences: no gradient needed",
        options={
            "tolerance": OptionSpec(
                1e-3,
                lambda v: is_number(v) and v >= 0,
                "a finite number of at least 0",
                "Gauss-Newton stops when the loss falls by less, or would by its derivatives",
                most=1e6,
            ),
            "iterations": OptionSpec(
                20,
                is_count,
                "an integer of at least 1",
                "at most so many steps of Gauss-Newton",
                most=10_000,
            ),
        },
        gradient=False,
        in_batches=False,
        cost=lambda options, size: (
            (1 + min(_USUAL_ITERATIONS, int(options["iterations"])) * (size.adapters + 1))
            * size.samples
        ),
    )
)
"""For rules of few coefficients: a pass over the support set for each of them and iteration."""

FRESH, PREVIOUS = "fresh", "previous"
"""Where learning starts: at the rule's initial values, or from the coefficients learned before."""

UNNAMED: Mapping[str, str] = {"solver": ADAM.name, "start": FRESH}
"""What a rule has that does not name it: it is left out where the rule is written down."""
