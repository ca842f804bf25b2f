"""What adapting to a support set cost, at every K."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from cl_lora.reporting.faces import by_shots, is_few_shot
from cl_lora.reporting.tables import Column, ResultTable
from cl_lora.run_folder.reader import RunFolder

_TITLES = {
    "seconds": "Seconds per adaptation",
    "peak_memory_mb": "Peak memory of an adaptation in MB, beyond what was held before",
    "trainable_parameters": "Trainable parameters without the head",
    "learning_rate_factor": "Factor of the learning rates that was selected, mean",
}


def costs(run: RunFolder) -> Iterator[ResultTable]:
    """Yield a table for each quantity that was recorded: a row per arm, a column per K."""
    if not is_few_shot(run):
        return
    face = by_shots(run)
    stages = face.stream.trained_stages
    found = face.accounts
    known = [q for q in _TITLES if q in set(found["quantity"])]
    for quantity in [*known, *sorted({*found["quantity"]} - {*known})]:
        rows = found[found["quantity"] == quantity]
        means = rows.groupby(["arm", "stage"])["value"].mean().to_dict()
        arms = [a for a in face.arms if a in set(rows["arm"])]
        values = [[means.get((a, s.index), math.nan) for s in stages] for a in arms]
        mean = np.array(values, dtype=np.float64).reshape(len(arms), len(stages))
        yield ResultTable(
            rows=tuple(arms),
            references=0,
            columns=tuple(
                Column(s.name, s.name, s.name, None, percent=False, form="amount") for s in stages
            ),
            mean=mean,
            spread=np.full(mean.shape, np.nan),
            title=_TITLES.get(quantity, quantity),
        )
