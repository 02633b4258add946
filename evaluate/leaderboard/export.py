"""Flat files for other programs: one line a score, each with the record it comes from (CSV, JSON, Parquet)."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from evaluate.leaderboard import escape, text
from evaluate.leaderboard.table import Cell, Column, Table, build, number
from evaluate.records import Record, write_whole

ABOUT = ("name", "label", "kind", "objective", "backbone", "images_seen", "epoch", "seed", "parent", "weights_digest")
PROVENANCE = ("commit", "date", "hardware", "seconds", "peak_memory_mb")


def flat(table: Table) -> list[dict[str, Any]]:
    """One dictionary a score: checkpoint, column, value and interval (fractions), marks, provenance, record file."""
    rows = []
    for column in table.columns:
        where = _where(column)
        for row in table.rows_of([column]):
            if column in row.cells:
                about = {key: row.checkpoint.get(key) for key in ABOUT}
                rows.append(about | where | _score(row.cells[column], column, table.root))
    return rows


def _where(column: Column) -> dict[str, Any]:
    where = {"task": column.task, "task_version": column.task_version, "dataset": column.dataset}
    where |= {"metric": column.metric, "higher_is_better": column.higher_is_better, "fingerprint": column.fingerprint}
    protocol = json.dumps(column.protocol, sort_keys=True)
    return where | {"protocol": protocol, "dataset_fingerprint": column.dataset_fingerprint}


def _score(cell: Cell, column: Column, root: Path) -> dict[str, Any]:
    score, record = cell.score, cell.record
    row = {"value": _finite(score.value), "low": _finite(score.low), "high": _finite(score.high), "scale": score.scale}
    row |= {
        "n": score.n,
        "unit": score.unit,
        "skipped": json.dumps(record.skipped),
        "main": column.metric == record.main,
    }
    row |= {"best": cell.best, "tied": cell.tied}
    row |= {key: _text(record.provenance.get(key)) for key in PROVENANCE}
    return row | {"notes": "; ".join(map(str, record.notes)), "record": file_name(record, root)}


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _text(value: Any) -> Any:
    return json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value


def file_name(record: Record, root: Path) -> str:
    """The file of a record relative to the folder of records, with forward slashes; empty if never stored."""
    if record.path is None:
        return ""
    file, folder = record.path.as_posix(), root.as_posix()
    return file.removeprefix(f"{folder}/") if file.startswith(f"{folder}/") else record.path.name


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of `flat` as comma-separated values with a header; no cell can act as a spreadsheet formula."""
    stream, fields = io.StringIO(), list(rows[0]) if rows else ["name"]
    writer, safe = csv.writer(stream, lineterminator="\n"), lru_cache(10_000)(escape.csv)  # most cells repeat others
    writer.writerow(fields)
    for row in rows:
        writer.writerow([safe(value) if isinstance(value, str) else value for value in map(row.__getitem__, fields)])
    return stream.getvalue()


def to_json(table: Table, rows: Sequence[dict[str, Any]]) -> str:
    """Rows of `flat`, one a line, with the notes, the means over seeds, what did not run and what could not be read."""
    statuses = [{**vars(status), "checkpoint": status.checkpoint.get("name")} for status in table.statuses]
    parts: dict[str, Sequence[Any]] = {"scores": rows, "seed_means": _flat_means(table), "not_run": statuses}
    parts |= {"notes": table.notes, "unreadable": table.problems}
    lines = [f'"{name}": [\n{_lines(values)}]' for name, values in parts.items()]
    return "{" + ",\n".join(lines) + "}\n"


def _lines(values: Sequence[Any]) -> str:
    return ",\n".join(json.dumps(value, allow_nan=False) for value in values)


def _flat_means(table: Table) -> list[dict[str, Any]]:
    means = []
    for recipe in table.seed_means:
        for column, value in recipe.values.items():
            where: dict[str, Any] = {"recipe": recipe.name, "label": recipe.label, "task": column.task}
            where |= {"dataset": column.dataset, "metric": column.metric, "fingerprint": column.fingerprint}
            numbers = {name: _finite(getattr(value, name)) for name in ("mean", "deviation", "low", "high")}
            means.append(where | numbers | {"seeds": value.seeds})
    return means


def export(records: Sequence[Record], to: str, root: str) -> str:
    """Write every score of `records` to a .csv or .parquet file; returns a line saying so.

    Raises ValueError for another ending.
    """
    table = build(records, root=root)
    if to.endswith(".csv"):
        write_whole(to, to_csv(flat(table)).encode())
    elif to.endswith(".parquet"):
        write_whole(to, _parquet(flat(table)))
    else:
        raise ValueError(f"--to {to}: unknown format; end it in .csv or .parquet")
    return f"{to}: {sum(len(record.scores) for record in records)} scores of {len(records)} records"


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import pandas

    for row in rows:  # one type a column: a checkpoint may call its epoch 10 or "last"
        row |= {key: str(row[key]) for key in ("seed", "epoch", "date", "parent") if row[key] is not None}
    sink = io.BytesIO()
    pandas.DataFrame(rows).to_parquet(sink, engine="pyarrow")
    return sink.getvalue()


def listing(records: Sequence[Record]) -> str:
    """One aligned line a record for the terminal: what, by whom, headline score, fingerprint."""
    lines = [["task", "dataset", "checkpoint", "main", "score", "fingerprint"]]
    for r in records:
        score = number(r.score.value, r.score.scale)
        names = map(escape.terminal, (r.task, r.dataset, r.checkpoint["name"], r.main))
        lines.append([*names, score, r.fingerprint])
    return text.aligned(lines, left=4)
