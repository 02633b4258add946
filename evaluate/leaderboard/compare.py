"""Two or more checkpoints, sample by sample: difference, paired interval, test and verdict for every task they share.

Two records -> a comparison first, then the matching of records, then the command line of `python -m evaluate.compare`.
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
from evaluate.metrics import statistics
from evaluate.records import Record, checkpoint_key, read_all

LEVEL = 0.05
HEAD = ["task", "dataset", "metric", "reference", "other", "difference", "95 % interval", "p", "p (Holm)"]
HEAD += ["wins/ties/losses", "test", "verdict", "protocol"]


@dataclass(frozen=True)
class Comparison:
    """`other` against `reference` on one task and dataset under one protocol.

    `difference` is other minus reference in the unit of the score; `low` and `high` bound `mean_difference`, that of
    the paired outcomes, at 95 %. `counts` are the samples on which other is better, equal, worse. `adjusted` is Holm's
    p-value over all comparisons made together. Without paired outcomes all of these are None and `note` says why.
    """

    reference: Record
    other: Record
    difference: float
    mean_difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    adjusted: float | None = None
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
    """Compare two records of one protocol; raises ValueError naming the fields that differ if they are not comparable.

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
    if groups is not None:
        test, p_value = "group bootstrap", interval.p_value
    elif np.isin(np.concatenate([a, b]), (0, 1)).all():
        test, p_value = "McNemar", statistics.mcnemar(b, a)
    else:
        test, p_value = "permutation", statistics.permutation_test(b, a, samples=samples, seed=seed)
    scores_are_means = average_to(a, reference.score) and average_to(b, other.score)
    return replace(
        plain,
        mean_difference=interval.difference,
        low=interval.low,
        high=interval.high,
        p_value=p_value,
        test=test,
        counts=_count(a, b, other.higher_is_better),
        note=""
        if scores_are_means
        else "interval and test are of the mean outcome per sample, not of the score itself",
    )


def _count(a: np.ndarray, b: np.ndarray, higher_is_better: bool) -> tuple[int, int, int]:
    wins = (b > a) if higher_is_better else (b < a)
    ties = a == b
    return int(wins.sum()), int(ties.sum()), int((~wins & ~ties).sum())


def differences(a: Record, b: Record) -> str:
    """The protocol fields in which two records differ, with both values: "k = 20 and 10"."""
    one, two = choices(a), choices(b)
    fields = differing_fields([one, two])
    return ", ".join(f"{name} = {one.get(name, 'absent')} and {two.get(name, 'absent')}" for name in fields)


