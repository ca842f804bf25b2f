"""A table in the order of a ranking, with the best group marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from cl_lora.evaluation.aggregate import AVERAGE
from cl_lora.evaluation.continual import FloatArray
from cl_lora.reporting.ranking import Ranking
from cl_lora.reporting.tables.table import ResultTable


def ranked(
    table: ResultTable,
    ranking: Ranking,
    key: str = AVERAGE,
    columns: Mapping[str, Ranking] | None = None,
) -> ResultTable:
    """Return a table with its best rows first, and the best group marked.

    Arms stand above, baselines in a block of their own below; rows that are not ranked are the
    last of their block.

    Args:
        table: any table of the rows that were ranked.
        ranking: their order.
        key: of the column that the order is by; without it the rows are sorted and none is marked.
        columns: key of another column -> the order by it, whose group is marked there.
    """
    table = in_order(table, (*ranking.arms, *ranking.baselines))
    if not any(c.key == key for c in table.columns):
        return table
    mark = ranking.note
    marked = {key: ranking.group} if mark else {}
    if mark and columns:
        marked |= {name: of.group for name, of in columns.items()}
        mark = _of_each_column(ranking, mark)
    return replace(table, ranked_by=key, marked=marked, mark=mark)


def _of_each_column(ranking: Ranking, mark: str) -> str:
    if not ranking.formed or ranking.over_images:
        return f"in each column {mark}"
    return (
        "best of its column, or cannot be told from the best: the 95 % interval of the difference "
        f"over {ranking.seeds} seeds includes 0."
    )


def in_order(table: ResultTable, rows: Sequence[str]) -> ResultTable:
    """Return a table with its rows in an order, and the baselines below as before."""
    place = {row: k for k, row in enumerate(rows)}
    first = len(table.rows) - table.references
    ordered = sorted(
        range(len(table.rows)),
        key=lambda i: (i >= first, place.get(table.rows[i], len(place)), i),
    )

    def taken(values: FloatArray | None) -> FloatArray | None:
        return None if values is None else values[ordered]

    return replace(
        table,
        rows=tuple(table.rows[i] for i in ordered),
        mean=table.mean[ordered],
        spread=table.spread[ordered],
        low=taken(table.low),
        high=taken(table.high),
        complete=None if table.complete is None else table.complete[ordered],
    )
