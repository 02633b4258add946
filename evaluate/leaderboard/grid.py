"""A table as blocks of plain entries, what the Markdown, LaTeX and terminal writers share: the summary, then the seeds.

The summary has a line a method (a checkpoint, or all seeds of a recipe as mean ± deviation) and a block a dataset, with
a column for each task; datasets on which the same methods were measured share a block while there is room.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from evaluate.leaderboard.recipes import Spread
from evaluate.leaderboard.table import Column, Row, SeedMean, Table, interval, number
from evaluate.records import Score, Status

NAMES = {"objective": "Objective", "backbone": "Backbone", "parent": "From"}  # of a checkpoint, shown where they tell
WIDTH = 6  # columns of scores in a block


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
    """A grid: `facts` hold for all of its methods, `names` counts the columns before the scores."""

    title: str
    facts: list[str]
    header: list[str]
    lines: list[Line]
    names: int


@dataclass(eq=False)
class Method:
    """What the summary has a line for: one checkpoint, or the seeds of a recipe with their mean."""

    rows: list[Row]
    mean: SeedMean | None = None
    spreads: dict[Column, Spread] = field(init=False)

    def __post_init__(self) -> None:
        self.spreads = self.mean.values if self.mean else {}

    @property
    def name(self) -> str:
        """Name with its label."""
        return title({"name": self.mean.name, "label": self.mean.label} if self.mean else self.rows[0].checkpoint)

    @property
    def is_baseline(self) -> bool:
        return self.rows[0].is_baseline

    def about(self, key: str) -> str:
        """A property of the checkpoint; of seeds the first one's."""
        value = str(self.rows[0].checkpoint.get(key) or "")
        return "" if key == "parent" and self.name.startswith(value) else value  # a kept epoch says so by its name

    def rank(self, columns: Sequence[Column]) -> float:
        """Mean rank over the columns, 0 best; after all others without a score."""
        cells = [row.cells[column] for row in self.rows for column in columns if column in row.cells]
        ranks = [cell.rank for cell in cells if not math.isnan(cell.rank)]
        return sum(ranks) / len(ranks) if ranks else 2.0

    def has(self, columns: Sequence[Column]) -> bool:
        """Whether there is a score in one of the columns, or a reason for none."""
        return any(c in row.cells or (c.task, c.dataset) in row.statuses for row in self.rows for c in columns)


def methods(table: Table) -> list[Method]:
    """The checkpoints of a table in order without kept epochs, those of a recipe with several seeds as one."""
    folded = {row.key: mean for mean in table.seed_means for row in mean.rows}
    made: dict[str, Method] = {}
    for row in table.rows:
        if row.is_step:
            continue
        mean = folded.get(row.key)
        made.setdefault(mean.rows[0].key if mean else row.key, Method(mean.rows if mean else [row], mean))
    return list(made.values())


def summary(table: Table, width: int = WIDTH) -> list[Block]:
    """One line a method, best first and baselines last; no more than `width` columns of scores in a block."""
    every = methods(table)
    return [_block(name, columns, [m for m in every if m.has(columns)]) for name, columns in _grids(table, width)]


def seeds(table: Table, width: int = WIDTH) -> list[Block]:
    """The single seeds behind the summary, under the mean of each recipe with its two-level interval."""
    folded = [method for method in methods(table) if method.mean]
    blocks = []
    for name, columns in _grids(table, width):
        lines = []
        for method in sorted((m for m in folded if m.has(columns)), key=lambda m: m.rank(columns)):
            mean = Entry(f"{method.name}, {len(method.rows)} seeds")
            lines.append(Line([mean, *(_mean_entry(method, column) for column in columns)]))
            rows = [row for row in method.rows if row.cells.keys() & set(columns)]
            lines += [Line([Entry(title(row.checkpoint)), *(_entry(row, c) for c in columns)]) for row in rows]
        if lines:
            blocks.append(Block(name, [], ["Checkpoint", *_heads(columns)], lines, 1))
    return blocks


def _grids(table: Table, width: int) -> list[tuple[str, list[Column]]]:
    """Title and columns of each block."""
    columns: dict[str, list[Column]] = defaultdict(list)
    for column in table.columns:
        columns[column.dataset].append(column)
    measured: dict[str, set[str]] = defaultdict(set)
    for row in table.rows:
        for column in row.cells:
            measured[column.dataset].add(row.key)
    grids: list[tuple[list[str], list[Column]]] = []
    for dataset, own in sorted(columns.items()):
        size = math.ceil(len(own) / math.ceil(len(own) / width))  # twelve are six and six, not eight and four
        for start in range(0, len(own), size):
            part, last = own[start : start + size], grids[-1] if grids else ([], [])
            fits = len(last[1]) + len(part) <= width
            if not start and last[0] and fits and measured[last[0][-1]] == measured[dataset]:
                grids[-1] = (last[0] + [dataset], last[1] + part)
            else:
                grids.append(([dataset], part))
    return [(", ".join(names), own) for names, own in grids]


