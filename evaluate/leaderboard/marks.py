"""Which method of a column is best, and which are statistically tied with it: by checkpoint, and by recipe."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from evaluate.leaderboard import ties

if TYPE_CHECKING:
    from evaluate.leaderboard.table import Column, Row, SeedMean


def mark(column: Column, rows: Iterable[Row]) -> None:
    """Mark the best method of a column and those tied with it, and give every cell its rank."""
    if column.higher_is_better is None:
        return
    sign = 1 if column.higher_is_better else -1
    cells = [(row, row.cells[column]) for row in rows if column in row.cells and not row.is_step]
    cells = [(row, cell) for row, cell in cells if math.isfinite(cell.score.value)]
    cells.sort(key=lambda pair: -sign * pair[1].score.value)
    for place, (_, cell) in enumerate(cells):
        cell.rank = place / max(1, len(cells) - 1)
    methods = [cell for row, cell in cells if row.takes_part]
    if not methods:
        return
    methods[0].best = True
    for cell in methods[1:]:
        cell.tied = ties.tied([methods[0].record], [cell.record], column.metric)


def mark_folded(column: Column, rows: Iterable[Row], means: Sequence[SeedMean]) -> None:
    """Mark the best method of a column and those tied with it, the seeds of a recipe being one method."""
    if column.higher_is_better is None:
        return
    several = [mean for mean in means if column in mean.values and mean.rows[0].takes_part]
    inside = {row.key for mean in several for row in mean.rows}
    singles = [row.cells[column] for row in rows if column in row.cells and row.key not in inside and row.takes_part]
    if not several:
        for cell in singles:
            cell.folded = cell.mark
        return
    values = [
        (mean.values[column].mean, [row.cells[column].record for row in mean.rows if column in row.cells])
        for mean in several
    ]
    values += [(cell.score.value, [cell.record]) for cell in singles]
    sign = 1 if column.higher_is_better else -1
    order = [i for i in range(len(values)) if math.isfinite(values[i][0])]
    order.sort(key=lambda i: -sign * values[i][0])
    for i in order:
        found = 2 if i == order[0] else int(ties.tied(values[order[0]][1], values[i][1], column.metric))
        if i < len(several):
            several[i].marks[column] = found
        else:
            singles[i - len(several)].folded = found
