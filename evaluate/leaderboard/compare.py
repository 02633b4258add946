"""Two or more checkpoints, sample by sample: difference, paired interval, test and verdict for every task they share.

Two records -> a comparison first, then the matching of records. The command line is `python -m evaluate.compare`.
"""

from __future__ import annotations

import difflib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluate.leaderboard import seeds
from evaluate.leaderboard.grid import title
from evaluate.leaderboard.samples import Sample, average_to, detections, extremes, paired, pixels
from evaluate.leaderboard.table import choices, differing_fields
from evaluate.metrics import statistics
from evaluate.metrics.interpolated import IOUS
from evaluate.metrics.paired_ap import paired_ap, set_ap
from evaluate.metrics.paired_iou import paired_iou
from evaluate.metrics.segmentation import mean_iou_of_totals
from evaluate.records import Record, checkpoint_key

LEVEL = 0.05
KEPT = 24  # samples in either direction


@dataclass(frozen=True)
class Comparison:
    """`other` against `reference` on one task and dataset under one protocol.

    `difference` is other minus reference in the unit of the score; `low` and `high` bound `mean_difference`, that of
    the paired outcomes (of the score itself for a mean IoU or an AP), at 95 %. `counts` are the samples on which other
    is better, equal, worse; `most_better` and `most_worse` those with the widest gap. `adjusted` is Holm's p-value
    over all comparisons made together. Without paired outcomes all of these are None or empty and `note` says why.
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
    most_better: tuple[Sample, ...] = ()
    most_worse: tuple[Sample, ...] = ()
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

    Interval: paired bootstrap over samples, or over whole groups where they come in groups (frames of a video).
    p-value: McNemar for outcomes 0 or 1, sign-flip permutation for others and for groups. A mean IoU whose pixels
    were kept, and an AP whose matches were, is itself resampled and permuted by image. Where a side is a recipe of
    several seeds, both come from the two-level bootstrap.
    """
    if reference.fingerprint != other.fingerprint:
        raise ValueError(f"{place(reference)} was measured differently: {differences(reference, other)}")
    plain = Comparison(reference, other, other.score.value - reference.score.value)
    pairs = paired(reference, other)
    if pairs is None:
        return replace(plain, note="not the same samples, or none were kept: only the scores are compared")
    a, b, groups, _ = pairs
    by_seed = seeds.tables(reference, other, pairs)
    options: dict[str, Any] = {"samples": samples, "seed": seed, "groups": groups}
    better, worse = extremes(pairs, KEPT, higher_is_better=other.higher_is_better, seed=seed)
    of_set = None if by_seed or groups is not None else _of_set(reference, other, samples, seed)
    if of_set is not None:
        interval = of_set
    elif by_seed is None:
        interval = statistics.paired_bootstrap(b, a, **options)
    else:
        interval = statistics.seeds_difference(by_seed[1], by_seed[0], **options)
    if of_set is not None:
        test, p_value = "permutation of images", of_set.p_value
    elif by_seed is not None:
        test, p_value = "two-level bootstrap", interval.p_value
    elif groups is not None:
        test, p_value = "permutation of groups", statistics.permutation_test(b, a, **options)
    elif np.isin(np.concatenate([a, b]), (0, 1)).all():
        test, p_value = "McNemar", statistics.mcnemar(b, a)
    else:
        test, p_value = "permutation", statistics.permutation_test(b, a, samples=samples, seed=seed)
    scores_are_means = of_set is not None or average_to(a, reference.score) and average_to(b, other.score)
    return replace(
        plain,
        mean_difference=interval.difference,
        low=interval.low,
        high=interval.high,
        p_value=p_value,
        test=test,
        counts=_count(a, b, other.higher_is_better),
        most_better=tuple(better),
        most_worse=tuple(worse),
        note="; ".join(_caveats(scores_are_means, by_seed)),
    )


def _of_set(reference: Record, other: Record, samples: int, seed: int) -> statistics.PairedDifference | None:
    """The test of a mean IoU or AP itself, where what is behind both scores was kept; None for any other score."""
    wanted = [reference.score.value, other.score.value]
    if (kept := pixels(reference, other)) is not None:
        rule = bool(reference.protocol.get("empty_as_zero", False))
        sums = np.array([table.sum(axis=0, dtype=np.float64) for table in kept])
        if np.allclose(mean_iou_of_totals(sums, rule), wanted, atol=1e-6):  # else the pixels are behind another score
            return paired_iou(kept[1], kept[0], samples=samples, seed=seed, empty_as_zero=rule)
    if (sides := detections(reference, other)) is not None:
        thresholds = 1 if reference.main.endswith("ap50") else len(IOUS)
        if np.allclose([set_ap(side, thresholds) for side in sides], wanted, atol=1e-6):
            return paired_ap(sides[1], sides[0], thresholds=thresholds, samples=samples, seed=seed)
    return None


