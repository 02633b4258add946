"""Frozen against adapted, from the records: gains with paired intervals, forgetting, curves, label-free signals.

An adapted run says in its records whose weights it began with (`adapted_from`), on which images it went on (`data`) and
on which the other was trained (`source`). Nothing else is needed: any task that both were measured by is compared.
"""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from evaluate.leaderboard import paper
from evaluate.leaderboard.compare import Comparison, adjust, compare_records
from evaluate.leaderboard.curves import Curve, Figure
from evaluate.leaderboard.paper_plan import Place, by_origin, read_plan
from evaluate.leaderboard.published import Group, PublishedTable, read_tables
from evaluate.leaderboard.table import Table
from evaluate.records import Record, Score

SIGNALS = "domain_gap"
LEAST = 4  # runs for a rank correlation
EPOCHS = "/epochs/"


@dataclass(frozen=True)
class Gain:
    """One adapted run against the one that it began with, on one task; `role` of the dataset: target, source, other."""

    role: str
    comparison: Comparison

    @property
    def adapted(self) -> dict[str, Any]:
        """The adapted checkpoint."""
        return self.comparison.other.checkpoint


class Signal(NamedTuple):
    """A label-free figure of a frozen checkpoint on a target, and of the adapted one (NaN where not measured)."""

    name: str
    before: float
    after: float


class Correlation(NamedTuple):
    """Spearman's rank correlation of a signal with the gain of a task, over so many adapted runs."""

    signal: str
    task: str
    runs: int
    rho: float


def is_final(checkpoint: Mapping[str, Any]) -> bool:
    """Whether this is an adapted run itself, not one of its kept epochs or its student."""
    return bool(checkpoint.get("adapted_from")) and EPOCHS not in checkpoint["name"] and "@" not in checkpoint["name"]


def gains(records: Sequence[Record], *, samples: int = 10_000, seed: int = 0) -> list[Gain]:
    """Every adapted run against its origin, on every task and protocol that both have; Holm over all of them."""
    known = {_key(record): record for record in records}
    found: list[tuple[str, Comparison]] = []
    for record in records:
        about = record.checkpoint
        origin = known.get((about.get("adapted_from"), *_key(record)[1:]))
        if not is_final(about) or origin is None or record.task == SIGNALS:
            continue
        found.append((role(record), compare_records(origin, record, samples=samples, seed=seed)))
    found.sort(key=lambda pair: _order(pair[1].other, pair[0]))
    adjusted = adjust([comparison for _, comparison in found])
    return [Gain(name, comparison) for (name, _), comparison in zip(found, adjusted, strict=True)]


def _key(record: Record) -> tuple:
    return record.checkpoint["weights_digest"], record.task, record.dataset, record.fingerprint


def _order(record: Record, role: str) -> tuple:
    about = record.checkpoint
    return (
        str(about["data"]),
        ("target", "source", "other").index(role),
        record.task,
        str(about["source"]),
        about["name"],
    )


def role(record: Record) -> str:
    """What a dataset is to an adapted run: the target, the source, or another."""
    about = record.checkpoint
    return "target" if record.dataset == about["data"] else "source" if record.dataset == about["source"] else "other"


# ---- label-free signals


def signals(records: Sequence[Record]) -> dict[str, list[Signal]]:
    """Signals of every adapted run on its target, by its name."""
    known = {_key(record): record for record in records if record.task == SIGNALS}
    found: dict[str, list[Signal]] = {}
    for record in known.values():
        about = record.checkpoint
        origin = known.get((about.get("adapted_from"), *_key(record)[1:]))
        if is_final(about) and record.dataset == about["data"] and origin is not None:
            names = [name for name in origin.scores if name in record.scores]
            pairs = [Signal(name, origin.scores[name].value, record.scores[name].value) for name in names]
            found[about["name"]] = pairs
    return found


def correlations(found: Sequence[Gain], by_run: Mapping[str, Sequence[Signal]]) -> list[Correlation]:
    """Each signal before adaptation, and its change, against the gain on the target, over the runs at hand."""
    table: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for gain in found:
        if gain.role == "target":
            for signal in by_run.get(gain.adapted["name"], ()):
                for word, value in (("before", signal.before), ("change", signal.after - signal.before)):
                    table[f"{signal.name}, {word}", gain.comparison.other.task].append((value, gain.comparison.gain))
    return [Correlation(*key, len(pairs), spearman(pairs)) for key, pairs in sorted(table.items())]


