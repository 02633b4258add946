"""The report on adaptation as Markdown, CSV and pictures, written beside the leaderboard."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluate.leaderboard import adaptation, escape, figures, paper_text
from evaluate.leaderboard.adaptation import Correlation, Gain, Signal
from evaluate.leaderboard.table import Table, number
from evaluate.records import Record, write_whole

HEAD = """# Adaptation to other domains

Generated from the records by `python -m evaluate.leaderboard`; do not edit. Each adapted run against the checkpoint
that it began with, on the same samples: gain with its paired 95 % interval, p-value after Holm over all lines. Target:
the images that it was adapted to, without labels. Source: those that the checkpoint was trained on; a loss there is
what was forgotten.
"""
READING = (
    "Signals need no label. Distances are between unit features of source and target; view_agreement is the share of "
    "images whose two random crops find each other; arrows go from the frozen to the adapted run."
)
CAUTION = (
    "Spearman's rank correlation with the gain on the target, over the adapted runs at hand. With few runs it shows "
    f"little: none is given below {adaptation.LEAST}."
)
GAINS = ["Adapted run", "Objective", "Epochs", "Images seen", "Dataset", "Role", "Task", "Metric"]
GAINS += ["Frozen", "Adapted", "Gain", "95 % interval", "p (Holm)", "Verdict"]


def write(records: Sequence[Record], table: Table, folder: Path) -> bool:
    """Write the report to a folder, each file whole or not at all; nothing where no run was adapted."""
    if not any(adaptation.is_final(record.checkpoint) for record in records):
        return False
    found, by_run = adaptation.gains(records), adaptation.signals(records)
    related, drawn = adaptation.correlations(found, by_run), adaptation.figures(records)
    images = figures.write(drawn, folder, ("png",))
    files = {
        "adaptation.md": markdown(found, by_run, related, table, images),
        "gains.csv": gains_csv(found),
        "signals.csv": signals_csv(by_run, related),
        "curves.csv": adaptation.to_csv(drawn),
        "tables.tex": paper_text.latex(adaptation.layout(table)),
    }
    for name, content in files.items():
        write_whole(folder / name, content.encode())
    return True


def markdown(
    found: Sequence[Gain],
    by_run: Mapping[str, Sequence[Signal]],
    related: Sequence[Correlation],
    table: Table,
    images: Sequence[tuple[str, str]],
) -> str:
    """The whole report; every name is escaped."""
    parts = [HEAD, *(f"- {escape.markdown(note)}\n" for note in table.notes[:1] if "smoke" in note)]
    parts += [paper_text.table_markdown(each) for each in adaptation.layout(table)]
    parts.append("## Gains\n\n" + grid(GAINS, [gain_row(gain) for gain in found], 8))
    if by_run:
        names = list(dict.fromkeys(signal.name for signals in by_run.values() for signal in signals))
        rows = [[run, *_arrows(signals, names), *_headlines(run, found)] for run, signals in by_run.items()]
        tasks = _tasks(found)
        head = ["Adapted run", *names, *(f"gain, {task}" for task in tasks)]
        parts.append(f"## Label-free signals\n\n{READING}\n\n" + grid(head, rows, 1))
        lines = [[c.signal, c.task, str(c.runs), "–" if math.isnan(c.rho) else f"{c.rho:+.2f}"] for c in related]
        parts.append(f"{CAUTION}\n\n" + grid(["Signal", "Gain in", "Runs", "Rank correlation"], lines, 2))
    parts += [f"## {escape.markdown(title)}\n\n![{escape.markdown(title)}]({name}.png)\n" for title, name in images]
    return "\n".join(parts)


def grid(head: Sequence[str], rows: Sequence[Sequence[str]], names: int) -> str:
    """A Markdown table, its first columns to the left."""
    rule = [":--"] * names + ["--:"] * (len(head) - names)
    lines = ["| " + " | ".join(map(escape.markdown, row)) + " |" for row in [head, *rows]]
    return "\n".join([lines[0], "|" + "|".join(rule) + "|", *lines[1:]]) + "\n"


def gain_row(gain: Gain) -> list[str]:
    """One line of the table of gains."""
    c, about = gain.comparison, gain.adapted
    scale = c.other.score.scale
    bounds = "–" if c.low is None or math.isnan(c.low) else f"{signed(c.low, scale)} to {signed(c.high, scale)}"
    names = [str(about["name"]), str(about["objective"]), f"{about['epoch']:g}", f"{about['images_seen']}"]
    places = [c.other.dataset, gain.role, c.other.task, c.other.main]
    scores = [number(c.reference.score.value, scale), number(c.other.score.value, scale), signed(c.difference, scale)]
    return [*names, *places, *scores, bounds, "–" if c.adjusted is None else f"{c.adjusted:.2g}", c.verdict]


def signed(value: float | None, scale: str) -> str:
    """A difference with its sign, shares in points."""
    text = number(value, scale)
    return f"+{text}" if value is not None and value > 0 else text


def _arrows(signals: Sequence[Signal], names: Sequence[str]) -> list[str]:
    known = {signal.name: signal for signal in signals}
    return [f"{known[n].before:.3g} → {known[n].after:.3g}" if n in known else "–" for n in names]


def _tasks(found: Sequence[Gain]) -> list[str]:
    return sorted({gain.comparison.other.task for gain in found if gain.role == "target"})


def _headlines(run: str, found: Sequence[Gain]) -> list[str]:
    own = {g.comparison.other.task: g.comparison for g in found if g.role == "target" and g.adapted["name"] == run}
    tasks = _tasks(found)
    return [signed(own[t].difference, own[t].other.score.scale) if t in own else "–" for t in tasks]


# ---- CSV


def gains_csv(found: Sequence[Gain]) -> str:
    """Every gain as fractions, with its interval, test and protocol."""
    rows = []
    for gain in found:
        c, about = gain.comparison, gain.adapted
        rows.append([
            about["name"], about["parent"], about["adapted_from"], about["objective"], about["source"], about["data"],
            about["epoch"], about["images_seen"], c.other.dataset, gain.role, c.other.task, c.other.main,
            c.reference.score.value, c.other.score.value, c.difference, c.low, c.high, c.p_value, c.adjusted, c.test,
            c.verdict, c.other.fingerprint,
        ])  # fmt: skip
    head = [
        "run",
        "parent",
        "parent_weights",
        "objective",
        "source",
        "target",
        "epochs",
        "images_seen",
        "dataset",
        "role",
    ]
    head += ["task", "metric", "frozen", "adapted", "gain", "low", "high", "p", "p_holm", "test", "verdict", "protocol"]
    return _csv(head, rows)


def signals_csv(by_run: Mapping[str, Sequence[Signal]], related: Sequence[Correlation]) -> str:
    """Signals by run, then their rank correlations with the gains (run is empty there)."""
    rows: list[list[object]] = [
        [run, s.name, s.before, s.after, "", "", ""] for run, own in by_run.items() for s in own
    ]
    rows += [["", c.signal, "", "", c.task, c.runs, "" if math.isnan(c.rho) else c.rho] for c in related]
    return _csv(["run", "signal", "before", "after", "gain_in", "runs", "rank_correlation"], rows)


def _csv(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([escape.csv(value) for value in row] for row in rows)
    return sink.getvalue()
