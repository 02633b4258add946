"""Per-sample outcomes of two records, brought into line so that a paired test may use them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from evaluate.metrics.paired_ap import Side
from evaluate.records import Record, Score


class Pairs(NamedTuple):
    """Outcomes (n,) of two records on the same samples, the independent unit of each sample if known, and their ids."""

    a: np.ndarray
    b: np.ndarray
    groups: np.ndarray | None
    ids: np.ndarray


class Sample(NamedTuple):
    """One sample on which two records differ: its id and both outcomes."""

    id: str
    a: float
    b: float


def paired(a: Record, b: Record) -> Pairs | None:
    """Headline outcomes of `a` and `b` for the same samples in the order of `a`, with groups if there are any.

    None when outcomes or sample ids were not kept or the samples differ. Samples whose outcome is undefined (NaN) in
    either are left out. Raises FileNotFoundError or ValueError when stored outcomes are lost or damaged.
    """
    x, y = a.main_outcomes(), b.main_outcomes()
    if x is None or y is None or "sample_id" not in a.outcomes or "sample_id" not in b.outcomes:
        return None
    ids_a, ids_b = a.outcomes["sample_id"], b.outcomes["sample_id"]
    if x.shape != ids_a.shape or y.shape != ids_b.shape or ids_a.shape != ids_b.shape:
        return None
    if not np.array_equal(ids_a, ids_b):
        order_a, order_b = np.argsort(ids_a, kind="stable"), np.argsort(ids_b, kind="stable")
        if not np.array_equal(ids_a[order_a], ids_b[order_b]):
            return None
        aligned = np.empty_like(y)
        aligned[order_a] = y[order_b]
        y = aligned
    x, y = x.astype(np.float64), y.astype(np.float64)
    groups = a.outcomes.get("group")
    defined = np.isfinite(x) & np.isfinite(y)
    if not defined.any():
        return None
    return Pairs(x[defined], y[defined], groups[defined] if groups is not None else None, ids_a[defined])


def pixels(a: Record, b: Record) -> tuple[np.ndarray, np.ndarray] | None:
    """Pixels of every class by image (n, 3, C) of two segmentations, in one order; None where not kept of the same."""
    tables = []
    for record in (a, b):
        if "class_pixels" not in record.outcomes or "sample_id" not in record.outcomes:
            return None
        ids, table = record.outcomes["sample_id"], record.outcomes["class_pixels"]
        if table.ndim != 3 or len(table) != len(ids):
            return None
        order = np.argsort(ids, kind="stable")
        tables.append((ids[order], table[order]))
    (ids_a, one), (ids_b, two) = tables
    return (one, two) if one.shape == two.shape and len(one) > 1 and np.array_equal(ids_a, ids_b) else None


def detections(a: Record, b: Record) -> tuple[Side, Side] | None:
    """What two detectors matched in the same images, in the order of `a`; None where that was not kept."""
    needed = {"sample_id", "ap_matches", "ap_objects"}
    if not (needed <= a.outcomes.keys() and needed <= b.outcomes.keys()):
        return None
    order_a, order_b = (np.argsort(record.outcomes["sample_id"], kind="stable") for record in (a, b))
    if not np.array_equal(a.outcomes["sample_id"][order_a], b.outcomes["sample_id"][order_b]):
        return None
    rows = np.empty_like(order_b)
    rows[order_a] = order_b
    one = Side(a.outcomes["ap_matches"], a.outcomes["ap_objects"])
    two = Side(b.outcomes["ap_matches"][rows], b.outcomes["ap_objects"][rows])
    return (one, two) if len(rows) > 1 and np.array_equal(one.objects, two.objects) else None


def extremes(pairs: Pairs, count: int, *, higher_is_better: bool, seed: int = 0) -> tuple[list[Sample], list[Sample]]:
    """The samples on which `b` is better than `a` by most, and those on which it is worse by most, `count` at most.

    Among equal differences (all of them, where outcomes are 0 or 1) the choice is random, by `seed`.
    """
    gain = (pairs.b - pairs.a) if higher_is_better else (pairs.a - pairs.b)
    shuffled = np.random.default_rng(seed).permutation(len(gain))
    order = shuffled[np.argsort(-gain[shuffled], kind="stable")]
    better = [i for i in order[:count] if gain[i] > 0]
    worse = [i for i in order[::-1][:count] if gain[i] < 0]
    made = [[Sample(str(pairs.ids[i]), float(pairs.a[i]), float(pairs.b[i])) for i in each] for each in (better, worse)]
    return made[0], made[1]


def average_to(outcomes: np.ndarray, score: Score) -> bool:
    """Per-sample values stand for a score only if they average to it (those of a mIoU or a COCO AP do not)."""
    return abs(float(outcomes.mean()) - score.value) < 1e-3
