"""The leaderboard as one HTML file that works from disk with no network.

Page, style and program are `page.html`, `page.css` and `page.js` beside this file; the table travels inside as
JSON. A content security policy allows exactly that style and that program (by hash) and nothing from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from evaluate.leaderboard import curves
from evaluate.leaderboard.curves import Curve, Figure
from evaluate.leaderboard.export import ABOUT, file_name
from evaluate.leaderboard.grid import by_reason
from evaluate.leaderboard.table import Cell, Column, Row, SeedMean, Table, choices
from evaluate.records import Record

PER_RECORD = ("seconds", "peak_memory_mb", "date")  # differs from record to record; the rest of the provenance repeats
APART = (*PER_RECORD, "dataset_fingerprint", "files")
NAMES = 20  # of checkpoints that did not run for one reason
LINES = 8  # in one figure: more cannot be told apart


@dataclass
class _Pool:
    """Values that repeat in many records, each stored once and referred to by number."""

    values: list[Any] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)

    def number(self, value: Any) -> int:
        key = json.dumps(value, sort_keys=True)
        if key not in self.numbers:
            self.numbers[key] = len(self.values)
            self.values.append(value)
        return self.numbers[key]


def render(
    table: Table, drawn: Sequence[Figure] = (), runs: Path | None = None, output: str | Path | None = None
) -> str:
    """The page of every metric of `table` (it opens with the main ones), with figures and training logs in `runs`.

    output: folder that the page will lie in, from which it points to the pictures of tasks; None for no pictures.
    """
    folder = Path(__file__).parent
    style, program = (folder / "page.css").read_text("utf-8"), (folder / "page.js").read_text("utf-8")
    parts = {"STYLE": style, "PROGRAM": program, "DATA": embed(payload(table, drawn, runs, output))}
    parts |= {"STYLE_HASH": _csp_hash(style), "PROGRAM_HASH": _csp_hash(program)}
    pieces = (folder / "page.html").read_text("utf-8").split("@@")
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def _csp_hash(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def embed(data: Any) -> str:
    """JSON that cannot end the element it is embedded in, whatever text it holds."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text = text.encode(errors="backslashreplace").decode()  # what is no UTF-8 in a name, as JSON escapes it
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def payload(
    table: Table, drawn: Sequence[Figure] = (), runs: Path | None = None, output: str | Path | None = None
) -> dict[str, Any]:
    """The table as JSON types: columns, rows, figures, and what the records of the rows share.

    A record is [shared, extra, seconds, memory, date, file, cells], its file number one of `files`, in the row's folder
    unless it names another, followed by the addresses of its pictures where there are any; a cell is
    [column, value, low, high, n, mark] with mark 2 best, 1 tied with it, 0 neither; a missing number is null. A line is
    [name, x, y]; `curves` of a row are the figures of its records by their number, `training` the lines of its log. A
    mean over seeds is [column, mean, deviation, seeds, low, high, mark]; `marks` are those [row, column, mark] of
    checkpoints that differ where the seeds of a recipe are one row.
    """
    pools = _Pool(), _Pool(), _Pool()
    position = {column: i for i, column in enumerate(table.columns)}
    specs = curves.read_figures()
    rows = [_row(row, position, table.root, pools, output) | _lines(row, specs, runs) for row in table.rows]
    at = {row.key: i for i, row in enumerate(table.rows)}
    marks = [
        [i, position[column], cell.folded]
        for i, row in enumerate(table.rows)
        for column, cell in row.cells.items()
        if cell.folded != cell.mark
    ]
    missing = [{**vars(status), "checkpoint": _listed(names)} for status, names in by_reason(table.statuses)]
    return {
        "notes": table.notes,
        "columns": [_column(column) for column in table.columns],
        "rows": rows,
        "figures": [_figure(figure) for figure in drawn],
        **{name: pool.values for name, pool in zip(("shared", "extra", "files"), pools, strict=True)},
        "seeds": [_seeds(mean, position, at) for mean in table.seed_means],
        "marks": marks,
        "statuses": missing,
        "problems": table.problems,
    }


def _listed(names: Sequence[str]) -> str:
    left = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
    return ", ".join(names[:NAMES]) + left


