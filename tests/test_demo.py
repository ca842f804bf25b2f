"""The demo means something: its stream interferes, and merging helps."""

from __future__ import annotations

from pathlib import Path

import pytest

from cl_lora.cli import main
from cl_lora.evaluation.scores import ScoreTable


@pytest.mark.slow
def test_demo_forgets_and_merging_recovers(tmp_path: Path, monkeypatch) -> None:
    """The default benchmark, backbone and training, with few of the default arms."""
    monkeypatch.setenv("CL_LORA_CACHE", str(tmp_path / "cache"))
    arms = (
        "arms=none",
        "+arms.ta={method: task_arithmetic, coefficients: 0.33}",
        "+arms.ties={method: ties, density: 0.2, coefficients: {name: adaptive, b_max: 3, "
        "steps: 30}}",
    )
    run = tmp_path / "run"
    given = [f"run_dir={run}", "references=[last,oracle]", "report=false", *arms]
    assert main(["run", *given]) == 0
    scores = ScoreTable.read(run / "scores.csv")
    final = {
        name: float(scores.matrix(0, name).values[-1].mean())
        for name in ("last", "oracle", "ta", "ties")
    }
    assert final["oracle"] >= 0.85
    assert final["last"] <= final["oracle"] - 0.10
    assert max(final["ta"], final["ties"]) >= final["last"] + 0.05
