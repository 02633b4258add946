"""Per-sample outcomes of two records, brought into line so that a paired test may use them."""

from __future__ import annotations

import numpy as np

from evaluate.records import Record, Score

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray | None]


def paired(a: Record, b: Record) -> Pairs | None:
    """Headline outcomes (n,) of `a` and `b` for the same samples in the order of `a`, and their groups if any.

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
    return x[defined], y[defined], groups[defined] if groups is not None else None


def average_to(outcomes: np.ndarray, score: Score) -> bool:
    """Per-sample values stand for a score only if they average to it (those of a mIoU or a COCO AP do not)."""
    return abs(float(outcomes.mean()) - score.value) < 1e-3
