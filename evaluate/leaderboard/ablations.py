"""Tables of ablations on other data than the paper's: a column for each setting, as configs/experiment has them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from evaluate.leaderboard import paper
from evaluate.leaderboard.paper_plan import Place, Plan, Sweep, read_plan
from evaluate.leaderboard.published import Group, PublishedTable
from evaluate.leaderboard.recipes import recipe
from evaluate.leaderboard.table import Row, Table


def tables(table: Table) -> list[paper.PaperTable]:
    """A table for every sweep and dataset with a measured setting; on the paper's data its own tables stand instead."""
    plan = read_plan(table)
    runs: dict[str, list[Row]] = defaultdict(list)
    for row in table.rows:
        if row.checkpoint.get("kind") == "run" and not row.checkpoint.get("parent"):
            runs[recipe(row.checkpoint)[0]].append(row)
    datasets = sorted({column.dataset for column in table.columns})
    pairs = [(sweep, data) for sweep in plan.sweeps if sweep.place for data in datasets if data != sweep.paper]
    return [made for sweep, data in pairs if (made := _table(plan, sweep, data, runs))]


def _table(plan: Plan, sweep: Sweep, data: str, runs: Mapping[str, Sequence[Row]]) -> paper.PaperTable | None:
    column = plan.column(Place(sweep.place[0], data, sweep.place[1]))
    columns = list(next(iter(sweep.rows.values())))
    title = f"Layout of Table {sweep.table} on {data}" if sweep.table else f"{sweep.title} on {data}"
    group = Group("", {name: [] for name in sweep.rows})
    made = paper.PaperTable(PublishedTable(title, title, "percent", columns, [group], [], sweep.axis))
    lines, own = [], False  # own: a run of this sweep alone, not only a plain objective that many sweeps share
    for method, cells in sweep.rows.items():
        found = {name: longest_trained(runs.get(run.name(data), [])) for name, run in cells.items()}
        entries = [paper.as_entry(found[name], column) for name in columns]
        missing = [name for name, entry in zip(made.layout.labels, entries, strict=True) if entry == paper.GAP]
        own |= any(run.options and made.layout.labels[i] not in missing for i, run in enumerate(cells.values()))
        first = next((rows for rows in found.values() if rows), None)
        if first and len(missing) < len(columns):
            lines.append(paper.PaperLine(method, paper.source(first, several=True), entries))
        if missing:
            made.gaps.append(paper.PaperGap(method, missing, [paper.ablation_command(sweep.key, data)], []))
    made.blocks.append(("", lines))
    return made if own else None


def longest_trained(rows: Sequence[Row]) -> list[Row]:
    """Of the rows that one name has, those that share the recipe with the most images seen: the seeds of one mean."""
    groups: dict[tuple, list[Row]] = defaultdict(list)
    for row in rows:
        groups[recipe(row.checkpoint)].append(row)
    return max(groups.values(), key=lambda group: float(group[0].checkpoint.get("images_seen") or 0), default=[])
