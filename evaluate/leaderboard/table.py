"""Records -> a table: rows are checkpoints, columns are (task, metric, dataset, protocol fingerprint).

Two fingerprints never share a column: where they differ there are two columns, each labelled with the fields that
differ. The best cell of a column and those statistically tied with it are marked; baselines are no methods, so they
take no part in that, nor do kept epochs of a run that is there itself, which are points of its curve. Cells are marked
twice: checkpoint by checkpoint, and with the seeds of each recipe as one method.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from evaluate.leaderboard import marks, ties
from evaluate.leaderboard.recipes import Spread, recipe, spread
from evaluate.records import Record, Score, Status, checkpoint_key

SMOKE = "ShapeWorld is a smoke world, not a benchmark."
USUAL = ("knn", "linear", "linear_cached", "retrieval", "hamming")  # what is looked at first
BASELINES = "The rows untrained:... (untrained backbones) and pixels:... (raw pixels) are baselines: no method at all."


@dataclass(frozen=True)
class Column:
    """One comparable set of numbers; `differing` tells it from columns of the same task, metric and dataset."""

    task: str
    metric: str
    dataset: str
    fingerprint: str
    protocol: dict = field(compare=False)
    task_version: int = field(compare=False)
    dataset_fingerprint: str = field(compare=False)
    higher_is_better: bool | None = field(compare=False)  # None: not the main metric, whose direction alone is recorded
    scale: str = field(compare=False, default="fraction")
    differing: str = field(compare=False, default="")

    def __hash__(self) -> int:
        return self._hash  # columns are looked up very often

    @cached_property
    def _hash(self) -> int:
        return hash((self.fingerprint, self.metric, self.dataset))

    @property
    def label(self) -> str:
        """Dataset and metric, with the protocol fields that differ from the neighbouring columns in parentheses."""
        return f"{self.dataset} {self._measure}"

    @property
    def short_label(self) -> str:
        """As `label`, with the task in place of the dataset."""
        return f"{self.task} {self._measure}"

    @property
    def _measure(self) -> str:
        unit = "" if self.scale == "fraction" else f" [{self.scale}]"
        return f"{self.metric}{unit}" + (f" ({self.differing})" if self.differing else "")


@dataclass
class Cell:
    """A score and the record it comes from; `best` and `tied` hold among the methods of its column."""

    score: Score
    record: Record
    best: bool = False
    tied: bool = False
    rank: float = math.nan  # 0 best .. 1 worst of the column
    folded: int = 0  # the mark where seeds count as one method: 2 best, 1 tied with it, 0 neither

    @property
    def mark(self) -> int:
        """2 best, 1 tied with it, 0 neither."""
        return 2 if self.best else int(self.tied)


@dataclass
class Row:
    """One checkpoint: its cells by column, and why cells are missing by (task, dataset).

    is_step: a kept epoch of a run that has a row of its own.
    """

    key: str
    checkpoint: dict
    cells: dict[Column, Cell] = field(default_factory=dict)
    statuses: dict[tuple[str, str], Status] = field(default_factory=dict)
    is_step: bool = False

    @property
    def takes_part(self) -> bool:
        """Whether it is one of the methods that are compared."""
        return not self.is_baseline and not self.is_step

    @property
    def is_baseline(self) -> bool:
        """True for an untrained backbone, raw pixels and the like."""
        return self.checkpoint.get("kind") == "baseline"


@dataclass
class SeedMean:
    """Over the seeds of one recipe, by column; marks as `Cell.folded`."""

    name: str
    label: str
    rows: list[Row]
    values: dict[Column, Spread]
    marks: dict[Column, int] = field(default_factory=dict)


@dataclass(eq=False)
class Table:
    """Everything that the writers need; `root` is the folder of the records."""

    root: Path
    columns: list[Column]
    rows: list[Row]
    seed_means: list[SeedMean]
    statuses: list[Status]
    problems: list[str]

    @property
    def notes(self) -> list[str]:
        """Sentences that belong under every form of the table."""
        datasets = {column.dataset for column in self.columns}
        notes = [SMOKE] if any("shapeworld" in re.sub(r"[^a-z]", "", name.lower()) for name in datasets) else []
        notes += [BASELINES] if any(row.is_baseline for row in self.rows) else []
        if steps := sum(row.is_step for row in self.rows):
            notes.append(
                f"Left out: {steps} kept epochs of these runs; leaderboard.csv, the page and its curves have them."
            )
        if any(cell.best for row in self.rows for cell in row.cells.values()):
            notes.append(ties.METHOD)
        return notes

    @property
    def headline(self) -> Table:
        """The same table with the columns of main metrics only."""
        return replace(self, columns=[column for column in self.columns if column.higher_is_better is not None])

    def rows_of(self, columns: Sequence[Column]) -> list[Row]:
        """The rows with a score in `columns`, or a reason for none; best mean rank first, baselines last."""
        places = {(column.task, column.dataset) for column in columns}
        present = [row for row in self.rows if row.cells.keys() & set(columns) or row.statuses.keys() & places]
        return sorted(present, key=lambda row: _order(row, columns))


def build(
    records: Sequence[Record],
    statuses: Sequence[Status] = (),
    root: str | Path = "results/records",
    problems: Sequence[str] = (),
) -> Table:
    """The table of every metric of `records`; `headline` of it has the main metrics only."""
    rows: dict[str, Row] = {}
    columns: dict[Column, Column] = {}
    for record in sorted(records, key=lambda record: str(record.provenance.get("date", ""))):  # the newest wins
        key = checkpoint_key(record.checkpoint)
        row = rows.setdefault(key, Row(key, record.checkpoint))
        row.checkpoint = record.checkpoint
        fingerprint = record.fingerprint
        for metric in record.scores:
            column = _column(record, metric, fingerprint)
            columns.setdefault(column, column)
            row.cells[column] = Cell(record.scores[metric], record)
    _attach(rows, statuses)
    names = {row.checkpoint["name"] for row in rows.values()}
    for row in rows.values():
        row.is_step = row.checkpoint["name"].rpartition("/epochs/")[0] in names
    ordered = _tell_apart(sorted(columns.values(), key=_column_order))
    final = {column: column for column in ordered}
    for row in rows.values():  # one object a column: a look-up then compares no fields
        row.cells = {final[column]: cell for column, cell in row.cells.items()}
    means = seed_means(rows.values())
    for column in ordered:
        marks.mark(column, rows.values())
        marks.mark_folded(column, rows.values(), means)
    table = Table(Path(root), ordered, list(rows.values()), means, list(statuses), list(problems))
    table.rows.sort(key=lambda row: _order(row, ordered))
    return table


def _column_order(column: Column) -> tuple:
    """By task, the usual ones first, and dataset, the main metric first."""
    usual = USUAL.index(column.task) if column.task in USUAL else len(USUAL)
    return usual, column.task, column.dataset, column.higher_is_better is None, column.metric, column.fingerprint


def _column(record: Record, metric: str, fingerprint: str) -> Column:
    return Column(
        record.task,
        metric,
        record.dataset,
        fingerprint,
        record.protocol,
        record.task_version,
        record.provenance["dataset_fingerprint"],
        record.higher_is_better if metric == record.main else None,
        record.scores[metric].scale,
    )


def _attach(rows: dict[str, Row], statuses: Iterable[Status]) -> None:
    """Put every status on the row of its checkpoint: the same weights or, if these were never read, the same name."""
    by_name = {row.checkpoint["name"]: row for row in rows.values()}
    for status in statuses:
        known = bool(status.checkpoint.get("weights_digest"))
        row = rows.get(checkpoint_key(status.checkpoint)) if known else by_name.get(status.checkpoint["name"])
        if row is not None:
            row.statuses[status.task, status.dataset] = status


# ---- unlike protocols


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """A nested protocol as dotted names: {"a": {"b": 1}} -> {"a.b": 1}; lists stay whole."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    parts = [flatten(item, f"{prefix}.{key}".lstrip(".")) for key, item in value.items()]
    return {name: leaf for part in parts for name, leaf in part.items()}


