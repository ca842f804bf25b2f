"""The registry of metrics: what a score is called, its unit, its range and which way is better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cl_lora.support.errors import UserError

PERCENT = "%"


@dataclass(frozen=True)
class Metric:
    """What a column of scores means; recorded with every run, so that reports need no registry.

    Attributes:
        name: as in ``scores.csv``.
        title: in headings.
        unit: ``%`` for values in [0, 1] that are shown in percent, any other text for values that
            are shown as they are, empty for none.
        higher_is_better: the direction.
        low: the smallest possible value.
        high: the largest possible value.
    """

    name: str
    title: str
    unit: str = ""
    higher_is_better: bool = True
    low: float = -math.inf
    high: float = math.inf

    @property
    def percent(self) -> bool:
        """Whether values are shown times 100."""
        return self.unit == PERCENT

    @property
    def scale(self) -> float:
        """The factor between a value and what is shown of it."""
        return 100.0 if self.percent else 1.0

    @property
    def in_text(self) -> str:
        """The title within a sentence: abbreviations keep their capitals."""
        return self.title if self.title[:2].isupper() else self.title[:1].lower() + self.title[1:]

    @property
    def points(self) -> str:
        """The unit of a difference of two values: points for percent, else the unit itself."""
        return "points" if self.percent else self.unit

    def allows(self, value: float) -> bool:
        """Return whether a score can have a value; NaN is one that is not defined.

        >>> ACCURACY.allows(1.0), ACCURACY.allows(7.5), RMSE.allows(float("inf"))
        (True, False, False)
        """
        if math.isnan(value):
            return True
        # Metrics in float32 may round past their limits.
        low, high = self.low - _ROUNDING * (1 + abs(self.low)), self.high
        high += _ROUNDING * (1 + abs(self.high))
        return math.isfinite(value) and not value < low and not value > high

    @property
    def limits(self) -> str:
        """The range of values in words."""
        ends = [("at least", self.low), ("at most", self.high)]
        told = [f"{word} {end:g}" for word, end in ends if math.isfinite(end)]
        return f"a value of {' and '.join(told)}" if told else "a finite value"

    def record(self) -> dict[str, Any]:
        """Return the metric as plain JSON; infinite limits become null."""
        limits = {k: v if math.isfinite(v) else None for k, v in self._limits.items()}
        return {
            "name": self.name,
            "title": self.title,
            "unit": self.unit,
            "higher_is_better": self.higher_is_better,
            **limits,
        }

    @property
    def _limits(self) -> dict[str, float]:
        return {"low": self.low, "high": self.high}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Metric:
        """Return the metric of :meth:`record`.

        Raises:
            KeyError: if a field is missing.
            TypeError: if a field is of another type.
        """
        fields = {"name": str, "title": str, "unit": str, "higher_is_better": bool}
        for key, kind in fields.items():
            if not isinstance(record[key], kind):
                raise TypeError(f"{key} is {record[key]!r}")
        low, high = record["low"], record["high"]
        return cls(
            **{key: record[key] for key in fields},
            low=-math.inf if low is None else float(low),
            high=math.inf if high is None else float(high),
        )


_ROUNDING = 1e-5

METRICS: dict[str, Metric] = {}
"""Every registered metric by name."""


def register_metric(metric: Metric) -> Metric:
    """Register a metric and return it.

    Raises:
        UserError: if another metric has its name.
    """
    if METRICS.get(metric.name, metric) != metric:
        raise UserError(
            f"The metric {metric.name!r} is registered already as {METRICS[metric.name].title!r}; "
            "choose another name"
        )
    METRICS[metric.name] = metric
    return metric


ACCURACY = register_metric(Metric("accuracy", "Accuracy", PERCENT, True, 0.0, 1.0))
F1 = register_metric(Metric("f1", "Macro F1", PERCENT, True, 0.0, 1.0))
EXACT_MATCH = register_metric(Metric("exact_match", "Exact match", PERCENT, True, 0.0, 1.0))
OPTION_ACCURACY = register_metric(
    Metric("option_accuracy", "Accuracy among the options", PERCENT, True, 0.0, 1.0)
)
RMSE = register_metric(Metric("rmse", "RMSE", "", False, 0.0))
MAE = register_metric(Metric("mae", "MAE", "", False, 0.0))
R2 = register_metric(Metric("r2", "R2", "", True, -math.inf, 1.0))
ANGLE_ERROR = register_metric(Metric("angle_error", "Angle error", "degrees", False, 0.0, 180.0))
ANGLE_RMSE = register_metric(Metric("angle_rmse", "Angle RMSE", "degrees", False, 0.0, 180.0))
NME = register_metric(Metric("nme", "NME", PERCENT, False, 0.0))
RELATIVE = register_metric(Metric("relative", "Share of single task", PERCENT, True))
"""A primary score as a share of what the task's own adapter reaches, 1 for just as good:
``1 + d (v - s) / |s|`` with d = 1 where higher is better and -1 where lower is. Linear in the
score: forgetting and transfer of it are those of the metric, divided by the single-task score."""


def relative(value: float, single: float, metric: Metric) -> float:
    """Return a score as a share of the single-task score, 1 for as good.

    ``1 + d (v - s) / |s|``, d = 1 where higher is better, else -1.

    Args:
        value: v, the score.
        single: s, what the task's own adapter and head reach.
        metric: what was measured.

    Example:
        >>> relative(0.6, 0.8, ACCURACY), relative(12.0, 10.0, RMSE)
        (0.75, 0.8)
    """
    direction = 1.0 if metric.higher_is_better else -1.0
    return 1.0 + direction * (value - single) / max(abs(single), _SMALLEST)


_SMALLEST = 1e-12
"""Nothing is divided by less: a single task with no score at all."""
