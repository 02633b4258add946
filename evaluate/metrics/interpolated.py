"""Average precision as COCO interpolates it, of one ranked list in which every detection has a weight."""

from __future__ import annotations

import numpy as np
from numba import njit

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)


def interpolated_ap(weights: np.ndarray, hits: np.ndarray, counted: np.ndarray, objects: float) -> np.ndarray:
    """AP at each of T thresholds, (T,): the mean over 101 recalls of the best precision at or beyond each.

    weights (D,) how often each detection counts, by falling score; hits, counted (T, D) boolean; objects: how many
    there are to find. NaN without any.
    """
    if objects == 0:
        return np.full(len(hits), np.nan)
    weights, hits, counted = (np.ascontiguousarray(part) for part in (weights, hits, counted))
    return mean_precision(weights, hits, counted, objects, RECALLS)


@njit(cache=True)
def mean_precision(weights, hits, counted, objects, recalls):
    """`interpolated_ap` of contiguous arrays and at least one object; recalls ascending."""
    detections = len(weights)
    found, precision = np.empty(detections + 1), np.empty(detections + 1)
    result = np.empty(len(hits))
    for t in range(len(hits)):
        right = wrong = found[0] = 0.0
        for d in range(detections):
            each = weights[d] * counted[t, d]
            right += each * hits[t, d]
            wrong += each - each * hits[t, d]
            found[d + 1] = right
            precision[d + 1] = right / (right + wrong) if right else 0.0
        at, best, total = len(recalls) - 1, 0.0, 0.0
        while at >= 0 and found[detections] / objects < recalls[at]:  # not reached: precision 0
            at -= 1
        for d in range(detections, 0, -1):
            best = max(best, precision[d])
            while at >= 0 and (d == 1 or found[d - 1] / objects < recalls[at]):
                total += best
                at -= 1
        result[t] = total / len(recalls)
    return result
