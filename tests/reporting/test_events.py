"""Events are written where they are asked for: what the disk refuses is said there."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any

import pytest
from fabricate import fabricate_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cl_lora.reporting.tensorboard import events, write_tensorboard
from cl_lora.reporting.tensorboard.events import EventWriter
from cl_lora.run_folder.reader import RunFolder
from cl_lora.support.errors import UserError


def test_events_are_what_tensorboard_reads(tmp_path: Path) -> None:
    threads = threading.active_count()
    with EventWriter(str(tmp_path)) as writer:
        for step in range(3):
            writer.add_scalar("loss", step / 2, step)
        assert threading.active_count() == threads
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert [(e.step, e.value) for e in read.Scalars("loss")] == [(0, 0.0), (1, 0.5), (2, 1.0)]


def test_two_writers_of_one_folder_have_files_of_their_own(tmp_path: Path) -> None:
    for _ in range(2):
        EventWriter(str(tmp_path)).close()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("refused", [1, 5, 40])
def test_one_event_that_is_refused_is_a_sentence(
    refused: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where all later ones would be written."""
    run = RunFolder.read(fabricate_run(tmp_path / "run"))
    count = 0

    class Records:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, data: bytes) -> None:
            nonlocal count
            count += 1
            if count == refused:
                raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(events, "RecordWriter", Records)
    with pytest.raises(UserError, match="No space left on device; free some space"):
        write_tensorboard(run)
    assert not list(run.path.rglob(".*events*"))
    assert count == refused
