"""The rows in which coefficients are written down: one for each group of modules."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cl_lora.merging.coefficients.groups import ALL
from cl_lora.merging.coefficients.registry import CoefficientRule


def coefficient_rows(
    rule: CoefficientRule, alpha: Tensor, modules: Sequence[str]
) -> list[tuple[str, Tensor]]:
    """Return (group, coefficients (n,)) for every group, in the order of the modules.

    Coefficients of shape (n,) are the one group ``all``. A row per module, (M, n), goes by the
    groups of the rule; where modules of one group have different coefficients after all, each
    module is a group, so that nothing is lost.

    Args:
        rule: the rule that made the coefficients.
        alpha: float tensor (n,) or (M, n).
        modules: the M module names.
    """
    if alpha.ndim == 1:
        return [(ALL, alpha)]
    rows: dict[str, Tensor] = {}
    for group, row in zip(rule.groups(modules), alpha, strict=True):
        if not rows.setdefault(group, row).equal(row):
            return list(zip(modules, alpha, strict=True))
    return list(rows.items())
