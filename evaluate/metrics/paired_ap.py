"""Two detectors on the same images: the difference of their AP, its interval and a permutation test.

The AP of a set is no mean over images: resamples and permutations rank the detections of their images anew.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from evaluate.metrics.interpolated import IOUS, interpolated_ap
from evaluate.metrics.statistics import PairedDifference, check_settings, expanded_percentiles

WORK = 400_000_000  # matches looked at in each of the two tests: some seconds
FEWEST = 500  # resamples, however many matches there are


class Side(NamedTuple):
    """What one detector found, by image, in the order in which images rank equal scores.

    matches (n, K, 4): class, score, and as bits which IoU thresholds it hits and at which it counts, NaN behind the
    last detection of an image; objects (n, C): objects of every class in every image.
    """

    matches: np.ndarray
    objects: np.ndarray


class Ranked(NamedTuple):
    """The detections of both sides in one class, ranked together: row (D,), second (D,) side, hits, counted (T, D)."""

    row: np.ndarray
    second: np.ndarray
    hits: np.ndarray
    counted: np.ndarray
    objects: np.ndarray


def paired_ap(
    a: Side, b: Side, *, thresholds: int = len(IOUS), samples: int = 10_000, seed: int = 0
) -> PairedDifference:
    """AP of `a` minus that of `b`, with its 95 % interval and the two-sided p-value of no difference.

    The AP is the mean over classes and over the first `thresholds` of the IoU 0.50:0.05:0.95; 1 gives AP50. Interval:
    bootstrap of images, widened as in `bootstrap_interval`. p-value: the detections of a and b are exchanged in random
    images, with the add-one rule. Both use `samples` draws, fewer (at least 500) for very many detections.
    Raises ValueError for other objects on either side and for fewer than two images.
    """
    check_settings(samples, 0.5)
    if not np.array_equal(a.objects, b.objects) or len(a.matches) != len(b.matches):
        raise ValueError("both sides must name the same objects in the same images")
    n = len(a.objects)
    if n < 2:
        raise ValueError("one image tells nothing of others: two or more are needed")
    ranked = _ranked(a, b, thresholds)
    found = sum(len(each.row) for each in ranked)
    samples = min(samples, max(FEWEST, WORK // max(1, found * thresholds)))
    ones, none = np.ones(n), np.zeros(n)
    difference = mean_ap(ranked, ones, none) - mean_ap(ranked, none, ones)
    rng = np.random.default_rng(seed)
    spread = np.empty(samples)
    for i in range(samples):
        drawn = rng.multinomial(n, np.full(n, 1 / n)).astype(np.float64)
        spread[i] = mean_ap(ranked, drawn, none) - mean_ap(ranked, none, drawn) - difference
    low, high = expanded_percentiles(spread[np.isfinite(spread)], n, 0.95)
    extreme = 0
    for _ in range(samples):
        swap = rng.integers(0, 2, n).astype(np.float64)
        exchanged = mean_ap(ranked, 1 - swap, swap) - mean_ap(ranked, swap, 1 - swap)
        extreme += abs(exchanged) >= abs(difference) - 1e-12
    return PairedDifference(difference, difference + low, difference + high, (1 + extreme) / (1 + samples))


def set_ap(side: Side, thresholds: int = len(IOUS)) -> float:
    """AP of all images of one side."""
    n = len(side.objects)
    return mean_ap(_ranked(side, side, thresholds), np.ones(n), np.zeros(n))


def mean_ap(ranked: list[Ranked], first: np.ndarray, second: np.ndarray) -> float:
    """AP of the detections of the first side in images counted `first` (n,) times and of the second, `second` times."""
    values = []
    for each in ranked:
        weights = np.where(each.second, second[each.row], first[each.row])
        objects = float((first + second) @ each.objects)
        if objects:  # a resample may hold none of a class, or none at all
            values.append(interpolated_ap(weights, each.hits, each.counted, objects).mean())
    return float(np.mean(values)) if values else float("nan")


def _ranked(a: Side, b: Side, thresholds: int) -> list[Ranked]:
    parts = []
    for second, side in enumerate((a, b)):
        row, place = np.nonzero(~np.isnan(side.matches[:, :, 0]))
        parts.append(np.column_stack([np.full(len(row), second), row, place, side.matches[row, place]]))
    second, row, place, of_class, score, hits, counted = np.concatenate(parts).T
    bits = 1 << np.arange(thresholds)[:, None]
    ranked = []
    for c in range(a.objects.shape[1]):
        own = np.flatnonzero(of_class == c)
        own = own[np.lexsort((place[own], row[own], -score[own]))]
        hit, counts = ((values[own].astype(np.int64) & bits) > 0 for values in (hits, counted))
        ranked.append(Ranked(row[own].astype(np.int64), second[own] > 0, hit, counts, a.objects[:, c]))
    return ranked
