"""The paper's tables in its own layout: a published row, and under it what was measured here, never in one cell.

`paper.yaml` says which record belongs to which cell. A measured row is one recipe (the mean over its seeds where there
are several); a column takes the records of one protocol only. What is not measured is a gap, with the commands that
fill it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluate.leaderboard.grid import Entry
from evaluate.leaderboard.paper_plan import Place, Plan, Run, read_plan
from evaluate.leaderboard.published import FOLDER, PublishedTable, missing_configs, read_tables, suite_with, written
from evaluate.leaderboard.recipes import recipe, spread
from evaluate.leaderboard.table import Column, Row, Table, interval, number

MOST = 5  # measured rows under one published row
GAP = Entry("gap")


@dataclass(frozen=True)
class PaperLine:
    """One row: `source` is "published" or says what was measured; the rows of one method follow its published one."""

    method: str
    source: str
    entries: list[Entry]
    published: bool = False


@dataclass(frozen=True)
class PaperGap:
    """Columns of one row that have no record: the commands that fill them, or why nothing can yet."""

    method: str
    columns: list[str]
    commands: list[str]
    waits: list[str]


@dataclass
class PaperTable:
    """A table of the paper: blocks of rows, each under a heading that may be empty."""

    layout: PublishedTable
    blocks: list[tuple[str, list[PaperLine]]] = field(default_factory=list)
    gaps: list[PaperGap] = field(default_factory=list)
    left_out: int = 0


def fill(table: Table, folder: Path = FOLDER) -> tuple[str, list[PaperTable]]:
    """The setting of the paper in words, and its tables filled from a leaderboard."""
    setting, layouts = read_tables(folder)
    plan = read_plan(table)
    return setting, [_fill_table(plan, layout) for layout in layouts]


def _fill_table(plan: Plan, layout: PublishedTable) -> PaperTable:
    filled = PaperTable(layout)
    for at, group in enumerate(layout.groups):
        lines: list[PaperLine] = []
        for method, values in group.rows.items():
            cells = _cells(plan, layout, at, method)
            lines.append(PaperLine(method, "published", [Entry(written(value)) for value in values], published=True))
            measured = _measured(plan, cells)
            lines += measured[:MOST] or [PaperLine("", "not measured", [GAP] * len(cells))]
            filled.left_out += len(measured[MOST:])
            filled.gaps += _gaps(plan, layout, method, cells)
        filled.blocks.append((group.name, lines))
    filled.gaps = _merged(filled.gaps)
    return filled


def _cells(plan: Plan, layout: PublishedTable, group: int, method: str) -> list[tuple[Run, Place]]:
    """Run and place of every cell of a row."""
    spec, key = plan.spec, layout.key
    if key in spec["by_method"]:
        run = Run(spec["methods"][method])
        return [(run, Place(*place)) for place in spec["by_method"][key][group]]
    if key in spec["by_setting"]:
        entry = spec["by_setting"][key]
        return [(Run(name, tuple(options)), Place(*entry["place"])) for name, *options in entry["runs"]]
    entry = spec["by_place"][key]
    return [(Run(*entry["run"]), Place(*place)) for place in entry["places"]]


def _measured(plan: Plan, cells: Sequence[tuple[Run, Place]]) -> list[PaperLine]:
    """A row for each recipe; where columns are runs of their own, a row for each (backbone, epochs) they share."""
    columns = [plan.column(place) for _, place in cells]
    several = len({run for run, _ in cells}) > 1
    lines: dict[tuple, dict[int, list[Row]]] = defaultdict(dict)
    for i, (run, _) in enumerate(cells):
        for rows in plan.recipes(run):
            about = rows[0].checkpoint
            key = (str(about.get("backbone")), _words(about.get("epoch"))) if several else recipe(about)
            lines[key].setdefault(i, rows)
    made = []
    for found in lines.values():
        places = [place for _, place in cells]
        shown = [plan.rows_at(found.get(i, []), place) for i, place in enumerate(places)]
        entries = [as_entry(rows, column) for rows, column in zip(shown, columns, strict=True)]
        if any(entry != GAP for entry in entries):
            made.append(PaperLine("", source(next(iter(found.values())), several), entries))
    return made


def _words(epoch: Any) -> str:
    return f"epoch {epoch:g}" if isinstance(epoch, int | float) else f"epoch {epoch}"


def source(rows: Sequence[Row], several: bool) -> str:
    """What was measured, in words; `several`: the cells of the line are runs of their own."""
    about = rows[0].checkpoint
    seeds = f"{len(rows)} seeds" if len(rows) > 1 else ""
    name = "" if several else recipe(about)[0] if seeds else about["name"]
    words = [name, about.get("label"), str(about.get("backbone")), _words(about.get("epoch")), seeds]
    return "measured: " + ", ".join(word for word in words if word)


def as_entry(rows: Iterable[Row], column: Column | None) -> Entry:
    """The score of one checkpoint with its interval, or the mean over seeds with their deviation."""
    scores = [row.cells[column].score for row in rows if column in row.cells] if column else []
    if not scores or column is None:
        return GAP
    if len(scores) == 1:
        return Entry(number(scores[0].value, column.scale), detail=interval(scores[0]))
    value = spread(scores)
    return Entry(number(value.mean, column.scale), detail=f"± {number(value.deviation, column.scale)}")


# ---- what is missing


def _gaps(plan: Plan, layout: PublishedTable, method: str, cells: Sequence[tuple[Run, Place]]) -> list[PaperGap]:
    """What no run with the paper's backbone was measured on, a gap for each run."""
    missing: dict[Run, list[int]] = defaultdict(list)
    for i, (run, place) in enumerate(cells):
        column = plan.column(place)
        rows = [row for rows in plan.like_the_paper(run) for row in plan.rows_at(rows, place)]
        if column is None or not any(column in row.cells for row in rows):
            missing[run].append(i)
    if (
        layout.key in plan.spec["by_setting"]
    ):  # the runs of an axis belong together: one command trains and measures all
        at = sorted(i for columns in missing.values() for i in columns)
        waits = [file for i in at[:1] for file in missing_configs(cells[i][1].task, cells[i][1].dataset)]
        command = [] if waits else [ablation_command(layout.key, plan.data)]
        return [PaperGap(method, [layout.labels[i] for i in at], command, waits)] if at else []
    return [
        PaperGap(method, [layout.labels[i] for i in at], *_remedy(plan, run, [cells[i][1] for i in at]))
        for run, at in missing.items()
    ]


