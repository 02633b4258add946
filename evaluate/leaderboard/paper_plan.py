"""Which checkpoints and columns of a leaderboard belong to the cells of the paper's tables, as `paper.yaml` says."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from evaluate.leaderboard.published import ROOT
from evaluate.leaderboard.recipes import recipe
from evaluate.leaderboard.table import Column, Row, Table


@dataclass(frozen=True)
class Place:
    """Where a number is found: task, dataset and metric of a record; `adapted` ("adapted" or ""): of a run that was
    adapted to the dataset, not of the one that it began with."""

    task: str
    dataset: str
    metric: str
    adapted: str = ""


@dataclass(frozen=True)
class Run:
    """What has to be trained: an objective on the paper's data, with settings on top of its own."""

    objective: str
    options: tuple[str, ...] = ()

    def name(self, data: str) -> str:
        """Folder of the run; a plain objective has the name that training gives it by itself."""
        parts = [option.partition("=") for option in self.options]
        settings = [f"{key.rpartition('.')[2]}{value}" for key, _, value in parts]
        return "-".join([self.objective, data, *settings])


@dataclass(frozen=True)
class Sweep:
    """An ablation as configs/experiment has it: `rows` are {row: {column: run}}; without a place it has no table.

    `paper` is the data of the published table that it belongs to, whose number is `table`.
    """

    key: str
    title: str
    rows: dict[str, dict[str, Run]]
    place: tuple[str, ...] = ()
    axis: str = ""
    table: int | None = None
    paper: str = ""


def read_sweeps(configs: Path = ROOT / "configs") -> list[Sweep]:
    """Every experiment that is a sweep."""
    found = []
    for file in sorted((configs / "experiment").glob("*.yaml")):
        spec = yaml.safe_load(file.read_text("utf-8")) or {}
        if "sweep" not in spec:
            continue
        rows = {
            row: {column: Run(name, tuple(options)) for column, (name, *options) in cells.items()}
            for row, cells in spec["sweep"].items()
        }
        number = spec.get("table")
        place, published = tuple(spec.get("place", ())), spec.get("paper", {}).get("data", "") if number else ""
        key = str(number or file.stem)
        found.append(Sweep(key, spec["title"], rows, place, spec.get("axis", ""), number, published))
    return sorted(found, key=lambda sweep: (sweep.table is None, sweep.table or 0, sweep.title))


@dataclass
class Plan:
    """What `paper.yaml` says, with the rows and columns of a leaderboard to look it up in."""

    spec: dict[str, Any]
    columns: dict[Place, Column]
    found: dict[Run, list[list[Row]]]
    objectives: list[str]
    sweeps: list[Sweep]
    adapted: dict[tuple[str, str], list[Row]]

    @property
    def data(self) -> str:
        """What every run is pre-trained on."""
        return self.spec["data"]

    def recipes(self, run: Run) -> list[list[Row]]:
        """Checkpoints of a run by recipe: the paper's backbone first, then the longest trained, then by name."""
        return self.found.get(run, [])

    def like_the_paper(self, run: Run) -> list[list[Row]]:
        """Those recipes that have the paper's backbone."""
        return [rows for rows in self.recipes(run) if has_backbone(rows[0].checkpoint, self.spec["backbone"])]

    def column(self, place: Place) -> Column | None:
        """The one protocol of a place that most checkpoints were measured by."""
        return self.columns.get(replace(place, adapted=""))

    def rows_at(self, rows: Iterable[Row], place: Place) -> list[Row]:
        """The rows that a place speaks of, among checkpoints: themselves, or what was adapted from them."""
        if not place.adapted:
            return list(rows)
        keys = [(str(row.checkpoint["weights_digest"]), place.dataset) for row in rows]
        return [row for key in keys for row in self.adapted.get(key, [])]


def read_plan(table: Table) -> Plan:
    """`paper.yaml` and a leaderboard (of all metrics) to fill it from."""
    spec = yaml.safe_load(Path(__file__).with_name("paper.yaml").read_text("utf-8"))
    runs = [Run(name, tuple(options)) for entry in spec["by_setting"].values() for name, *options in entry["runs"]]
    sweeps, datasets = read_sweeps(), {column.dataset for column in table.columns}
    swept = [run for sweep in sweeps for cells in sweep.rows.values() for run in cells.values()]
    variants = {run.name(data): run for run in swept if run.options for data in datasets}
    variants |= {run.name(spec["data"]): run for run in runs if run.options}
    found = _by_run(table.rows, variants)
    for recipes in found.values():
        recipes.sort(key=lambda rows: _order(rows[0].checkpoint, spec["backbone"]))
    used = Counter(column for row in table.rows for column in row.cells)
    columns: dict[Place, Column] = {}
    for column in sorted(table.columns, key=lambda column: used[column]):  # the most used one stays
        columns[Place(column.task, column.dataset, column.metric)] = column
    return Plan(spec, columns, found, sorted({run.objective for run in found}), sweeps, by_origin(table.rows))


def by_origin(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """Adapted runs, without their kept epochs, by the weights that they began with and the data they went on with."""
    found: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        about = row.checkpoint
        if about.get("adapted_from") and not re.search(r"/epochs/|@", about["name"]):
            found[str(about["adapted_from"]), str(about["data"])].append(row)
    return dict(found)


def has_backbone(checkpoint: dict, backbone: str) -> bool:
    """Whether a checkpoint has this architecture, at any resolution."""
    return str(checkpoint.get("backbone")).startswith(f"{backbone}-") or checkpoint.get("backbone") == backbone


def _by_run(rows: Iterable[Row], variants: dict[str, Run]) -> dict[Run, list[list[Row]]]:
    """Recipes of finished runs by what was trained: settings of the paper by the run's name, the rest by objective."""
    groups: dict[Run, dict[tuple, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.checkpoint.get("kind") == "run" and not row.checkpoint.get("parent"):
            shared = recipe(row.checkpoint)
            run = variants.get(shared[0], Run(row.checkpoint["objective"]))
            groups[run][shared].append(row)
    return {run: list(recipes.values()) for run, recipes in groups.items()}


def _order(checkpoint: dict, backbone: str) -> tuple:
    """The paper's backbone first, then the longest trained, then by name."""
    return not has_backbone(checkpoint, backbone), -float(checkpoint.get("images_seen") or 0), checkpoint["name"]