def _caveats(scores_are_means: bool, by_seed: tuple[np.ndarray, np.ndarray] | None) -> list[str]:
    notes = (
        [] if scores_are_means else ["interval and test are of the mean outcome per sample, not of the score itself"]
    )
    if by_seed is not None and min(map(len, by_seed)) == 1:
        notes.append("one side has one seed, so nothing is known of what other seeds of it would give")
    return notes


def _count(a: np.ndarray, b: np.ndarray, higher_is_better: bool) -> tuple[int, int, int]:
    wins = (b > a) if higher_is_better else (b < a)
    ties = a == b
    return int(wins.sum()), int(ties.sum()), int((~wins & ~ties).sum())


def differences(a: Record, b: Record) -> str:
    """The protocol fields in which two records differ, with both values: "k = 20 and 10"."""
    one, two = choices(a), choices(b)
    fields = differing_fields([one, two])
    return ", ".join(f"{name} = {one.get(name, 'absent')} and {two.get(name, 'absent')}" for name in fields)


def most_different(c: Comparison, count: int = 3) -> list[tuple[str, tuple[Sample, ...]]]:
    """("other better by most", samples) and ("other worse by most", samples), where there are any."""
    both = (("other better by most", c.most_better[:count]), ("other worse by most", c.most_worse[:count]))
    return [(word, found) for word, found in both if found]


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
            left = [[each[f] for f in sorted(each.keys() - set(common))] for each in (a, b)]
            if not common or any(left):
                refused.append(_refusal(*left))
    return adjust(made), refused


def _refusal(a: Sequence[Record], b: Sequence[Record]) -> str:
    """Why records of one task and dataset cannot be compared: absent on one side, or measured differently."""
    if not a or not b:
        only = (a or b)[0]
        return f"{place(only)}: only {title(only.checkpoint)} has it, by protocol {only.fingerprint}"
    names = f"{title(a[0].checkpoint)} and {title(b[0].checkpoint)}"
    return f"{place(a[0])}: {names} were measured differently, {differences(a[0], b[0])}"


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


def place(record: Record) -> str:
    return f"{record.task} on {record.dataset}"


def _by_place(records: Sequence[Record]) -> dict[tuple[str, str], dict[str, Record]]:
    places: dict[tuple[str, str], dict[str, Record]] = defaultdict(dict)
    for record in records:
        places[record.task, record.dataset][record.fingerprint] = record
    return places


# ---- which checkpoint is meant


def select(records: Sequence[Record], wanted: str) -> list[Record]:
    """All records of the checkpoint called `wanted`: its name, the folder of its run, or the start of its digest.

    Where no checkpoint has this name but several seeds of one recipe do, these count as one. Raises ValueError when
    none or several checkpoints answer to it, naming the nearest or all of them.
    """
    path = Path(wanted)
    names = {wanted, path.name, "/".join(path.parts[-3:])}  # the last: runs/NAME/epochs/NNN
    found: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        digest = record.checkpoint["weights_digest"]
        if record.checkpoint["name"] in names or len(wanted) >= 6 and digest.startswith(wanted):
            found[checkpoint_key(record.checkpoint)].append(record)
    if not found and (merged := seeds.of_recipe(records, Path(wanted).name)):
        return merged
    if not found:
        known = sorted({record.checkpoint["name"] for record in records})
        near = ", ".join(difflib.get_close_matches(Path(wanted).name, known, n=3, cutoff=0.4) or known[:5])
        raise ValueError(f"no records of checkpoint {wanted!r}; nearest: {near or 'none, there are no records'}")
    if len(found) > 1:
        several = [records[0].checkpoint for records in found.values()]
        each = ", ".join(f"{c['weights_digest'][:12]} (epoch {c.get('epoch')})" for c in several)
        raise ValueError(f"{wanted!r} names {len(found)} checkpoints; give the start of a weights digest: {each}")
    return next(iter(found.values()))
