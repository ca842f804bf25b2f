"""Moving what parts hold into the run: each step may be done again, and the last removes them."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cl_lora.run_folder import layout
from cl_lora.run_folder.environment import write_environment
from cl_lora.run_folder.hits import read_hits, write_hits
from cl_lora.support import files


def fold_hits(run: Path, parts: Sequence[Path]) -> None:
    """Move which test samples were right from the parts into the run, again if need be."""
    for part in parts:
        for path in sorted((part / layout.HITS).glob("seed-*/*.npz")):
            write_hits(run / path.relative_to(part), read_hits(path))


def fold_records(run: Path, parts: Sequence[Path]) -> None:
    """Move where the parts were computed, and what they logged, into the run."""
    for part in parts:
        for environment in _environments(part / layout.ENVIRONMENT_FILE):
            write_environment(run / layout.ENVIRONMENT_FILE, environment)
        with suppress(FileNotFoundError), files.explain_write_errors(run / layout.LOG_FILE):
            text = (part / layout.LOG_FILE).read_text(encoding="utf-8", errors="replace")
            with (run / layout.LOG_FILE).open("a", encoding="utf-8") as log:
                log.write(text)


def _environments(path: Path) -> list[dict[str, Any]]:
    """Return where a part was computed, the last place last; nothing where that is damaged."""
    with suppress(OSError, ValueError, RecursionError):
        there = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(there, dict) and files.is_intact(there):
            there.pop(files.SEAL, None)
            earlier = there.pop("earlier", [])
            found = [*(earlier if isinstance(earlier, list) else []), there]
            return [environment for environment in found if isinstance(environment, dict)]
    return []


def remove_parts(run: Path) -> None:
    """Remove all parts at once: they are there, or they are not."""
    parts = run / layout.PARTS
    if not parts.is_dir():
        return
    aside = run / f".{layout.PARTS}.{secrets.token_hex(8)}"
    with files.explain_write_errors(parts):
        os.rename(parts, aside)
    shutil.rmtree(aside, ignore_errors=True)  # the next command removes what is left