def _seeds(mean: SeedMean, position: Mapping[Column, int], at: Mapping[str, int]) -> dict[str, Any]:
    values = [[position[c], *map(_short, value), mean.marks.get(c, 0)] for c, value in mean.values.items()]
    return {"name": mean.name, "label": mean.label, "rows": [at[row.key] for row in mean.rows], "values": values}


def _column(column: Column) -> dict[str, Any]:
    better = {True: 1, False: -1, None: 0}[column.higher_is_better]
    names = ("task", "metric", "dataset", "fingerprint", "scale", "differing")
    settings = {name: _setting(value) for name, value in choices(column).items()}
    return {name: getattr(column, name) for name in names} | {"better": better, "protocol": settings}


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _row(
    row: Row, position: dict[Column, int], root: Path, pools: tuple[_Pool, _Pool, _Pool], output: str | Path | None
) -> dict[str, Any]:
    records: dict[int, tuple[Record, list]] = {}
    for column, cell in row.cells.items():
        records.setdefault(id(cell.record), (cell.record, []))[1].append(_cell(position[column], cell))
    folder = next((file_name(record, root).rpartition("/")[0] for record, _ in records.values()), "")
    stored = [
        _record(record, cells, folder, root, pools) + ([seen] if (seen := _pictures(record, root, output)) else [])
        for record, cells in records.values()
    ]
    about = {key: row.checkpoint.get(key) for key in ABOUT if row.checkpoint.get(key) not in (None, "")}
    missing = [[task, dataset, status.status, status.reason] for (task, dataset), status in row.statuses.items()]
    about |= {"step": 1} if row.is_step else {}
    return {**about, "folder": folder, "records": stored, "missing": missing}


def _lines(row: Row, specs: Mapping[str, Mapping[str, Any]], runs: Path | None) -> dict[str, Any]:
    """Curves of a checkpoint: beside its records, and of its training."""
    found = enumerate(curves.of_record(record, specs) for record in curves.records_of(row))
    beside = {
        at: [[specs[key]["title"], specs[key]["across"], _line(c)] for key, c in each] for at, each in found if each
    }
    logged = [_line(curve) for curve in curves.training(runs, row.checkpoint)] if runs else []
    return ({"curves": beside} if beside else {}) | ({"training": logged} if logged else {})


def _line(curve: Curve) -> list:
    return [curve.name, curve.x, curve.y]


def _figure(figure: Figure) -> dict[str, Any]:
    shown = [_line(curve) for curve in figure.curves[:LINES]]
    about = {"title": figure.title, "across": figure.across, "dataset": figure.dataset}
    return about | {"lines": shown, "more": len(figure.curves) - len(shown)}


def _record(record: Record, cells: list, folder: str, root: Path, pools: tuple[_Pool, _Pool, _Pool]) -> list:
    shared, extra, files = pools
    provenance = record.provenance
    repeated = {key: value for key, value in provenance.items() if key not in APART}
    about = {"notes": record.notes, "skipped": record.skipped, "unit": record.score.unit}
    own = [_short(value) if isinstance(value := provenance.get(key), float) else value for key in PER_RECORD]
    file = files.number(file_name(record, root).removeprefix(f"{folder}/")) if record.path else None
    return [shared.number(repeated), extra.number(about), *own, file, cells]


def _pictures(record: Record, root: Path, output: str | Path | None) -> list[str]:
    """Addresses, as seen from `output`, of the files that a task left; what a record says is trusted below figures/."""
    named = record.provenance.get("files")
    if output is None or not isinstance(named, list):
        return []
    home = root.parent.resolve()
    places = [(home / str(name)).resolve() for name in named]
    kept = [place for place in places if place.is_relative_to(home / "figures") and place.is_file()]
    return [quote(Path(os.path.relpath(place, Path(output).resolve())).as_posix()) for place in kept]


def _cell(column: int, cell: Cell) -> list:
    score = cell.score
    return [column, _short(score.value), _short(score.low), _short(score.high), score.n, cell.mark]


def _short(value: float | None) -> float | None:
    """Eight significant digits: enough to be rounded as other outputs do it, and half of the bytes."""
    return None if value is None or math.isnan(value) else float(f"{value:.8g}")
