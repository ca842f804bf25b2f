"""TensorBoard's event files, written where they are asked for and not in a thread.

TensorBoard's own writer hands everything to a thread: a disk that is full there is a traceback on
the terminal, or a file that is cut short in silence.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SourceMetadata
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import FileWriter, SummaryWriter

_VERSION = "brain.Event:2"
_numbers = itertools.count()


class EventFile:
    """One event file; takes the place of TensorBoard's ``EventFileWriter``.

    Args:
        folder: where it is made.

    Raises:
        OSError: here and in every method, if the disk refuses.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        Path(folder).mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        name = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        path = Path(folder, f"events.out.tfevents.{name}")
        self._file = path.open("wb")
        self._records = RecordWriter(self._file)
        self.add_event(
            Event(
                wall_time=time.time(),
                file_version=_VERSION,
                source_metadata=SourceMetadata(writer="cl_lora.reporting.tensorboard.events"),
            )
        )

    def get_logdir(self) -> str:
        """Return the folder."""
        return self._folder

    def add_event(self, event: Event) -> None:
        """Write an event."""
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        """Hand what is buffered to the system."""
        self._file.flush()

    def close(self) -> None:
        """Write what is buffered, and close the file."""
        self._file.close()


class EventWriter(SummaryWriter):
    """Torch's writer of summaries, over an :class:`EventFile`."""

    def _get_file_writer(self) -> FileWriter:
        if self.all_writers is None or self.file_writer is None:
            folder = str(self.log_dir)
            self.file_writer: Any = _FileWriter(folder)
            self.all_writers: Any = {folder: self.file_writer}
        writer: FileWriter = self.file_writer
        return writer

    def add_png(self, tag: str, png: bytes, step: int) -> None:
        """Write an image as it is; ``add_image`` takes pixels, which it compresses again."""
        # The sides stand in the first chunk of the file, IHDR.
        width, height = (int.from_bytes(png[k : k + 4]) for k in (16, 20))
        image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
        summary = Summary(value=[Summary.Value(tag=tag, image=image)])
        self._get_file_writer().add_summary(summary, step)


class _FileWriter(FileWriter):
    def __init__(self, folder: str) -> None:
        self.event_writer = EventFile(folder)
