"""``tracking.json`` of a run folder: which runs of a tracker are its own, and what they hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cl_lora.run_folder.layout import TRACKING_FILE
from cl_lora.support import files
from cl_lora.support.errors import UserError

_FORMAT = 1


@dataclass
class Sent:
    """What one run of a tracker holds.

    Attributes:
        identifier: by which the tracker knows it; None before it is begun.
        what: digest of what it is; an arm that is defined anew gets a run of its own.
        stages: of the units that were sent.
        results: that were sent last.
        files: name -> digest of the files that were sent.
        ended: whether nothing was missing when it was ended.
    """

    identifier: str | None = None
    what: str = ""
    stages: set[int] = field(default_factory=set)
    results: dict[str, float] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    ended: bool = False

    def record(self) -> dict[str, Any]:
        """Return plain JSON that :meth:`from_record` reads."""
        return {**vars(self), "stages": sorted(self.stages)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Sent:
        """Return what :meth:`record` told.

        Raises:
            KeyError, TypeError, ValueError: if it is something else.
        """
        return cls(
            str(record["identifier"]),
            str(record["what"]),
            {int(stage) for stage in record["stages"]},
            {str(name): float(value) for name, value in dict(record["results"]).items()},
            {str(name): str(digest) for name, digest in dict(record["files"]).items()},
            bool(record["ended"]),
        )


class Memory:
    """What a run folder has sent to one place.

    Args:
        folder: the run folder.
        tracker: name of the tracker.
        place: where it sends to.

    Raises:
        UserError: if the file is damaged.
    """

    def __init__(self, folder: Path, tracker: str, place: str) -> None:
        self._path, self._keys = folder / TRACKING_FILE, (tracker, place)
        there = self._read().get(tracker, {}).get(place, {})
        try:
            self.runs = {str(key): Sent.from_record(sent) for key, sent in there.items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._damaged(error) from error

    def write(self) -> None:
        """Write the file; what other trackers and places hold stays in it."""
        tracker, place = self._keys
        whole = self._read()
        whole["format"] = _FORMAT
        begun = {k: sent.record() for k, sent in self.runs.items() if sent.identifier is not None}
        whole.setdefault(tracker, {})[place] = begun
        files.write_json(self._path, whole)

    def _read(self) -> dict[str, Any]:
        if not self._path.exists():
            return {}
        try:
            whole = json.loads(files.read_bytes(self._path).decode())
            if not isinstance(whole, dict) or whole.get("format") != _FORMAT:
                raise ValueError(f"it is not of format {_FORMAT}")
        except UserError:
            raise
        except (OSError, ValueError) as error:
            raise self._damaged(error) from error
        return whole

    def _damaged(self, error: Exception) -> UserError:
        return UserError(
            f"{self._path} is damaged ({error}); delete it, and everything is sent again to new "
            "runs of the tracker"
        )
