"""A run that is killed at any moment ends as if it had not been."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import warm

pytestmark = pytest.mark.slow

MOMENTS = 10


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("kills")
    driver = Path(__file__).parent / "kill_driver.py"
    done = subprocess.run(
        [*warm.python(), str(driver), str(folder), str(MOMENTS)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    assert found[0]["code"] == 0, (folder / "undisturbed.log").read_text()
    return found[1:]


def test_kills_hit_different_stages(results: list[dict[str, Any]]) -> None:
    """Else the other tests here would say little."""
    assert sum(r["killed"] for r in results) >= 8
    assert len({(r["adapters"], r["scored"]) for r in results}) >= 5
    assert any(r["scored"] > 1 for r in results)
    assert any(r["adapters"] > 0 and r["scored"] == 0 for r in results)


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_finished_after_a_kill(results: list[dict[str, Any]], moment: int) -> None:
    result = results[moment]
    assert result["code"] == 0
    assert result["retrained"] == []
    assert result["same"] == {"scores.csv": True, "coefficients.csv": True}
    assert result["leftovers"] == []