def _heads(columns: Sequence[Column]) -> list[str]:
    several = len({column.dataset for column in columns}) > 1
    return [f"{column.dataset} " * several + f"{column.short_label} {arrow(column)}".strip() for column in columns]


def _block(name: str, columns: Sequence[Column], shown: Sequence[Method]) -> Block:
    shown = sorted(shown, key=lambda method: (method.is_baseline, method.rank(columns), method.name))
    real = [method for method in shown if not method.is_baseline] or shown
    facts, keys = [], []
    for key, word in NAMES.items():
        values = {method.about(key) for method in real}
        if key == "objective" and all(_plain(m.about(key)) in _plain(m.name) for m in real):
            continue
        if len(values) > 1:
            keys.append(key)
        elif values != {""}:
            facts.append(f"{word}: {values.pop()}.")
    counts = sorted({len(method.rows) for method in real})
    with_counts = len(counts) > 1
    if counts != [1]:
        facts.append("± is the standard deviation over seeds" + ("." if with_counts else f", {counts[0]} each."))
    header = ["Checkpoint", *(NAMES[key] for key in keys), *(["Seeds"] if with_counts else []), *_heads(columns)]
    lines = []
    for method in shown:
        names = [method.name, *(method.about(key) or "–" for key in keys), *([str(len(method.rows))] * with_counts)]
        scores = [_method_entry(method, column) for column in columns]
        lines.append(Line([*map(Entry, names), *scores], method.is_baseline))
    return Block(name, facts, header, lines, len(header) - len(columns))


def _plain(name: str) -> str:
    return re.sub(r"\W|_", "", name.lower())


def arrow(column: Column) -> str:
    """Which way is better; nothing where a record does not say."""
    return {True: "↑", False: "↓", None: ""}[column.higher_is_better]


def title(checkpoint: dict) -> str:
    """Name of a checkpoint with its label, which must never be lost ("inferred loss ...")."""
    return f"{checkpoint['name']} ({checkpoint['label']})" if checkpoint.get("label") else checkpoint["name"]


def status_lines(statuses: Sequence[Status]) -> list[str]:
    """One sentence for what did not run for one reason: which task, for which checkpoints, why, what would help."""
    return [
        f"{s.task} on {s.dataset}, {', '.join(names)}: {s.status}, {s.reason.rstrip('. ')}. Remedy: {s.remedy}"
        for s, names in by_reason(statuses)
    ]


def by_reason(statuses: Sequence[Status]) -> list[tuple[Status, list[str]]]:
    """What did not run for one reason, with the names of all its checkpoints."""
    groups: dict[tuple[str, ...], tuple[Status, list[str]]] = {}
    for s in statuses:
        _, names = groups.setdefault((s.task, s.dataset, s.status, s.reason, s.remedy), (s, []))
        names.append(title(s.checkpoint))
    return list(groups.values())


# ---- cells


def _method_entry(method: Method, column: Column) -> Entry:
    value = method.spreads.get(column)
    if value is not None:
        fewer = f" ({value.seeds} seeds)" if value.seeds != len(method.rows) else ""
        marked = method.mean is not None and method.mean.marks.get(column, 0) > 0
        return Entry(f"{_plus_minus(value, column)}{fewer}", bold=marked)
    found = [row for row in method.rows if column in row.cells] or method.rows
    return _entry(found[0], column, folded=True)


def _mean_entry(method: Method, column: Column) -> Entry:
    value = method.spreads.get(column)
    return Entry("–") if value is None else Entry(_plus_minus(value, column), detail=interval(value, column.scale))


def _plus_minus(value: Spread, column: Column) -> str:
    return f"{number(value.mean, column.scale)} ± {number(value.deviation, column.scale)}"


def _entry(row: Row, column: Column, folded: bool = False) -> Entry:
    cell = row.cells.get(column)
    if cell is None:
        status = row.statuses.get((column.task, column.dataset))
        return Entry("failed" if status and status.status == "failed" else "–")  # why one was skipped is listed apart
    score: Score = cell.score
    mark = cell.folded if folded else cell.mark
    return Entry(number(score.value, score.scale), bold=mark > 0, detail=interval(score))