def adjust(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Holm's correction over all comparisons that have a p-value (one pair of samples alone gives none)."""
    tested = [c.p_value for c in comparisons if c.p_value is not None and not math.isnan(c.p_value)]
    corrected = iter(statistics.holm(np.array(tested)))
    return [
        c if c.p_value is None or math.isnan(c.p_value) else replace(c, adjusted=float(next(corrected)))
        for c in comparisons
    ]


def compare_all(
    checkpoints: Sequence[Sequence[Record]], *, samples: int = 10_000, seed: int = 0
) -> tuple[list[Comparison], list[str]]:
    """Every later checkpoint against the first, Holm over everything; and a line for each place not comparable."""
    made, refused = [], []
    first = _by_place(checkpoints[0])
    for records in checkpoints[1:]:
        mine = _by_place(records)
        for place in sorted(first.keys() | mine.keys()):
            a, b = first.get(place, {}), mine.get(place, {})
            common = sorted(a.keys() & b.keys())
            made += [compare_records(a[f], b[f], samples=samples, seed=seed) for f in common]
            if not common:
                refused.append(_refusal(list(a.values()), list(b.values())))
    return adjust(made), refused


def _refusal(a: Sequence[Record], b: Sequence[Record]) -> str:
    """Why records of one task and dataset cannot be compared: absent on one side, or measured differently."""
    if not a or not b:
        only = (a or b)[0]
        return f"{_place(only)}: only {title(only.checkpoint)} has it"
    names = f"{title(a[0].checkpoint)} and {title(b[0].checkpoint)}"
    return f"{_place(a[0])}: {names} were measured differently, {differences(a[0], b[0])}"


def verdict(comparisons: Sequence[Comparison]) -> str:
    """One sentence on one pair of checkpoints: how often and where which is better, and what could not be shown."""
    where = defaultdict(list)
    for c in comparisons:
        where[c.verdict].append(f"{c.other.task}/{c.other.dataset}")
    a, b = title(comparisons[0].reference.checkpoint), title(comparisons[0].other.checkpoint)
    words = [word for word in ("better", "worse", "no difference shown", "not tested") if where[word]]
    parts = [f"{word} on {len(where[word])} ({', '.join(sorted(where[word]))})" for word in words]
    return f"Verdict: {b} against {a}, of {len(comparisons)} comparisons {'; '.join(parts)}. Level 5 % after Holm."


def by_checkpoint(comparisons: Sequence[Comparison]) -> dict[str, list[Comparison]]:
    """The comparisons of each checkpoint with the reference."""
    pairs: dict[str, list[Comparison]] = defaultdict(list)
    for comparison in comparisons:
        pairs[checkpoint_key(comparison.other.checkpoint)].append(comparison)
    return pairs


def _place(record: Record) -> str:
    return f"{record.task} on {record.dataset}"


def _by_place(records: Sequence[Record]) -> dict[tuple[str, str], dict[str, Record]]:
    places: dict[tuple[str, str], dict[str, Record]] = defaultdict(dict)
    for record in records:
        places[record.task, record.dataset][record.fingerprint] = record
    return places


# ---- which checkpoint is meant


def select(records: Sequence[Record], wanted: str) -> list[Record]:
    """All records of the checkpoint called `wanted`: its name, the folder of its run, or the start of its digest.

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
        near = ", ".join(difflib.get_close_matches(Path(wanted).name, known, n=3, cutoff=0.4) or known[:5])
        raise ValueError(f"no records of checkpoint {wanted!r}; nearest: {near or 'none, there are no records'}")
    if len(found) > 1:
        several = [records[0].checkpoint for records in found.values()]
        each = ", ".join(f"{c['weights_digest'][:12]} (epoch {c.get('epoch')})" for c in several)
        raise ValueError(f"{wanted!r} names {len(found)} checkpoints; give the start of a weights digest: {each}")
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
        """Whether the other checkpoint is worse by more than the margin, or a score is undefined."""
        points = 100 if comparison.other.score.scale == "fraction" else 1
        return not points * comparison.gain >= -self.margin - 1e-9


def report(comparisons: Sequence[Comparison], refused: Sequence[str]) -> str:
    """The comparisons as text: a table and a verdict for each pair, then what could not be compared."""
    parts = [_pair(group) for group in by_checkpoint(comparisons).values()]
    if refused:
        parts.append("Not compared:\n" + "\n".join(f"  {terminal(line)}" for line in refused))
    return "\n\n".join(parts) + "\n"


def _pair(group: list[Comparison]) -> str:
    a, b = group[0].reference.checkpoint, group[0].other.checkpoint
    notes = [f"  {_place(c.other)}: {c.note}" for c in group if c.note]
    head = terminal(f"{title(b)} (other) against {title(a)} (reference)")
    return "\n".join([head, aligned([HEAD, *map(_row, group)], left=3), *map(terminal, [*notes, verdict(group)])])


def _row(c: Comparison) -> list[str]:
    scale = c.other.score.scale
    scores = [number(c.reference.score.value, scale), number(c.other.score.value, scale)]
    bounds = "" if c.low is None or math.isnan(c.low) else f"{_signed(c.low, scale)} to {_signed(c.high, scale)}"
    p_values = ["" if p is None else f"{p:.2g}" for p in (c.p_value, c.adjusted)]
    counts = "/".join(map(str, c.counts)) if c.counts else ""
    names = [terminal(text) for text in (c.other.task, c.other.dataset, c.other.main)]
    results = [*scores, _signed(c.difference, scale), bounds, *p_values, counts]
    return [*names, *results, c.test, c.verdict, c.other.fingerprint]


def _signed(value: float | None, scale: str) -> str:
    text = number(value, scale)
    return f"+{text}" if value is not None and value > 0 else text


def failures(gates: Sequence[Gate], comparisons: Sequence[Comparison]) -> list[str]:
    """A line for each comparison beyond the margin of a gate; raises ValueError for a gate that guards nothing."""
    lines = []
    for gate in gates:
        if not all(any(map(gate.matches, group)) for group in by_checkpoint(comparisons).values()):
            raise ValueError(f"--fail-if-worse {gate.task}: not compared for every checkpoint, so nothing guards it")
        worse = [c for c in comparisons if gate.matches(c) and gate.fails(c)]
        changes = [(c, _signed(c.difference, c.other.score.scale)) for c in worse]
        lines += [f"FAIL {_place(c.other)}: {change} points, margin {gate.margin:g}" for c, change in changes]
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare checkpoints with the first, task by task on the same samples; exit 1 if --fail-if-worse says so."""
    parser = argparse.ArgumentParser(prog="python -m evaluate.compare", description=main.__doc__)
    parser.add_argument("checkpoints", nargs="+", help="two or more: name, run folder, or start of the weights digest")
    parser.add_argument("--records", default="results/records", help="folder of the records (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=10_000, help="resamples of bootstrap and permutation")
    parser.add_argument("--seed", type=int, default=0, help="seed of both")
    parser.add_argument("--fail-if-worse", type=Gate.parse, action="append", default=[], metavar="TASK:POINTS")
    options = parser.parse_args(arguments)
    try:
        if len(options.checkpoints) < 2:
            raise ValueError(f"one checkpoint given ({options.checkpoints[0]}): name at least two")
        stored = read_all(options.records)
        chosen = [select(stored, name) for name in options.checkpoints]
        comparisons, refused = compare_all(chosen, samples=options.samples, seed=options.seed)
        print(report(comparisons, refused), end="")
        if by_checkpoint(comparisons).keys() != {checkpoint_key(records[0].checkpoint) for records in chosen[1:]}:
            raise ValueError("a checkpoint shares no task, dataset and protocol with the first: not compared")
        worse = failures(options.fail_if_worse, comparisons)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    print("".join(f"{terminal(line)}\n" for line in worse), end="")
    return 1 if worse else 0
