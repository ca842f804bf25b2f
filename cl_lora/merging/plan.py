"""From adapters to an update: check everything, prepare once, combine for any coefficients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from cl_lora.adapters import (
    Adapter,
    BaseModel,
    Entry,
    LoRAFactors,
    common_base,
    entry_shape,
)
from cl_lora.adapters.entries import is_finite
from cl_lora.merging.kernels import LowRankSum
from cl_lora.merging.registry import (
    LARGEST,
    Differentiability,
    Kernel,
    differentiability,
    get_method,
    statistic_of,
    validate_method,
    variant_of,
)
from cl_lora.merging.spaces import Sources
from cl_lora.merging.update import Update, truncate_entry
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
        return self._rank is None and isinstance(self._kernel, LowRankSum) and self._kernel.apart

    @property
    def learnable(self) -> bool:
        """Whether the update has a gradient in the coefficients, to learn them by."""
        return self.differentiability != "no"

    @property
    def rank(self) -> int | None:
        """What every module's result is truncated to; None where nothing is."""
        return self._rank

    def exact(self) -> Plan:
        """Return the same plan without its truncation, for a caller that measures what it costs."""
        return replace(self, _rank=None)

    def combine(self, alpha: Tensor) -> Update:
        """Return the update for the coefficients; a gradient flows from it to ``alpha``.

        Args:
            alpha: float tensor (n,) for all modules, or (M, n) with one row per module in the
                order of :attr:`modules`; any sign.

        Raises:
            UserError: if the shape is neither, or a coefficient or the merge is not finite.
        """
        rows = self._rows(alpha)
        entries = {m: self._entry(m, row) for m, row in zip(self.modules, rows, strict=True)}
        if not alpha.requires_grad:  # while they are learned the loss is looked at
            for module, entry in entries.items():
                _check_merged(module, entry)
        return Update(entries, self.variant, alpha, self.base)

    def combine_module(self, module: str, alpha: Tensor) -> Entry:
        """Return the update of one module, so that a caller need not hold all of them.

        Args:
            module: one of :attr:`modules`.
            alpha: float tensor (n,).

        Raises:
            UserError: if there is no such module, the shape is wrong, or a coefficient or the
                merge is not finite.
        """
        if module not in self.modules:
            raise unknown_name("module of the plan", module, self.modules)
        if alpha.shape != (self.n,):
            raise UserError(
                f"Expected {self.n} coefficients, one per adapter, but got shape "
                f"{tuple(alpha.shape)}"
            )
        _check_finite(alpha)
        entry = self._entry(module, alpha)
        _check_merged(module, entry)
        return entry

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
            modules or shapes, ranks that differ where they may not, entries not finite, or a
            statistic that an adapter lacks.
    """
    complete = validate_method(method, space, options)
    info = get_method(method)
    sources = gather(adapters, seed, statistic_of(method, space, options))
    rank = complete["rank"]
    drawn = {"seed": seed} if info.random(complete) and seed is not None else {}
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


def gather(
    adapters: Sequence[Adapter], seed: int | None = None, statistic: str | None = None
) -> Sources:
    """Check that adapters fit each other and turn them around: module -> its n entries.

    Half precision is raised to float32; gradients are cut. What an adapter reads only when it is
    asked for is looked at one tensor at a time, and never kept.

    Args:
        adapters: n adapters, or fully fine-tuned models, of the same modules.
        seed: of the run.
        statistic: name of the statistic that every adapter must have.

    Raises:
        UserError: if there are no adapters or modules, modules or shapes differ, an entry is not
            finite, or a statistic is missing.
    """
    if not adapters:
        raise UserError("Expected at least one adapter to merge but got none; give some")
    first = adapters[0]
    if not first.entries:
        raise UserError(
            f"Expected adapter {first.name!r} to have modules but it has none; train it"
        )
    dtype = torch.float32
    ranks: dict[str, list[int]] = {module: [] for module in first.entries}
    shapes: dict[str, tuple[int, ...]] = {}
    for adapter in adapters:
        _check_modules(adapter, first)
        for module, entry in adapter.entries.items():
            _check_entry(adapter, module, entry, first, shapes)
            dtype = torch.promote_types(dtype, _dtype(entry))
            if isinstance(entry, LoRAFactors):
                ranks[module].append(entry.rank)
            elif entry.ndim == 2:
                ranks[module].append(min(entry.shape))
    return Sources(
        _Turned(adapters, dtype),
        len(adapters),
        dtype,
        seed,
        () if statistic is None else tuple(_statistic(a, statistic) for a in adapters),
        {module: tuple(found) for module, found in ranks.items()},
    )


class _Turned(Mapping[str, tuple[Entry, ...]]):
    """Adapters as module -> entries, each read and cast when it is asked for."""

    def __init__(self, adapters: Sequence[Adapter], dtype: torch.dtype) -> None:
        self._adapters, self._dtype = adapters, dtype

    def __getitem__(self, module: str) -> tuple[Entry, ...]:
        return tuple(_cast(adapter.entries[module], self._dtype) for adapter in self._adapters)

    def __iter__(self) -> Iterator[str]:
        return iter(self._adapters[0].entries)

    def __len__(self) -> int:
        return len(self._adapters[0].entries)


def _statistic(adapter: Adapter, name: str) -> Mapping[str, Tensor]:
    if name not in adapter.statistics:
        raise UserError(
            f"Expected adapter {adapter.name!r} to have the statistic {name!r} but it has "
            f"{', '.join(adapter.statistics) or 'none'}; merge it in a run, which gathers it, or "
            "choose a method that needs no data"
        )
    return adapter.statistics[name]


def _check_modules(adapter: Adapter, first: Adapter) -> None:
    odd = sorted(set(first.entries) ^ set(adapter.entries))
    if odd:
        has, lacks = (first, adapter) if odd[0] in first.entries else (adapter, first)
        raise UserError(
            f"Expected adapters of the same modules but {has.name!r} has {odd[0]!r} and "
            f"{lacks.name!r} lacks it; merge adapters trained with the same targets"
        )


def _check_entry(
    adapter: Adapter,
    module: str,
    entry: Entry,
    first: Adapter,
    shapes: dict[str, tuple[int, ...]],
) -> None:
    shape = entry_shape(entry)
    if shapes.setdefault(module, shape) != shape:
        raise UserError(
            f"Expected updates of one shape but module {module!r} has {shapes[module]} in "
            f"{first.name!r} and {shape} in {adapter.name!r}; merge adapters of the same backbone"
        )
    if not is_finite(entry):
        raise UserError(
            f"Expected finite factors but module {module!r} of adapter {adapter.name!r} holds "
            "NaN or infinity; train it again with a smaller learning rate"
        )


def _dtype(entry: Entry) -> torch.dtype:
    if isinstance(entry, LoRAFactors):
        return torch.promote_types(entry.A.dtype, entry.B.dtype)
    return entry.dtype


def _cast(entry: Entry, dtype: torch.dtype) -> Entry:
    if isinstance(entry, LoRAFactors):
        return LoRAFactors(entry.A.detach().to(dtype), entry.B.detach().to(dtype), entry.scaling)
    return entry.detach().to(dtype)


def _check_merged(module: str, entry: Entry) -> None:
    if not is_finite(entry):
        raise UserError(
            f"Expected a finite merge but that of module {module!r} holds NaN or infinity; choose "
            "smaller coefficients, or adapters with smaller weights"
        )


def _check_finite(alpha: Tensor) -> None:
    if not alpha.isfinite().all():
        raise UserError(
            f"Expected finite coefficients but {int((~alpha.isfinite()).sum())} of "
            f"{alpha.numel()} are NaN or infinite; give numbers, or lower the learning rate if "
            "they were learned"
        )
