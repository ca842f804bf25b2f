"""Digests of what was measured, by which lost and changed rows show.

``seals.csv`` holds one for each unit, (seed, row, stage): of its rows in ``scores.csv``,
``coefficients.csv`` and ``accounts.csv``. It is written before the scores, and they count only
where it holds their digest. A folder of an earlier version has no such file, and is taken as it is.

``tables.json`` holds one for each of the other tables, but for ``times.csv``, whose rows have one
each: they may differ where all else is the same.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from cl_lora.evaluation.scores import Score
from cl_lora.run_folder.layout import TABLES_FILE
from cl_lora.run_folder.records import Account, Coefficient, Timing
from cl_lora.run_folder.rows import RowFile
from cl_lora.support import files

log = logging.getLogger(__name__)

Row = TypeVar("Row")

_SIZE = 8


def seal_of(
    scores: Iterable[Score], coefficients: Sequence[Coefficient], accounts: Sequence[Account]
) -> str:
    """Return the digest of all rows of one unit; the order of its scores does not matter."""
    values = sorted((s.evaluated, s.metric, float(s.value), s.higher_is_better) for s in scores)
    rows = [
        values,
        [(c.group, c.adapter, float(c.value)) for c in coefficients],
        [(a.quantity, float(a.value)) for a in accounts],
    ]
    return files.digest(json.dumps(rows).encode(), size=_SIZE)


def timed(seed: int, row: str, stage: int, quantity: str, value: float) -> Timing:
    """Return a time that was measured of a unit, with its digest."""
    digest = files.digest(seed, row, stage, quantity, float(value), size=_SIZE)
    return Timing(seed, row, stage, quantity, float(value), digest)


def is_time_intact(time: Timing) -> bool:
    """Return whether a time is what was written."""
    return time == timed(time.seed, time.arm, time.stage, time.quantity, time.value)


# Tables that belong to no unit -------------------------------------------------------------------


def write_table(folder: Path, file: RowFile[Row], rows: Iterable[Row]) -> None:
    """Write a table, and its digest before it."""
    text = file.text(rows)
    record = {**(_digests(folder) or {}), file.name: _digest(text.encode())}
    files.write_json(folder / TABLES_FILE, files.sealed(record))
    files.write_text(folder / file.name, text)


def read_table(folder: Path, file: RowFile[Row]) -> list[Row]:
    """Return the rows of a table; none where it is missing or not what was written.

    Raises:
        UserError: if it is damaged, in a folder that has no digest of it.
    """
    path = folder / file.name
    if not path.exists():
        return []
    if is_table_intact(folder, file.name):
        return file.read(path)
    log.warning("%s is not what was written: it is computed again", path)
    return []


def is_table_intact(folder: Path, name: str) -> bool:
    """Return whether a table is what was written; one that has no digest is taken as it is."""
    digests = _digests(folder)
    if digests is None:
        return not (folder / name).exists()
    path = folder / name
    if name not in digests:
        return True
    return path.exists() and digests[name] == _digest(path.read_bytes())


def _digest(data: bytes) -> str:
    return files.digest(data, size=_SIZE)


def _digests(folder: Path) -> dict[str, Any] | None:
    """Return what ``tables.json`` holds; nothing where it is missing, None where it is damaged."""
    path = folder / TABLES_FILE
    if not path.exists():
        return {}
    with suppress(OSError, ValueError, RecursionError):
        record = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(record, dict) and files.is_intact(record):
            return {name: value for name, value in record.items() if name != files.SEAL}
    return None
