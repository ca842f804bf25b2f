"""Side-by-side speed and memory measurements; see docs/performance.md. Run from the root."""
