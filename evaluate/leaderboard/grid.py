"""A table as blocks of plain entries, one block a task: what the Markdown, LaTeX and terminal writers share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from evaluate.leaderboard.table import Column, Row, SeedMean, Table, interval, number
from evaluate.records import Status

ABOUT = ("Checkpoint", "Objective", "Backbone")


@dataclass(frozen=True)
class Entry:
    """Unescaped text of one cell: `bold` for the best and tied, `detail` for the interval beside it."""

    text: str
    bold: bool = False
    detail: str = ""


@dataclass(frozen=True)
class Line:
    """One row of entries; italic for a baseline."""

    entries: list[Entry]
    italic: bool = False


@dataclass(frozen=True)
class Block:
    """The table of one task."""

    task: str
    header: list[str]
    lines: list[Line]


@lru_cache(maxsize=1)  # three writers ask for the same ones
def blocks(table: Table) -> list[Block]:
    """One block a task: methods best first, then means over seeds, then baselines."""
    made = []
    for task, columns in table.by_task().items():
        rows = table.rows_of(columns)
        lines = [_line(row, columns) for row in rows if not row.is_baseline]
        lines += [_mean_line(mean, columns) for mean in table.seed_means if mean.values.keys() & set(columns)]
        lines += [_line(row, columns) for row in rows if row.is_baseline]
        made.append(Block(task, [*ABOUT, *(f"{column.label} {arrow(column)}".strip() for column in columns)], lines))
    return made


def arrow(column: Column) -> str:
    """Which way is better; nothing where a record does not say."""
    return {True: "↑", False: "↓", None: ""}[column.higher_is_better]


def title(checkpoint: dict) -> str:
    """Name of a checkpoint with its label, which must never be lost ("inferred loss ...")."""
    return f"{checkpoint['name']} ({checkpoint['label']})" if checkpoint.get("label") else checkpoint["name"]


def status_lines(statuses: Sequence[Status]) -> list[str]:
    """One sentence for each task that did not run: what, why, and what would help."""
    return [
        f"{s.task} on {s.dataset}, {title(s.checkpoint)}: {s.status}, {s.reason.rstrip('. ')}. Remedy: {s.remedy}"
        for s in statuses
    ]


def _line(row: Row, columns: Sequence[Column]) -> Line:
    about = [title(row.checkpoint), *(str(row.checkpoint.get(key) or "–") for key in ("objective", "backbone"))]
    return Line([*map(Entry, about), *(_entry(row, column) for column in columns)], italic=row.is_baseline)


def _entry(row: Row, column: Column) -> Entry:
    cell = row.cells.get(column)
    if cell is None:
        status = row.statuses.get((column.task, column.dataset))
        return Entry(status.status if status else "–")
    text = number(cell.score.value, cell.score.scale)
    return Entry(text, bold=cell.best or cell.tied, detail=interval(cell.score))


def _mean_line(mean: SeedMean, columns: Sequence[Column]) -> Line:
    shown = set(columns)
    seeds = max(value.seeds for column, value in mean.values.items() if column in shown)
    name = f"{mean.name} (mean ± deviation of {seeds} seeds)" + (f" ({mean.label})" if mean.label else "")
    entries = [Entry(name), Entry("–"), Entry("–")]
    for column in columns:
        value = mean.values.get(column)
        if value is None:
            entries.append(Entry("–"))
            continue
        both = f"{number(value.mean, column.scale)} ± {number(value.deviation, column.scale)}"
        fewer = f" ({value.seeds} seeds)" if value.seeds != seeds else ""
        entries.append(Entry(both + fewer, detail=interval(value, column.scale)))
    return Line(entries)
