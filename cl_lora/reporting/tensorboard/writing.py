"""Scalars, pictures and text into an event file."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

from cl_lora.reporting.figures.style import STYLE, render

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from cl_lora.reporting.tensorboard.events import EventWriter


def writer_in(folder: Path) -> EventWriter:
    """Return a writer of an event file in ``folder``, which is made."""
    # TensorBoard says so at length when TensorFlow is not there; it is not needed.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from cl_lora.reporting.tensorboard.events import EventWriter

    return EventWriter(str(folder))


def add_scalars(writer: SummaryWriter, scalars: Mapping[tuple[str, int], float]) -> None:
    """Write (tag, step) -> value; what is not finite is left out."""
    for (tag, step), value in scalars.items():
        if math.isfinite(value):
            writer.add_scalar(tag, value, step)


def add_drawn(writer: EventWriter, tag: str, draw: Callable[[], Figure | None], step: int) -> None:
    """Draw a figure in the house's style and write it as an image; None is left out."""
    with mpl.rc_context(dict(STYLE)):
        figure = draw()
        if figure is None:
            return
        png = render(figure, "png")
    writer.add_png(tag, png, step)
