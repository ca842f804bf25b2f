"""Peak memory of TIES in delta over 32 rank-16 ViT-B adapters, beyond adapters and result.

Each case runs in a process of its own; a thread samples the resident set every millisecond, and
where the kernel keeps a high-water mark (Linux) that is read too: it misses no short peak.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from cl_lora.merging import merge
from perf.common import report, vit_base_adapters

ADAPTERS = 32


def reset_high_water() -> None:
    """Make the kernel forget the peak so far."""
    control = Path("/proc/self/clear_refs")
    if control.exists():
        control.write_text("5")


def high_water() -> float:
    """Return the peak resident set in bytes since the reset; 0 where the kernel tells none."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return max((int(x.split()[1]) * 1024 for x in lines if x.startswith("VmHWM")), default=0)


def measure(trim: str) -> dict[str, float]:
    process = psutil.Process()
    # A small merge first: buffers that libraries allocate once are not this merge's.
    merge(vit_base_adapters(2, blocks=1), "ties", trim=trim)
    adapters = vit_base_adapters(ADAPTERS)
    reset_high_water()
    before = process.memory_info().rss
    peak, done = before, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.001)

    thread = threading.Thread(target=sample)
    thread.start()
    start = time.process_time()
    update = merge(adapters, "ties", [1.0] * ADAPTERS, trim=trim)
    seconds = time.process_time() - start
    done.set()
    thread.join()
    peak = max(peak, int(high_water()))
    result = sum(update.delta(m).numel() * 4 for m in update.modules())
    held = sum((f.A.numel() + f.B.numel()) * 4 for a in adapters for f in a.factors.values())
    dense = ADAPTERS * result
    return {
        "peak_beyond_MB": (peak - before - result) / 1e6,
        "adapters_MB": held / 1e6,
        "result_MB": result / 1e6,
        "all_dense_deltas_MB": dense / 1e6,
        "cpu_s": seconds,
    }


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
        return
    rows = []
    for trim in ("tensor", "global"):
        for repeat in range(3 if trim == "tensor" else 1):
            command = [sys.executable, "-m", "perf.memory", trim]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            values = json.loads(output.splitlines()[-1])
            rows.append({"trim": trim, "repeat": repeat, **values})
    report(
        "memory",
        "TIES, delta, 32 rank-16 ViT-B adapters (q k v of 12 blocks), peak resident set",
        rows,
        worst_MB=max(row["peak_beyond_MB"] for row in rows),
        aim="< 500 MB",
    )


if __name__ == "__main__":
    main()
