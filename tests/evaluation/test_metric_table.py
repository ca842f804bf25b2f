"""What each metric can be: the ends of its range, its direction, and its record in a run folder."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from cl_lora.evaluation.aggregate import paired_difference
from cl_lora.evaluation.bootstrap import paired_bootstrap
from cl_lora.evaluation.metrics import METRICS, Metric, relative
from cl_lora.evaluation.scores import Score, ScoreTable

SHARES = ("accuracy", "f1", "exact_match", "option_accuracy")
# Best and worst value there can be, by what the metrics are in any textbook.
ENDS = {
    **dict.fromkeys(SHARES, (1.0, 0.0)),
    "rmse": (0.0, math.inf),
    "mae": (0.0, math.inf),
    "nme": (0.0, math.inf),
    "r2": (1.0, -math.inf),
    "angle_error": (0.0, 180.0),
    "angle_rmse": (0.0, 180.0),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_metric_reaches_its_best_and_worst_value_and_no_further(name: str) -> None:
    metric, (best, worst) = METRICS[name], ENDS[name]
    step = 0.01 if best > worst else -0.01
    assert metric.higher_is_better == (best > worst)
    assert metric.allows(best)
    assert not metric.allows(best + step)
    if math.isfinite(worst):
        assert metric.allows(worst)
        assert not metric.allows(worst - step)
    else:
        assert metric.allows(math.copysign(1e30, worst))


def test_nothing_measured_is_infinite_and_undefined_is_allowed() -> None:
    for metric in METRICS.values():
        assert metric.allows(math.nan)
        assert not metric.allows(math.inf)
        assert not metric.allows(-math.inf)


def test_a_record_is_json_with_every_field_and_gives_the_metric_again() -> None:
    for metric in METRICS.values():
        record = json.loads(json.dumps(metric.record(), allow_nan=False))
        assert set(record) == {"name", "title", "unit", "higher_is_better", "low", "high"}
        assert Metric.from_record(record) == metric
    with pytest.raises(TypeError, match="title is 3"):
        Metric.from_record({**METRICS["rmse"].record(), "title": 3})


def test_a_share_of_the_single_task_is_above_one_exactly_where_it_is_better() -> None:
    assert relative(0.9, 0.6, METRICS["accuracy"]) == pytest.approx(1.5)
    assert relative(0.3, 0.6, METRICS["accuracy"]) == pytest.approx(0.5)
    assert relative(3.0, 2.0, METRICS["rmse"]) == pytest.approx(0.5)
    assert relative(1.0, 2.0, METRICS["rmse"]) == pytest.approx(1.5)
    assert relative(-1.0, -2.0, METRICS["r2"]) == pytest.approx(1.5)


def test_a_table_of_one_score_is_one_stage_of_one_experience() -> None:
    for table in (ScoreTable(), ScoreTable([Score(0, "a", 0, 0, "accuracy", 0.5)])):
        shape = table.shape()
        assert (shape.stages, shape.experiences) == (1, 1)


def test_confidence_of_nothing_or_everything_is_refused() -> None:
    hits = [[True, False]]
    for confidence in (0.0, 1.0):
        with pytest.raises(ValueError, match="confidence"):
            paired_bootstrap(hits, hits, confidence)
        with pytest.raises(ValueError, match="confidence"):
            paired_difference([1.0, 2.0], [0.0, 0.0], confidence)


def test_a_value_rounded_to_single_precision_is_no_damage() -> None:
    """Metrics are computed in float32, whose rounding may leave the range at either end."""
    metric = Metric("wide", "Wide", low=-1000.1, high=300.1)
    for end, way in ((-1000.1, -1), (300.1, 1)):
        assert metric.allows(float(np.nextafter(np.float32(end), np.float32(way * np.inf))))
        assert not metric.allows(end + way * 0.1)
