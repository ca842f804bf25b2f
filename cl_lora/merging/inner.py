"""A merge within a merge: a method that is chosen as an option, run on other forms of updates."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cl_lora.adapters import Entry
from cl_lora.merging.frames import Frame, deltas_of, is_matrix
from cl_lora.merging.registry import (
    Differentiability,
    Kernel,
    Linearity,
    MethodInfo,
    OptionSpec,
    check_options,
    get_method,
)
from cl_lora.merging.spaces import Sources
from cl_lora.support.errors import UserError, shown

INNER = "inner"


def inner_option(default: str, help: str) -> OptionSpec:
    """Return the option that names a method, or holds its name and options."""
    return OptionSpec(
        default,
        lambda value: isinstance(value, str) or (isinstance(value, Mapping) and "name" in value),
        "a merge method, or a mapping of its name and options, as {name: ties, density: 0.5}",
        help,
        complete=_complete,
    )


def _complete(value: str | Mapping[str, Any]) -> dict[str, Any]:
    given = {"name": value} if isinstance(value, str) else dict(value)
    name = str(given.pop("name"))
    info = get_method(name)
    if INNER in info.options or not info.data_free or info.options["rank"].default is not None:
        raise UserError(
            f"Expected {INNER} to be a merge method that needs no data, has no inner one itself "
            f"and truncates nothing but got {shown(name)}; choose such as ties or tsv_m"
        )
    if "rank" in given:
        raise UserError(
            f"Expected no rank among the options of {INNER}={name}; give it to the outer method, "
            "which truncates the result"
        )
    complete = check_options(f"{INNER} method {name!r}", info.options, given)
    return {"name": name, **{k: v for k, v in complete.items() if k != "rank"}}


def chosen(options: Mapping[str, Any]) -> tuple[MethodInfo, dict[str, Any]]:
    """Return the inner method and its complete options."""
    own = dict(options[INNER])
    return get_method(own.pop("name")), {**own, "rank": None}


@dataclass(frozen=True)
class AsInner(Linearity):
    """The linearity of a method that is linear exactly where its inner one is, in space delta."""

    text: str = "as the inner method in delta"
    holds: Callable[[str, Mapping[str, Any]], bool] = lambda space, options: False

    def of(self, space: str, options: Mapping[str, Any]) -> Differentiability:
        """Return what the inner method declares of its own options."""
        info, own = chosen(options)
        return "no" if options["rank"] is not None else info.linearity.of("delta", own)


AS_INNER: Mapping[str, Any] = {
    "linearity": AsInner(),
    "random": lambda options: _ask(options, "random"),
    "across_modules": lambda options: _ask(options, "across_modules"),
}
"""What a method declares that does as its inner one does."""


def _ask(options: Mapping[str, Any], what: str) -> bool:
    info, own = chosen(options)
    return bool(getattr(info, what)(own))


def inner_kernel(sources: Sources, options: Mapping[str, Any]) -> Kernel:
    """Return the inner method's kernel on some sources."""
    info, own = chosen(options)
    return info.prepare(sources, "delta", own)


class _Represented(Mapping[str, tuple[Entry, ...]]):
    """Module -> its updates in their frame, worked out when they are asked for."""

    def __init__(self, sources: Sources, frame: Callable[[str], Frame]) -> None:
        self._sources, self._frame = sources, frame

    def __getitem__(self, module: str) -> tuple[Entry, ...]:
        return tuple(self._frame(module).tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources.modules)

    def __len__(self) -> int:
        return len(self._sources.modules)


@dataclass(frozen=True, eq=False)
class Inside:
    """The inner method's merge of updates in frames, lifted again.

    Attributes:
        kernel: of the inner method.
        frame: module -> the frame.
        dtype: of the result.
    """

    kernel: Kernel
    frame: Callable[[str], Frame]
    dtype: torch.dtype

    def combine(self, module: str, alpha: Tensor) -> Entry:
        """Return the module's update, lifted."""
        return self.frame(module).lift(self.kernel.combine(module, alpha), self.dtype)

    def materialise(self) -> Inside:
        """Return the same with what the inner method keeps, and the frames, in memory."""
        return Inside(self.kernel.materialise(), functools.cache(self.frame), self.dtype)


def inside(
    sources: Sources, options: Mapping[str, Any], frame: Callable[[Sources, str], Frame]
) -> Inside:
    """Return the merge of the inner method in frames; what is no matrix is merged as it is.

    Args:
        sources: the adapters.
        options: of the outer method.
        frame: what makes the frame of one module of matrices.
    """

    def of(module: str) -> Frame:
        return (frame if is_matrix(sources, module) else deltas_of)(sources, module)

    # The inner method asks for a module several times in a row.
    latest = functools.lru_cache(maxsize=1)(of)
    represented = Sources(_Represented(sources, latest), sources.n, torch.float64, sources.seed)
    return Inside(inner_kernel(represented, options), latest, sources.dtype)
