"""What the training of every adapter came to."""

from __future__ import annotations

import math

from cl_lora.reporting.describe import in_unit
from cl_lora.reporting.page.grid import Cell, Grid, heads, sortable
from cl_lora.reporting.tables import Column
from cl_lora.run_folder.reader import RunFolder


def training(run: RunFolder) -> Grid | None:
    """Return a row per adapter and a column per metric that any of them was trained under.

    None where no training was recorded.
    """
    curves = [curve for curve in run.curves if curve.losses]
    if not curves:
        return None
    measured = {curve.metric for curve in curves}
    every = run.stream.metrics.values()
    # Where no curve says what was measured, the column of the primary metric shows dashes.
    metrics = [m for m in every if m.name in measured] or list(every)[:1]
    columns = [(m, Column(m.name, "", "", percent=m.percent)) for m in metrics]
    rows = []
    for curve in curves:
        cells = [
            Cell("", curve.bank),
            Cell(str(curve.seed), str(curve.seed)),
            Cell(str(len(curve.epochs)), str(len(curve.epochs))),
            *(Cell(sortable(v), f"{v:.3f}") for v in (curve.losses[0], curve.losses[-1])),
        ]
        for metric, column in columns:
            value = curve.values[-1] if curve.metric == metric.name else math.nan
            cells.append(Cell(sortable(value), column.number(value)))
        rows.append((f"{curve.experience:02d} {curve.name}", cells))
    titles = ["Adapter", "Bank", "Seed", "Epochs", "First loss", "Last loss"]
    titles += [f"Last {in_unit(m)}" for m in metrics]
    return Grid(
        "Loss and score on the training samples, in the first and the last epoch",
        heads(titles, ("Adapter", "Bank")),
        rows,
    )
