"""Two or more checkpoints, sample by sample: difference, paired interval, test and verdict for every task they share.

Pure maths first (two records -> a comparison), then the matching of records, then the command line behind
`python -m evaluate.compare`.
"""

from __future__ import annotations

import argparse
import difflib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from evaluate.leaderboard.escape import terminal
from evaluate.leaderboard.grid import title
from evaluate.leaderboard.samples import average_to, paired
from evaluate.leaderboard.table import choices, differing_fields, number
from evaluate.leaderboard.text import aligned
from evaluate.records import Record, checkpoint_key, read_all

LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """`other` against `reference` on one task and dataset under one protocol.

    `difference` is other minus reference in the unit of the score; `low` and `high` bound `mean_difference`, that of
    the paired outcomes, at 95 %. Wins, ties and losses count samples on which `other` is better, equal, worse. Without
    paired outcomes all of these are None and `note` says why.
    """

    reference: Record
    other: Record
    difference: float
    mean_difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    adjusted: float | None = None  # Holm over all comparisons made together
    test: str = ""
    counts: tuple[int, int, int] | None = None
    note: str = ""

    @property
    def gain(self) -> float:
        """The difference with the sign that makes positive better."""
        return self.difference if self.other.higher_is_better else -self.difference

    @property
    def verdict(self) -> str:
        """One of "better", "worse" (the adjusted p-value shows it), "no difference shown" and "not tested"."""
        if self.adjusted is None or self.mean_difference is None:
            return "not tested"
        if self.adjusted >= LEVEL or not self.mean_difference * self.difference > 0:  # mean and score must agree
            return "no difference shown"
        return "better" if self.gain > 0 else "worse"


def compare_records(reference: Record, other: Record, *, samples: int = 10_000, seed: int = 0) -> Comparison:
    """Compare two records of one protocol; raises ValueError naming the fields that differ when they are not comparable.

    Interval: paired bootstrap. p-value: McNemar for outcomes 0 or 1, sign-flip permutation for others, bootstrap over
    whole groups where samples come in groups (frames of a video).
    """
    if reference.fingerprint != other.fingerprint:
        raise ValueError(f"{_place(reference)} was measured differently: {differences(reference, other)}")
    plain = Comparison(reference, other, other.score.value - reference.score.value)
    pairs = paired(reference, other)
    if pairs is None:
        return replace(plain, note="not the same samples, or none were kept: only the scores are compared")
    a, b, groups = pairs
    interval = statistics.paired_bootstrap(b, a, samples=samples, seed=seed, groups=groups)
    test = (
        "group bootstrap"
        if groups is not None
        else "McNemar"
        if np.isin([*np.unique(a), *np.unique(b)], (0, 1)).all()
        else ""
    )
    if test == "McNemar":
        p_value = statistics.mcnemar(b, a)
    else:
        p_value = interval.p_value if test else statistics.permutation_test(b, a, samples=samples, seed=seed)
    better = (b > a) if other.higher_is_better else (b < a)
    ties = int((a == b).sum())
    counts = int(better.sum()), ties, len(a) - ties - int(better.sum())
    means_are_scores = average_to(a, reference.score) and average_to(b, other.score)
    note = (
        "" if means_are_scores else "interval and test are of the mean per-sample value, which is not the score itself"
    )
    low, high = interval.low, interval.high
    return replace(plain, low=low, high=high, p_value=p_value, test=test or "permutation", counts=counts, note=note)


def differences(a: Record, b: Record) -> str:
    """The protocol fields in which two records differ, with both values: "k = 20 and 10"."""
    one, two = choices(a), choices(b)
    return ", ".join(
        f"{name} = {one.get(name, 'absent')} and {two.get(name, 'absent')}" for name in differing_fields([one, two])
    )


