"""Which samples a step of learning sees, and which a choice is judged on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cl_lora.support.seeding import torch_generator


def folds(size: int, spc: int) -> tuple[Tensor, Tensor]:
    """Return the rows of a buffer to make a head of, and those to judge it on.

    Args:
        size: how many rows there are, class after class.
        spc: rows of each class; with one, both parts are the whole buffer.
    """
    rows = torch.arange(size)
    if spc == 1:
        return rows, rows
    first = rows % spc < (spc + 1) // 2
    return rows[first], rows[~first]


def held_out(strata: Tensor, share: float) -> tuple[Tensor, Tensor] | None:
    """Return the rows to fit on, and those to judge on: of every stratum the last ones.

    Args:
        strata: int64 (N,), the stratum of every row.
        share: of each stratum to judge on, rounded, at least one and never all.

    Returns:
        Two int64 tensors, ascending; None where a stratum has a single row.
    """
    judged = torch.zeros(len(strata), dtype=torch.bool)
    for stratum in sorted(set(strata.tolist())):
        rows = torch.nonzero(strata == stratum).flatten()
        if len(rows) < 2:
            return None
        count = min(len(rows) - 1, max(1, round(share * len(rows))))
        judged[rows[-count:]] = True
    return torch.nonzero(~judged).flatten(), torch.nonzero(judged).flatten()


def draws(
    size: int, batch_size: int, steps: int, seed: int, purpose: str, *keys: int | str
) -> Iterator[Tensor]:
    """Yield the rows of every step: shuffled passes, all rows if they are few.

    No batch holds a row twice: where one pass ends and the next begins, rows that are in the
    batch already wait for a later one.

    Args:
        size: how many rows there are.
        batch_size: rows per step.
        steps: how many steps.
        seed: of the run.
        purpose: what is drawn for; with the keys and the seed it decides the draws.
        *keys: of the draw.
    """
    generator = torch_generator(seed, purpose, *keys)
    pool = torch.empty(0, dtype=torch.int64)
    wanted = min(size, batch_size)
    for _ in range(steps):
        if len(pool) < wanted:
            again = torch.randperm(size, generator=generator)
            there = torch.isin(again, pool)
            pool = torch.cat([pool, again[~there], again[there]])
        yield pool[:wanted]
        pool = pool[wanted:]
