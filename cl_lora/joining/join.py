"""Merging a module at a time: from open inputs to a folder, with nothing held but one module."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cl_lora.adapters import Adapter, Entry, LoRAFactors, entry_delta, entry_shape
from cl_lora.joining.card import merge_card, record
from cl_lora.joining.inputs import Inputs
from cl_lora.joining.joined import Joined, Module
from cl_lora.joining.outputs import (
    Target,
    checkpoint_order,
    checkpoint_target,
    delta_target,
    peft_target,
)
from cl_lora.joining.recipe import Recipe
from cl_lora.joining.sizes import fits, how_large
from cl_lora.merging import Plan, prepare, validate_method
from cl_lora.merging.depths import depths
from cl_lora.merging.geometry import inner
from cl_lora.merging.registry import get_method
from cl_lora.merging.update import exact_factors, truncate_entry
from cl_lora.support import files, progress
from cl_lora.support.errors import UserError


def join(
    recipe: Recipe,
    inputs: Inputs,
    out: Path,
    *,
    dense: bool = False,
    delta: bool = False,
    head: bool = True,
) -> Joined:
    """Merge and write, a module at a time; the folder is whole or not there.

    Args:
        recipe: how.
        inputs: what, opened.
        out: a folder that does not exist.
        dense: whether a dense update of adapters may be written as factors of full rank.
        delta: whether of whole models only the merged difference is written, without the base.
        head: whether what was trained beside the adapters is merged too.

    Raises:
        UserError: for what does not fit together, before anything is written; if the result is
            dense and nothing says how to write it; if the disk refuses.
    """
    check_out(out, inputs.paths + ((recipe.base,) if recipe.base and inputs.checkpoint else ()))
    _check_choices(recipe, inputs, dense, delta)
    schedule = _schedule(recipe, inputs)
    heads = _heads(recipe, inputs) if head else {}
    rank = _rank(schedule.plans)
    dtype = recipe.dtype
    if dtype is None and inputs.checkpoint is None:
        dtype = inputs.stored_dtype()
    names = tuple(checkpoint_order(inputs, dtype) if inputs.checkpoint else schedule.modules)
    target: Target
    with files.whole_folder(out) as folder:
        if inputs.low_rank:
            assert dtype is not None
            target = peft_target(folder, names, heads, inputs, dtype, recipe.dtype)
        elif inputs.checkpoint is not None and not delta:
            target = checkpoint_target(folder, inputs, dtype)
        else:
            target = delta_target(folder, names, heads, inputs, dtype)
        with target as writer:
            modules = []
            written = _Writing(recipe, inputs, rank, dense, writer.add)
            for name in progress.track(names, "Merging", len(names)):
                modules.append(written.module(name, schedule))
        joined = Joined(
            folder=out,
            recipe=recipe,
            names=tuple(adapter.name for adapter in inputs.adapters),
            modules=tuple(modules),
            weights=tuple(tuple(schedule.weights[name].tolist()) for name in names),
            variant=_variant(schedule.plans.values()),
            rank=rank,
            dtype=dtype,
            delta=not inputs.low_rank and (delta or inputs.checkpoint is None),
            head=tuple(heads),
            parameters=writer.numbers,
            size=writer.size,
            notes=(*recipe.notes, *inputs.notes, *written.notes()),
        )
        files.write_json(folder / "training.json", {**record(joined, inputs), **writer.listed})
        files.write_text(folder / "README.md", merge_card(joined, inputs))
    return joined


def check_out(out: Path, inputs: Iterable[Path]) -> None:
    """Check that a result may be written to a folder.

    Raises:
        UserError: if it exists, is one of the inputs, or lies inside one.
    """
    try:
        real, there = out.resolve(), out.exists()
    except (OSError, RuntimeError, ValueError) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(
            f"Expected --out to be a new folder but {str(out)[:200]!r} cannot be one ({why}); "
            "choose another name"
        ) from error
    for path in inputs:
        source = path.resolve()
        if real == source:
            raise UserError(
                f"Expected --out to be a new folder but {out} is one of the inputs; choose another "
                "name"
            )
        if source in real.parents:
            raise UserError(
                f"Expected --out to be a new folder but {out} lies inside {path}, one of the "
                "inputs; choose another place"
            )
    if there:
        raise UserError(
            f"Expected --out to be a new folder but {out} exists; delete it or choose another name"
        )


@dataclass(frozen=True, eq=False)
class _Schedule:
    """Which plan merges a module, and by which coefficients.

    Attributes:
        plans: one for all modules with the same options.
        modules: module -> the key of its plan.
        weights: module -> coefficients (n,).
    """

    plans: Mapping[str, Plan]
    modules: Mapping[str, str]
    weights: Mapping[str, Tensor]


class _Some(Mapping[str, Any]):
    """Some entries of a mapping, read when they are asked for."""

    def __init__(self, whole: Mapping[str, Any], names: Mapping[str, None]) -> None:
        self._whole, self._names = whole, names

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        return self._whole[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _check_choices(recipe: Recipe, inputs: Inputs, dense: bool, delta: bool) -> None:
    if recipe.rank is not None and dense:
        raise UserError("--rank cuts the update and --dense keeps all of it; give one of the two")
    if inputs.low_rank:
        if delta:
            raise UserError(
                "--delta is for models that were fine-tuned as a whole, with --base; leave it out"
            )
        return
    if recipe.rank is not None or get_method(recipe.method).options["rank"].default is not None:
        raise UserError(
            "Expected a merge of whole models without a rank, which cuts low-rank factors; choose "
            "another method or leave --rank out"
        )


def _schedule(recipe: Recipe, inputs: Inputs) -> _Schedule:
    first = inputs.adapters[0].entries
    parameters = {entry: inputs.parameter(entry) for entry in first}
    places = depths(parameters.values())
    groups: dict[str, dict[str, None]] = {}
    options: dict[str, dict[str, Any]] = {}
    modules, weights = {}, {}
    for entry, parameter in parameters.items():
        weights[entry] = recipe.weights_at(parameter, places[parameter])
        chosen = recipe.options_at(parameter, places[parameter])
        key = repr(sorted(chosen.items()))
        if key not in options:
            complete = validate_method(recipe.method, recipe.space, chosen)
            if options and get_method(recipe.method).across_modules(complete):
                raise UserError(
                    f"Expected one density for all modules but {parameter!r} has another, and "
                    f"method {recipe.method!r} looks at all modules together; give one, or trim "
                    "each tensor by itself"
                )
        options[key] = chosen
        groups.setdefault(key, {})[entry] = None
        modules[entry] = key
    # Modules that only some adapters have are found by the check of the first plan.
    _require_same_modules(inputs.adapters)
    plans = {
        key: prepare(
            [_only(adapter, group) for adapter in inputs.adapters],
            recipe.method,
            space=recipe.space,
            rank=recipe.rank,
            **options[key],
        )
        for key, group in groups.items()
    }
    return _Schedule(plans, modules, weights)


def _only(adapter: Adapter, modules: Mapping[str, None]) -> Adapter:
    if len(modules) == len(adapter.entries):
        return adapter
    return replace(
        adapter,
        factors=_Some(adapter.factors, modules) if adapter.factors else {},
        deltas=_Some(adapter.deltas, modules) if adapter.deltas else {},
    )


def _require_same_modules(adapters: tuple[Adapter, ...]) -> None:
    first = adapters[0]
    for adapter in adapters[1:]:
        odd = sorted(set(first.entries) ^ set(adapter.entries))
        if odd:
            has, lacks = (first, adapter) if odd[0] in first.entries else (adapter, first)
            raise UserError(
                f"Expected adapters of the same modules but {has.name!r} has {odd[0]!r} and "
                f"{lacks.name!r} lacks it; merge adapters trained with the same targets"
            )


def _rank(plans: Mapping[str, Plan]) -> int | None:
    """Return what every module is truncated to: as asked for, or as the method does."""
    ranks = [plan.rank for plan in plans.values() if plan.rank is not None]
    return max(ranks, default=None)


def _variant(plans: Iterable[Plan]) -> dict[str, Any]:
    """Return what defines the method; of what differs by module, that it does."""
    first, *others = (plan.variant for plan in plans)
    return {
        key: value if all(other[key] == value for other in others) else "by module"
        for key, value in first.items()
    }


def _heads(recipe: Recipe, inputs: Inputs) -> dict[str, Callable[[], Tensor]]:
    """Return what makes each parameter beside the modules: the sum with the same coefficients.

    Raises:
        UserError: if only some adapters have it, or shapes differ.
    """
    heads, names = inputs.heads, [adapter.name for adapter in inputs.adapters]
    found: dict[str, Callable[[], Tensor]] = {}
    for i, head in enumerate(heads):
        for name in head.tensors:
            lacking = [names[j] for j, other in enumerate(heads) if name not in other.tensors]
            if lacking:
                raise UserError(
                    f"Expected all adapters to have trained {name!r}, but {names[i]!r} has it and "
                    f"{lacking[0]!r} lacks it; give --no-head to merge the adapters without it"
                )
    places = depths(heads[0].tensors)
    for name in heads[0].tensors:
        shapes = [tuple(head.tensors[name].shape) for head in heads]
        if len(set(shapes)) > 1:
            other = next(j for j, shape in enumerate(shapes) if shape != shapes[0])
            raise UserError(
                f"Expected one shape of {name!r} but it has {shapes[0]} in {names[0]!r} and "
                f"{shapes[other]} in {names[other]!r}, as heads of other classes do; give "
                "--no-head to merge the adapters without it"
            )
        for head, owner in zip(heads, names, strict=True):
            if not head.tensors[name].isfinite().all():
                raise UserError(
                    f"Expected finite numbers but {name!r} of adapter {owner!r} holds NaN or "
                    "infinity; train it again with a smaller learning rate"
                )
        found[name] = _head_sum(inputs, name, recipe.weights_at(name, places[name]))
    return found


def _head_sum(inputs: Inputs, name: str, weights: Tensor) -> Callable[[], Tensor]:
    def total() -> Tensor:
        first = inputs.heads[0].tensors[name]
        if not first.is_floating_point():
            for head in inputs.heads[1:]:
                if not torch.equal(first, head.tensors[name]):
                    raise UserError(
                        f"Expected {name!r}, which holds no floating-point numbers, to be the same "
                        "in all adapters; give --no-head to merge the adapters without it"
                    )
            return first
        sums = torch.zeros(first.shape, dtype=torch.float64)
        for weight, head in zip(weights.tolist(), inputs.heads, strict=True):
            sums += weight * head.tensors[name].double()
        return sums

    return total


class _Writing:
    """Merges modules one after the other and hands them on to what writes them."""

    def __init__(
        self,
        recipe: Recipe,
        inputs: Inputs,
        rank: int | None,
        dense: bool,
        add: Callable[[str, Entry], Entry],
    ) -> None:
        self._recipe, self._inputs, self._rank, self._allowed = recipe, inputs, rank, dense
        self._add = add
        self.dense = self.dense_numbers = self.weight_numbers = 0
        self.full = 0

    def module(self, name: str, schedule: _Schedule) -> Module:
        """Merge and write one module."""
        weights = schedule.weights[name]
        squares = tuple(
            self._measured(adapter, name, weight)
            for adapter, weight in zip(self._inputs.adapters, weights.tolist(), strict=True)
        )
        plan = schedule.plans[schedule.modules[name]].exact()
        merged = _scaled(plan.combine_module(name, weights), self._recipe.scale)
        entry = self._reduced(name, merged) if self._inputs.low_rank else merged
        written = self._add(name, entry)
        square = _square(merged)
        if not fits(written) or not math.isfinite(square):
            raise UserError(
                f"Expected a finite merge but that of module {name!r} is beyond what its precision "
                "holds; give smaller weights, or another method"
            )
        same = written is merged
        return Module(
            name,
            entry_shape(merged),
            written.rank if isinstance(written, LoRAFactors) else None,
            squares,
            square,
            0.0 if same else _difference(merged, written),
        )

    def _measured(self, adapter: Adapter, name: str, weight: float) -> float:
        """Return the squared norm of one update, which must be finite, weighted and not."""
        entry = adapter.entries[name]
        for factor in (1.0, weight * self._recipe.scale):
            if not fits(entry, factor):
                raise UserError(
                    f"Expected finite updates but that of module {name!r} in adapter "
                    f"{adapter.name!r}, {how_large(entry)} and weighted by {weight:.4g}, is "
                    "beyond what its precision holds; give a smaller weight, or leave it out"
                )
        return _square(entry)

    def notes(self) -> Iterator[str]:
        """Yield what a reader should know of how modules were written."""
        if self.dense:
            yield (
                f"{self.dense} modules are dense and were written as factors of full rank, "
                f"{self.dense_numbers:,} numbers, where the weights themselves have "
                f"{self.weight_numbers:,}; --rank R makes them smaller."
            )
        if self.full:
            yield (
                f"In {self.full} modules the ranks add up to the full rank; --rank R makes them "
                "smaller."
            )

    def _reduced(self, name: str, entry: Entry) -> LoRAFactors:
        most = min(entry_shape(entry))
        if self._rank is not None:
            return exact_factors(truncate_entry(_precise(entry), min(self._rank, most)))
        if isinstance(entry, LoRAFactors):
            if entry.rank <= most:
                return entry
            self.full += 1
            return exact_factors(truncate_entry(_precise(entry), most))
        if not self._allowed:
            d_out, d_in = entry.shape
            raise UserError(
                f"The result is dense (e.g. in {name!r}): method {self._recipe.method!r} in space "
                f"{self._recipe.space!r} gives no low-rank factors; give --rank R for the best "
                f"approximation of rank R, or --dense for factors of full rank ({most} in "
                f"{name!r}: {most * (d_out + d_in):,} numbers)"
            )
        self.dense += 1
        factors = exact_factors(entry)
        self.dense_numbers += factors.A.numel() + factors.B.numel()
        self.weight_numbers += entry.numel()
        return factors


def _precise(entry: Entry) -> Entry:
    # Small factors cost nothing in float64; a dense matrix would take twice the time and memory.
    if isinstance(entry, LoRAFactors):
        return LoRAFactors(entry.A.double(), entry.B.double(), entry.scaling)
    return entry


def _scaled(entry: Entry, scale: float) -> Entry:
    if scale == 1:
        return entry
    if isinstance(entry, LoRAFactors):
        return replace(entry, scaling=entry.scaling * scale)
    return entry * scale


def _square(entry: Entry) -> float:
    if isinstance(entry, LoRAFactors):
        return max(0.0, inner(entry, entry))
    return float(torch.linalg.vector_norm(entry, dtype=torch.float64)) ** 2


def _difference(merged: Entry, written: Entry) -> float:
    """Return the squared Frobenius norm of what is missing in what was written."""
    if isinstance(merged, LoRAFactors) and isinstance(written, LoRAFactors):
        crossed = inner(merged, merged) - 2 * inner(merged, written) + inner(written, written)
        return max(0.0, crossed)
    exact = entry_delta(merged)
    if isinstance(written, LoRAFactors):
        written = LoRAFactors(written.A.to(exact.dtype), written.B.to(exact.dtype), written.scaling)
    return _square(entry_delta(written) - exact)
