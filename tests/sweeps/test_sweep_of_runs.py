"""A sweep of real runs by joblib: folders apart, one image file, and `compare` that joins them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import overrides

from cl_lora.cli import main
from cl_lora.run_folder.reader import RunFolder

pytestmark = pytest.mark.slow


def tiny(place: Path) -> list[str]:
    return [o for o in overrides(place) if not o.startswith("run_dir=")]


def sweep(place: Path, *given: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "cl_lora", "run", "--multirun", *tiny(place), *given],
        cwd=place,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "CL_LORA_CACHE": str(place / "cache"),
        },
        capture_output=True,
        text=True,
        check=False,
    )


def made(place: Path) -> dict[str, int]:
    return {
        str(p): p.stat().st_mtime_ns
        for p in (*place.glob("runs/*/adapters/*/*/adapter_config.json"), *place.glob("cache/*"))
    }


def test_a_sweep_of_seeds_and_ranks_and_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("references=[base]", "strategy.rank=1,2", "seeds=[0],[1]")
    done = sweep(tmp_path, *given, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert done.returncode == 0, done.stderr
    runs = sorted((tmp_path / "runs").iterdir())
    assert [path.name[-7:] for path in runs] == ["-seed-0", "-seed-1"] * 2
    found = {(RunFolder.read(path).seeds, path.name[:-7]) for path in runs}
    assert {seeds for seeds, _ in found} == {(0,), (1,)}
    assert len(found) == 4
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npy"]
    assert "warn" not in done.stderr.lower()
    assert not (tmp_path / ".cl-lora-sweep").exists()

    assert main(["compare", *map(str, runs), "--format", "csv"]) == 0
    rows = [line.split(",") for line in capsys.readouterr().out.splitlines()]
    header, halves = rows[0], [row for row in rows[1:] if "half" in row]
    assert len({tuple(row[:1]) for row in halves}) == 2, header  # two ranks, each of both seeds

    # What is done is not done again, whatever runs the jobs.
    before = made(tmp_path)
    assert before
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CL_LORA_CACHE", str(tmp_path / "cache"))
    assert main(["run", "--multirun", *tiny(tmp_path), *given, "seeds_apart=true"]) == 0
    assert made(tmp_path) == before
