"""Curves that records and runs hold: probing by epoch, explained variance, mAP by epoch of pre-training, training logs.

Which arrays and which records make a curve says `paper.yaml`. A run's `log.csv` is read where it still lies in the
folder of runs and its `run.json` speaks of the same training; that is the one thing here that is no record.
"""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from evaluate.leaderboard.grid import title
from evaluate.leaderboard.table import Row, Table
from evaluate.records import Record

POINTS = 60  # kept of a curve; more are not seen at the size it is drawn in
TRAINING = ("loss", "agreement", "rate_over_bound", "effective_rank", "bit_entropy")


@dataclass(frozen=True)
class Curve:
    """Points of one line, and what it is called."""

    name: str
    x: list[float]
    y: list[float]


@dataclass
class Figure:
    """Lines of several checkpoints on one dataset; `across` names the horizontal axis."""

    key: str
    title: str
    across: str
    dataset: str
    curves: list[Curve] = field(default_factory=list)


def read_figures() -> dict[str, dict[str, Any]]:
    """What `paper.yaml` says of figures."""
    return yaml.safe_load(Path(__file__).with_name("paper.yaml").read_text("utf-8"))["figures"]


def of_record(record: Record, specs: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Curve]]:
    """(key of the figure, curve) for every curve beside a record; lost or damaged outcomes hold none."""
    wanted = {key: spec["outcome"] for key, spec in specs.items() if record.task in spec["tasks"] and "outcome" in spec}
    try:
        held = {key: np.asarray(record.outcomes[name]) for key, name in wanted.items() if name in record.outcomes}
    except (FileNotFoundError, ValueError):
        return []  # `python -m evaluate.records verify` names them
    lines = {key: _line(array) for key, array in held.items()}
    name = title(record.checkpoint)
    return [(key, _thinned(name, np.arange(1.0, len(y) + 1), y)) for key, y in lines.items() if y is not None]


def _line(array: np.ndarray) -> np.ndarray | None:
    """One value a step: (steps,) as it is, of (steps, heads) the head that is best at the end."""
    if array.ndim not in (1, 2) or not array.size or not np.issubdtype(array.dtype, np.number):
        return None
    if array.ndim == 2:
        last = np.where(np.isfinite(array[-1]), array[-1], -np.inf)
        array = array[:, int(last.argmax())]
    return array.astype(np.float64)


def _thinned(name: str, x: np.ndarray, y: np.ndarray) -> Curve:
    """At most `POINTS` finite points, the first and the last among them."""
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    kept = np.unique(np.linspace(0, max(0, len(x) - 1), min(len(x), POINTS)).round().astype(int))
    return Curve(name, [float(f"{v:.6g}") for v in x[kept]], [float(f"{v:.4g}") for v in y[kept]])


def figures(table: Table) -> list[Figure]:
    """Every figure that the records of a table hold, one for each dataset; a seed of every recipe before the others."""
    found: dict[tuple[str, str], Figure] = {}
    specs = read_figures()
    others = {id(row) for mean in table.seed_means for row in mean.rows[1:]}
    for row in sorted(table.rows, key=lambda row: id(row) in others):
        for record in records_of(row):
            for key, curve in of_record(record, specs):
                _figure(found, key, specs[key], _where(record)).curves.append(curve)
    for key, spec in specs.items():
        for dataset, curve in _by_epoch(table, spec) if "epochs" in spec else ():
            _figure(found, key, spec, dataset).curves.append(curve)
    return [figure for figure in found.values() if any(len(curve.x) > 1 for curve in figure.curves)]


def _where(record: Record) -> str:
    return f"{record.dataset} ({record.task}, {record.fingerprint})"


def _figure(found: dict[tuple[str, str], Figure], key: str, spec: Mapping[str, Any], dataset: str) -> Figure:
    return found.setdefault((key, dataset), Figure(key, spec["title"], spec["across"], dataset))


def records_of(row: Row) -> list[Record]:
    """The records of a checkpoint, each once."""
    return list({id(cell.record): cell.record for cell in row.cells.values()}.values())


def _by_epoch(table: Table, spec: Mapping[str, Any]) -> Iterator[tuple[str, Curve]]:
    """Scores of the kept epochs of a run, and of its end, by epoch: one curve a run, dataset and protocol."""
    points: dict[tuple[str, str], dict[float, float]] = defaultdict(dict)
    for row in table.rows:
        epoch, name = row.checkpoint.get("epoch"), row.checkpoint["name"]
        run, _, kept = name.partition("/epochs/")
        if not kept and "@" in name and row.checkpoint.get("parent"):
            continue  # another branch of a run, not another epoch
        for record in records_of(row):
            if record.task in spec["tasks"] and spec["epochs"] in record.scores and isinstance(epoch, int | float):
                points[run, _where(record)][float(epoch)] = record.scores[spec["epochs"]].value
    for (run, dataset), by_epoch in points.items():
        if len(by_epoch) > 1:
            epochs = sorted(by_epoch)
            yield dataset, _thinned(run, np.array(epochs), np.array([by_epoch[epoch] for epoch in epochs]))


# ---- training logs


def training(runs: Path, checkpoint: Mapping[str, Any]) -> list[Curve]:
    """Curves of a run's log by images seen, where its folder is still there and tells of the same training."""
    folder = runs / str(checkpoint["name"])
    if checkpoint.get("kind") != "run" or checkpoint.get("parent") or not _is_inside(folder, runs):
        return []
    try:
        info = json.loads((folder / "run.json").read_bytes())
        same = all(info[key] == checkpoint.get(key) for key in ("images_seen", "objective", "seed"))
        with open(folder / "log.csv", newline="") as stream:
            lines = list(csv.DictReader(stream)) if same else []
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return []  # no such run here any more
    curves = [_thinned(name, *_columns(lines, name)) for name in TRAINING]
    return [curve for curve in curves if len(curve.x) > 1]


def _is_inside(folder: Path, runs: Path) -> bool:
    return folder.resolve().parent == runs.resolve()


def _columns(lines: Iterable[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(_number(line.get("images")), _number(line.get(name))) for line in lines]
    table = np.array([pair for pair in pairs if not any(map(math.isnan, pair))], dtype=float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _number(text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return math.nan
