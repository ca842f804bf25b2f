"""From adapters to an update: check everything, prepare once, combine for any coefficients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from cl_lora.adapters import Adapter, BaseModel, LoRAFactors, common_base
from cl_lora.merging.kernels import LowRankSum
from cl_lora.merging.registry import (
    LARGEST,
    Differentiability,
    Kernel,
    differentiability,
    get_method,
    validate_method,
    variant_of,
)
from cl_lora.merging.spaces import Sources
from cl_lora.merging.update import Entry, Update, truncate_entry
from cl_lora.support.errors import UserError, unknown_name


@dataclass(frozen=True, eq=False)
class Plan:
    """A merge with everything settled but the coefficients.

    A plan is lazy: ``combine`` computes module after module and holds the dense deltas of one
    module at a time, unless the plan is materialised.

    Attributes:
        modules: the names of the modules, in the order of the adapters.
        n: the number of adapters.
        differentiability: how the update depends on the coefficients.
        variant: everything that defines the result beside adapters and coefficients; see
            :func:`~cl_lora.merging.variant_of`.
        base: what all adapters say of the model they were trained on.
    """

    modules: tuple[str, ...]
    n: int
    differentiability: Differentiability
    variant: dict[str, Any]
    _kernel: Kernel = field(repr=False)
    _rank: int | None = field(default=None, repr=False)
    base: BaseModel = field(default_factory=BaseModel)

    @property
    def linear(self) -> bool:
        """Whether the update is linear in the coefficients."""
        return self.differentiability == "linear"

    @property
    def plain_sum(self) -> bool:
        """Whether the update is ``sum_i alpha_i s_i B_i A_i``, so that adapters may stay apart."""
        return self._rank is None and isinstance(self._kernel, LowRankSum)

    @property
    def learnable(self) -> bool:
        """Whether the update has a gradient in the coefficients, to learn them by."""
        return self.differentiability != "no"

    def combine(self, alpha: Tensor) -> Update:
        """Return the update for the coefficients; a gradient flows from it to ``alpha``.

        Args:
            alpha: float tensor (n,) for all modules, or (M, n) with one row per module in the
                order of :attr:`modules`; any sign.

        Raises:
            UserError: if the shape is neither, or a coefficient is not finite.
        """
        rows = self._rows(alpha)
        entries = {m: self._entry(m, row) for m, row in zip(self.modules, rows, strict=True)}
        return Update(entries, self.variant, alpha, self.base)

    def combine_module(self, module: str, alpha: Tensor) -> Entry:
        """Return the update of one module, so that a caller need not hold all of them.

        Args:
            module: one of :attr:`modules`.
            alpha: float tensor (n,).

        Raises:
            UserError: if there is no such module, the shape is wrong, or a coefficient is not
                finite.
        """
        if module not in self.modules:
            raise unknown_name("module of the plan", module, self.modules)
        if alpha.shape != (self.n,):
            raise UserError(
                f"Expected {self.n} coefficients, one per adapter, but got shape "
                f"{tuple(alpha.shape)}"
            )
        _check_finite(alpha)
        return self._entry(module, alpha)

    def materialise(self) -> Plan:
        """Return the same plan with all in memory that does not depend on the coefficients.

        For learning them. Combining a linear plan is then a weighted sum; in any other only
        weights, signs elected after weighting and divisors are computed anew. Takes n dense deltas
        a module in space delta, the n factors in space factors, and the stacked factors of a sum.
        """
        return replace(self, _kernel=self._kernel.materialise())

    def _entry(self, module: str, alpha: Tensor) -> Entry:
        entry = self._kernel.combine(module, alpha)
        return entry if self._rank is None else truncate_entry(entry, self._rank)

    def _rows(self, alpha: Tensor) -> Tensor:
        whole, each = (self.n,), (len(self.modules), self.n)
        if tuple(alpha.shape) not in (whole, each):
            raise UserError(
                f"Expected coefficients of shape {whole} (one per adapter) or {each} (a row per "
                f"module) but got {tuple(alpha.shape)}; give as many as there are adapters"
            )
        _check_finite(alpha)
        return alpha.expand(each)


def prepare(
    adapters: Sequence[Adapter],
    method: str,
    *,
    space: str = "delta",
    seed: int | None = None,
    **options: Any,
) -> Plan:
    """Check everything and return the plan of a merge.

    Args:
        adapters: n adapters of the same modules; ranks may differ where the method allows it.
        method: name of a registered method; see :func:`cl_lora.merging.method_names`.
        space: ``delta`` (on s B A) or ``factors`` (on A and B apart, as peft).
        seed: the run's seed, which random methods draw by; the variant of a random method then
            holds it. None outside a run.
        **options: the method's options, and ``rank`` to truncate the result.

    Raises:
        UserError: for an unknown method, space or option, no adapters, adapters that differ in
            modules or shapes, ranks that differ where they may not, or factors not finite.
    """
    complete = validate_method(method, space, options)
    info = get_method(method)
    sources = gather(adapters, seed)
    rank = complete["rank"]
    drawn = {"seed": seed} if info.random and seed is not None else {}
    return Plan(
        modules=tuple(sources.modules),
        n=sources.n,
        differentiability=info.linearity.of(space, complete),
        variant={**variant_of(method, space, options), **drawn},
        _kernel=info.prepare(sources, space, complete),
        _rank=sources.largest_rank if rank == LARGEST else rank,
        base=common_base([adapter.base for adapter in adapters]),
    )


def merge(
    adapters: Sequence[Adapter],
    method: str = "task_arithmetic",
    weights: Sequence[float] | Tensor | None = None,
    *,
    space: str = "delta",
    rank: int | str | None = None,
    seed: int | None = None,
    **options: Any,
) -> Update:
    """Merge adapters into one update.

    >>> adapter = Adapter("one", {"fc": LoRAFactors(torch.ones(1, 3), torch.ones(2, 1), 2.0)})
    >>> merge([adapter, adapter], weights=[1.0, 0.5]).delta("fc")
    tensor([[3., 3., 3.],
            [3., 3., 3.]])

    Args:
        adapters: n adapters of the same modules.
        method: name of a registered method.
        weights: n coefficients of any sign; None gives each 1/n. Note that TIES already averages
            over the agreeing adapters: its papers use 1.
        space: ``delta`` or ``factors``.
        rank: truncate each module's result to this rank, or to ``largest``, that of the adapters.
        seed: the seed of the run whose masks are wanted; None draws by ``mask_seed`` alone.
        **options: the method's options.

    Raises:
        UserError: as :func:`prepare`, and for weights not finite or not n.
    """
    plan = prepare(adapters, method, space=space, seed=seed, rank=rank, **options)
    if weights is None:
        weights = [1 / plan.n] * plan.n
    alpha = torch.as_tensor(weights, dtype=torch.float64)
    if alpha.shape != (plan.n,):
        raise UserError(
            f"Expected {plan.n} weights, one per adapter, but got shape {tuple(alpha.shape)}"
        )
    return plan.combine(alpha)


def require_learnable(
    target: Plan | str, space: str = "delta", options: Mapping[str, Any] | None = None
) -> None:
    """Refuse to learn coefficients by gradient of a merge that has none.

    Args:
        target: a plan, or a method's name together with ``space`` and ``options``, to ask before
            there are adapters.
        space: the space, if ``target`` is a name.
        options: the options, if ``target`` is a name.

    Raises:
        UserError: if the merge is not differentiable; also as :func:`validate_method`.
    """
    if isinstance(target, Plan):
        method, space = target.variant["method"], target.variant["space"]
        learnable = target.learnable
    else:
        method, learnable = target, differentiability(target, space, options) != "no"
    if not learnable:
        raise UserError(
            f"Expected a merge that is differentiable in its coefficients, to learn them, but "
            f"method {method!r} in space {space!r} with these options is not (by gradient: "
            f"{get_method(method).linearity.learned_how}; never with rank); change the options, or "
            "use fixed coefficients or rule grid, which need no gradient"
        )


def gather(adapters: Sequence[Adapter], seed: int | None = None) -> Sources:
    """Check that adapters fit each other and turn them around: module -> its n factors.

    Half precision is raised to float32; gradients are cut.

    Raises:
        UserError: if there are no adapters or modules, modules or shapes differ, or a factor is
            not finite.
    """
    if not adapters:
        raise UserError("Expected at least one adapter to merge but got none")
    first = adapters[0]
    if not first.factors:
        raise UserError(f"Expected adapter {first.name!r} to have modules but it has none")
    for adapter in adapters:
        _check_fits(adapter, first)
    dtype = torch.float32
    for adapter in adapters:
        for f in adapter.factors.values():
            dtype = torch.promote_types(dtype, torch.promote_types(f.A.dtype, f.B.dtype))
    modules = {
        module: tuple(_cast(adapter.factors[module], dtype) for adapter in adapters)
        for module in first.factors
    }
    return Sources(modules, len(adapters), dtype, seed)


def _check_fits(adapter: Adapter, first: Adapter) -> None:
    odd = sorted(set(first.factors) ^ set(adapter.factors))
    if odd:
        has, lacks = (first, adapter) if odd[0] in first.factors else (adapter, first)
        raise UserError(
            f"Expected adapters of the same modules but {has.name!r} has {odd[0]!r} and "
            f"{lacks.name!r} lacks it; merge adapters trained with the same targets"
        )
    for module, f in adapter.factors.items():
        if f.shape != first.factors[module].shape:
            raise UserError(
                f"Expected updates of one shape but module {module!r} has "
                f"{first.factors[module].shape} in {first.name!r} and {f.shape} in "
                f"{adapter.name!r}; merge adapters of the same backbone"
            )
        if not (f.A.isfinite().all() and f.B.isfinite().all()):
            raise UserError(
                f"Expected finite factors but module {module!r} of adapter {adapter.name!r} holds "
                "NaN or infinity; train it again with a smaller learning rate"
            )


def _cast(f: LoRAFactors, dtype: torch.dtype) -> LoRAFactors:
    return LoRAFactors(f.A.detach().to(dtype), f.B.detach().to(dtype), f.scaling)


def _check_finite(alpha: Tensor) -> None:
    if not alpha.isfinite().all():
        raise UserError(
            f"Expected finite coefficients but {int((~alpha.isfinite()).sum())} of "
            f"{alpha.numel()} are NaN or infinite; give numbers, or lower the learning rate if "
            "they were learned"
        )