def _merged(gaps: Sequence[PaperGap]) -> list[PaperGap]:
    """Gaps that wait for the same files as one."""
    methods: dict[tuple, list[str]] = defaultdict(list)
    for gap in gaps:
        methods[tuple(gap.columns), tuple(gap.commands), tuple(gap.waits)].append(gap.method)
    return [PaperGap(", ".join(names), *map(list, shared)) for shared, names in methods.items()]


def _remedy(plan: Plan, run: Run, places: Sequence[Place]) -> tuple[list[str], list[str]]:
    """Commands that fill some places of a run, and what has to be written first for the others."""
    pairs = list(dict.fromkeys((place.task, place.dataset) for place in places))
    waits = list(dict.fromkeys(file for pair in pairs for file in missing_configs(*pair)))
    ready = [pair for pair in pairs if not missing_configs(*pair)]
    if not ready:
        return [], waits
    recipes = plan.like_the_paper(run)
    name = recipes[0][0].checkpoint["name"] if recipes else run.name(plan.data)
    commands = [] if recipes else [_pretrain_command(plan, run)]
    if any(place.adapted for place in places):
        return [*commands, _adaptation_command(name, [dataset for _, dataset in ready])], waits
    return [*commands, _evaluate_command(plan, name, ready)], waits


def ablation_command(key: int | str, data: str) -> str:
    """The command that trains and measures every run of an axis."""
    return f"make ablation TABLE={key} DATA={data}"


def _pretrain_command(plan: Plan, run: Run) -> str:
    options = " ".join([*plan.spec["setting"], *run.options])
    name = f" RUN={run.name(plan.data)}" if run.options else ""
    return f'make pretrain OBJECTIVE={run.objective} DATA={plan.data}{name} ARGS="{options}"'


def _adaptation_command(name: str, targets: Sequence[str]) -> str:
    shown = name if re.fullmatch(r"[\w.@/-]+", name) else "NAME"  # this is pasted into a shell
    return f'make adaptation CHECKPOINTS=runs/{shown} TARGETS="{" ".join(dict.fromkeys(targets))}"'


def _evaluate_command(plan: Plan, name: str, pairs: Sequence[tuple[str, str]]) -> str:
    suite = suite_with(pairs, plan.spec["suites"])
    shown = name if re.fullmatch(r"[\w.@/-]+", name) else "NAME"  # this is pasted into a shell
    command = f"make eval-all CHECKPOINTS=runs/{shown}"
    if suite:
        return f"{command} SUITE={suite}"
    tasks = ",".join(f"{{task:{task},data:{dataset}}}" for task, dataset in pairs)
    return f"{command} ARGS=\"'+suite={{tasks:[{tasks}]}}'\""


# ---- the same layout on other data


def elsewhere(table: Table, folder: Path = FOLDER) -> list[PaperTable]:
    """The layout of the paper's main table for every other dataset that has such records: measured rows only."""
    plan = read_plan(table)
    spec = plan.spec["elsewhere"]
    layout = next(each for each in read_tables(folder)[1] if each.key == spec["table"])
    places = [Place(*place) for place in plan.spec["by_method"][spec["table"]][0]]
    known = {place[1] for groups in plan.spec["by_method"].values() for group in groups for place in group}
    datasets = sorted({place.dataset for place in plan.columns if place.task == places[0].task} - known)
    return [made for dataset in datasets if (made := _elsewhere(plan, layout, places, dataset))]


def _elsewhere(plan: Plan, layout: PublishedTable, places: Sequence[Place], dataset: str) -> PaperTable | None:
    columns, labels = [], []
    for place, label in zip(places, layout.columns, strict=True):
        instead = plan.spec["elsewhere"]["instead"].get(place.task, place.task)
        for task in dict.fromkeys((place.task, instead)):
            column = plan.column(Place(task, dataset, place.metric))
            if column:
                break
        columns.append(column)
        labels.append(label if task == place.task else f"{label} ({task})")
    lines = []
    names = {objective: method for method, objective in plan.spec["methods"].items()}
    for objective in dict.fromkeys([*names, *plan.objectives]):
        for rows in plan.recipes(Run(objective))[:MOST]:
            entries = [as_entry(rows, column) for column in columns]
            if any(entry != GAP for entry in entries):
                lines.append(PaperLine(names.get(objective, objective), source(rows, False), entries))
    title = f"Layout of Table {layout.key} on {dataset}"
    shape = PublishedTable(title, title, layout.unit, labels, [], [])
    return PaperTable(shape, [("", lines)]) if lines else None
