"""Damped Gauss-Newton: a few coefficients found on all samples, without a gradient of the merge.

The outputs z of a model depend on the parameters theta of a rule in a way that needs not be
differentiable. Their derivatives J are differences: one pass over the samples for each direction in
which the coefficients move. The loss as a function of the outputs is known, so that

``g = J^T dL/dz,  H = J^T d2L/dz2 J,  theta <- theta - (H + lam I)^-1 g``

is a step of Gauss-Newton; for the cross-entropy ``d2L/dz2 = (diag p - p p^T) / N``. The damping lam
(Levenberg, Marquardt) falls after a success and grows after a failure, so the loss never rises. As
long as steps do what they promise the derivatives are not formed anew but corrected by what a step
has shown (Broyden); where the loss falls no further they are formed once more before that is
believed. Before the first step the coefficients are halved for as long as that halves
the loss too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cl_lora.merging.coefficients.learning import Learned, Step
from cl_lora.merging.coefficients.registry import CoefficientRule
from cl_lora.merging.coefficients.solvers import GAUSS_NEWTON
from cl_lora.merging.coefficients.state import CoefficientState, Following
from cl_lora.merging.plan import Plan
from cl_lora.merging.update import Update
from cl_lora.support.errors import UserError

_FIRST_DAMPING = 1e-2
"""In units of the mean curvature at the start."""
_SUCCESS, _FAILURE = 1 / 5, 10.0
"""What the damping is multiplied with."""
_MOST_DAMPING = 1e12
_LONGEST = 3.0
"""No parameter moves further at once: logits beyond it would lie where nothing can be learned."""
_TRUSTED = 0.8
"""The share of a promised fall that must come true for derivatives to be kept."""
_STILL = 1e-6
"""Directions count in which coefficients move more than so much of the largest movement."""


def minimise(
    rule: CoefficientRule,
    plan: Plan,
    outputs: Callable[[Update], Tensor],
    loss: Callable[[Tensor], Tensor],
    *,
    previous: Tensor | None = None,
) -> Learned:
    """Find the coefficients of a plan with the least loss of the merged update; any plan will do.

    The plan is materialised. Outputs are evaluated once for each step that is tried, and where
    derivatives are formed once for each direction in which the coefficients can move; so many are
    held at a time. No gradient flows through the update or the outputs.

    Args:
        rule: a rule learned by gradient, whose solver is Gauss-Newton; its ``tolerance`` and
            ``iterations`` are used.
        plan: any plan.
        outputs: called with an update; returns what it answers to all samples, of one shape.
        loss: outputs -> their loss, a scalar; differentiable twice.
        previous: coefficients to start from, see :meth:`CoefficientRule.state`.

    Returns:
        The coefficients; the trace has the start and every step that was taken, so its losses fall.

    Raises:
        UserError: if the rule has nothing to learn or another solver, the loss at the start or an
            output is not finite, or the loss cannot be differentiated.
    """
    if rule.how != "gradient" or rule.solver.in_batches:
        solver = f"solver={rule.solver.name}" if rule.how == "gradient" else "nothing to learn"
        raise UserError(
            f"Expected a coefficient rule whose solver sees all samples at once but {rule.name!r} "
            f"has {solver}; give solver={GAUSS_NEWTON.name}, or use learn() or search()"
        )
    with torch.no_grad():
        return _Descent(rule, plan, outputs, loss, previous).run()


@dataclass
class _Point:
    theta: Tensor
    alpha: Tensor
    outputs: Tensor
    loss: float


@dataclass
class _Tried:
    """What trying steps led to.

    Attributes:
        point: the first with a lower loss; None if there was none.
        damping: the next.
        promised: how far the loss should have fallen.
        at_once: whether no step was tried in vain.
    """

    point: _Point | None
    damping: float
    promised: float
    at_once: bool


@dataclass
class _Descent:
    rule: CoefficientRule
    plan: Plan
    outputs: Callable[[Update], Tensor]
    loss: Callable[[Tensor], Tensor]
    previous: Tensor | None
    state: CoefficientState = field(init=False)
    evaluations: int = 0

    def __post_init__(self) -> None:
        self.plan = self.plan.materialise()
        self.state = self.rule.state(self.plan.n, self.plan.modules, self.previous)

    def run(self) -> Learned:
        options, parameters = self.rule.options, self.state.parameters
        point = self._at(_vector(parameters))
        if not math.isfinite(point.loss):
            raise UserError(
                f"The loss is {point.loss} where learning coefficients starts; give another init "
                "or a smaller b_max, and check the samples for values that are not finite"
            )
        if self.previous is None:
            point = self._halved(point)
        trace = [Step(0, point.alpha, point.loss)]
        slopes: Tensor | None = None  # derivatives of the outputs by the coefficients
        damping: float | None = None
        for _ in range(int(options["iterations"])):
            fresh = slopes is None
            movement = self._movement(point)
            directions = _row_space(movement)
            if directions.shape[1] == 0:
                break
            if slopes is None:
                slopes = self._differences(point, directions)
            slope, curvature = self._model(point, slopes @ movement @ directions)
            if damping is None:
                damping = _FIRST_DAMPING * max(float(curvature.diagonal().mean()), 1e-12)
            tried = self._tried(point, directions, slope, curvature, damping)
            if tried.point is None:
                if fresh:
                    break
                slopes = None
                continue
            damping = tried.damping
            fell = point.loss - tried.point.loss
            good = tried.at_once and fell > _TRUSTED * tried.promised
            slopes = _secant(slopes, point, tried.point) if good else None
            point = tried.point
            trace.append(Step(len(trace), point.alpha, point.loss))
            if fell < options["tolerance"]:
                if fresh:
                    break
                slopes = None
        self._move(point.theta)
        final = {name: tensor.detach().clone() for name, tensor in parameters.items()}
        return Learned(point.alpha, tuple(trace), final, self.evaluations)

    def _halved(self, start: _Point) -> _Point:
        """Return the start, its coefficients halved for as long as that halves the loss too.

        A sum of adapters that is too long gives outputs far from any the model was trained for.
        What derivatives say there holds for short steps only; the way back along the sum is
        cheaper.
        """
        point = start
        while isinstance(self.state, Following):
            half = self.rule.state(self.plan.n, self.plan.modules, point.alpha / 2)
            if torch.allclose(half.alpha(), point.alpha):  # as where coefficients have a fixed sum
                break
            found = self._at(_vector(half.parameters))
            if not found.loss < point.loss / 2:
                break
            point = found
        return point

    def _tried(
        self, point: _Point, directions: Tensor, slope: Tensor, curvature: Tensor, damping: float
    ) -> _Tried:
        """Return the first point with a lower loss; none where no step would be worth its pass."""
        identity = torch.eye(len(slope), dtype=slope.dtype)
        at_once = True
        while damping < _MOST_DAMPING:
            factor, failed = torch.linalg.cholesky_ex(curvature + damping * identity)
            if not failed:
                move = -torch.cholesky_solve(slope[:, None], factor)[:, 0]
                move *= min(1.0, _LONGEST / max(float((directions @ move).abs().max()), 1e-300))
                promised = -float(slope @ move + move @ curvature @ move / 2)
                if promised <= max(0.0, self.rule.options["tolerance"]):
                    break
                found = self._at(point.theta + directions @ move)
                if found.loss < point.loss:
                    return _Tried(found, damping * _SUCCESS, promised, at_once)
                at_once = False
            damping *= _FAILURE
        return _Tried(None, damping, 0.0, at_once)

    def _at(self, theta: Tensor) -> _Point:
        """Return what the parameters stand for; a merge that cannot be made has an infinite loss.

        Raises:
            UserError: if it cannot be made at the start.
        """
        self._move(theta)
        alpha = self.state.alpha().clone()
        self.evaluations += 1
        try:
            outputs = self.outputs(self.plan.combine(alpha))
        except UserError:
            if self.evaluations == 1:
                raise
            return _Point(theta, alpha, torch.empty(0), math.inf)
        value = float(self.loss(outputs))
        return _Point(theta, alpha, outputs, value)

    def _movement(self, point: _Point) -> Tensor:
        """Return the derivatives (A, P) of the A coefficients by the P parameters."""
        parameters = list(self.state.parameters.values())
        self._move(point.theta)
        with torch.enable_grad():
            alpha = self.state.alpha().reshape(-1)
            found = [
                torch.autograd.grad(one, parameters, retain_graph=True, materialize_grads=True)
                for one in alpha
            ]
        return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in found])

    def _differences(self, point: _Point, directions: Tensor) -> Tensor:
        """Return the derivatives (Z, A) of the outputs by the coefficients, float64 on the CPU.

        By one pass for each direction of the parameters. What the rule makes of a step is known,
        so that the difference is told by how far the coefficients moved, and not the parameters.
        """
        there = [self._beside(point, direction) for direction in directions.T]
        outputs = _flat([p.outputs - point.outputs for p in there])
        moved = _flat([p.alpha - point.alpha for p in there])
        made: Tensor = outputs @ torch.linalg.pinv(moved)
        return made

    def _beside(self, point: _Point, direction: Tensor) -> _Point:
        """Return a point a short step along a direction; backwards at an edge."""
        for reach in (self.rule.info.difference, -self.rule.info.difference):
            there = self._at(point.theta + reach * direction)
            if math.isfinite(there.loss):
                return there
        raise UserError(
            "Expected finite outputs beside the coefficients that were found but they are NaN or "
            f"infinite near {point.alpha.tolist()}; give a smaller b_max"
        )

    def _model(self, point: _Point, jacobian: Tensor) -> tuple[Tensor, Tensor]:
        """Return slope (r,) and curvature (r, r) of the loss for derivatives (Z, r) of outputs."""
        with torch.enable_grad():
            z = point.outputs.detach().clone().requires_grad_()
            gradient = self._derived(self.loss(z), z)
            columns = [column.to(z).view_as(z) for column in jacobian.T]
            bent = _flat([_along(gradient, column, z) for column in columns])
        curvature = jacobian.T @ bent
        return jacobian.T @ _flat([gradient])[:, 0], (curvature + curvature.T) / 2

    def _derived(self, value: Tensor, z: Tensor) -> Tensor:
        try:
            (gradient,) = torch.autograd.grad(value, z, create_graph=True)
        except RuntimeError as error:
            raise UserError(
                "Expected a loss that can be differentiated by the outputs, for "
                f"solver={GAUSS_NEWTON.name}, but got {error}; choose another solver"
            ) from error
        return gradient

    def _move(self, theta: Tensor) -> None:
        start = 0
        for tensor in self.state.parameters.values():
            tensor.copy_(theta[start : start + tensor.numel()].view_as(tensor))
            start += tensor.numel()


def _vector(parameters: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in parameters.values()])


def _row_space(movement: Tensor) -> Tensor:
    """Return an orthonormal basis (P, r) of the parameters that move the coefficients.

    Parameters in excess, as a bound beside every coefficient or logits that count up to a constant,
    then cost no pass.
    """
    _, values, basis = torch.linalg.svd(movement, full_matrices=False)
    kept = basis[values > _STILL * max(float(values[0]), 1e-300)].T
    # The sign of a singular vector means nothing: the largest entry is made positive.
    largest = kept.gather(0, kept.abs().argmax(0, keepdim=True))
    made: Tensor = kept * largest.sign()
    return made


def _secant(slopes: Tensor, old: _Point, new: _Point) -> Tensor:
    """Return the derivatives nearest to ``slopes`` that explain a step (Broyden 1965)."""
    moved = _flat([new.alpha - old.alpha])
    missing = _flat([new.outputs - old.outputs]) - slopes @ moved
    return slopes + missing @ moved.T / max(float(moved.square().sum()), 1e-300)


def _along(gradient: Tensor, column: Tensor, z: Tensor) -> Tensor:
    """Return the second derivative of the loss times a column; zero where it has none."""
    slope = (gradient * column).sum()
    if not slope.requires_grad:
        return torch.zeros_like(z)
    (found,) = torch.autograd.grad(slope, z, retain_graph=True, allow_unused=True)
    return torch.zeros_like(z) if found is None else found


def _flat(made: Sequence[Tensor]) -> Tensor:
    """Return tensors as the columns of a matrix, float64 on the CPU."""
    return torch.stack([tensor.detach().reshape(-1) for tensor in made], 1).double().cpu()