def spearman(pairs: Sequence[tuple[float, float]]) -> float:
    """Spearman's rank correlation of pairs, ties by mean rank; NaN below four pairs, or where one side is constant."""
    values = np.array([pair for pair in pairs if all(map(math.isfinite, pair))], dtype=float).reshape(-1, 2)
    ranks = [mean_ranks(column) for column in values.T]
    if len(values) < LEAST or any(np.ptp(each) == 0 for each in ranks):
        return math.nan
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """Rank of each value (n,), equal ones sharing the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


# ---- curves by epoch of adaptation


def figures(records: Sequence[Record]) -> list[Figure]:
    """Headline scores and signals on the target by epoch of adaptation; epoch 0 is the frozen checkpoint."""
    known = {_key(record): record for record in records}
    found: dict[tuple[str, str, str], dict[str, dict[float, Score]]] = defaultdict(lambda: defaultdict(dict))
    for record in records:
        about = record.checkpoint
        if not about.get("adapted_from") or "@" in about["name"] or record.dataset != about["data"]:
            continue
        origin = known.get((about["adapted_from"], *_key(record)[1:]))
        for metric in _drawn(record):
            line = found[record.task, metric, f"{record.dataset} ({record.fingerprint})"][
                about["name"].split(EPOCHS)[0]
            ]
            line[float(about["epoch"])] = record.scores[metric]
            if origin is not None and metric in origin.scores:
                line[0.0] = origin.scores[metric]
    return [
        _figure(*key, lines) for key, lines in sorted(found.items()) if any(len(line) > 1 for line in lines.values())
    ]


def _drawn(record: Record) -> list[str]:
    """The main metric, and of the signals all."""
    return list(record.scores) if record.task == SIGNALS else [record.main]


def _figure(task: str, metric: str, dataset: str, lines: Mapping[str, Mapping[float, Score]]) -> Figure:
    figure = Figure(f"{task}-{metric}", f"{task}: {metric} by epoch of adaptation", "epoch of adaptation", dataset)
    for name, line in sorted(lines.items()):
        epochs = sorted(line)
        factor = 100 if line[epochs[0]].scale == "fraction" else 1
        figure.curves.append(Curve(name, epochs, [factor * line[epoch].value for epoch in epochs]))
    return figure


def to_csv(drawn: Iterable[Figure]) -> str:
    """Every point of the curves, one a line; shares in percent."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(["figure", "dataset", "run", "epoch", "value"])
    for figure in drawn:
        for curve in figure.curves:
            pairs = zip(curve.x, curve.y, strict=True)
            writer.writerows([figure.key, figure.dataset, curve.name, f"{x:g}", f"{y:.6g}"] for x, y in pairs)
    return sink.getvalue()


# ---- the paper's layout


def layout(table: Table) -> list[paper.PaperTable]:
    """Table 14's layout on every target that something was adapted to and that the paper does not have."""
    plan = read_plan(table)
    spec = plan.spec["adaptation"]
    published = {place[1] for groups in plan.spec["by_method"].values() for group in groups for place in group}
    origins = by_origin(table.rows)
    targets = sorted({target for _, target in origins} - published)
    names = {objective: method for method, objective in plan.spec["methods"].items()}
    places = [
        (target, label, _place(plan, target, ways)) for target in targets for label, ways in spec["columns"].items()
    ]
    places = [entry for entry in places if plan.column(entry[2])]
    if not places:
        return []
    frozen = [row for row in table.rows if any((str(row.checkpoint["weights_digest"]), t) in origins for t in targets)]
    frozen.sort(
        key=lambda row: (
            list(names).index(row.checkpoint["objective"]) if row.checkpoint["objective"] in names else 99,
            row.checkpoint["name"],
        )
    )
    blocks = []
    for heading, adapted in (("frozen", ""), ("adapted to the target", "adapted")):
        lines = []
        for row in frozen:
            shown = [(Place(p.task, p.dataset, p.metric, adapted), plan.column(p)) for _, _, p in places]
            entries = [paper.as_entry(plan.rows_at([row], place)[:1], column) for place, column in shown]
            method = names.get(row.checkpoint["objective"], row.checkpoint["objective"])
            lines.append(paper.PaperLine(method, paper.source([row], False), entries))
        blocks.append((heading, lines))
    labels = [label if p.task in ("retrieval", "knn", "linear") else f"{label} ({p.task})" for _, label, p in places]
    spans = [(target, sum(entry[0] == target for entry in places)) for target in dict.fromkeys(e[0] for e in places)]
    unit = next(each for each in read_tables()[1] if each.key == spec["table"]).unit
    title = f"Layout of Table {spec['table']} on other targets"
    groups = [Group(heading, {}) for heading, _ in blocks]
    return [paper.PaperTable(PublishedTable(title, title, unit, labels, groups, spans), blocks)]


def _place(plan: Any, target: str, ways: Sequence[Sequence[str]]) -> Place:
    """The first of these places that something was measured at."""
    found = [Place(task, target, metric) for task, metric in ways]
    return next((place for place in found if plan.column(place)), found[0])
