"""One and two workers on the same sweep: `python -m perf.sweeps [REPEATS [EPOCHS]]`.

The whole command is timed, imports included, one way after the other and again, so that a busy
minute meets all of them. On a machine that others use the wall clock says little; the CPU time
says what each way costs, and the difference of the two what it waited.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "sweeps.json"
SWEEP = (
    "seeds=[0],[1],[2]",
    "strategy.rank=4,8",
    "benchmark.classes=3",
    "benchmark.styles=[photo,cartoon,sketch]",
    "benchmark.samples_per_class=60",
    "benchmark.test_samples_per_class=10",
    "report=false",
    "references=[base]",
    "arms=none",
    "+arms.half={method: task_arithmetic, coefficients: 0.5}",
    "+arms.ties={method: ties, coefficients: 0.5}",
)
WAYS = {
    "one after the other, all threads": ("hydra/launcher=basic",),
    "one after the other, one thread": ("hydra/launcher=basic", "threads=1"),
    "joblib, two workers": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
}


def timed(way: tuple[str, ...], cache: Path, epochs: int) -> dict[str, float]:
    """Run the sweep in an empty folder and return its seconds."""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    environment |= {"CL_LORA_CACHE": str(cache), "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, "-P", "-m", "cl_lora", "run", "--multirun", *way, *SWEEP]
    command.append(f"strategy.epochs={epochs}")
    with tempfile.TemporaryDirectory() as place:
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, cwd=place, env=environment, capture_output=True, check=True)
        wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": wall, "cpu_s": cpu, "load": os.getloadavg()[0]}


def main() -> None:
    """Measure, print the medians and write them with every single time."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    epochs = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    found: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as cache:
        timed(WAYS["one after the other, one thread"], Path(cache), 1)  # draws the images
        for _ in range(repeats):
            for name, way in WAYS.items():
                found[name].append(timed(way, Path(cache), epochs))
                print(name, found[name][-1], flush=True)
    medians = {
        name: {key: statistics.median(t[key] for t in times) for key in times[0]}
        for name, times in found.items()
    }
    machine = {"cores": os.cpu_count(), "written": datetime.now(UTC).isoformat()}
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[f"{epochs} epochs"] = {"machine": machine, "medians": medians, "times": found}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(medians, indent=1))


if __name__ == "__main__":
    main()
