"""Groups of modules that share coefficients: all, those of a layer, or each its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cl_lora.support.errors import unknown_name

_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")


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
class Rows:
    """How the rows of a (G, n) tensor of grouped coefficients go to modules."""

    count: int
    index: Tensor | None

    def spread(self, grouped: Tensor) -> Tensor:
        """Return (G, n) as (M, n), or as (n,) if there is one group by design."""
        return grouped[0] if self.index is None else grouped[self.index]


def group_rows(granularity: str, modules: Sequence[str]) -> Rows:
    """Return how grouped coefficients go to ``modules``; errors as :func:`module_groups`."""
    if granularity == "adapter":
        return Rows(1, None)
    groups = module_groups(granularity, modules)
    order = {name: row for row, name in enumerate(dict.fromkeys(groups))}
    return Rows(len(order), torch.tensor([order[name] for name in groups]))