def choices(record_or_column: Record | Column) -> dict[str, Any]:
    """All that enters the fingerprint, as flat names: the protocol, the task version and the dataset fingerprint."""
    source = record_or_column
    dataset = source.dataset_fingerprint if isinstance(source, Column) else source.provenance["dataset_fingerprint"]
    return {**flatten(source.protocol), "task version": source.task_version, "dataset fingerprint": dataset}


def differing_fields(several: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the fields that do not have one value throughout, absent counting as a value."""
    names = dict.fromkeys(name for each in several for name in each)
    return [name for name in names if len({repr(each.get(name, "absent")) for each in several}) > 1]


def _tell_apart(columns: Sequence[Column]) -> list[Column]:
    """The columns in order, those that differ in their fingerprint alone labelled with the fields that differ."""
    alike: dict[tuple, list[Column]] = defaultdict(list)
    for column in columns:
        alike[column.task, column.metric, column.dataset].append(column)
    labelled = []
    for group in alike.values():
        flat = [choices(column) for column in group]
        fields = differing_fields(flat)
        for column, own in zip(group, flat, strict=True):
            text = ", ".join(f"{name}={str(own.get(name, 'absent')):.24}" for name in fields)
            labelled.append(replace(column, differing=text))
    return labelled


# ---- order, seeds


def _order(row: Row, columns: Sequence[Column]) -> tuple:
    """Methods before baselines; better mean rank first; then by name."""
    ranks = [row.cells[c].rank for c in columns if c in row.cells and not math.isnan(row.cells[c].rank)]
    mean = sum(ranks) / len(ranks) if ranks else 2.0
    return row.is_baseline, mean, row.checkpoint["name"], row.key


def seed_means(rows: Iterable[Row]) -> list[SeedMean]:
    """Mean and standard deviation for every recipe that was trained with at least two different seeds."""
    groups: dict[tuple, list[Row]] = defaultdict(list)
    for row in rows:
        if row.checkpoint.get("seed") is not None:
            groups[recipe(row.checkpoint)].append(row)
    means = []
    for key, group in sorted(groups.items()):
        if len({row.checkpoint["seed"] for row in group}) < 2:
            continue
        columns = dict.fromkeys(column for row in group for column in row.cells)
        values = {c: spread([row.cells[c].score for row in group if c in row.cells]) for c in columns}
        label = group[0].checkpoint.get("label") or ""
        group.sort(key=lambda row: (len(str(row.checkpoint["seed"])), str(row.checkpoint["seed"])))
        means.append(SeedMean(key[0], label, group, {c: value for c, value in values.items() if value.seeds > 1}))
    return [mean for mean in means if mean.values]


# ---- numbers as text


def number(value: float | None, scale: str = "fraction") -> str:
    """A value as printed: percent with two decimals for fractions, else four significant digits; "undefined" if NaN."""
    if value is None or math.isnan(value):
        return "undefined"
    return f"{100 * value:.2f}" if scale == "fraction" else f"{value:.4g}"


def interval(score: Score | Spread, scale: str | None = None) -> str:
    """The 95 % interval as "low-high" with an en dash, or nothing where there is none; `scale` is that of the score."""
    if score.low is None or score.high is None:
        return ""
    shown = score.scale if isinstance(score, Score) else scale or "fraction"
    return f"{number(score.low, shown)}–{number(score.high, shown)}"
