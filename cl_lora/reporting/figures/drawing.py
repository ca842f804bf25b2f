"""All figures of a run, and their files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from cl_lora.reporting.figures.numbers import metric_of
from cl_lora.reporting.figures.registry import in_order
from cl_lora.reporting.figures.style import render
from cl_lora.run_folder import layout
from cl_lora.run_folder.reader import RunFolder
from cl_lora.support import files, progress


def draw_figures(run: RunFolder, metric: str | None = None) -> dict[str, Figure]:
    """Return every figure that the run has data for, by name, in the order of the report.

    Args:
        run: the run.
        metric: name of the metric; the run's primary metric if not given.

    Raises:
        UserError: if the run has no such metric.
    """
    chosen = metric_of(run, metric)
    drawn = {info.name: info.of(run, chosen) for info in in_order()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def write_figures(run: RunFolder, drawn: Mapping[str, Figure] | None = None) -> tuple[Path, ...]:
    """Write ``figures/<name>.png`` and ``.svg`` of every figure of the run; return the paths.

    The same run gives the same bytes.

    Args:
        run: the run.
        drawn: its figures as :func:`draw_figures` returns them; drawn here, if not given.
    """
    paths = []
    if drawn is None:
        drawn = draw_figures(run)
    for name, figure in progress.track(drawn.items(), "drawing figures", len(drawn)):
        for kind in ("png", "svg"):
            path = run.path / layout.FIGURES / f"{name}.{kind}"
            files.write_bytes(path, render(figure, kind))
            paths.append(path)
    return tuple(paths)
