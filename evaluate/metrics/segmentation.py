"""Semantic segmentation scores from one confusion matrix."""

from collections.abc import Callable
from typing import Any, overload

import numpy as np
from scipy.optimize import linear_sum_assignment

from evaluate.metrics.arrays import as_numpy
from evaluate.metrics.statistics import expanded_percentiles

VOID = 255
RESAMPLES = 1000


def confusion(truth: Any, prediction: Any, classes: int, *, void: int = VOID) -> np.ndarray:
    """Pixel counts by true class (rows) and predicted class (columns).

    truth, prediction: integer label maps of one shape; pixels whose true label is `void` are left out. Returns
    (classes, classes) int64, to be summed over images. Raises ValueError for unequal shapes and for labels outside
    0..classes-1.
    """
    true, predicted = as_numpy(truth), as_numpy(prediction)
    if true.shape != predicted.shape:
        raise ValueError(f"truth has shape {true.shape}, prediction {predicted.shape}; they must agree")
    valid = true != void
    true, predicted = true[valid].astype(np.int64), predicted[valid].astype(np.int64)
    for name, labels in (("truth", true), ("prediction", predicted)):
        if labels.size and not 0 <= labels.min() <= labels.max() < classes:
            raise ValueError(f"{name} holds labels {labels.min()}..{labels.max()}; allowed are 0..{classes - 1}")
    return np.bincount(classes * true + predicted, minlength=classes**2).reshape(classes, classes)


def mean_iou(counts: np.ndarray, *, hungarian: bool = False, empty_as_zero: bool = False) -> float:
    """Mean over classes of the intersection over union of predicted and true pixels, in [0, 1].

    counts (C, C) from `confusion`. A class that is neither true nor predicted anywhere is left out, or scores 0 with
    `empty_as_zero`. `hungarian` first renames the predicted classes by the assignment with the largest sum of IoU, as
    is done for clusters. NaN when no pixel counts.
    """
    overlap = _pairwise_iou(counts)
    if hungarian:
        counts = counts[:, linear_sum_assignment(overlap, maximize=True)[1]]
        overlap = _pairwise_iou(counts)
    present = counts.sum(axis=0) + counts.sum(axis=1) > 0
    if not present.any():
        return float("nan")
    return float(overlap.diagonal().mean() if empty_as_zero else overlap.diagonal()[present].mean())


def mean_accuracy(counts: np.ndarray) -> float:
    """Mean over the classes that occur of the share of their pixels that are predicted as such, in [0, 1].

    counts (C, C) from `confusion`; NaN when no pixel counts.
    """
    true = counts.sum(axis=1)
    return float((counts.diagonal()[true > 0] / true[true > 0]).mean()) if true.any() else float("nan")


class ClassCounts:
    """Pixels of each class by image, from which scores of single images and of resampled sets follow."""

    def __init__(self, classes: int):
        self.classes = classes
        self._rows: list[np.ndarray] = []  # of each image: correct, true and predicted pixels of every class, (3, C)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, counts: np.ndarray) -> None:
        """Take in the confusion matrix (C, C) of one more image."""
        self._rows.append(np.stack([counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)]))

    @overload
    def iou(self, index: None = None) -> np.ndarray: ...
    @overload
    def iou(self, index: int) -> float: ...
    def iou(self, index: int | None = None) -> np.ndarray | float:
        """Mean IoU of every image, (n,), or of one, over the classes that occur in it; NaN where no pixel counts."""
        if index is not None:
            return float(mean_iou_of_totals(self._rows[index].astype(np.float64)[None], False)[0])
        return mean_iou_of_totals(np.array(self._rows, np.float64).reshape(-1, 3, self.classes), False)

    def by_image(self) -> np.ndarray:
        """Correct, true and predicted pixels of every class by image, (n, 3, C) uint32: what a paired test needs."""
        return np.array(self._rows, np.uint32).reshape(-1, 3, self.classes)

    def interval(self, empty_as_zero: bool = False) -> tuple[float | None, float | None]:
        """Interval at 95 % of the mean IoU of the set, by resampling images; None for both ends where unknown."""
        return self._bootstrap(lambda totals: mean_iou_of_totals(totals, empty_as_zero))

    def mean_accuracy_interval(self) -> tuple[float | None, float | None]:
        """Interval at 95 % of the mean accuracy of classes, by resampling images."""
        return self._bootstrap(_mean_accuracy)

    def accuracy_interval(self) -> tuple[float | None, float | None]:
        """Interval at 95 % of the share of correct pixels, by resampling images."""
        return self._bootstrap(lambda totals: totals[:, 0].sum(1) / np.maximum(totals[:, 1].sum(1), 1))

    def _bootstrap(self, score: Callable[[np.ndarray], np.ndarray]) -> tuple[float | None, float | None]:
        n, rng = len(self), np.random.default_rng(0)
        if n < 2:
            return None, None
        flat = np.array(self._rows, np.float64).reshape(n, -1)
        weights = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(np.float64)
        whole = float(score(flat.sum(0).reshape(1, 3, -1))[0])
        spread = score((weights @ flat).reshape(RESAMPLES, 3, -1)) - whole
        if not np.isfinite(whole) or not np.isfinite(spread).any():
            return None, None
        low, high = expanded_percentiles(spread[np.isfinite(spread)], n, 0.95)
        return max(whole + low, 0.0), min(whole + high, 1.0)


def _mean_accuracy(totals: np.ndarray) -> np.ndarray:
    """Mean accuracy (m,) over the classes that occur; totals as in `mean_iou_of_totals`."""
    correct, true, _ = totals.transpose(1, 0, 2)
    present = (true > 0).sum(axis=1)
    mean = (correct / np.maximum(true, 1)).sum(axis=1) / np.maximum(present, 1)
    return np.where(present > 0, mean, np.nan)


def mean_iou_of_totals(totals: np.ndarray, empty_as_zero: bool) -> np.ndarray:
    """Mean IoU (m,), NaN where no pixel counts, of correct, true and predicted pixels by class (m, 3, C)."""
    correct, true, predicted = totals.transpose(1, 0, 2)
    union = true + predicted - correct
    overlap = correct / np.maximum(union, 1)
    if empty_as_zero:
        return overlap.mean(axis=1)
    present = (union > 0).sum(axis=1)
    return np.where(present > 0, overlap.sum(axis=1) / np.maximum(present, 1), np.nan)


def _pairwise_iou(counts: np.ndarray) -> np.ndarray:
    union = counts.sum(axis=1, keepdims=True) + counts.sum(axis=0, keepdims=True) - counts
    return counts / np.maximum(union, 1)
