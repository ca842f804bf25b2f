"""Side-by-side speed and memory measurements; see docs/performance.md. Run from the root."""

import os

# Before anything imports torch: ratios are of one thread, unless the environment says otherwise.
os.environ.setdefault("OMP_NUM_THREADS", "1")
