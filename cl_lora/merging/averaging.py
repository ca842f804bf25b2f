"""What averages weighted by a statistic share: shares of the models, and the plain mean."""

from __future__ import annotations

from torch import Tensor

from cl_lora.adapters import Entry
from cl_lora.merging.kernels import LowRankSum
from cl_lora.merging.spaces import Sources
from cl_lora.support.errors import UserError


def require_shares(alpha: Tensor, method: str) -> None:
    """Check that coefficients can be shares of an average: only their ratios count.

    Args:
        alpha: (n,).
        method: whose they are, for the message.

    Raises:
        UserError: if one is negative, or all are zero.
    """
    if bool((alpha < 0).any()) or not bool((alpha > 0).any()):
        raise UserError(
            f"Expected coefficients of method {method!r} to be shares, at least 0 and not all 0, "
            f"but got {[round(a, 4) for a in alpha.tolist()]}; give such numbers, or learn them by "
            "a rule that keeps them above 0"
        )


def weighted_mean(sources: Sources, module: str, alpha: Tensor) -> Entry:
    """Return ``sum_i alpha_i dW_i / sum_i alpha_i`` of one module, low-rank where all are."""
    return LowRankSum(sources).combine(module, alpha / alpha.sum())


def statistics_of(sources: Sources, module: str, name: str) -> tuple[Tensor, ...]:
    """Return the statistics of one module, one for each model; none where no model has one.

    Args:
        sources: the models.
        module: the module.
        name: of the statistic, for messages.

    Raises:
        UserError: if some models have one and others do not, or one holds NaN or infinity.
    """
    found = [module in each for each in sources.statistics]
    if not any(found):
        return ()
    if not all(found):
        raise UserError(
            f"Expected the statistic {name!r} of module {module!r} from every model or from none "
            f"but number {found.index(False)} of {len(found)} lacks it; gather it again"
        )
    tensors = tuple(each[module] for each in sources.statistics)
    for i, tensor in enumerate(tensors):
        if not bool(tensor.isfinite().all()):
            raise UserError(
                f"Expected a finite statistic {name!r} but that of module {module!r} of model "
                f"number {i} holds NaN or infinity; gather it again with precision=fp32"
            )
    return tensors


def check_shape(tensor: Tensor, shape: tuple[int, ...], module: str, name: str) -> None:
    """Check that a statistic belongs to a module.

    Raises:
        UserError: if it has another shape.
    """
    if tuple(tensor.shape) != shape:
        raise UserError(
            f"Expected the statistic {name!r} of module {module!r} to be {shape} but it is "
            f"{tuple(tensor.shape)}; gather it again for this adapter"
        )
