"""`python -m evaluate.compare A B [C ...]`: which checkpoint is better, task by task, on the same samples.

--fail-if-worse knn:0.5   exit with 1 when a task became worse by more than so many points (a gate for CI)
--sheet differ.png        draw the samples on which they differ most, where the images are at hand
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluate import sheet
from evaluate.leaderboard.compare import Comparison, by_checkpoint, compare_all, most_different, place, select, verdict
from evaluate.leaderboard.escape import terminal
from evaluate.leaderboard.grid import title
from evaluate.leaderboard.samples import Sample
from evaluate.leaderboard.table import number
from evaluate.leaderboard.text import aligned
from evaluate.records import checkpoint_key, read_all
from pretrain.arguments import Parser

HEAD = ["task", "dataset", "metric", "reference", "other", "difference", "95 % interval", "p", "p (Holm)"]
HEAD += ["wins/ties/losses", "test", "verdict", "protocol"]


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
    notes = [f"  {place(c.other)}: {c.note}" for c in group if c.note]
    notes += [f"  {place(c.other)}, {word}: {_listed(found)}" for c in group for word, found in most_different(c)]
    head = terminal(f"{title(b)} (other) against {title(a)} (reference)")
    return "\n".join([head, aligned([HEAD, *map(_row, group)], left=3), *map(terminal, [*notes, verdict(group)])])


def _listed(found: Sequence[Sample]) -> str:
    return ", ".join(f"{sample.id} ({sample.a:.3g} to {sample.b:.3g})" for sample in found)


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
        lines += [f"FAIL {place(c.other)}: {change} points, margin {gate.margin:g}" for c, change in changes]
    return lines


# ---- command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare checkpoints with the first, task by task on the same samples; exit 1 if --fail-if-worse says so."""
    parser = Parser(prog="python -m evaluate.compare", description=main.__doc__)
    parser.add_argument("checkpoints", nargs="+", help="two or more: name, run folder, or start of the weights digest")
    parser.add_argument("--records", default="results/records", help="folder of the records (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=10_000, help="resamples of bootstrap and permutation")
    parser.add_argument("--seed", type=int, default=0, help="seed of both")
    parser.add_argument("--fail-if-worse", type=Gate.parse, action="append", default=[], metavar="TASK:POINTS")
    parser.add_argument("--sheet", type=Path, metavar="FILE.png", help="draw the samples that differ most")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="where their images are (default: data)")
    options = parser.parse_args(arguments)
    try:
        if len(options.checkpoints) < 2:
            raise ValueError(f"one checkpoint given ({options.checkpoints[0]}): name at least two")
        stored = read_all(options.records)
        chosen = [select(stored, name) for name in options.checkpoints]
        comparisons, refused = compare_all(chosen, samples=options.samples, seed=options.seed)
        print(report(comparisons, refused), end="")
        if options.sheet:
            print(f"\n{sheet.draw(comparisons, options.sheet, options.data_root)}")
        if by_checkpoint(comparisons).keys() != {checkpoint_key(records[0].checkpoint) for records in chosen[1:]}:
            raise ValueError("a checkpoint shares no task, dataset and protocol with the first: not compared")
        worse = failures(options.fail_if_worse, comparisons)
    except (ValueError, OSError) as error:
        parser.error(terminal(error))
    print("".join(f"{terminal(line)}\n" for line in worse), end="")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
