"""Two segmentations of the same images: the difference of their mean IoU, its interval and a permutation test.

The mean IoU of a set is no mean over images, so resamples and permutations sum the pixels of images anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from evaluate.metrics.arrays import as_numpy
from evaluate.metrics.segmentation import mean_iou_of_totals
from evaluate.metrics.statistics import PairedDifference, check_settings, expanded_percentiles

AT_ONCE = 4_000_000  # weights of images held at a time: 32 MB


def paired_iou(
    a: Any, b: Any, *, samples: int = 10_000, seed: int = 0, empty_as_zero: bool = False
) -> PairedDifference:
    """Mean IoU of `a` minus that of `b`, with its 95 % interval and the two-sided p-value of no difference.

    a, b (n, 3, C): correct, true and predicted pixels of every class by image, the same images in the same order.
    Interval: bootstrap of images, widened as in `bootstrap_interval`. p-value: the labels a and b are exchanged on
    every subset of images where there are no more than `samples` of them, else on random ones with the add-one rule.
    Raises ValueError for unequal shapes or fewer than two images.
    """
    check_settings(samples, 0.5)
    left, right = as_numpy(a).astype(np.float64), as_numpy(b).astype(np.float64)
    if left.ndim != 3 or left.shape[1] != 3 or left.shape != right.shape:
        raise ValueError(f"pixels must be two arrays (images, 3, classes) of one shape: {left.shape}, {right.shape}")
    n, classes = len(left), left.shape[2]
    if n < 2:
        raise ValueError("one image tells nothing of others: two or more are needed")
    left, right = left.reshape(n, -1), right.reshape(n, -1)

    def score(sums: np.ndarray) -> np.ndarray:
        return mean_iou_of_totals(sums.reshape(len(sums), 3, classes), empty_as_zero)

    difference = float((score(left.sum(0)[None]) - score(right.sum(0)[None]))[0])
    rng = np.random.default_rng(seed)
    drawn = (rng.multinomial(n, np.full(n, 1 / n), rows).astype(np.float64) for rows in _rows(samples, n))
    spread = np.concatenate([score(w @ left) - score(w @ right) for w in drawn]) - difference
    low, high = expanded_percentiles(spread[np.isfinite(spread)], n, 0.95)
    exact = n < 60 and 2**n <= samples
    swaps = _all_subsets(n) if exact else (rng.integers(0, 2, (rows, n)).astype(float) for rows in _rows(samples, n))
    total, extreme, far = left + right, 0, abs(difference) - 1e-12
    for swap in swaps:
        first = swap @ right + (1 - swap) @ left
        extreme += int((np.abs(score(first) - score(total.sum(0) - first)) >= far).sum())
    p_value = extreme / 2**n if exact else (1 + extreme) / (1 + samples)
    return PairedDifference(difference, difference + low, difference + high, p_value)


def _rows(samples: int, width: int) -> Iterator[int]:
    step = max(1, AT_ONCE // width)
    return (min(step, samples - start) for start in range(0, samples, step))


def _all_subsets(n: int) -> Iterator[np.ndarray]:
    size = max(1, AT_ONCE // n)
    for start in range(0, 2**n, size):
        subset = np.arange(start, min(start + size, 2**n))
        yield (subset[:, None] >> np.arange(n) & 1).astype(np.float64)
