"""Whether the report of a run is made from what the folder holds: decided by content.

``report.json`` records the digest of everything that a report is made from, and of every file that
was made. Times of files say nothing: clocks are set back, and copies are younger than they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from cl_lora.run_folder import layout
from cl_lora.support import files

_TABLES = (
    *(layout.STREAM_FILE, layout.SCORES_FILE, layout.COEFFICIENTS_FILE, layout.ACCOUNTS_FILE),
    *(layout.SIMILARITY_FILE, layout.RELATIONS_FILE, layout.FACTS_FILE, layout.SPECTRA_FILE),
    *(layout.EMBEDDING_FILE, layout.TIMES_FILE, layout.CONFIG_FILE),
)
_SOURCES = (
    *_TABLES,
    *(f"{layout.PARTS}/*/{name}" for name in _TABLES),
    f"{layout.ADAPTERS}/*/*/training.json",
    f"{layout.HITS}/*/*.npz",
    f"{layout.PARTS}/*/{layout.HITS}/*/*.npz",
)
_MADE = (
    layout.REPORT_FILE,
    *(f"{name}/**/*" for name in (layout.FIGURES, layout.TENSORBOARD, layout.TENSORBOARD_DETAILS)),
)
# Where a run was computed is not among them: it is written by every command.


def sources(folder: Path) -> str:
    """Return the digest of all that a report is made from."""
    found = (path for pattern in _SOURCES for path in sorted(folder.glob(pattern)))
    return files.digest(_digests(folder, found))


def record_made(folder: Path, source: str) -> None:
    """Record what was made: the page, the figures and the TensorBoard files that are there.

    Args:
        folder: of the run.
        source: :func:`sources`, from before anything was read.
    """
    made = (path for pattern in _MADE for path in sorted(folder.glob(pattern)))
    record = {"sources": source, "made": _digests(folder, made)}
    files.write_json(folder / layout.REPORT_RECORD, files.sealed(record))


def is_fresh(folder: Path) -> bool:
    """Return whether a report is there, undamaged, and made from what is there."""
    with suppress(OSError, ValueError, RecursionError):
        record = json.loads((folder / layout.REPORT_RECORD).read_text(encoding="utf-8"))
        if isinstance(record, dict) and files.is_intact(record):
            made = [folder / name for name in record.get("made", ())]
            return (
                all(path.is_file() for path in made)
                and _digests(folder, made) == record.get("made")
                and record.get("sources") == sources(folder)
            )
    return False


def _digests(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    return dict(_digests_of(folder, paths))


def _digests_of(folder: Path, paths: Iterable[Path]) -> Iterator[tuple[str, str]]:
    for path in paths:
        if path.is_file():
            yield str(path.relative_to(folder)), files.file_digest(path)
