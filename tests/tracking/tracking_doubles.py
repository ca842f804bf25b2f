"""A tracker that remembers what it is sent, and fails when told to; a reader of W&B's files."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from cl_lora.tracking import Connection, Points, TrackedRun, Tracker


class Remembering(Connection):
    """Holds everything; ``fail_at`` counts down the calls that go well."""

    def __init__(self) -> None:
        self.place = "memory"
        self.runs: dict[str, TrackedRun] = {}
        self.points: dict[str, list[tuple[int, dict[str, float]]]] = {}
        self.results: dict[str, dict[str, float]] = {}
        self.files: list[tuple[str, list[str]]] = []
        self.states: dict[str, str] = {}
        self.calls: list[str] = []
        self.fail_at: int | None = None
        self.begun = 0

    def _call(self, name: str) -> None:
        if self.fail_at is not None:
            self.fail_at -= 1
            if self.fail_at < 0:
                raise ConnectionError("the line is cut")
        self.calls.append(name)

    def begin(self, run: TrackedRun, known: str | None) -> tuple[str, bool]:
        self._call("begin")
        gone_on = known in self.runs
        identifier = known if known in self.runs else f"run-{self.begun}"
        self.begun += not gone_on
        assert identifier is not None
        self.runs[identifier] = run
        self.states[identifier] = "running"
        return identifier, gone_on

    def log(self, identifier: str, points: Points) -> None:
        self._call("log")
        assert self.states[identifier] == "running"
        self.points.setdefault(identifier, []).extend((s, dict(v)) for s, v in points)

    def conclude(self, identifier: str, results: Mapping[str, float]) -> None:
        self._call("conclude")
        self.results.setdefault(identifier, {}).update(results)

    def upload(self, identifier: str, files: Mapping[str, Path], new: Collection[str]) -> None:
        self._call("upload")
        assert set(new) <= files.keys()
        self.files.append((identifier, list(new)))

    def end(self, identifier: str, *, finished: bool) -> None:
        self._call("end")
        self.states[identifier] = "finished" if finished else "unfinished"

    def scores(self) -> dict[tuple[int, str, int], dict[str, float]]:
        """Return (seed, row, step) -> metrics, each of which must have been sent once."""
        found: dict[tuple[int, str, int], dict[str, float]] = {}
        for identifier, points in self.points.items():
            parameters = self.runs[identifier].parameters
            for step, values in points:
                key = (parameters["seed"], parameters["arm"]["name"], step)
                assert key not in found, f"{key} was sent twice"
                found[key] = values
        return found


class RememberingTracker(Tracker):
    """Connects to one and the same memory."""

    name, package, extra, summary = "memory", "json", "", "what the tests look into"

    def __init__(self) -> None:
        self.connection = Remembering()

    def connect(self) -> Connection:
        return self.connection


_HEADER, _BLOCK, _FULL, _LAST = 7, 32768, 1, 4


def wandb_records(path: Path) -> Iterator[Any]:
    """Yield the records of a file that W&B wrote offline: LevelDB's log format around protobuf."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), _HEADER, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < 7:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (_FULL, _LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record
