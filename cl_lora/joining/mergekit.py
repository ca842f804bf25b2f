"""Which of mergekit's methods are computed here, and as what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_DARE = (
    "Entries are dropped by this package's own generator and the rest divided by the density, as "
    "the paper does (Yu et al. 2024); recent versions of mergekit restore the sum of magnitudes.",
)
_CONSENSUS: Mapping[bool, Mapping[str, Any]] = {
    True: {"sign": "weighted", "divisor": "weight_sum"},
    False: {"sign": "weighted", "divisor": "none"},
}


@dataclass(frozen=True)
class Spelling:
    """A method as a recipe names it, in the words of this package.

    Attributes:
        method: what computes it.
        normalize: whether ``normalize`` is on by default.
        chosen: normalize -> the options that follow from it.
        divides: whether normalize divides the weights by their sum; else the options do it.
        counts_base: whether the base model's own weight, where it is listed, is in that sum.
        refused: normalize -> why that is not computed here.
        density: the density where none is given; None leaves it to the method.
        rescales: whether entries that are kept make up for the others.
        notes: what a reader of the result should know.
    """

    method: str
    normalize: bool = False
    chosen: Mapping[bool, Mapping[str, Any]] = field(default_factory=lambda: {True: {}, False: {}})
    divides: bool = True
    counts_base: bool = False
    refused: Mapping[bool, str] = field(default_factory=dict)
    density: float | None = None
    rescales: bool = False
    notes: tuple[str, ...] = ()


SPELLINGS: Mapping[str, Spelling] = {
    "linear": Spelling(
        "linear",
        normalize=True,
        counts_base=True,
        refused={
            False: "it scales the base model too, which is not merged here; use task_arithmetic, "
            "which adds weighted updates to the base as it is"
        },
    ),
    "task_arithmetic": Spelling("task_arithmetic"),
    "ties": Spelling("ties", normalize=True, chosen=_CONSENSUS, divides=False, density=1.0),
    "dare_linear": Spelling("dare_linear", density=1.0, rescales=True, notes=_DARE),
    "dare_ties": Spelling(
        "dare_ties", chosen=_CONSENSUS, divides=False, density=1.0, rescales=True, notes=_DARE
    ),
}
"""Methods of mergekit that are the same computation here."""

_SPHERE = "it goes along a sphere and not along a line"
_ROWS = "it drops entries by their rank within a row"
_OUTLIERS = "it drops the largest entries too"
OTHERS: Mapping[str, str] = {
    "slerp": _SPHERE,
    "nuslerp": _SPHERE,
    "multislerp": _SPHERE,
    "karcher": _SPHERE,
    "della": _ROWS,
    "della_linear": _ROWS,
    "breadcrumbs": _OUTLIERS,
    "breadcrumbs_ties": _OUTLIERS,
    "sce": "it weighs matrices by the variance of their entries",
    "model_stock": "it interpolates by the angles between whole models",
    "nearswap": "it swaps the entries of two whole models that are near each other",
    "arcee_fusion": "it selects entries by the importance of their change",
    "passthrough": "it stacks layers of models",
    "lrp": "it needs relevance scores of the weights",
}
"""Methods of mergekit that this package has not."""
