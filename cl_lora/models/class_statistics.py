"""Statistics by class that need no image later: of features under an adapter, and of styles.

A tensor is called ``<experience>/<what>``: one adapter may have been trained on several.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from torch import Tensor

from cl_lora.models.compute import Batch
from cl_lora.models.gaussians import Moments
from cl_lora.models.routing import default_block, styles
from cl_lora.models.statistics import TRAIN, Observed, Sums, register_statistic, require_eval
from cl_lora.models.weights import changed
from cl_lora.support.errors import UserError

log = logging.getLogger(__name__)

FEATURES, ROUTER = "features", "router"


class MomentsByExperience:
    """Moments of each experience apart."""

    def __init__(self, of: Mapping[int, Moments]) -> None:
        self._of = dict(of)

    def merge(self, other: Sums) -> None:
        """Add all that another pass has summed."""
        assert isinstance(other, MomentsByExperience)
        for experience, moments in other._of.items():
            if experience in self._of:
                self._of[experience].merge(moments)
            else:
                self._of[experience] = moments

    def result(self) -> dict[str, Tensor]:
        """Return counts, means and covariances by name; see :meth:`Moments.result`."""
        return {
            f"{experience}/{what}": tensor
            for experience, moments in sorted(self._of.items())
            for what, tensor in moments.result().items()
        }


def results_of(statistic: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Return what :meth:`Moments.result` gave of each experience, in their order."""
    found: dict[int, dict[str, Tensor]] = {}
    for name in statistic:
        experience, _, what = name.partition("/")
        found.setdefault(int(experience), {})[what] = statistic[name]
    return [found[experience] for experience in sorted(found)]


@register_statistic(
    FEATURES,
    summary="class means of the features under the adapter, and their covariance within classes",
    part=TRAIN,
    needs_classes=True,
)
def features(observed: Observed, batches: Iterable[Batch]) -> Sums:
    """Sum the moments of the features that are served with the adapter, by class.

    Raises:
        UserError: if the task has no classes.
    """
    with changed(observed.backbone.network, observed.change):
        return _moments(observed, observed.compute.features(observed.backbone, batches))


@register_statistic(
    ROUTER,
    summary="class means of style (mean and std over patch tokens of the bare backbone at a "
    "block's input), and their covariance within classes; router@K: at block K",
    part=TRAIN,
    takes_number=True,
    needs_classes=True,
)
def router(observed: Observed, batches: Iterable[Batch], block: int | None = None) -> Sums:
    """Sum the moments of styles at the input of a block of the bare backbone, by class.

    Raises:
        UserError: if the task has no classes, or the backbone no such block.
    """
    at = default_block(observed.backbone) if block is None else block
    return _moments(observed, styles(observed.compute, observed.backbone, batches, at))


def router_statistic(block: int | None) -> str:
    """Return the name of the statistic of styles at a block's input; None: the usual block."""
    return ROUTER if block is None else f"{ROUTER}@{block}"


def _moments(observed: Observed, pairs: Iterable[Batch]) -> MomentsByExperience:
    require_eval(observed.backbone)
    classes = observed.task.outputs
    if not observed.task.labels:
        raise UserError(
            f"Statistics by class need classes but the task {observed.task.name!r} is of kind "
            f"{observed.task.kind.name!r}; choose another head, or other coefficients"
        )
    moments: Moments | None = None
    for values, targets in pairs:
        moments = Moments(classes, values.shape[1]) if moments is None else moments
        moments.add(values, targets)
    if moments is None:
        raise UserError("Expected at least one sample to gather a statistic of but got none")
    if moments.lacks_samples:
        log.info(
            "experience %d: %d samples are few for the covariance of %d features: what is added to "
            "its diagonal gives it an inverse",
            observed.experience,
            int(moments.counts.sum()),
            len(moments.scatter),
        )
    return MomentsByExperience({observed.experience: moments})
