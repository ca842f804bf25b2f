"""What a run folder holds: names, columns and the version of the format, said once."""

from __future__ import annotations

from pathlib import Path

FORMAT = 2
"""Version of the run folder; a folder of another version is refused."""

CONFIG_FILE = "config.yaml"
STREAM_FILE = "stream.json"
ENVIRONMENT_FILE = "environment.json"
SCORES_FILE = "scores.csv"
COEFFICIENTS_FILE = "coefficients.csv"
ACCOUNTS_FILE = "accounts.csv"
TIMES_FILE = "times.csv"
SEALS_FILE = "seals.csv"
SIMILARITY_FILE = "similarity.csv"
RELATIONS_FILE = "relations.csv"
FACTS_FILE = "adapter_facts.csv"
SPECTRA_FILE = "spectra.csv"
EMBEDDING_FILE = "embedding.csv"
TABLES_FILE = "tables.json"
REPORT_FILE = "report.html"
REPORT_RECORD = "report.json"
TRACKING_FILE = "tracking.json"
LOG_FILE = "log.txt"
LOCK_FILE = ".lock"
PLAN_FILE = "plan.json"
PARTS = "parts"
ADAPTERS = "adapters"
BUFFERS = "buffers"
HITS = "hits"
FIGURES = "figures"
TENSORBOARD = "tensorboard"
TENSORBOARD_DETAILS = "tensorboard_details"

FRESH = "fresh"
"""The bank with one new adapter per experience: its folder carries the seed alone."""

# Names that a killed process may leave: a dot, the final name, a random end.
LEFTOVERS = (
    *(f".{name}.*" for name in (CONFIG_FILE, ENVIRONMENT_FILE, STREAM_FILE)),
    *(f".{name}.*" for name in (SCORES_FILE, COEFFICIENTS_FILE, ACCOUNTS_FILE, SIMILARITY_FILE)),
    *(f".{name}.*" for name in (RELATIONS_FILE, FACTS_FILE, TRACKING_FILE, SEALS_FILE)),
    *(f".{name}.*" for name in (SPECTRA_FILE, EMBEDDING_FILE, TIMES_FILE, TABLES_FILE, PARTS)),
    *(f"{LOCK_FILE}-{what}" for what in ("plan", "seed-*")),  # of what parts do one by one
    *(f"{name}/.*" for name in (f"{ADAPTERS}/*", BUFFERS, f"{HITS}/*")),
    f"{ADAPTERS}/*/*/statistics/.*",
)

# Of a killed process that made a report.
LEFTOVERS_OF_REPORTS = (
    *(f".{name}.*" for name in (REPORT_FILE, REPORT_RECORD, FIGURES)),
    *(f".{name}.*" for name in (TENSORBOARD, TENSORBOARD_DETAILS)),
    f"{FIGURES}/.*",
)


def bank_folder(run: Path, seed: int, kind: str) -> Path:
    """Return where a run keeps the adapters of one seed and kind of bank."""
    return run / ADAPTERS / (f"seed-{seed}" if kind == FRESH else f"seed-{seed}-{kind}")


def buffer_file(run: Path, seed: int, spc: int) -> Path:
    """Return where a run keeps the indices of the buffer with ``spc`` samples per class."""
    return run / BUFFERS / f"seed-{seed}-spc-{spc}.json"


def support_file(run: Path, seed: int) -> Path:
    """Return where a run keeps the indices of the support sets of a seed."""
    return run / BUFFERS / f"seed-{seed}-support.json"


def plan_file(run: Path) -> Path:
    """Return where a run keeps which part scores what."""
    return run / PARTS / PLAN_FILE


def hits_file(run: Path, seed: int, arm: str) -> Path:
    """Return where a run keeps which test samples an arm served right."""
    return run / HITS / f"seed-{seed}" / f"{arm}.npz"
