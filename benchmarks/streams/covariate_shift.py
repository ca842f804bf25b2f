"""Covariate shift: the same classes in several domains, one domain held out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from cl_lora.benchmarks.config import benchmark_kind
from cl_lora.benchmarks.core import Benchmark
from cl_lora.benchmarks.sources.settings import require_names
from cl_lora.benchmarks.sources.shapes.benchmark import ShapesConfig
from cl_lora.benchmarks.sources.tree import DomainsConfig, scan
from cl_lora.benchmarks.streams.held_out import held_out, stream_order
from cl_lora.configuration.build import required
from cl_lora.tasks import Task


def hold_out_last(benchmark: Benchmark) -> Benchmark:
    """Return a benchmark of domains as a stream whose last domain is downstream.

    Every domain gets a task of its own, with equal labels: upstream adapters have a head each.

    Raises:
        UserError: there is no upstream domain.
    """
    return held_out(
        benchmark.name,
        [
            dataclasses.replace(e, task=Task(e.name, e.task.kind, e.task.labels))
            for e in benchmark.experiences
        ],
        benchmark.fingerprint,
        annotations=benchmark.annotations,
    )


@benchmark_kind("covariate_shift")
@dataclass(frozen=True, kw_only=True)
class CovariateShiftConfig(DomainsConfig):
    """A tree ``root/domain/class`` with one domain held out; see ``DomainsConfig`` for the rest.

    Attributes:
        downstream: the domain that is held out.
        upstream: the domains that adapters are trained on, in stream order; None for all others.
    """

    name: str = "covariate_shift"
    downstream: str = required("the domain that is held out", "NAME")
    upstream: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_names("upstream", self.upstream)

    def check(self) -> None:
        """Check the tree and the names; read no image."""
        DomainsConfig.check(self._ordered())

    def build(self, image_size: int) -> Benchmark:
        """Load the benchmark, decoding the images of its domains if no earlier run has."""
        return hold_out_last(DomainsConfig.build(self._ordered(), image_size))

    def _ordered(self) -> CovariateShiftConfig:
        order = stream_order(scan(self).domains, self.upstream, self.downstream)
        return dataclasses.replace(self, domains=order)


@benchmark_kind("covariate_shift_shapes")
@dataclass(frozen=True, kw_only=True)
class CovariateShiftShapesConfig(ShapesConfig):
    """Shapes with one style held out; see ``ShapesConfig`` for the rest.

    Attributes:
        downstream: the style that is held out.
        upstream: the styles that adapters are trained on, in stream order; None for all others.
    """

    name: str = "covariate_shift_shapes"
    downstream: str = "sketch"
    upstream: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_names("upstream", self.upstream)
        self._order()

    def build(self, image_size: int) -> Benchmark:
        """Draw the benchmark, or open it if it was drawn before."""
        ordered = dataclasses.replace(self, styles=self._order())
        return hold_out_last(ShapesConfig.build(ordered, image_size))

    def _order(self) -> tuple[str, ...]:
        return stream_order(self.styles, self.upstream, self.downstream)
