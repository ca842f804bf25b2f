"""Groups of modules that share coefficients: all, those of a layer, or each its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cl_lora.support.errors import UserError, unknown_name

# The lists of layers in the usual models; a layer of a stage (Swin) carries the stage's number too,
# and one of two towers (T5, BART) its tower, because layer 3 of the encoder is not the decoder's.
_LAYER = re.compile(
    r"(?:^|\.)((?:(?:encoder|decoder)\.)?(?:(?:stages|layers)\.\d+\.)?"
    r"(?:blocks|block|layers|layer|resblocks|h|stages)\.\d+)(?:\.|$)"
)
ALL = "all"
"""The group of all modules, where coefficients are those of whole adapters."""
OUTSIDE = "outside"
"""The group of the modules that lie in no layer."""


def _by_adapter(module: str) -> str:
    return ALL


def _by_layer(module: str) -> str:
    layer = _LAYER.search(module)
    return layer[1] if layer else OUTSIDE


def _by_module(module: str) -> str:
    return module


GRANULARITIES: Mapping[str, Callable[[str], str]] = {
    "adapter": _by_adapter,
    "layer": _by_layer,
    "module": _by_module,
}


def module_groups(granularity: str, modules: Iterable[str]) -> list[str]:
    """Return for each module the name of the group that shares coefficients.

    >>> module_groups("layer", ["blocks.3.attn.q", "bert.encoder.layer.11.output.dense", "head"])
    ['blocks.3', 'encoder.layer.11', 'outside']

    Args:
        granularity: ``adapter`` (one group), ``layer`` (by the index in a list of layers, such as
            ``blocks.3.``, ``layers.3.``, ``h.3.`` or ``encoder.layer.3.`` in a module's name; all
            modules outside a layer form the group ``outside``) or ``module`` (each its own).
        modules: module names.

    Raises:
        UserError: for an unknown granularity, or for ``layer`` if no module lies in a layer.
    """
    if granularity not in GRANULARITIES:
        raise unknown_name("granularity", granularity, GRANULARITIES)
    names = list(modules)
    groups = [GRANULARITIES[granularity](module) for module in names]
    if granularity == "layer" and set(groups) <= {OUTSIDE}:
        raise UserError(
            "Expected modules that lie in layers, as blocks.3.fc or encoder.layer.3.fc, for "
            f"granularity 'layer' but none of these has a layer's index: {', '.join(names[:3])}; "
            "use granularity adapter or module"
        )
    return groups


@dataclass(frozen=True)
class Rows:
    """How the rows of a (G, n) tensor of grouped coefficients go to modules."""

    count: int
    index: Tensor | None

    def spread(self, grouped: Tensor) -> Tensor:
        """Return (G, n) as (M, n), or as (n,) if there is one group by design."""
        return grouped[0] if self.index is None else grouped[self.index]

    def collect(self, spread: Tensor) -> Tensor:
        """Return (M, n) or (n,) as (G, n): the opposite of :meth:`spread`.

        Of the modules of a group the last counts.
        """
        if self.index is None:
            return spread.reshape(-1, spread.shape[-1])[:1]
        rows = spread.expand(len(self.index), spread.shape[-1])
        return rows.new_zeros(self.count, spread.shape[-1]).index_copy(0, self.index, rows)


def group_rows(granularity: str, modules: Sequence[str]) -> Rows:
    """Return how grouped coefficients go to ``modules``; errors as :func:`module_groups`."""
    if granularity == "adapter":
        return Rows(1, None)
    groups = module_groups(granularity, modules)
    order = {name: row for row, name in enumerate(dict.fromkeys(groups))}
    return Rows(len(order), torch.tensor([order[name] for name in groups]))
