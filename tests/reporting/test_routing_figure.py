"""The routing matrix: true experience against chosen adapter, once for arms that route alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fabricate import fabricate_run

from cl_lora.evaluation.metrics import ACCURACY
from cl_lora.reporting.figures import routing
from cl_lora.reporting.routing import accuracy_of_routing, routed_right, routing_matrix
from cl_lora.reporting.tables import run_table
from cl_lora.run_folder.reader import RunFolder

ROUTED = {"coefficients": {"name": "routed", "weights": "hard"}}


def _run(path: Path, routed: dict[str, float]) -> RunFolder:
    """Return a run in which some arms route, with this share of samples to the right adapter."""
    run = RunFolder.read(fabricate_run(path / "run"))
    names, last = run.experiences, run.stream.stages[-1].index
    rows = [
        (seed, arm, last, names[j], k, share if j == k else (1 - share) / (len(names) - 1))
        for arm, share in routed.items()
        for seed in run.seeds
        for j in range(len(names))
        for k in range(len(names))
    ]
    columns = ["seed", "arm", "stage", "group", "adapter", "value"]
    variants = {**run.config["variants"], **dict.fromkeys(routed, ROUTED)}
    return replace(
        run,
        coefficients=pd.DataFrame(rows, columns=columns),
        config={**run.config, "variants": variants},
    )


def test_the_matrix_has_the_shares_of_every_experience(tmp_path: Path) -> None:
    run = _run(tmp_path, {"ta_w1": 0.85})
    matrix = routing_matrix(run, "ta_w1")
    assert matrix is not None
    np.testing.assert_allclose(matrix.diagonal(), 0.85)
    np.testing.assert_allclose(matrix.sum(1), 1)
    assert routing_matrix(run, "ties_w1") is None


def test_the_accuracy_of_routing_is_the_mean_of_the_own_adapters(tmp_path: Path) -> None:
    run = _run(tmp_path, {"ta_w1": 0.85, "ties_w1": 0.7})
    assert accuracy_of_routing(run) == pytest.approx({"ta_w1": 0.85, "ties_w1": 0.7})
    # Before an experience has come nothing can be right on it.
    matrix = np.array([[0.6, 0.4, np.nan], [0.2, 0.8, np.nan], [0.5, 0.5, np.nan]])
    assert routed_right(matrix) == pytest.approx(0.7)
    assert np.isnan(routed_right(np.full((2, 2), np.nan)))


def test_it_stands_below_the_table_that_leads(tmp_path: Path) -> None:
    run = _run(tmp_path, {"ta_w1": 0.85, "ties_w1": 0.85, "ta_adaptive_b3": 0.7})
    note = (
        "Routed right, to the adapter of their own experience: 85.0 % of test samples by ta_w1, "
        "ties_w1; 70.0 % of test samples by ta_adaptive_b3 (soft routes: its mean weight)."
    )
    assert run_table(run).notes[-1] == note
    text = run_table(run).text(80)
    assert note in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80
    assert note not in run_table(run, run.stream.metrics["f1"]).notes
    assert not any("Routed" in n for n in run_table(_run(tmp_path / "none", {})).notes)


def test_arms_that_route_alike_share_a_panel(tmp_path: Path) -> None:
    drawn = routing(
        _run(tmp_path, {"ta_w1": 0.85, "ties_w1": 0.85, "ta_adaptive_b3": 0.7}), ACCURACY
    )
    assert drawn is not None
    titles = [ax.get_title() for ax in drawn.axes if ax.get_visible()]
    assert titles == ["ta_w1 and 1 more\n85.0 % right", "ta_adaptive_b3\n70.0 % right"]


def test_a_run_that_routes_nothing_has_no_such_figure(tmp_path: Path) -> None:
    assert routing(RunFolder.read(fabricate_run(tmp_path / "run")), ACCURACY) is None