def adjust(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Holm's correction over all comparisons that have a p-value."""
    from evaluate.metrics.statistics import holm

    tested = [c.p_value for c in comparisons if c.p_value is not None and math.isfinite(c.p_value)]
    corrected = iter(holm(np.array(tested)) if tested else ())
    return [
        replace(c, adjusted=float(next(corrected))) if c.p_value is not None and math.isfinite(c.p_value) else c
        for c in comparisons
    ]


def compare_all(
    checkpoints: Sequence[Sequence[Record]], *, samples: int = 10_000, seed: int = 0
) -> tuple[list[Comparison], list[str]]:
    """Every later checkpoint against the first, Holm over everything; and a line for each place that cannot be compared."""
    made, refused = [], []
    first = _by_place(checkpoints[0])
    for records in checkpoints[1:]:
        for place, mine in _by_place(records).items():
            others = first.get(place, {})
            common = mine.keys() & others.keys()
            made += [compare_records(others[f], mine[f], samples=samples, seed=seed) for f in sorted(common)]
            if others and not common:
                a, b = next(iter(others.values())), next(iter(mine.values()))
                refused.append(f"{_place(a)}: {_names(a, b)} were measured differently, {differences(a, b)}")
            elif not others:
                refused.append(f"{place[0]} on {place[1]}: only {title(records[0].checkpoint)} has it")
        for place in first.keys() - _by_place(records).keys():
            refused.append(f"{place[0]} on {place[1]}: only {title(checkpoints[0][0].checkpoint)} has it")
    return adjust(made), refused


def verdict(comparisons: Sequence[Comparison]) -> str:
    """One sentence on one pair of checkpoints: where which is better, and what could not be shown."""
    where = defaultdict(list)
    for c in comparisons:
        where[c.verdict].append(_place(c.other))
    a, b = title(comparisons[0].reference.checkpoint), title(comparisons[0].other.checkpoint)
    phrases = [f"{b} is {word} than {a} on {', '.join(where[word])}" for word in ("better", "worse") if where[word]]
    phrases += [f"{word} on {', '.join(where[word])}" for word in ("no difference shown", "not tested") if where[word]]
    sentence = "; ".join(phrases)
    return f"{sentence[:1].upper() if not where['better'] + where['worse'] else sentence[:1]}{sentence[1:]}."


def _place(record: Record) -> str:
    return f"{record.task} on {record.dataset}"


def _names(a: Record, b: Record) -> str:
    return f"{title(a.checkpoint)} and {title(b.checkpoint)}"


def _by_place(records: Sequence[Record]) -> dict[tuple[str, str], dict[str, Record]]:
    places: dict[tuple[str, str], dict[str, Record]] = defaultdict(dict)
    for record in records:
        places[record.task, record.dataset][record.fingerprint] = record
    return places


# ---- which checkpoint is meant


def select(records: Sequence[Record], wanted: str) -> list[Record]:
    """All records of the checkpoint called `wanted`: its name, the folder of its run, or the start of its weights digest.

    Raises ValueError when none or several checkpoints answer to it, naming the nearest or all of them.
    """
    names = {wanted, Path(wanted).name}
    found: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        digest = record.checkpoint["weights_digest"]
        if record.checkpoint["name"] in names or len(wanted) >= 6 and digest.startswith(wanted):
            found[checkpoint_key(record.checkpoint)].append(record)
    if not found:
        known = sorted({record.checkpoint["name"] for record in records})
        near = difflib.get_close_matches(Path(wanted).name, known, n=3, cutoff=0.4) or known[:5]
        raise ValueError(
            f"no records of checkpoint {wanted!r}; nearest: {', '.join(near) or 'none, the folder is empty'}"
        )
    if len(found) > 1:
        each = (
            f"{r[0].checkpoint['weights_digest'][:12]} (epoch {r[0].checkpoint.get('epoch')})" for r in found.values()
        )
        raise ValueError(
            f"{wanted!r} names {len(found)} checkpoints; give the start of a weights digest: {', '.join(each)}"
        )
    return next(iter(found.values()))


# ---- command line


@dataclass(frozen=True)
class Gate:
    """`--fail-if-worse task:margin`: how much worse, in points (percent for fractions), a task may become."""

    task: str
    margin: float

    @staticmethod
    def parse(text: str) -> Gate:
        """Read "knn:0.5" or "knn/imagenet:0.5"; raises argparse's error for anything else."""
        task, _, margin = text.rpartition(":")
        try:
            gate = Gate(task, float(margin))
        except ValueError:
            gate = Gate("", math.nan)
        if not gate.task or not gate.margin >= 0:
            raise argparse.ArgumentTypeError(f"{text!r} is no task:margin, for example knn:0.5 (points)")
        return gate

    def matches(self, comparison: Comparison) -> bool:
        """Whether this gate speaks of the task (or task/dataset) of `comparison`."""
        return self.task in (comparison.other.task, f"{comparison.other.task}/{comparison.other.dataset}")

    def fails(self, comparison: Comparison) -> bool:
        """Whether the other checkpoint is worse by more than the margin, or its score is undefined."""
        points = 100 if comparison.other.score.scale == "fraction" else 1
        return not points * comparison.gain >= -self.margin - 1e-9


def report(comparisons: Sequence[Comparison], refused: Sequence[str]) -> str:
    """The comparisons as text: a table and a verdict for each pair, then what could not be compared."""
    pairs: dict[str, list[Comparison]] = defaultdict(list)
    for comparison in comparisons:
        pairs[checkpoint_key(comparison.other.checkpoint)].append(comparison)
    parts = [_pair(list(group)) for group in pairs.values()]
    if refused:
        parts.append("Not compared:\n" + "\n".join(f"  {terminal(line)}" for line in refused))
    return "\n\n".join(parts) + "\n"


def _pair(group: list[Comparison]) -> str:
    head = ["task", "dataset", "metric", "reference", "other", "difference", "95 % interval", "p", "p (Holm)"]
    rows = [[*head, "wins/ties/losses", "test", "verdict"], *(_row(c) for c in group)]
    a, b = group[0].reference.checkpoint, group[0].other.checkpoint
    notes = [f"  {_place(c.other)}: {c.note}" for c in group if c.note]
    return "\n".join(
        [terminal(f"{title(b)} against {title(a)} (reference)"), aligned(rows, left=3), *map(terminal, notes)]
    ) + (f"\n{terminal(verdict(group))}")


def _row(c: Comparison) -> list[str]:
    scale = c.other.score.scale
    scores = [number(c.reference.score.value, scale), number(c.other.score.value, scale)]
    bounds = "" if c.low is None else f"{_signed(c.low, scale)} to {_signed(c.high, scale)}"
    p_values = ["" if p is None else f"{p:.2g}" for p in (c.p_value, c.adjusted)]
    counts = "/".join(map(str, c.counts)) if c.counts else ""
    names = [terminal(text) for text in (c.other.task, c.other.dataset, c.other.main)]
    return [*names, *scores, _signed(c.difference, scale), bounds, *p_values, counts, c.test, c.verdict]


def _signed(value: float | None, scale: str) -> str:
    text = number(value, scale)
    return f"+{text}" if value is not None and value > 0 else text


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare checkpoints with the first, task by task on the same samples; exit 1 if --fail-if-worse says so."""
    parser = argparse.ArgumentParser(prog="python -m evaluate.compare", description=main.__doc__)
    parser.add_argument("checkpoints", nargs="+", help="two or more: name, run folder, or start of the weights digest")
    parser.add_argument("--records", default="results/records", help="folder of the records (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=10_000, help="resamples of bootstrap and permutation")
    parser.add_argument("--seed", type=int, default=0, help="seed of both")
    parser.add_argument("--fail-if-worse", type=Gate.parse, action="append", default=[], metavar="TASK:POINTS")
    options = parser.parse_args(arguments)
    if len(options.checkpoints) < 2:
        parser.error(f"one checkpoint given ({options.checkpoints[0]}): name at least two")
    try:
        stored = read_all(options.records)
        chosen = [select(stored, name) for name in options.checkpoints]
        comparisons, refused = compare_all(chosen, samples=options.samples, seed=options.seed)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    print(report(comparisons, refused), end="")
    absent = [gate.task for gate in options.fail_if_worse if not any(map(gate.matches, comparisons))]
    if absent or not comparisons:
        parser.error(f"nothing to compare for {', '.join(absent)}" if absent else "nothing to compare")
    worse = [(g, c) for g in options.fail_if_worse for c in comparisons if g.matches(c) and g.fails(c)]
    for gate, c in worse:
        change = _signed(c.difference, c.other.score.scale)
        print(f"FAIL {terminal(_place(c.other))}: {change} points, more than the margin of {gate.margin:g}")
    return 1 if worse else 0
