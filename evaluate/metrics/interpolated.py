"""Average precision as COCO interpolates it, of one ranked list in which every detection has a weight."""

from __future__ import annotations

import numpy as np

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)


def interpolated_ap(weights: np.ndarray, hits: np.ndarray, counted: np.ndarray, objects: float) -> np.ndarray:
    """AP at each of T thresholds, (T,): the mean over 101 recalls of the best precision at or beyond each.

    weights (D,) how often each detection counts, by falling score; hits, counted (T, D) boolean; objects: how many
    there are to find. NaN without any.
    """
    if objects == 0:
        return np.full(len(hits), np.nan)
    each = weights * counted
    found, wrong = np.cumsum(each * hits, axis=1), np.cumsum(each * ~hits, axis=1)
    precision = found / np.maximum(found + wrong, np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return np.array([_at_recalls(f / objects, p) for f, p in zip(found, precision, strict=True)])


def _at_recalls(recall: np.ndarray, precision: np.ndarray) -> float:
    place = np.searchsorted(recall, RECALLS, side="left")
    return float(np.append(precision, 0.0)[place].mean())  # 0 where a recall is not reached
